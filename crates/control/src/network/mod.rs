//! What sandboxes may reach: where a policy comes from, how it changes, and who is told.
//!
//! The record holds what somebody said of this one sandbox (lease) or of its kind (spec). What nobody said follows the tenant's
//! default, else the installation's, and follows its changes. The record is written first, then the driver is told; what the driver
//! refuses is taken back. A server that dies in between tells the drivers of all sandboxes when it comes back.

mod denied;
mod directory;
mod opened;
mod sealing;
mod trust;

pub use directory::ActiveNetwork;
pub(crate) use directory::Networks;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use sandbank_driver::{Capability, DriverError, Target};
use sandbank_model::{
    Actor, Command, FailureReason, NamedAddress, NetworkPlan, NetworkPolicy, Sandbox, SandboxId, State, Tenant, TenantId,
};
use sandbank_store::Write;

use crate::control::{Control, Inner};
use crate::sandboxes::{live_lease, not_found};
use crate::types::{Caller, Id, NetworkRequest, NetworkSource, NetworkView};
use crate::{Error, ErrorKind, Result};

/// Longest time for putting a plan in force.
const SET_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Sandboxes whose drivers are told at the same time when a tenant's default changes.
const CONCURRENCY: usize = 16;

impl Control {
    /// What a sandbox may reach.
    pub async fn network_get(&self, caller: &Caller, id: Id) -> Result<NetworkView> {
        let sandbox = self.inner.sandbox_of(caller, id).await?;
        self.inner.network_view(&sandbox).await
    }

    /// Replaces the whole of what a claimed sandbox may reach, also while it is paused. In force when this returns.
    ///
    /// On an error the sandbox keeps what it had. It goes on without the caller.
    pub async fn network_update(&self, caller: &Caller, id: Id, request: NetworkRequest) -> Result<NetworkView> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        let (answer, done) = tokio::sync::oneshot::channel();
        self.inner.tasks.spawn(async move {
            let _ = answer.send(inner.update_network(&caller, id, &request).await);
        });
        done.await.unwrap_or_else(|_| Err(Error::shutting_down()))
    }

    /// What a sandbox that lives may reach, from memory: `None` for one that has ended or has no network, and then nothing.
    #[must_use]
    pub fn network_of(&self, id: SandboxId) -> Option<Arc<ActiveNetwork>> {
        self.inner.networks.get(id).map(|entry| entry.active)
    }

    /// Whose policy changed or ended, from now on. Who falls behind misses some.
    #[must_use]
    pub fn network_changes(&self) -> tokio::sync::broadcast::Receiver<SandboxId> {
        self.inner.networks.changes()
    }

    /// Tells a sandbox's driver of addresses that were answered for `name`, if `network` is still what the sandbox may reach: `false`
    /// when it is not, and nothing was opened. Then the groups of its names must be asked for again.
    pub async fn network_open(
        &self,
        id: SandboxId,
        network: &Arc<ActiveNetwork>,
        name: &str,
        addresses: Vec<NamedAddress>,
    ) -> Result<bool> {
        let inner = &self.inner;
        let Some(entry) = inner.networks.get(id) else { return Ok(false) };
        let _told = entry.gate.read().await;
        // Read again: the policy may have changed during the wait.
        if !inner.networks.get(id).is_some_and(|entry| Arc::ptr_eq(&entry.active, network)) {
            return Ok(false);
        }
        let Some(sandbox) = inner.store.sandbox_get(id).await? else { return Ok(false) };
        let noted = addresses.clone();
        in_time(inner.driver(&sandbox.driver)?.open_names(id, addresses)).await?;
        entry.opened.note(name, &noted, inner.now());
        Ok(true)
    }

    /// Replaces what a tenant's sandboxes may reach that say nothing of it; `None`: as the installation says. Those that live follow
    /// soon after.
    pub async fn admin_set_network(&self, caller: &Caller, tenant: &str, request: Option<NetworkRequest>) -> Result<Tenant> {
        caller.require_admin()?;
        let inner = &self.inner;
        let missing = || Error::not_found(format!("tenant {tenant:?} not found"));
        let found = inner.store.tenant_by_name(tenant).await?.ok_or_else(missing)?;
        let policy = request.map(|request| inner.seal_network(Some(found.id), &request, found.network.as_deref())).transpose()?;
        let changed = match inner.store.tenant_set_network(found.id, policy).await? {
            Write::Updated(tenant) | Write::Refused(tenant) => tenant,
            Write::Missing => return Err(missing()),
        };
        inner.follow_default(found.id);
        Ok(changed)
    }
}

