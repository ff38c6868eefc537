//! Starting and stopping.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sandbank_model::SandboxId;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::{self, Resolver};
use crate::limits::{SandboxUsage, Usage};
use crate::network::{Directory, SandboxNetwork};
use crate::proxy::{self, Outside, ProxyKind};
use crate::settings::EgressSettings;

/// How long a shutdown waits for connections to let go. They are told at once; this is for the scheduler.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// The sockets of the services, bound by the caller. A UDP socket should be bound to the very address that sandboxes ask: its
/// replies leave from there.
#[derive(Debug, Default)]
pub struct EgressSockets {
    /// For DNS queries.
    pub dns_udp: Vec<UdpSocket>,
    /// For DNS queries over TCP.
    pub dns_tcp: Vec<TcpListener>,
    /// Where connections to TLS ports are redirected to.
    pub tls: Vec<ProxySocket>,
    /// Where connections to HTTP ports are redirected to.
    pub http: Vec<ProxySocket>,
}

/// Where redirected connections arrive.
#[derive(Debug)]
pub struct ProxySocket {
    /// The socket.
    pub listener: TcpListener,
    /// The port that they were meant for, and that the proxy connects to: 443 or 80.
    pub port: u16,
}

/// The services could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The certificates that are trusted in addition cannot be used.
    #[error("the extra roots for the egress proxy cannot be read: {0}; give certificates in PEM")]
    ExtraRoots(String),
    /// TLS could not be set up.
    #[error("TLS to the outside could not be set up: {0}")]
    Tls(String),
}

/// The running services. They stop when this is dropped.
pub struct EgressServices {
    shared: Arc<Shared>,
}

/// What every task of the services needs.
pub(crate) struct Shared {
    directory: Arc<dyn Directory>,
    pub(crate) settings: EgressSettings,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) usage: Usage,
    pub(crate) outside: Outside,
    pub(crate) stop: CancellationToken,
    /// Whether it was said that an authority is missing.
    pub(crate) authority_missed: AtomicBool,
    tasks: TaskTracker,
}

impl fmt::Debug for EgressServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressServices").field("tasks", &self.shared.tasks.len()).finish_non_exhaustive()
    }
}

impl EgressServices {
    /// Serves `sockets` on the current tokio runtime.
    ///
    /// # Errors
    /// [`EgressError`] if the trusted certificates cannot be used.
    pub fn start(sockets: EgressSockets, directory: Arc<dyn Directory>, settings: EgressSettings) -> Result<Self, EgressError> {
        let shared = Arc::new(Shared {
            directory,
            resolver: Resolver::new(&settings),
            usage: Usage::new(settings.limits),
            outside: Outside::new(&settings)?,
            settings,
            stop: CancellationToken::new(),
            authority_missed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        });
        for socket in sockets.dns_udp {
            shared.spawn(dns::serve_udp(Arc::clone(&shared), socket));
        }
        for listener in sockets.dns_tcp {
            shared.spawn(dns::serve_tcp(Arc::clone(&shared), listener));
        }
        for socket in sockets.tls {
            shared.spawn(proxy::serve(Arc::clone(&shared), socket, ProxyKind::Tls));
        }
        for socket in sockets.http {
            shared.spawn(proxy::serve(Arc::clone(&shared), socket, ProxyKind::Http));
        }
        Ok(Self { shared })
    }

    /// The policy of a sandbox changed, or the sandbox is gone: connections that are no longer allowed are cut. New connections
    /// and requests ask the directory anyway.
    pub fn policy_changed(&self, id: SandboxId) {
        self.shared.usage.policy_changed(id);
    }

    /// As [`policy_changed`](Self::policy_changed), of all sandboxes: for who does not know which.
    pub fn policies_changed(&self) {
        self.shared.usage.policies_changed();
    }

    /// Stops taking connections, cuts those that there are, and returns when their tasks have ended. Questions that are on their
    /// way to DNS servers end by themselves, within the timeouts of the settings.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN_WAIT, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.shared.tasks.len(), "egress tasks did not end in time");
        }
    }
}

impl Drop for EgressServices {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    /// Runs a task that the shutdown waits for. It must end by itself when `stop` is cancelled, or soon anyway.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn(task)
    }

    /// Whose address `source` is.
    pub(crate) fn sandbox(&self, source: IpAddr) -> Option<(Arc<dyn SandboxNetwork>, Arc<SandboxUsage>)> {
        let network = self.directory.sandbox_at(source.to_canonical())?;
        let usage = self.usage.of(network.id());
        Some((network, usage))
    }

    /// The next connection, or `None` when the services stop. `pause` is how long to rest when the system is out of descriptors.
    pub(crate) async fn accept(&self, listener: &TcpListener, pause: Duration) -> Option<(TcpStream, SocketAddr)> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => return Some(accepted),
                    Err(error) => {
                        tracing::debug!(%error, "a connection could not be accepted");
                        tokio::select! {
                            () = self.stop.cancelled() => return None,
                            () = tokio::time::sleep(pause) => {}
                        }
                    }
                },
            }
        }
    }
}
