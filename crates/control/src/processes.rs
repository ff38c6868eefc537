//! Processes inside: started, attached to, signalled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sandbank_agent_protocol as agent;
use sandbank_agent_protocol::{Connection, DATA_MAX, Frame, HostMessage, Reply, Request, Stream, WriteHalf, write_frame};
use sandbank_model::{Sandbox, SandboxId};
use tokio::sync::watch;

use crate::agent::Incoming;
use crate::control::{Control, Inner};
use crate::convert::{ended_under_stream, unresponsive};
use crate::limits::{check_argv, check_env};
use crate::types::{Caller, Exec, ExecOutput, Id, ProcessEvent};
use crate::{Error, ErrorKind, Result, telemetry};

/// Longest timeout of an exec.
const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Longest name of a process.
const TAG_MAX: usize = 256;
/// Most bytes that are written to a process's stdin in one call, and longest wait for it to take them.
const STDIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream of a process: events out, input in. Dropping it detaches (or kills, if the exec said so).
#[derive(Debug)]
pub struct ProcessStream {
    /// What the process does.
    pub events: ProcessEvents,
    /// What is sent to it.
    pub input: ProcessInput,
}

/// The receiving side.
#[derive(Debug)]
pub struct ProcessEvents {
    incoming: Incoming,
    first: Option<ProcessEvent>,
    ended: bool,
}

/// The sending side.
pub struct ProcessInput {
    writer: WriteHalf,
    ended: watch::Receiver<bool>,
}

impl std::fmt::Debug for ProcessInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessInput").finish_non_exhaustive()
    }
}

impl ProcessEvents {
    /// The next event; `None` after the last one. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.ended {
            return Ok(None);
        }
        let event = self.read().await;
        self.ended = !matches!(event, Ok(ProcessEvent::Output(..)));
        event.map(Some)
    }

    async fn read(&mut self) -> Result<ProcessEvent> {
        match self.incoming.some_frame().await? {
            Frame::Output(stream, data) => Ok(ProcessEvent::Output(stream, data)),
            Frame::Message(body) => match self.incoming.reply(&body)? {
                Reply::Exited(status) => Ok(ProcessEvent::Exited(status)),
                Reply::StillRunning => Ok(ProcessEvent::StillRunning),
                _ => Err(self.incoming.confused()),
            },
            Frame::Data(_) | Frame::End => Err(self.incoming.confused()),
        }
    }
}

impl ProcessInput {
    /// Writes to stdin or the terminal; waits while the process does not read.
    pub async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(DATA_MAX));
            self.send(&Frame::Data(piece)).await?;
        }
        Ok(())
    }

    /// Closes stdin.
    pub async fn close(&mut self) -> Result<()> {
        self.message(&HostMessage::CloseStdin).await
    }

    /// Signals the process or its group.
    pub async fn signal(&mut self, signal: i32, group: bool) -> Result<()> {
        check_signal(signal)?;
        self.message(&HostMessage::Signal { signal, group }).await
    }

    /// Resizes the terminal.
    pub async fn resize(&mut self, size: agent::PtySize) -> Result<()> {
        self.message(&HostMessage::Resize(size)).await
    }

    async fn message(&mut self, message: &HostMessage) -> Result<()> {
        let frame = Frame::message(message)?;
        self.send(&frame).await
    }

    async fn send(&mut self, frame: &Frame) -> Result<()> {
        tokio::select! {
            biased;
            sent = write_frame(&mut self.writer, frame) => Ok(sent?),
            _ = self.ended.wait_for(|ended| *ended) => Err(ended_under_stream()),
        }
    }
}

fn check_signal(signal: i32) -> Result<()> {
    if (1..=64).contains(&signal) { Ok(()) } else { Err(Error::invalid(format!("{signal} is not a signal: use 1 to 64"))) }
}

impl Control {
    /// Starts a program and streams it. What the request leaves open comes from the lease (environment) and the spec.
    pub async fn exec(&self, caller: &Caller, id: Id, exec: Exec) -> Result<ProcessStream> {
        let begun = Instant::now();
        let inner = &self.inner;
        let sandbox = inner.running(caller, id).await?;
        let mut start = start_of(&sandbox, exec)?;
        for (name, value) in inner.trust_again(&sandbox).await {
            start.env.entry(name).or_insert(value);
        }
        let connection = inner.open_in(&sandbox, &Request::Start(Box::new(start))).await?;
        let stream = inner.process_stream(id, connection).await?;
        telemetry::stage("exec", begun.elapsed());
        Ok(stream)
    }

    /// Runs a program to its end and returns what it wrote, at most `Settings::exec_output_max` bytes a stream: what follows is
    /// read and dropped, so that the program does not stall.
    pub async fn exec_collect(&self, caller: &Caller, id: Id, exec: Exec) -> Result<ExecOutput> {
        let mut stream = self.exec(caller, id, exec).await?;
        let max = self.inner.settings.exec_output_max;
        let (mut stdout, mut stderr, mut truncated) = (BytesMut::new(), BytesMut::new(), false);
        while let Some(event) = stream.events.next().await? {
            match event {
                ProcessEvent::Output(from, data) => {
                    let into = if from == Stream::Stderr { &mut stderr } else { &mut stdout };
                    let room = max.saturating_sub(into.len());
                    truncated |= data.len() > room;
                    into.extend_from_slice(&data[..data.len().min(room)]);
                }
                ProcessEvent::Exited(status) => {
                    return Ok(ExecOutput { status, stdout: stdout.freeze(), stderr: stderr.freeze(), truncated });
                }
                ProcessEvent::Started { .. } | ProcessEvent::StillRunning => {}
            }
        }
        Err(self.inner.confused(id))
    }

