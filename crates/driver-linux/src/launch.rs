//! The server's side of the launcher: starts it, talks to it, notices when it dies, starts the next.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use sandbank_driver::DriverError;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::launcher::{Answer, FDS_VARIABLE, MakeOrder, Order, PACKET_MAX};
use crate::network::NetworkOrder;
use crate::{channel, sys};

/// Longest wait until an earlier launcher, or a child that it had begun, has left the data directory.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for an answer: far more than a clone takes.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Why an order was not carried out.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// The launcher died; whether it began is unknown.
    Died,
    /// A step failed. Parts may be there.
    Failed {
        /// Which.
        step: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// No launcher could be started or asked.
    Unavailable(DriverError),
}

impl LaunchError {
    /// Whether the launcher died before the sandbox was made, so that the next one may try again. A child that finds its launcher
    /// dead says `ESRCH`, which no other step does.
    pub(crate) fn is_death(&self) -> bool {
        matches!(self, Self::Died | Self::Failed { errno: Errno::SRCH, .. })
    }
}

/// A sandbox's process that was begun and sets itself up.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Its pid as the host sees it.
    pub(crate) pid: u32,
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
    /// Which addresses it has, if any.
    pub(crate) network: Option<u16>,
    /// Tells when setting up fails.
    pub(crate) failure: FailureWatch,
}

/// Waits for the failure of one order; forgets the order when dropped.
#[derive(Debug)]
pub(crate) struct FailureWatch {
    seq: u64,
    running: Arc<Running>,
    failed: oneshot::Receiver<LaunchError>,
}

impl FailureWatch {
    /// Resolves when setting up has failed; when the launcher died, with `Died`.
    pub(crate) async fn wait(&mut self) -> LaunchError {
        (&mut self.failed).await.unwrap_or(LaunchError::Died)
    }
}

impl Drop for FailureWatch {
    fn drop(&mut self) {
        self.running.forget(self.seq);
    }
}

/// Starts launchers and gives them orders.
#[derive(Debug)]
pub(crate) struct LauncherClient {
    command: Vec<OsString>,
    lock_path: PathBuf,
    sandboxes: PathBuf,
    cgroup_bases: Vec<PathBuf>,
    network: Option<NetworkOrder>,
    seq: AtomicU64,
    current: tokio::sync::Mutex<Option<Arc<Running>>>,
}

/// Who waits for the answers to one order.
#[derive(Debug)]
struct Waiter {
    begun: Option<oneshot::Sender<(u32, OwnedFd, Option<u16>)>>,
    failed: oneshot::Sender<LaunchError>,
}

/// One launcher process.
#[derive(Debug)]
struct Running {
    socket: AsyncFd<OwnedFd>,
    pid: u32,
    dead: AtomicBool,
    waiters: Mutex<HashMap<u64, Waiter>>,
}

impl LauncherClient {
    /// For launchers that work in `sandboxes` and in the cgroups below `cgroup_bases`, one at a time, as the lock file says.
    pub(crate) fn new(
        command: Vec<OsString>,
        lock_path: PathBuf,
        sandboxes: PathBuf,
        cgroup_bases: Vec<PathBuf>,
        network: Option<NetworkOrder>,
    ) -> Self {
        let current = tokio::sync::Mutex::new(None);
        Self { command, lock_path, sandboxes, cgroup_bases, network, seq: AtomicU64::new(1), current }
    }

    /// Pid of the running one.
    pub(crate) async fn pid(&self) -> Option<u32> {
        self.current.lock().await.as_ref().filter(|running| !running.dead.load(Ordering::Acquire)).map(|running| running.pid)
    }

    /// Makes sure that one runs, and so that neither a launcher that died nor a child that it had begun is at work any more.
    pub(crate) async fn settle(&self) -> Result<(), DriverError> {
        self.running().await.map(drop)
    }

    /// Gives an order and waits until the sandbox's process exists.
    pub(crate) async fn begin(&self, mut order: MakeOrder) -> Result<Begun, LaunchError> {
        let running = self.running().await.map_err(LaunchError::Unavailable)?;
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        order.seq = seq;
        let (begun_sender, begun) = oneshot::channel();
        let (failed_sender, failed) = oneshot::channel();
        running.waiters().insert(seq, Waiter { begun: Some(begun_sender), failed: failed_sender });
        let mut failure = FailureWatch { seq, running: Arc::clone(&running), failed };
        running.send(&Order::Make(Box::new(order))).await?;
        let answered = tokio::time::timeout(ANSWER_WAIT, async {
            tokio::select! {
                begun = begun => begun.map_err(|_| None),
                error = failure.wait() => Err(Some(error)),
            }
        });
        match answered.await {
            Ok(Ok((pid, pidfd, network))) => Ok(Begun { pid, pidfd, network, failure }),
            Ok(Err(Some(error))) => Err(error),
            // The waiter is gone: the failure says why, or the launcher died.
            Ok(Err(None)) => Err(failure.wait().await),
            Err(_) => {
                running.kill();
                let waited_ms = u64::try_from(ANSWER_WAIT.as_millis()).unwrap_or(u64::MAX);
                Err(LaunchError::Unavailable(DriverError::TimedOut { what: "the launcher", waited_ms }))
            }
        }
    }