/// Waits for the driver, not for ever.
async fn in_time(
    done: impl Future<Output = std::result::Result<(), DriverError>> + Send,
) -> std::result::Result<(), DriverError> {
    let waited_ms = u64::try_from(SET_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let timed_out = DriverError::TimedOut { what: "the driver", waited_ms };
    tokio::time::timeout(SET_TIMEOUT, done).await.unwrap_or(Err(timed_out))
}

/// The policy that a record itself says, and who said it.
fn own_policy(sandbox: &Sandbox) -> Option<(&Arc<NetworkPolicy>, NetworkSource)> {
    let of_lease = sandbox.lease.as_ref().and_then(|lease| lease.network.as_ref());
    let of_lease = of_lease.map(|policy| (policy, NetworkSource::Sandbox));
    of_lease.or_else(|| sandbox.spec.network.as_ref().map(|policy| (policy, NetworkSource::Template)))
}

impl Inner {
    async fn network_view(&self, sandbox: &Sandbox) -> Result<NetworkView> {
        // A driver that is not configured any more can be asked nothing; its sandboxes' records can be looked at all the same.
        let networked = self.driver(&sandbox.driver).is_ok_and(|driver| driver.capabilities().has(Capability::Network));
        if !networked {
            return Ok(NetworkView { policy: Arc::new(NetworkPolicy::closed()), source: NetworkSource::Driver });
        }
        match own_policy(sandbox) {
            Some((policy, source)) => Ok(NetworkView { policy: Arc::clone(policy), source }),
            None => self.default_network(sandbox.tenant).await,
        }
    }

    /// What a tenant's sandboxes may reach that say nothing of it.
    async fn default_network(&self, tenant: TenantId) -> Result<NetworkView> {
        let own = self.store.tenant_get(tenant).await?.and_then(|tenant| tenant.network);
        Ok(match own {
            Some(policy) => NetworkView { policy, source: NetworkSource::Tenant },
            None => NetworkView { policy: Arc::clone(&self.settings.network.default_policy), source: NetworkSource::Server },
        })
    }

    /// Refuses a policy that the driver could not hold. Where sandboxes reach nothing, one that allows nothing holds by itself, and
    /// the default is what nobody asked for.
    pub(crate) async fn check_network(&self, driver: &str, tenant: TenantId, policy: Option<&Arc<NetworkPolicy>>) -> Result<()> {
        let Some(policy) = policy else { return Ok(()) };
        let capabilities = self.driver(driver)?.capabilities();
        if capabilities.has(Capability::Network) && !policy.headers.is_empty() && !capabilities.has(Capability::Files) {
            let message = format!(
                "headers are not possible: the driver {driver} writes no files, so that its sandboxes cannot be made to trust this \
                 server's certificate authority; leave headers out"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if capabilities.has(Capability::Network) || policy.reaches_nothing() {
            return Ok(());
        }
        if *policy == self.default_network(tenant).await?.policy {
            return Ok(());
        }
        let message =
            format!("a network policy is not possible: the driver {driver} gives sandboxes no network; leave network out");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// What the driver enforces on a sandbox that is about to be made, with `leased` as its holder's own policy. Services of the host
    /// know it from here on: the sandbox may ask for names as soon as it runs.
    pub(crate) async fn admit_network(&self, sandbox: &Sandbox, leased: Option<&Arc<NetworkPolicy>>) -> Result<NetworkPlan> {
        let said = leased.or(sandbox.spec.network.as_ref());
        self.check_network(&sandbox.driver, sandbox.tenant, said).await?;
        if !self.driver(&sandbox.driver)?.capabilities().has(Capability::Network) {
            return Ok(NetworkPlan::closed());
        }
        let policy = match said {
            Some(policy) => Arc::clone(policy),
            None => self.default_network(sandbox.tenant).await?.policy,
        };
        let active = Arc::new(self.networks.compile(sandbox.tenant, &policy));
        let plan = active.plan().clone();
        self.networks.put(sandbox.id, active);
        Ok(plan)
    }

    async fn update_network(self: &Arc<Self>, caller: &Caller, id: Id, request: &NetworkRequest) -> Result<NetworkView> {
        let _exclusive = self.sandbox_locks.lock(id).await;
        let sandbox = self.sandbox_of(caller, id).await?;
        if matches!(sandbox.state, State::Terminated | State::Failed) {
            return Err(not_found(caller, id));
        }
        let present = self.network_view(&sandbox).await?.policy;
        let policy = self.seal_network(Some(sandbox.tenant), request, Some(&present))?;
        self.check_network(&sandbox.driver, sandbox.tenant, Some(&policy)).await?;
        let before = sandbox.lease.as_ref().and_then(|lease| lease.network.clone());
        let command = Command::SetNetwork(Some(Arc::clone(&policy)));
        let written = self
            .advance(id, &caller.actor(), |sandbox, now| {
                live_lease(sandbox, now)?;
                Ok(Some(command.clone()))
            })
            .await?;
        if let Err(error) = self.put_in_force(&written).await {
            self.take_back(id, &policy, before).await;
            let message = format!("the network policy could not be put in force and is as it was: {}", error.message);
            return Err(Error { message, ..error });
        }
        self.network_view(&written).await
    }

    /// Gives the record its old policy back and tells the driver, which may have done half of what it refused. The caller holds the
    /// sandbox's lock.
    async fn take_back(self: &Arc<Self>, id: SandboxId, refused: &Arc<NetworkPolicy>, before: Option<Arc<NetworkPolicy>>) {
        let taken_back = self
            .advance(id, &Actor::system(), |sandbox, _| {
                let still = sandbox.lease.as_ref().and_then(|lease| lease.network.as_ref()) == Some(refused);
                let changeable = sandbox.state.lease_clock_runs() && still;
                Ok(changeable.then(|| Command::SetNetwork(before.clone())))
            })
            .await;
        let restored = match taken_back {
            Ok(sandbox) if sandbox.state.is_live() => self.enforce_network(&sandbox).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = restored {
            tracing::warn!(sandbox = %id, error = %error, "a network policy could not be put back yet; it is tried again");
            self.enforce_later(id);
        }
    }

    /// As [`Inner::enforce_network`], and what runs inside trusts whoever speaks for hosts that get headers. That comes first: what
    /// fails has changed nothing that is in force.
    pub(crate) async fn put_in_force(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let policy = self.network_view(sandbox).await?.policy;
        self.trust_for(sandbox, &policy).await?;
        self.enforce_network(sandbox).await
    }

    /// Tells services and the driver what the record says. The caller holds the sandbox's lock.
    pub(crate) async fn enforce_network(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let (driver, handle) = self.target_of(sandbox)?;
        if !driver.capabilities().has(Capability::Network) {
            return Ok(());
        }
        let policy = self.network_view(sandbox).await?.policy;
        let active = Arc::new(self.networks.compile(sandbox.tenant, &policy));
        let plan = active.plan().clone();
        let entry = self.networks.get(sandbox.id);
        let _told = match &entry {
            Some(entry) => Some(entry.gate.write().await),
            None => None,
        };
        // What is open stays open, as far as this policy opens its name too.
        let named = entry.as_ref().map(|entry| entry.opened.living(self.now(), |name| active.groups_of(name)));
        self.networks.replace(sandbox.id, active);
        let set = in_time(driver.set_network(Target { id: sandbox.id, handle: &handle }, plan, named.unwrap_or_default())).await;
        if let Err(DriverError::Gone { .. }) = &set {
            self.fail(sandbox.id, FailureReason::AgentDied, "the driver no longer has it").await?;
        }
        Ok(set?)
    }

    /// A sandbox that an earlier server left: what the kernel enforces may be older than what the record, the settings or the
    /// tenant's default say.
    pub(crate) async fn recover_network(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        if !self.driver(&sandbox.driver)?.capabilities().has(Capability::Network) {
            return Ok(());
        }
        let policy = self.network_view(sandbox).await?.policy;
        self.networks.put(sandbox.id, Arc::new(self.networks.compile(sandbox.tenant, &policy)));
        if let Err(error) = self.enforce_network(sandbox).await {
            // It is no reason to lose somebody's sandbox: the kernel still enforces what was in force before.
            tracing::warn!(sandbox = %sandbox.id, error = %error, "a network policy could not be put in force after the restart");
            self.enforce_later(sandbox.id);
        }
        Ok(())
    }

    /// Tells the driver until it takes it, or the sandbox has ended.
    fn enforce_later(self: &Arc<Self>, id: SandboxId) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut wait = RETRY_FIRST;
            while inner.tasks.sleep(wait).await {
                match inner.enforce_again(id).await {
                    Ok(()) => return,
                    // It is a sandbox without a network, made before there were any.
                    Err(error) if error.kind == ErrorKind::Unsupported => return,
                    Err(error) => tracing::warn!(sandbox = %id, error = %error, "a network policy is still not in force"),
                }
                wait = (wait * 2).min(RETRY_MAX);
            }
        });
    }

    async fn enforce_again(self: &Arc<Self>, id: SandboxId) -> Result<()> {
        let _exclusive = self.sandbox_locks.lock(id).await;
        match self.record(id).await? {
            Some(sandbox) if sandbox.state.is_live() && sandbox.handle.is_some() => self.put_in_force(&sandbox).await,
            _ => Ok(()),
        }
    }

    /// Tells the drivers of a tenant's sandboxes that follow its default.
    fn follow_default(self: &Arc<Self>, tenant: TenantId) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let live = match inner.store.sandbox_live().await {
                Ok(live) => live,
                Err(error) => {
                    tracing::error!(tenant = %tenant, error = %error, "sandboxes do not follow their tenant's network policy before a restart");
                    return;
                }
            };
            let following = live.into_iter().filter(|sandbox| sandbox.tenant == tenant && own_policy(sandbox).is_none());
            futures_util::stream::iter(following)
                .for_each_concurrent(CONCURRENCY, |sandbox| {
                    let inner = Arc::clone(&inner);
                    async move {
                        if let Err(error) = inner.enforce_again(sandbox.id).await {
                            tracing::warn!(sandbox = %sandbox.id, error = %error, "a sandbox does not follow its tenant's network policy yet");
                            inner.enforce_later(sandbox.id);
                        }
                    }
                })
                .await;
        });
    }

    /// What a holder's new sandbox may reach, kept as a claim's network is: `None` when the request says nothing.
    pub(crate) fn lease_network(&self, tenant: TenantId, request: Option<&NetworkRequest>) -> Result<Option<Arc<NetworkPolicy>>> {
        request.map(|request| self.seal_network(Some(tenant), request, None)).transpose()
    }
}
