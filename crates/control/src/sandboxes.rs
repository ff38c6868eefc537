//! Looking at sandboxes.

use std::collections::BTreeMap;
use std::sync::Arc;

use sandbank_driver::{Capability, DriverError, Target, Traffic};
use sandbank_model::{
    Actor, Command, Event, EventSeq, ExpiryAction, PoolName, Sandbox, SandboxId, State, StopCause, TenantId, transition,
};
use sandbank_store::{EventFilter, PageRequest, SandboxFilter};

use crate::agent::ANSWER_TIMEOUT;
use crate::control::{Control, Inner};
use crate::convert::unresponsive;
use crate::types::{Caller, Id, Listing, NetworkTraffic, SandboxMetrics, SandboxQuery, SandboxStatistics, SandboxView};
use crate::{Detail, Error, ErrorKind, Result};

/// Most entries of one page.
pub(crate) const PAGE_MAX: u32 = 1000;

impl Control {
    /// One sandbox, also an ended one. A lease that has ended shows as ended, however late its timer is.
    pub async fn get(&self, caller: &Caller, id: Id) -> Result<SandboxView> {
        let sandbox = self.inner.sandbox_of(caller, id).await?;
        self.inner.view(sandbox).await
    }

    /// Sandboxes that match, the most recently claimed first.
    pub async fn list(&self, caller: &Caller, query: SandboxQuery, offset: u64, limit: u32) -> Result<Listing<SandboxView>> {
        if query.all_tenants {
            caller.require_admin()?;
        }
        let filter = SandboxFilter {
            tenant: (!query.all_tenants).then_some(caller.principal.tenant),
            pool: None,
            pool_name: query.pool,
            states: query.states,
            claimed_only: !query.warm,
            metadata: query.metadata,
        };
        let page = self.inner.store.sandbox_list(filter, PageRequest { offset, limit: limit.min(PAGE_MAX) }).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for mut sandbox in page.items {
            self.inner.freshen(&mut sandbox);
            items.push(self.inner.view(sandbox).await?);
        }
        Ok(Listing { items, total: page.total })
    }

    /// Counts of the caller's sandboxes that were ever claimed.
    pub async fn statistics(&self, caller: &Caller) -> Result<SandboxStatistics> {
        let by_state = self.inner.count(Some(caller.principal.tenant)).await?;
        Ok(SandboxStatistics { tenant: Some(caller.principal.tenant_name.clone()), by_state, by_tenant: BTreeMap::new() })
    }

    /// Counts over all tenants of sandboxes that were ever claimed.
    pub async fn admin_statistics(&self, caller: &Caller) -> Result<SandboxStatistics> {
        caller.require_admin()?;
        let by_state = self.inner.count(None).await?;
        let mut by_tenant = BTreeMap::new();
        for tenant in self.inner.store.tenant_list().await? {
            let total = self.inner.count(Some(tenant.id)).await?.values().sum();
            by_tenant.insert(tenant.name, total);
        }
        Ok(SandboxStatistics { tenant: None, by_state, by_tenant })
    }

    /// Events of the caller's tenant, of one sandbox or of one pool; at most 1,000 at once.
    pub async fn events(
        &self,
        caller: &Caller,
        sandbox: Option<Id>,
        pool: Option<PoolName>,
        after: Option<EventSeq>,
        newest_first: bool,
        limit: u32,
    ) -> Result<Vec<Event>> {
        let mut filter = EventFilter { tenant: Some(caller.principal.tenant), sandbox, pool: None, after, newest_first };
        if let Some(id) = sandbox {
            filter.tenant = Some(self.inner.sandbox_of(caller, id).await?.tenant);
        }
        if let Some(name) = pool {
            filter.pool = Some(self.inner.pool_of(caller, &name).await?.id);
        }
        Ok(self.inner.store.event_list(filter, limit.min(PAGE_MAX)).await?)
    }

