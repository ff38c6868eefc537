//! Operations inside sandboxes: opened in bounded time, answered in bounded time, and never believed blindly.

use std::sync::Arc;
use std::time::Duration;

use sandbank_agent_protocol::{ClientError, Connection, Frame, FrameReader, ReadHalf, Reply, Request, WriteHalf};
use sandbank_driver::{DriverError, Target};
use sandbank_model::{FailureReason, Sandbox, SandboxId};

use crate::control::Inner;
use crate::convert::{ended_under_stream, out_of_turn, unresponsive};
use crate::streams::StreamGuard;
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// Longest wait for an operation to open and for its first answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings that must fail, one after the other, before an agent counts as gone.
const PINGS: u32 = 3;
const PING_PAUSE: Duration = Duration::from_millis(500);

impl Inner {
    /// Opens an operation in a sandbox that the caller may use. Counts as activity.
    pub(crate) async fn open(self: &Arc<Self>, caller: &Caller, id: SandboxId, request: &Request) -> Result<Connection> {
        let sandbox = self.running(caller, id).await?;
        self.open_in(&sandbox, request).await
    }

    /// Opens an operation in a sandbox that was found running. Counts as activity.
    pub(crate) async fn open_in(self: &Arc<Self>, sandbox: &Sandbox, request: &Request) -> Result<Connection> {
        self.activity.touch(sandbox.id, self.now());
        let (driver, handle) = self.target_of(sandbox)?;
        let opened = driver.open(Target { id: sandbox.id, handle: &handle }, request);
        match tokio::time::timeout(ANSWER_TIMEOUT, opened).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(DriverError::Gone { .. })) => {
                self.fail(sandbox.id, FailureReason::AgentDied, "the driver no longer has it").await?;
                Err(Error::new(ErrorKind::State, format!("sandbox {} has ended", sandbox.id)))
            }
            Ok(Err(error)) => Err(self.suspect(sandbox.id, error.into())),
            Err(_) => Err(self.suspect(sandbox.id, unresponsive())),
        }
    }

    /// One question, one answer.
    pub(crate) async fn ask(self: &Arc<Self>, caller: &Caller, id: SandboxId, request: &Request) -> Result<Reply> {
        let mut connection = self.open(caller, id, request).await?;
        self.first_reply(id, &mut connection).await
    }

    /// The first answer on a connection, in time.
    pub(crate) async fn first_reply(self: &Arc<Self>, id: SandboxId, connection: &mut Connection) -> Result<Reply> {
        match tokio::time::timeout(ANSWER_TIMEOUT, connection.reply("an answer")).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(ClientError::Refused(refused))) => Err(refused.into()),
            Ok(Err(error)) => Err(self.suspect(id, error.into())),
            Err(_) => Err(self.suspect(id, unresponsive())),
        }
    }

    /// The agent said what the operation does not allow.
    pub(crate) fn confused(self: &Arc<Self>, id: SandboxId) -> Error {
        self.suspect(id, out_of_turn())
    }

    /// An operation failed in a way that only a broken agent explains: it is questioned beside the request.
    pub(crate) fn suspect(self: &Arc<Self>, id: SandboxId, error: Error) -> Error {
        if error.kind == ErrorKind::Unavailable && self.questioned.lock().insert(id) {
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                let questioning = inner.question(id).await;
                inner.questioned.lock().remove(&id);
                if let Err(error) = questioning {
                    tracing::warn!(sandbox = %id, error = %error, "an agent could not be questioned");
                }
            });
        }
        error
    }

    /// Pings an agent; one that answers none of [`PINGS`] is recorded as failed.
    async fn question(self: &Arc<Self>, id: SandboxId) -> Result<()> {
        let mut why = String::new();
        for _ in 0..PINGS {
            let sandbox = match self.record(id).await? {
                Some(sandbox) if sandbox.state.is_operable() => sandbox,
                _ => return Ok(()),
            };
            match tokio::time::timeout(ANSWER_TIMEOUT, self.ping(&sandbox)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => why = error.message,
                Err(_) => why = "it does not answer".to_owned(),
            }
            if !self.tasks.sleep(PING_PAUSE).await {
                return Ok(());
            }
        }
        let _exclusive = self.sandbox_locks.lock(id).await;
        // Somebody may have paused it meanwhile, and a frozen agent answers nothing.
        match self.record(id).await? {
            Some(sandbox) if sandbox.state.is_operable() => {
                self.fail(id, FailureReason::AgentUnresponsive, &format!("{PINGS} pings failed: {why}")).await
            }
            _ => Ok(()),
        }
    }

    async fn ping(&self, sandbox: &Sandbox) -> Result<()> {
        let (driver, handle) = self.target_of(sandbox)?;
        let mut connection = driver.open(Target { id: sandbox.id, handle: &handle }, &Request::Ping).await?;
        match connection.reply("a pong").await? {
            Reply::Pong { .. } => Ok(()),
            _ => Err(out_of_turn()),
        }
    }
}

