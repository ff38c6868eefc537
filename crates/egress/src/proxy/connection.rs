//! One connection of one sandbox: whose it is, what it reached, and when it ends.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use sandbank_model::{SandboxId, Transport, Verdict};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stream::{Activity, Metered};
use super::{ProxyKind, request, tls};
use crate::limits::SandboxUsage;
use crate::name::Host;
use crate::network::{Denied, DeniedWhy, SandboxNetwork};
use crate::services::Shared;
use crate::telemetry;

/// Places that one connection is remembered to have reached; one that reaches more has idle ones closed before.
const REACHED_MAX: usize = 64;

/// What a connection and everything that works for it share.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) kind: ProxyKind,
    /// The port on the outside.
    pub(super) port: u16,
    source: IpAddr,
    id: SandboxId,
    policy: watch::Receiver<()>,
    activity: Arc<Activity>,
    /// Ends every task of the connection.
    stop: CancellationToken,
    /// Where it goes now.
    reached: Mutex<Vec<(Host, IpAddr)>>,
    /// What goes on after the requests: a WebSocket.
    upgraded: Mutex<Option<JoinHandle<()>>>,
}

impl Connection {
    pub(super) fn new(
        shared: &Arc<Shared>,
        source: IpAddr,
        id: SandboxId,
        port: u16,
        kind: ProxyKind,
        usage: &SandboxUsage,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            kind,
            port,
            source,
            id,
            policy: usage.policy_changes(),
            activity: Arc::new(Activity::new()),
            stop: shared.stop.child_token(),
            reached: Mutex::new(Vec::new()),
            upgraded: Mutex::new(None),
        })
    }

    /// Serves the connection until either side ends it, nothing moves for too long, or it is no longer allowed.
    pub(super) async fn run(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = Metered::new(stream, Arc::clone(&self.activity));
        let work = async {
            match self.kind {
                ProxyKind::Tls => tls::serve(&self, stream).await,
                ProxyKind::Http => request::serve_clear(&self, stream).await,
            }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = self.activity.idle_for(self.shared.settings.idle_timeout) => "idle",
            () = self.revoked() => "revoked",
            () = self.stop.cancelled() => "stopped",
        };
        self.stop.cancel();
        telemetry::connection(self.kind.name(), outcome);
        telemetry::bytes(self.activity.bytes_read(), self.activity.bytes_written());
    }

    /// The network of the sandbox as it is now; `None` when its address is no longer its.
    pub(super) fn network(&self) -> Option<Arc<dyn SandboxNetwork>> {
        self.shared.sandbox(self.source).map(|(network, _)| network).filter(|network| network.id() == self.id)
    }

    /// Whether `host` may be reached at the connection's port; a refusal is told.
    pub(super) fn allows(&self, network: &dyn SandboxNetwork, host: &Host) -> bool {
        let verdict = match host {
            Host::Name(name) => network.name_verdict(name, Some(Transport::Tcp), Some(self.port)),
            Host::Address(address) => network.address_verdict(*address, self.port),
        };
        if verdict == Verdict::Deny {
            self.denied(network, Some(host), DeniedWhy::Policy);
        }
        verdict == Verdict::Allow
    }

    pub(super) fn denied(&self, network: &dyn SandboxNetwork, host: Option<&Host>, why: DeniedWhy) {
        network.denied(&Denied { name: host.map(Host::text), port: Some(self.port), why });
    }

    /// Remembers where the connection goes, for when the policy changes. `false`: it did already, and refuses it.
    pub(super) fn reaches(&self, host: &Host, address: IpAddr) -> bool {
        let mut reached = self.reached.lock();
        // HTTP/1 asks one host after the other: what it left behind is idle.
        if reached.len() >= REACHED_MAX || reached.iter().any(|(known, _)| known != host) {
            reached.clear();
        }
        if !reached.iter().any(|(_, known)| *known == address) {
            reached.push((host.clone(), address));
        }
        drop(reached);
        self.still_allowed()
    }

    /// Returns when a change of policy refuses what the connection reaches.
    async fn revoked(&self) {
        let mut policy = self.policy.clone();
        loop {
            if policy.changed().await.is_err() || !self.still_allowed() {
                return;
            }
        }
    }

    fn still_allowed(&self) -> bool {
        let Some(network) = self.network() else { return false };
        self.reached.lock().iter().all(|(host, address)| match host {
            Host::Name(name) => {
                network.name_verdict(name, Some(Transport::Tcp), Some(self.port)) == Verdict::Allow
                    && network.resolved_verdict(name, *address, Some(self.port)) == Verdict::Allow
            }
            Host::Address(address) => network.address_verdict(*address, self.port) == Verdict::Allow,
        })
    }

    /// Runs a task that ends with the connection.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.spawn(self.bound(task));
    }

    fn bound(&self, task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        }
    }

    /// Runs what goes on after the requests, and keeps the connection for it.
    pub(super) fn go_on_with(&self, task: impl Future<Output = ()> + Send + 'static) {
        *self.upgraded.lock() = Some(self.shared.spawn(self.bound(task)));
    }

    /// Waits for it, if there is anything.
    pub(super) async fn gone_on(&self) {
        let task = self.upgraded.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}