    /// Counters of a running or paused sandbox. Looking at them is no activity.
    pub async fn metrics(&self, caller: &Caller, id: Id) -> Result<SandboxMetrics> {
        let inner = &self.inner;
        let sandbox = inner.sandbox_of(caller, id).await?;
        if sandbox.state != State::Paused {
            inner.running(caller, id).await?;
        }
        let (driver, handle) = inner.target_of(&sandbox)?;
        driver.capabilities().require(Capability::Metrics)?;
        let target = Target { id, handle: &handle };
        let asked = async {
            let inside = driver.metrics(target).await?;
            let traffic = match driver.capabilities().has(Capability::Network) {
                true => Some(driver.traffic(target).await?),
                false => None,
            };
            let traffic = traffic.map(|Traffic { in_bytes, out_bytes }| NetworkTraffic { in_bytes, out_bytes });
            Ok(SandboxMetrics { inside, traffic })
        };
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        answered.map_err(|_| unresponsive())?.map_err(|error: DriverError| error.into())
    }

    /// Counts as activity (the data plane calls it).
    pub async fn touch(&self, caller: &Caller, id: Id) -> Result<()> {
        let sandbox = self.inner.running(caller, id).await?;
        self.inner.activity.touch(sandbox.id, self.inner.now());
        Ok(())
    }
}

impl Inner {
    async fn count(&self, tenant: Option<TenantId>) -> Result<BTreeMap<State, u64>> {
        let filter = SandboxFilter { tenant, claimed_only: true, ..SandboxFilter::default() };
        Ok(self.store.sandbox_count(filter).await?.into_iter().collect())
    }

    /// One sandbox that the caller may address; others' look missing.
    pub(crate) async fn sandbox_of(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox> {
        let found = self.record(id).await?.filter(|sandbox| caller.sees(sandbox.tenant));
        found.ok_or_else(|| not_found(caller, id))
    }

    /// One sandbox that can be operated on: it runs and its lease lives.
    pub(crate) async fn running(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox> {
        let sandbox = self.sandbox_of(caller, id).await?;
        self.check_running(&sandbox)?;
        Ok(sandbox)
    }

    /// Refuses a sandbox that cannot be operated on.
    pub(crate) fn check_running(&self, sandbox: &Sandbox) -> Result<()> {
        let id = sandbox.id;
        live_lease(sandbox, self.now())?;
        if sandbox.state.is_operable() {
            return Ok(());
        }
        let advice = match sandbox.state {
            State::Paused | State::Pausing => ": resume it first",
            State::Ready => ": claim it first",
            State::Provisioning | State::Resuming => ": try again in a moment",
            _ => "",
        };
        let message = format!("sandbox {id} is {}, not running{advice}", sandbox.state.as_str());
        Err(Error::new(ErrorKind::State, message).with(Detail::State(sandbox.state)))
    }

    /// The record as the caller should see it: a lease that has ended shows as what its policy makes of it.
    pub(crate) async fn view(&self, sandbox: Sandbox) -> Result<SandboxView> {
        let owner = self.owner(sandbox.tenant).await?;
        Ok(SandboxView { sandbox: Arc::new(self.presented(sandbox)), owner })
    }

    fn presented(&self, sandbox: Sandbox) -> Sandbox {
        let now = self.now();
        let Some(cause) = sandbox.expiry(now) else {
            return sandbox;
        };
        let command = match sandbox.lease.as_ref().map(|lease| lease.on_expiry) {
            Some(ExpiryAction::Pause) => Command::FinishPause,
            Some(ExpiryAction::Keep) => Command::ExpireAndKeep(cause),
            Some(ExpiryAction::Kill) | None => Command::BeginStop(StopCause::Expired(cause)),
        };
        // A refusal means that it is there already (paused, for one).
        transition(&sandbox, command, &Actor::system(), now).map_or(sandbox, |(next, _)| next)
    }
}

/// Refuses a sandbox whose lease has ended.
pub(crate) fn live_lease(sandbox: &Sandbox, now: sandbank_model::Timestamp) -> Result<()> {
    match sandbox.expiry(now) {
        Some(cause) => Err(sandbank_model::Refusal::LeaseEnded { cause }.into()),
        None => Ok(()),
    }
}

/// What a caller reads of a sandbox that is not there for it (native.md §5).
pub(crate) fn not_found(caller: &Caller, id: SandboxId) -> Error {
    Error::not_found(format!("sandbox {}/{id} not found or already terminated", caller.principal.tenant_name))
}