/// The receiving half of a stream into a sandbox. It ends when the sandbox does, whatever the agent's socket does.
pub(crate) struct Incoming {
    reader: FrameReader<ReadHalf>,
    guard: StreamGuard,
    inner: Arc<Inner>,
    id: SandboxId,
    /// Kept open where nothing is sent: the agent takes a closed sending half for a cancellation.
    _writer: Option<WriteHalf>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Incoming {
    pub(crate) fn new(inner: Arc<Inner>, id: SandboxId, reader: FrameReader<ReadHalf>) -> Self {
        let guard = inner.streams.open(id);
        Self { reader, guard, inner, id, _writer: None }
    }

    /// One that is no activity by being open: connections to ports wait for their next request.
    pub(crate) fn uncounted(inner: Arc<Inner>, id: SandboxId, reader: FrameReader<ReadHalf>) -> Self {
        let guard = inner.streams.hold(id);
        Self { reader, guard, inner, id, _writer: None }
    }

    /// For operations that only receive.
    pub(crate) fn with_writer(inner: Arc<Inner>, id: SandboxId, reader: FrameReader<ReadHalf>, writer: WriteHalf) -> Self {
        let mut incoming = Self::new(inner, id, reader);
        incoming._writer = Some(writer);
        incoming
    }

    /// The next frame; `None` when the agent closed between frames. Cancel-safe.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame>> {
        let next = tokio::select! {
            // What has come is read before the end is told.
            biased;
            frame = self.reader.next() => frame,
            () = self.guard.ended() => return Err(ended_under_stream()),
        };
        next.map_err(|error| {
            let error = Error::from(error);
            self.inner.suspect(self.id, error)
        })
    }

    /// The next frame, which must come.
    pub(crate) async fn some_frame(&mut self) -> Result<Frame> {
        match self.frame().await? {
            Some(frame) => Ok(frame),
            None => {
                let error = sandbank_agent_protocol::FrameError::Truncated;
                Err(self.inner.suspect(self.id, error.into()))
            }
        }
    }

    /// Parses a message; an agent's refusal is an error.
    pub(crate) fn reply(&self, body: &[u8]) -> Result<Reply> {
        match Frame::parse::<Reply>(body) {
            Ok(Reply::Error(error)) => Err(error.into()),
            Ok(reply) => Ok(reply),
            Err(_) => Err(self.confused()),
        }
    }

    /// The agent said what the operation does not allow.
    pub(crate) fn confused(&self) -> Error {
        self.inner.confused(self.id)
    }

    /// Told when the sandbox ends.
    pub(crate) fn listener(&self) -> tokio::sync::watch::Receiver<bool> {
        self.guard.listener()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.guard.counts() && !self.guard.is_ended() {
            self.inner.activity.touch(self.id, self.inner.now());
        }
    }
}
