//! Ports inside: byte streams to them, and who may have one.
//!
//! A stream comes straight from the driver where that can dial, else through the agent. Being open does not count as activity,
//! so that connections can be kept for the next request; what does is the [`PortPass`] that each request holds.

mod access;
mod agent;
mod token;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use parking_lot::RwLock;
use sandbank_driver::{PortIo, Target};
use sandbank_model::{Sandbox, SandboxId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::watch;

pub(crate) use access::check_public_ports;
pub use access::{PortPass, PortVisitor};
pub use token::PortToken;

use crate::agent::ANSWER_TIMEOUT;
use crate::control::{Control, Inner};
use crate::streams::StreamGuard;
use crate::types::{Caller, Id};
use crate::{Error, ErrorKind, Result};

/// A byte stream to a port inside. Shutting its writing side down is a half close: the port may still answer.
pub struct PortStream {
    io: Box<dyn PortIo>,
    end: PortEnd,
}

/// Tells when the sandbox of a stream has ended.
#[derive(Debug, Clone)]
pub struct PortEnd {
    ended: watch::Receiver<bool>,
    _guard: Arc<StreamGuard>,
}

impl PortEnd {
    /// Returns when the sandbox has ended: whoever still holds a stream into it lets go.
    pub async fn ended(mut self) {
        if self.ended.wait_for(|ended| *ended).await.is_err() {
            // The sender lives as long as the guard's entry; should that ever change, waiting is the harmless answer.
            std::future::pending::<()>().await;
        }
    }
}

impl std::fmt::Debug for PortStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortStream").finish_non_exhaustive()
    }
}

impl PortStream {
    /// The two halves.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf<Self>, WriteHalf<Self>) {
        tokio::io::split(self)
    }

    /// The bytes, and what tells when they end with the sandbox.
    #[must_use]
    pub fn into_parts(self) -> (Box<dyn PortIo>, PortEnd) {
        (self.io, self.end)
    }
}

impl AsyncRead for PortStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type PortCloser = dyn Fn(SandboxId) + Send + Sync;

/// Whoever keeps connections into sandboxes beyond a request.
#[derive(Default)]
pub(crate) struct PortClosers(RwLock<Vec<Weak<PortCloser>>>);

impl PortClosers {
    /// This sandbox cannot be operated on any more: paused, stopping, ended.
    pub(crate) fn tell(&self, id: SandboxId) {
        for closer in self.0.read().iter().filter_map(Weak::upgrade) {
            closer(id);
        }
    }
}

impl Control {
    /// Connects to a port inside.
    pub async fn port_dial(&self, caller: &Caller, id: Id, port: u16) -> Result<PortStream> {
        check_port(port)?;
        let sandbox = self.inner.running(caller, id).await?;
        self.inner.dial(&sandbox, port).await
    }

    /// Connects to the port that the pass is for. `NotFound` means that nothing listens there.
    pub async fn port_connect(&self, pass: &PortPass) -> Result<PortStream> {
        self.inner.dial(pass.sandbox(), pass.port()).await
    }

    /// Calls `closer` with each sandbox that cannot be operated on any more, for as long as somebody holds it: connections that
    /// are kept for later are to be closed then.
    pub fn on_ports_closed(&self, closer: &Arc<dyn Fn(Id) + Send + Sync>) {
        let mut closers = self.inner.port_closers.0.write();
        closers.retain(|known| known.strong_count() > 0);
        closers.push(Arc::downgrade(closer));
    }
}

fn check_port(port: u16) -> Result<()> {
    if port == 0 { Err(Error::invalid("0 is not a port: use 1 to 65535")) } else { Ok(()) }
}

impl Inner {
    async fn dial(self: &Arc<Self>, sandbox: &Sandbox, port: u16) -> Result<PortStream> {
        self.activity.touch(sandbox.id, self.now());
        let (driver, handle) = self.target_of(sandbox)?;
        let target = Target { id: sandbox.id, handle: &handle };
        let io = match tokio::time::timeout(ANSWER_TIMEOUT, driver.dial(target, port)).await {
            Ok(Some(Ok(io))) => io,
            Ok(Some(Err(error))) => return Err(refused(sandbox.id, port, &error)),
            Ok(None) => agent::dial(self, sandbox, port).await?,
            Err(_) => {
                let message = format!("port {port} of sandbox {} does not accept connections in time", sandbox.id);
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        };
        let guard = self.streams.hold(sandbox.id);
        Ok(PortStream { io, end: PortEnd { ended: guard.listener(), _guard: Arc::new(guard) } })
    }
}

fn refused(id: SandboxId, port: u16, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::not_found(format!("nothing listens on port {port} of sandbox {id}")),
        io::ErrorKind::NotConnected => Error::new(ErrorKind::State, format!("sandbox {id}: {error}")),
        _ => Error::new(ErrorKind::Unavailable, format!("port {port} of sandbox {id} cannot be reached: {error}")),
    }
}
