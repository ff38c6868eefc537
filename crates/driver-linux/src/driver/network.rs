//! What sandboxes reach: plans put in force, names opened, refusals told.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sandbank_driver::{Capability, DeniedDestination, DriverError, DriverEvent, NetworkServices, Traffic};
use sandbank_model::{NamedAddress, NetworkPlan, SandboxId};

use super::live::Live;
use super::{LinuxConfig, Shared, blocking, failed};
use crate::network::{DNS_PORT, HTTP_PORT, HostNetwork, NetworkOrder, SandboxNetwork, TLS_PORT};

/// How often every sandbox is asked for connections that were refused.
const DENIED_PERIOD: Duration = Duration::from_secs(5);
/// A destination is told of again after this long: longer than the kernel remembers one.
const DENIED_AGAIN: Duration = Duration::from_secs(90);

/// The host's side of the sandboxes' network. Where it cannot be had, sandboxes reach nothing, and the driver says so.
pub(super) fn host(config: &LinuxConfig, server: &str) -> Option<HostNetwork> {
    if !config.network || !rustix::process::geteuid().is_root() {
        return None;
    }
    match HostNetwork::prepare(server) {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::warn!(step = error.step, error = %error.errno, "sandboxes have no network: this machine does not let us make one");
            None
        }
    }
}

pub(super) fn order(host: &HostNetwork, config: &LinuxConfig) -> NetworkOrder {
    NetworkOrder { block: host.block(), prefix: host.prefix().to_owned(), plan: config.network_plan.clone() }
}

fn no_network() -> DriverError {
    DriverError::Unsupported { capability: Capability::Network }
}

/// Whose addresses are whose.
pub(super) type Numbers = HashMap<u16, SandboxId>;

impl Shared {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new sandbox's network, which follows the plan that all new ones have, follows this one from now on.
    pub(super) async fn join_network(self: &Arc<Self>, live: &Arc<Live>, plan: &NetworkPlan) -> Result<(), DriverError> {
        self.note_number(live);
        if live.network.is_none() || *plan == self.config.network_plan {
            return Ok(());
        }
        self.set_network(live, plan.clone(), Vec::new()).await
    }

    /// Remembers whose address it is.
    pub(super) fn note_number(&self, live: &Live) {
        if let Some(number) = live.network {
            self.numbers().insert(number, live.id);
        }
    }

    /// Forgets it, unless another sandbox has it by now.
    pub(super) fn forget_number(&self, live: &Live) {
        if let Some(number) = live.network {
            let mut numbers = self.numbers();
            if numbers.get(&number) == Some(&live.id) {
                numbers.remove(&number);
            }
        }
    }

    pub(super) fn sandbox_at(&self, source: IpAddr) -> Option<SandboxId> {
        let number = self.host_network.as_ref()?.block().number_of(source)?;
        self.numbers().get(&number).copied()
    }

    pub(super) async fn set_network(
        self: &Arc<Self>,
        live: &Arc<Live>,
        plan: NetworkPlan,
        named: Vec<NamedAddress>,
    ) -> Result<(), DriverError> {
        let mark = fresh_mark()?;
        let (shared, live) = (Arc::clone(self), Arc::clone(live));
        blocking("change the network", move || {
            let step = |errno| network_failed(live.id, "put the network plan in force", errno);
            let (host, number, network) = shared.network_of(&live)?;
            host.limit(number, plan.limits.in_bytes_per_second).map_err(step)?;
            network.install(&plan, &named, host.block(), mark).map_err(step)
        })
        .await
    }

    pub(super) fn open_names(&self, id: SandboxId, named: &[NamedAddress]) -> Result<(), DriverError> {
        let live = self.get(id)?;
        let (_, _, network) = self.network_of(&live)?;
        network.open_names(named).map_err(|errno| network_failed(id, "open addresses", errno))
    }

    pub(super) fn traffic(&self, live: &Live) -> Result<Traffic, DriverError> {
        let (host, number, _) = self.network_of(live)?;
        let (out_bytes, in_bytes) =
            host.traffic(number).map_err(|errno| network_failed(live.id, "read the interface's counters", errno))?;
        Ok(Traffic { in_bytes, out_bytes })
    }

    /// The host's side, the number of its addresses, and its own side.
    fn network_of<'a>(&'a self, live: &'a Live) -> Result<(&'a HostNetwork, u16, SandboxNetwork<'a>), DriverError> {
        match (&self.host_network, live.network, &self.network_home) {
            (Some(host), Some(number), Some(home)) => Ok((
                host,
                number,
                SandboxNetwork { process: live.pidfd.get_ref().as_fd(), home: home.as_fd(), filter: &live.filter },
            )),
            _ => Err(no_network()),
        }
    }

    pub(super) fn network_services(&self) -> Option<NetworkServices> {
        let gateways = self.host_network.as_ref()?.block().gateways();
        let at = |port| gateways.iter().map(|address| SocketAddr::new(*address, port)).collect();
        Some(NetworkServices { resolvers: at(DNS_PORT), http: at(HTTP_PORT), tls: at(TLS_PORT) })
    }
}

fn network_failed(id: SandboxId, step: &str, errno: Errno) -> DriverError {
    match errno {
        Errno::SRCH => DriverError::Gone { id },
        errno => failed(step, errno),
    }
}

/// A mark that no connection of the sandbox carries: 32 random bits, and never those of the first plan or of none.
fn fresh_mark() -> Result<u32, DriverError> {
    let bits = getrandom::u32();
    bits.map(|bits| bits | 0x8000_0000)
        .map_err(|error| DriverError::Failed { step: "draw a mark".to_owned(), detail: error.to_string() })
}

/// Tells of refused connections until the driver ends.
pub(super) async fn watch_denied(shared: Weak<Shared>) {
    let mut told: HashMap<(SandboxId, DeniedDestination), Instant> = HashMap::new();
    loop {
        tokio::time::sleep(DENIED_PERIOD).await;
        let Some(shared) = shared.upgrade() else { return };
        let all: Vec<Arc<Live>> = shared.all_live().into_iter().filter(|live| live.network.is_some()).collect();
        let asked = Arc::clone(&shared);
        let found = tokio::task::spawn_blocking(move || {
            // One that ends meanwhile has nothing to tell.
            let denied = |live: &Arc<Live>| {
                asked.network_of(live).ok().and_then(|(_, _, network)| network.denied().ok()).unwrap_or_default()
            };
            all.iter().map(|live| (live.id, denied(live))).filter(|(_, denied)| !denied.is_empty()).collect::<Vec<_>>()
        });
        let Ok(found) = found.await else { return };
        told.retain(|_, at| at.elapsed() < DENIED_AGAIN);
        for (id, denied) in found {
            let all: HashSet<DeniedDestination> =
                denied.into_iter().map(|(address, port)| DeniedDestination { address, port }).collect();
            let mut fresh: Vec<DeniedDestination> =
                all.into_iter().filter(|one| told.insert((id, *one), Instant::now()).is_none()).collect();
            fresh.sort_unstable();
            if !fresh.is_empty() {
                let _ = shared.events.send(DriverEvent::Denied { id, destinations: fresh }).await;
            }
        }
    }
}