    /// Streams a process that runs or has ended not long ago.
    pub async fn process_attach(&self, caller: &Caller, id: Id, attach: agent::AttachProcess) -> Result<ProcessStream> {
        let connection = self.inner.open(caller, id, &Request::Attach(attach)).await?;
        self.inner.process_stream(id, connection).await
    }

    /// Processes that requests started, running or ended not long ago.
    pub async fn process_list(&self, caller: &Caller, id: Id) -> Result<Vec<agent::ProcessInfo>> {
        match self.inner.ask(caller, id, &Request::ListProcesses).await? {
            Reply::Processes(processes) => Ok(processes),
            _ => Err(self.inner.confused(id)),
        }
    }

    /// Signals a process or its group.
    pub async fn process_signal(&self, caller: &Caller, id: Id, signal: agent::SendSignal) -> Result<()> {
        check_signal(signal.signal)?;
        self.inner.ask_done(caller, id, &Request::Signal(signal)).await
    }

    /// Resizes a process's terminal.
    pub async fn process_resize(&self, caller: &Caller, id: Id, resize: agent::ResizePty) -> Result<()> {
        self.inner.ask_done(caller, id, &Request::Resize(resize)).await
    }

    /// Writes to a process's stdin; answered when its pipe has taken everything.
    pub async fn process_write(&self, caller: &Caller, id: Id, process: agent::ProcessSelector, data: Bytes) -> Result<()> {
        let mut connection = self.inner.open(caller, id, &Request::WriteStdin(process)).await?;
        let exchange = async {
            connection.send_data(data).await?;
            connection.send_end().await?;
            connection.reply("done").await
        };
        match tokio::time::timeout(STDIN_TIMEOUT, exchange).await {
            Ok(Ok(Reply::Done)) => Ok(()),
            Ok(Ok(_)) => Err(self.inner.confused(id)),
            Ok(Err(error)) => Err(self.inner.suspect(id, error.into())),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "the process does not read its stdin")),
        }
    }

    /// Closes a process's stdin.
    pub async fn process_close_stdin(&self, caller: &Caller, id: Id, process: agent::ProcessSelector) -> Result<()> {
        self.inner.ask_done(caller, id, &Request::CloseStdin(process)).await
    }
}

impl Inner {
    /// One request that is answered by `Done`.
    pub(crate) async fn ask_done(self: &Arc<Self>, caller: &Caller, id: SandboxId, request: &Request) -> Result<()> {
        match self.ask(caller, id, request).await? {
            Reply::Done => Ok(()),
            _ => Err(self.confused(id)),
        }
    }

    /// The stream of a start or attach whose first answer has come.
    pub(crate) async fn process_stream(self: &Arc<Self>, id: SandboxId, mut connection: Connection) -> Result<ProcessStream> {
        let reply = tokio::time::timeout(crate::agent::ANSWER_TIMEOUT, self.first_reply(id, &mut connection)).await;
        let first = match reply.map_err(|_| unresponsive())?? {
            Reply::Started { pid } => ProcessEvent::Started { pid, stdout_offset: 0, stderr_offset: 0 },
            Reply::Attached { pid, stdout_offset, stderr_offset, pty: _ } => {
                ProcessEvent::Started { pid, stdout_offset, stderr_offset }
            }
            _ => return Err(self.confused(id)),
        };
        let (reader, writer) = connection.split();
        let incoming = Incoming::new(Arc::clone(self), id, reader);
        let input = ProcessInput { writer, ended: incoming.listener() };
        Ok(ProcessStream { events: ProcessEvents { incoming, first: Some(first), ended: false }, input })
    }
}

/// The whole of what the agent starts: request over lease over spec (which holds the image's defaults since it was made).
fn start_of(sandbox: &Sandbox, exec: Exec) -> Result<agent::StartProcess> {
    if exec.argv.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("the command is empty: name a program"));
    }
    check_argv(&exec.argv)?;
    check_env(&exec.env)?;
    if exec.tag.as_ref().is_some_and(|tag| tag.is_empty() || tag.len() > TAG_MAX) {
        return Err(Error::invalid(format!("a tag has 1 to {TAG_MAX} bytes")));
    }
    if exec.timeout.is_some_and(|timeout| timeout.is_zero() || timeout > EXEC_TIMEOUT_MAX) {
        return Err(Error::invalid("the timeout of a command must be greater than zero and at most 366 days"));
    }
    let mut env = sandbox.spec.env.clone();
    env.extend(sandbox.lease.iter().flat_map(|lease| lease.env.clone()));
    env.extend(exec.env);
    Ok(agent::StartProcess {
        argv: exec.argv,
        env,
        cwd: exec.cwd.or_else(|| sandbox.spec.workdir.clone()),
        user: exec.user.or_else(|| sandbox.spec.user.clone()),
        pty: exec.pty,
        stdin: exec.stdin,
        tag: exec.tag,
        deadline_ms: exec.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
        ring_bytes: None,
        kill_on_disconnect: exec.kill_on_disconnect,
    })
}
