//! What each sandbox may reach, compiled, in memory: services of the host ask it for every name and every connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use sandbank_model::{
    Cidr, Floor, Flow, HeaderSecret, NameGroup, NameGroups, NetworkPlan, NetworkPolicy, SandboxId, TenantId, Transport, Verdict,
};
use tokio::sync::broadcast;

use super::denied::Denials;
use super::opened::Opened;
use super::trust::Trusted;

/// Changes that a slow listener may fall behind.
const CHANGES_KEPT: usize = 1024;
/// Forgotten policies that the memory of compiled ones may hold beyond those in use.
const STALE_MAX: usize = 64;

/// A policy with what follows from it.
#[derive(Debug)]
struct Compiled {
    policy: Arc<NetworkPolicy>,
    plan: NetworkPlan,
    groups: NameGroups,
}

/// What one sandbox may reach, ready to be asked. Another policy is another value: it never changes.
#[derive(Debug)]
pub struct ActiveNetwork {
    tenant: TenantId,
    floor: Arc<Floor>,
    compiled: Arc<Compiled>,
}

impl ActiveNetwork {
    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &NetworkPolicy {
        &self.compiled.policy
    }

    /// What the driver enforces.
    #[must_use]
    pub fn plan(&self) -> &NetworkPlan {
        &self.compiled.plan
    }

    /// What no policy opens.
    #[must_use]
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// The groups that an answer for this name opens; none: its addresses are opened for no name's sake.
    #[must_use]
    pub fn groups_of(&self, name: &str) -> Vec<NameGroup> {
        self.compiled.groups.of(&self.compiled.policy, name)
    }

    /// Whether the name may be resolved. Another one does not exist for the sandbox.
    #[must_use]
    pub fn may_resolve(&self, name: &str) -> bool {
        self.policy().may_resolve(name)
    }

    /// What becomes of a connection to a name, before its addresses are known: see [`NetworkPolicy::name_verdict`].
    #[must_use]
    pub fn name_verdict(&self, name: &str, transport: Transport, port: u16) -> Verdict {
        self.policy().name_verdict(name, transport, port)
    }

    /// Whether a name may stand for an address that a resolver of the host's answered for it, for connections over TCP. Without a
    /// port: whether it may at all; addresses of the floor may stand for no name.
    #[must_use]
    pub fn resolved_verdict(&self, name: &str, address: IpAddr, port: Option<u16>) -> Verdict {
        match port {
            Some(port) => self.verdict(Some(name), &Flow { address, port, transport: Some(Transport::Tcp) }),
            None if self.floor.denies(address) => Verdict::Deny,
            None => Verdict::Allow,
        }
    }

    /// What becomes of a connection over TCP that asks for no name.
    #[must_use]
    pub fn address_verdict(&self, address: IpAddr, port: u16) -> Verdict {
        self.verdict(None, &Flow { address, port, transport: Some(Transport::Tcp) })
    }

    /// What becomes of a connection that asks for `name` at an address: see [`NetworkPolicy::verdict`].
    #[must_use]
    pub fn verdict(&self, name: Option<&str>, flow: &Flow) -> Verdict {
        self.policy().verdict(&self.floor, name, flow)
    }

    /// Whether names matter: some rule, or some header, is about one.
    #[must_use]
    pub fn speaks_of_names(&self) -> bool {
        let policy = self.policy();
        !policy.headers.is_empty() || policy.allow.iter().chain(&policy.deny).any(|rule| rule.to.is_name())
    }

    /// Whether some request to this host could get headers: its connections must be opened up for that.
    #[must_use]
    pub fn injects_into(&self, host: &str) -> bool {
        self.compiled.policy.headers.iter().any(|rule| rule.covers_host(host))
    }

    pub(super) fn headers_for(&self, host: &str, path: &str) -> Vec<(usize, &str, &HeaderSecret)> {
        self.compiled.policy.headers_for(host, path)
    }

    pub(super) const fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// A sandbox's entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) active: Arc<ActiveNetwork>,
    /// Held for writing while the driver is told another plan, for reading while it is told addresses: those of one policy are never
    /// opened under another.
    pub(super) gate: Arc<tokio::sync::RwLock<()>>,
    /// What was opened for names.
    pub(super) opened: Arc<Opened>,
    /// How the sandbox trusts the server's authority, once it does.
    pub(super) trusted: Arc<tokio::sync::Mutex<Option<Trusted>>>,
}