    async fn running(&self) -> Result<Arc<Running>, DriverError> {
        let mut current = self.current.lock().await;
        if let Some(running) = current.as_ref().filter(|running| !running.dead.load(Ordering::Acquire)) {
            return Ok(Arc::clone(running));
        }
        let running = self.start().await?;
        *current = Some(Arc::clone(&running));
        Ok(running)
    }

    async fn start(&self) -> Result<Arc<Running>, DriverError> {
        let lock = self.lock().await?;
        let failed = |detail: String| DriverError::Failed { step: "start the launcher".to_owned(), detail };
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| failed(errno.to_string()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| failed(errno.to_string()))?;
        let mut child = self.spawn(&theirs, &lock).map_err(|error| failed(error.to_string()))?;
        drop((theirs, lock));
        let socket = sys::watched(ours, Interest::READABLE | Interest::WRITABLE).map_err(|error| failed(error.to_string()))?;
        let running = Arc::new(Running { socket, pid: child.id(), dead: AtomicBool::new(false), waiters: Mutex::default() });
        tokio::spawn(Arc::clone(&running).read());
        let reaped = Arc::clone(&running);
        // Reaped by a thread of its own: a launcher lives as long as the server.
        std::thread::Builder::new()
            .name("launcher-wait".to_owned())
            .spawn(move || {
                let status = child.wait();
                // Children that it had begun still hold its end of the channel.
                reaped.dead.store(true, Ordering::Release);
                let _ = rustix::net::shutdown(reaped.socket.get_ref(), rustix::net::Shutdown::Both);
                tracing::info!(pid = child.id(), ?status, "the launcher ended");
            })
            .map_err(|error| failed(error.to_string()))?;
        let configure = Order::Configure {
            sandboxes: self.sandboxes.clone(),
            cgroup_bases: self.cgroup_bases.clone(),
            network: self.network.clone(),
        };
        running
            .send(&configure)
            .await
            .map_err(|_| failed("it ended at once; see its message on the server's stderr".to_owned()))?;
        Ok(running)
    }

    fn spawn(&self, channel: &OwnedFd, lock: &OwnedFd) -> io::Result<std::process::Child> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the launcher's command is empty"))?;
        let (channel, lock) = (channel.as_raw_fd(), lock.as_raw_fd());
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env(FDS_VARIABLE, format!("{channel},{lock}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        // SAFETY: the closure makes two fcntl calls, which are async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                sys::keep_open_on_exec(channel)?;
                sys::keep_open_on_exec(lock)
            });
        }
        command.spawn()
    }

    async fn lock(&self) -> Result<OwnedFd, DriverError> {
        let failed = |detail: String| DriverError::Failed { step: format!("lock {}", self.lock_path.display()), detail };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(&self.lock_path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.to_string()))?;
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(failed(
                        "another launcher is still at work in this data directory; end its server first".to_owned(),
                    ));
                }
                Err(errno) => return Err(failed(errno.to_string())),
            }
        }
    }
}

impl Drop for LauncherClient {
    fn drop(&mut self) {
        // Closing the channel ends the launcher; the reading task holds it too.
        if let Some(running) = self.current.get_mut().take() {
            let _ = rustix::net::shutdown(running.socket.get_ref(), rustix::net::Shutdown::Both);
        }
    }
}

impl Running {
    fn waiters(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, seq: u64) {
        self.waiters().remove(&seq);
    }

    fn kill(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw)
            && !self.dead.load(Ordering::Acquire)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    async fn send(&self, order: &Order) -> Result<(), LaunchError> {
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
            channel::send(socket.as_fd(), order, None, SendFlags::NOSIGNAL).map_err(io::Error::from)
        });
        match tokio::time::timeout(ANSWER_WAIT, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                Err(LaunchError::Failed { step: "describe the sandbox to the launcher".to_owned(), errno: Errno::MSGSIZE })
            }
            Ok(Err(_)) | Err(_) => Err(LaunchError::Died),
        }
    }

    /// Hands answers to their waiters until the launcher is gone.
    async fn read(self: Arc<Self>) {
        let mut packet = vec![0; PACKET_MAX];
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| {
                channel::receive::<Answer>(socket.as_fd(), &mut packet).map_err(io::Error::from)
            });
            match received.await {
                Ok(Some((answer, pidfd))) => self.dispatch(answer, pidfd),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the launcher's channel failed");
                    break;
                }
            }
        }
        self.kill();
        self.dead.store(true, Ordering::Release);
        // Whoever waits learns that the launcher died from the dropped senders.
        self.waiters().clear();
    }

    fn dispatch(&self, answer: Answer, pidfd: Option<OwnedFd>) {
        let mut waiters = self.waiters();
        match (answer, pidfd) {
            (Answer::Begun { seq, pid, network }, Some(pidfd)) => {
                if let Some(begun) = waiters.get_mut(&seq).and_then(|waiter| waiter.begun.take()) {
                    let _ = begun.send((pid, pidfd, network));
                }
            }
            (Answer::Begun { seq, .. }, None) => {
                waiters.remove(&seq);
            }
            (Answer::Failed { seq, step, errno }, _) => {
                if let Some(waiter) = waiters.remove(&seq) {
                    let _ = waiter.failed.send(LaunchError::Failed { step, errno: Errno::from_raw_os_error(errno) });
                }
            }
        }
    }
}
