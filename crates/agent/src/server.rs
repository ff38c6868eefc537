//! Accepts connections and hands each request to its operation.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Rlimit, Signal};
use sandbank_agent_protocol::{AgentError, ErrorKind, Frame, PROTOCOL_VERSION, Reply, Request};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::errors::{Failure, invalid};
use crate::host::{self, Host};
use crate::process::{self, ProcessTable};
use crate::users::UserCache;
use crate::{dial, files, metrics, watch};

/// Operations at once.
const CONNECTIONS_MAX: usize = 512;
/// Connections beyond that which are told so; more are closed without a word.
const TURNED_AWAY_MAX: usize = 64;
/// The first message has to come within this time.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
const TURNED_AWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, so that a shortage of descriptors is not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Everything the operations share.
pub(crate) struct Agent {
    /// When it began.
    began: Instant,
    /// Processes that requests started.
    pub(crate) processes: ProcessTable,
    /// The sandbox's users.
    pub(crate) users: UserCache,
    connections: Cell<usize>,
    shut_down: Notify,
}

impl Agent {
    /// With the open-files limit that children get, where it differs from the agent's own.
    pub(crate) fn new(children_files: Option<Rlimit>) -> Self {
        Self {
            began: Instant::now(),
            processes: ProcessTable::new(children_files),
            users: UserCache::default(),
            connections: Cell::new(0),
            shut_down: Notify::new(),
        }
    }
}

/// Serves until a shutdown request.
pub(crate) async fn serve(agent: Rc<Agent>, listener: UnixListener) -> io::Result<()> {
    let reaper = process::reaper(Rc::clone(&agent))?;
    spawn_local(reaper);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = agent.shut_down.notified() => return Ok(()),
        };
        match accepted {
            Ok((stream, _)) => admit(&agent, stream),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn admit(agent: &Rc<Agent>, stream: UnixStream) {
    let counted = Counted::new(agent);
    let open = agent.connections.get();
    if open > CONNECTIONS_MAX + TURNED_AWAY_MAX {
        return;
    }
    if open > CONNECTIONS_MAX {
        spawn_local(turn_away(counted, stream));
    } else {
        spawn_local(converse(counted, stream));
    }
}

/// One open connection, for as long as it lives.
struct Counted(Rc<Agent>);

impl Counted {
    fn new(agent: &Rc<Agent>) -> Self {
        agent.connections.set(agent.connections.get() + 1);
        Self(Rc::clone(agent))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get().saturating_sub(1));
    }
}

async fn turn_away(_counted: Counted, stream: UnixStream) {
    let mut host = Host::new(stream);
    // The request is read first: closing with unread data would reset the connection before the host saw the answer.
    let _ = tokio::time::timeout(TURNED_AWAY_TIMEOUT, host.reader.next()).await;
    let message = format!("{CONNECTIONS_MAX} operations are running in this sandbox already: end some first");
    let refusal = Reply::Error(AgentError::new(ErrorKind::Exhausted, message));
    let _ = tokio::time::timeout(TURNED_AWAY_TIMEOUT, host.reply(&refusal)).await;
}

async fn converse(counted: Counted, stream: UnixStream) {
    let agent = &counted.0;
    let mut host = Host::new(stream);
    let outcome = match first_message(&mut host).await {
        Ok(request) => operate(agent, &mut host, request).await,
        Err(failure) => Err(failure),
    };
    if let Err(Failure::Refused(error)) = outcome {
        let _ = host.reply(&Reply::Error(error)).await;
    }
}

async fn first_message(host: &mut Host) -> Result<Request, Failure> {
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, host.reader.next()).await;
    match first.map_err(|_| invalid("no request came within 10 seconds"))?? {
        Some(Frame::Message(body)) => Ok(host::parse(&body)?),
        Some(_) => Err(invalid("a connection begins with a request, not with data").into()),
        None => Err(Failure::HostGone),
    }
}

async fn operate(agent: &Rc<Agent>, host: &mut Host, request: Request) -> Result<(), Failure> {
    match request {
        Request::Ping => {
            let uptime_ms = u64::try_from(agent.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            host.reply(&Reply::Pong { protocol: PROTOCOL_VERSION, uptime_ms }).await
        }
        Request::Start(start) => Box::pin(process::start(agent, host, *start)).await,
        Request::Attach(attach) => Box::pin(process::attach(agent, host, attach)).await,
        Request::Signal(signal) => {
            agent.processes.signal(&signal)?;
            host.reply(&Reply::Done).await
        }
        Request::Resize(resize) => {
            agent.processes.find(&resize.process)?.resize(resize.size)?;
            host.reply(&Reply::Done).await
        }
        Request::WriteStdin(process) => Box::pin(process::write_stdin(agent, host, &process)).await,
        Request::CloseStdin(process) => {
            agent.processes.find(&process)?.close_stdin().await?;
            host.reply(&Reply::Done).await
        }
        Request::ListProcesses => Box::pin(process::list(agent, host)).await,
        Request::Metrics => host.reply(&Reply::Metrics(metrics::gather())).await,
        Request::Watch(watch) => Box::pin(watch::watch(agent, host, watch)).await,
        Request::Dial { port } => Box::pin(dial::dial(host, port)).await,
        Request::Shutdown => shut_down(agent, host).await,
        file_request => Box::pin(files::operate(agent, host, file_request)).await,
    }
}

async fn shut_down(agent: &Rc<Agent>, host: &mut Host) -> Result<(), Failure> {
    if rustix::process::getpid() == Pid::INIT {
        // Process group 1 to the kernel's kill(2) is -1: everything but process 1 itself.
        let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    } else {
        agent.processes.kill_all();
    }
    let told = host.reply(&Reply::Done).await;
    agent.shut_down.notify_one();
    told
}