/// All live sandboxes' networks. An entry comes with a sandbox's making or adoption and goes with its end.
#[derive(Debug)]
pub(crate) struct Networks {
    floor: Arc<Floor>,
    entries: RwLock<HashMap<SandboxId, Entry>>,
    /// By the address of the policy: thousands of sandboxes of a pool share one.
    compiled: Mutex<HashMap<usize, Weak<Compiled>>>,
    pub(super) denied: Mutex<HashMap<SandboxId, Denials>>,
    /// Hears whose policy changed or ended.
    changes: broadcast::Sender<SandboxId>,
}

impl Networks {
    pub(crate) fn new(allow_private: &[Cidr]) -> Self {
        Self {
            floor: Arc::new(Floor::new(allow_private)),
            entries: RwLock::default(),
            compiled: Mutex::default(),
            denied: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
        }
    }

    pub(super) fn get(&self, id: SandboxId) -> Option<Entry> {
        self.entries.read().get(&id).cloned()
    }

    pub(super) fn compile(&self, tenant: TenantId, policy: &Arc<NetworkPolicy>) -> ActiveNetwork {
        let floor = Arc::clone(&self.floor);
        let key = Arc::as_ptr(policy).addr();
        let known = self.compiled.lock().get(&key).and_then(Weak::upgrade).filter(|known| Arc::ptr_eq(&known.policy, policy));
        if let Some(compiled) = known {
            return ActiveNetwork { tenant, floor, compiled };
        }
        let compiled = Compiled { plan: policy.plan(&floor), groups: policy.name_groups(), policy: Arc::clone(policy) };
        let compiled = Arc::new(compiled);
        let mut known = self.compiled.lock();
        if known.len() > 2 * self.entries.read().len() + STALE_MAX {
            known.retain(|_, compiled| compiled.strong_count() > 0);
        }
        known.insert(key, Arc::downgrade(&compiled));
        ActiveNetwork { tenant, floor, compiled }
    }

    /// Puts it in force for whoever asks; the entry's gate stays the same.
    pub(super) fn put(&self, id: SandboxId, active: Arc<ActiveNetwork>) {
        let mut entries = self.entries.write();
        match entries.get_mut(&id) {
            Some(entry) => entry.active = active,
            None => {
                let entry = Entry { active, gate: Arc::default(), opened: Arc::default(), trusted: Arc::default() };
                entries.insert(id, entry);
            }
        }
    }

    /// Puts it in force if the sandbox still has an entry.
    pub(super) fn replace(&self, id: SandboxId, active: Arc<ActiveNetwork>) {
        if let Some(entry) = self.entries.write().get_mut(&id) {
            entry.active = active;
        }
        // Nobody may be listening.
        let _ = self.changes.send(id);
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<SandboxId> {
        self.changes.subscribe()
    }

    /// The sandbox has ended: nothing is allowed any more.
    pub(crate) fn remove(&self, id: SandboxId) {
        self.entries.write().remove(&id);
        let _ = self.changes.send(id);
    }

    #[cfg(test)]
    pub(super) fn compiled_len(&self) -> usize {
        self.compiled.lock().len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sandbank_model::Timestamp;

    use super::*;

    fn tenant(n: u8) -> TenantId {
        TenantId::new(Timestamp::default(), [n; 10])
    }

    fn id(n: u16) -> SandboxId {
        let mut random = [0; 10];
        random[..2].copy_from_slice(&n.to_be_bytes());
        SandboxId::new(Timestamp::default(), random)
    }

    #[test]
    fn sandboxes_of_one_policy_share_what_was_compiled() {
        let networks = Networks::new(&[]);
        let policy = Arc::new(NetworkPolicy::closed());
        for n in 0..100 {
            networks.put(id(n), Arc::new(networks.compile(tenant(1), &policy)));
        }
        assert_eq!(networks.compiled_len(), 1);
        let (one, other) = (networks.get(id(1)).unwrap(), networks.get(id(2)).unwrap());
        assert!(Arc::ptr_eq(&one.active.compiled, &other.active.compiled));
        let foreign = networks.compile(tenant(2), &policy);
        assert!(foreign.tenant() == tenant(2) && Arc::ptr_eq(&foreign.compiled, &one.active.compiled));
    }

    #[test]
    fn forgotten_policies_do_not_pile_up() {
        let networks = Networks::new(&[]);
        for _ in 0..10_000 {
            networks.put(id(1), Arc::new(networks.compile(tenant(1), &Arc::new(NetworkPolicy::closed()))));
        }
        assert!(networks.compiled_len() <= STALE_MAX + 4, "{}", networks.compiled_len());
        networks.remove(id(1));
        assert!(networks.get(id(1)).is_none());
        networks.replace(id(1), Arc::new(networks.compile(tenant(1), &Arc::new(NetworkPolicy::closed()))));
        assert!(networks.get(id(1)).is_none(), "an ended sandbox does not come back");
    }
}
