//! Claims: what the product is for. One store transaction; no driver, no agent, no process is involved.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use sandbank_driver::Capability;
use sandbank_model::{
    Actor, AssignmentId, Command, ExpiryAction, ImageName, Pool, PoolName, PoolState, Sandbox, SandboxSpec, State, StopCause,
};
use sandbank_oci::Credentials;
use sandbank_store::{ClaimRequest, StoreError};

use crate::control::{Control, Inner};
use crate::limits::check_lease;
use crate::make::{LeaseTerms, Order, order_of_pool};
use crate::runtimes::PoolRuntime;
use crate::types::{Caller, Claim, OwnerView, SandboxView, WhenEmpty};
use crate::{Detail, Error, ErrorKind, Result, telemetry};

/// A waiting claim looks again after so long even if nobody woke it.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Longest wait of a claim, whatever it asks.
const WAIT_MAX: Duration = Duration::from_secs(3600);

impl Control {
    /// Takes a warm sandbox of the caller's pool, or does what the claim says when there is none.
    ///
    /// A future that is dropped before it is ready leaves no claimed sandbox behind.
    pub async fn claim(&self, caller: &Caller, claim: Claim) -> Result<SandboxView> {
        let begun = Instant::now();
        let claimed = self.inner.claim(caller, claim).await;
        let outcome = claimed.as_ref().map_or("refused", |(_, outcome)| outcome);
        telemetry::claim(outcome, begun.elapsed());
        let (held, _) = claimed?;
        Ok(SandboxView { sandbox: Arc::new(held.accept()), owner: OwnerView::from(&caller.principal) })
    }
}

impl Inner {
    async fn claim(self: &Arc<Self>, caller: &Caller, claim: Claim) -> Result<(Held, &'static str)> {
        check_lease(&claim.lease)?;
        let pool = self.claimable(caller, &claim.pool).await?;
        let network = self.lease_network(pool.tenant, claim.lease.network.as_ref())?;
        self.check_network(&pool.driver, pool.tenant, network.as_ref()).await?;
        let terms = LeaseTerms::new(caller, claim.lease, &pool.policies).with_network(network);
        self.check_expiry_action(&pool.driver, terms.on_expiry())?;
        let other_image = |image: &ImageName| self.alias(image) != self.alias(pool_image(&pool));
        if let Some(image) = claim.image.filter(other_image) {
            let spec = SandboxSpec { image, ..pool.sandbox_spec() };
            let held = self.create_for_claim(caller, &pool, spec, terms, claim.image_credentials).await?;
            return Ok((held, "created"));
        }
        let runtime = self.pools.get(pool.id);
        // Claims that wait come first, unless this one would not wait with them.
        let queued = runtime.waiting() > 0 && matches!(claim.when_empty, WhenEmpty::Wait(_));
        if !queued && let Some(held) = self.take_warm(&pool, &terms, &caller.actor()).await? {
            return Ok((held, "warm"));
        }
        match claim.when_empty {
            WhenEmpty::Refuse => Err(self.no_idle(&pool).await),
            WhenEmpty::Wait(limit) => Ok((self.wait_for_warm(caller, &pool, &runtime, &terms, limit).await?, "waited")),
            WhenEmpty::Create => {
                let held = self.create_for_claim(caller, &pool, pool.sandbox_spec(), terms, claim.image_credentials).await?;
                Ok((held, "created"))
            }
        }
    }

    /// The caller's pool of this name, if it may be claimed from.
    async fn claimable(&self, caller: &Caller, name: &PoolName) -> Result<Pool> {
        let tenant = caller.principal.tenant;
        match self.store.pool_get(tenant, name).await? {
            Some(pool) if pool.state == PoolState::Active => Ok(pool),
            _ => Err(self.pool_not_found(caller, name).await),
        }
    }

    /// Refuses a lease whose end the driver cannot bring about.
    pub(crate) fn check_expiry_action(&self, driver: &str, action: ExpiryAction) -> Result<()> {
        if action == ExpiryAction::Pause && !self.driver(driver)?.capabilities().has(Capability::Pause) {
            let message = format!("onExpiry pause is not possible: the driver {driver} cannot pause; use kill or keep");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    async fn take_warm(self: &Arc<Self>, pool: &Pool, terms: &LeaseTerms, actor: &Actor) -> Result<Option<Held>> {
        let now = self.now();
        let lease = terms.begin(now, AssignmentId::new(now, self.random()));
        let request = ClaimRequest { pool: pool.id, lease, actor: actor.clone(), now };
        let store = Arc::clone(&self.store);
        let taking = Taking { inner: Arc::clone(self), claim: Some(Box::pin(async move { store.sandbox_claim(request).await })) };
        let Some(held) = taking.await? else {
            return Ok(None);
        };
        self.settle(held.sandbox());
        self.pools.poke(Some(pool.id));
        if terms.network().is_some() {
            // Before anybody knows of it: nothing of the holder's runs under what the pool allowed.
            let _exclusive = self.sandbox_locks.lock(held.sandbox().id).await;
            self.put_in_force(held.sandbox()).await?;
        }
        Ok(Some(held))
    }

    async fn wait_for_warm(
        self: &Arc<Self>,
        caller: &Caller,
        pool: &Pool,
        runtime: &Arc<PoolRuntime>,
        terms: &LeaseTerms,
        limit: Option<Duration>,
    ) -> Result<Held> {
        let limit = limit.or(pool.policies.startup_timeout).unwrap_or(self.settings.startup_timeout).min(WAIT_MAX);
        let Some(waiter) = self.pools.wait(runtime) else {
            return Err(Error::new(ErrorKind::NoCapacity, "scheduler queue is full, try again later"));
        };
        runtime.poke.notify_one();
        let actor = caller.actor();
        let give_up = tokio::time::Instant::now() + limit;
        loop {
            // Looked at after joining the queue and after every wake-up: what became warm in between is not missed.
            if waiter.is_first()
                && let Some(held) = self.take_warm(pool, terms, &actor).await?
            {
                return Ok(held);
            }
            if self.tasks.closing.is_cancelled() {
                return Err(Error::shutting_down());
            }
            if !matches!(self.store.pool_by_id(pool.id).await?, Some(pool) if pool.state == PoolState::Active) {
                return Err(self.pool_not_found(caller, &pool.name).await);
            }
            let now = tokio::time::Instant::now();
            if now >= give_up {
                return Err(self.no_idle(pool).await);
            }
            tokio::select! {
                () = waiter.turn() => {}
                () = self.tasks.closing.cancelled() => {}
                () = tokio::time::sleep_until(give_up.min(now + LOOK_AGAIN)) => {}
            }
        }
    }

    async fn no_idle(&self, pool: &Pool) -> Error {
        let counts = self.pool_counts(pool).await.unwrap_or_default();
        let mut message = format!(
            "no idle sandboxes available in the pool {}: wait longer (startupTimeout), release some, or raise its replicas",
            pool.name
        );
        if let Some(why) = self.pools.get(pool.id).last_error() {
            message.push_str(&format!(" (last problem: {why})"));
        }
        Error::new(ErrorKind::NoCapacity, message).with(Detail::PoolStatus(counts))
    }

    /// Makes one for this claim, within the pool's `max` and the quota.
    async fn create_for_claim(
        self: &Arc<Self>,
        caller: &Caller,
        pool: &Pool,
        spec: SandboxSpec,
        terms: LeaseTerms,
        credentials: Option<Credentials>,
    ) -> Result<Held> {
        let layers = Arc::clone(&self.layers_in_use).read_owned().await;
        let image = self.obtain_image(&spec.image, pool.tenant, credentials).await?;
        let order = order_of_pool(pool, spec, image, caller.actor());
        self.make_for_holder(order, terms, Some(pool.clone()), layers).await
    }

    /// Makes a sandbox for somebody who waits for it. The making goes on without the caller; what nobody takes is released.
    pub(crate) async fn make_for_holder(
        self: &Arc<Self>,
        order: Order,
        terms: LeaseTerms,
        pool: Option<Pool>,
        layers: tokio::sync::OwnedRwLockReadGuard<()>,
    ) -> Result<Held> {
        let (answer, made) = tokio::sync::oneshot::channel();
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let outcome = inner.make_within_bounds(order, &terms, pool, layers).await;
            // An answer that nobody takes is dropped, and a held sandbox that is dropped is released.
            let _ = answer.send(outcome.map(|sandbox| Held { inner: Arc::clone(&inner), sandbox: Some(sandbox) }));
        });
        match tokio::time::timeout(self.settings.startup_timeout.min(WAIT_MAX), made).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::shutting_down()),
            Err(_) => Err(Error::new(ErrorKind::NoCapacity, "the sandbox was not made in time: try again later")),
        }
    }

    async fn make_within_bounds(
        self: &Arc<Self>,
        order: Order,
        terms: &LeaseTerms,
        pool: Option<Pool>,
        layers: tokio::sync::OwnedRwLockReadGuard<()>,
    ) -> Result<Sandbox> {
        let actor = order.actor.clone();
        let record = match &pool {
            None => self.insert_order(order.clone(), &mut self.allowance(order.tenant).await?).await?,
            Some(pool) => {
                let runtime = self.pools.get(pool.id);
                let _growing = runtime.growing.lock().await;
                let counts = self.pool_counts(pool).await?;
                let have = counts.provisioning + counts.ready + counts.claimed;
                if pool.sizing.max.is_some_and(|max| have >= max) {
                    return Err(self.no_idle(pool).await);
                }
                self.insert_order(order.clone(), &mut self.allowance(order.tenant).await?).await?
            }
        };
        drop(layers);
        let built = self.build(record, Some(terms), &actor, &self.demand_places).await;
        self.pools.poke(pool.map(|pool| pool.id));
        built
    }

    /// Gives back a sandbox that was claimed for somebody who is gone.
    fn release_unwanted(self: &Arc<Self>, sandbox: Sandbox) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let stopped = inner
                .advance(sandbox.id, &Actor::system(), |sandbox, _| {
                    Ok(sandbox.state.is_claimed().then_some(Command::BeginStop(StopCause::Released)))
                })
                .await;
            match stopped {
                Ok(sandbox) if sandbox.state == State::Stopping => inner.destroy_stopping(&sandbox),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(sandbox = %sandbox.id, error = %error, "a sandbox whose claimer left could not be released")
                }
            }
        });
    }
}

/// The image of the pool's sandboxes.
fn pool_image(pool: &Pool) -> &ImageName {
    pool.overrides.image.as_ref().unwrap_or(&pool.template_spec.sandbox.image)
}

/// A sandbox that was claimed and not yet handed over. Dropping it releases the sandbox.
pub(crate) struct Held {
    inner: Arc<Inner>,
    sandbox: Option<Sandbox>,
}

impl Held {
    /// What is held.
    pub(crate) fn sandbox(&self) -> &Sandbox {
        // Only `accept` empties it, and takes the whole value.
        self.sandbox.as_ref().unwrap_or_else(|| unreachable!("held until accepted"))
    }

    /// The holder has it.
    pub(crate) fn accept(mut self) -> Sandbox {
        self.sandbox.take().unwrap_or_else(|| unreachable!("accepted once"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.inner.release_unwanted(sandbox);
        }
    }
}

type StoreClaim = Pin<Box<dyn Future<Output = std::result::Result<Option<Sandbox>, StoreError>> + Send>>;

/// A claim that the store is deciding. Dropped before the answer, it waits for the answer elsewhere and gives the sandbox back:
/// the store may have committed already.
struct Taking {
    inner: Arc<Inner>,
    claim: Option<StoreClaim>,
}

impl Future for Taking {
    type Output = Result<Option<Held>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(claim) = self.claim.as_mut() else {
            return Poll::Ready(Ok(None));
        };
        let Poll::Ready(answer) = claim.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.claim = None;
        let inner = Arc::clone(&self.inner);
        Poll::Ready(answer.map(|claimed| claimed.map(|sandbox| Held { inner, sandbox: Some(sandbox) })).map_err(Error::from))
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        // Without a runtime the process is ending: recovery finds the lease with its deadline.
        if tokio::runtime::Handle::try_current().is_ok() {
            let inner = Arc::clone(&self.inner);
            self.inner.tasks.spawn(async move {
                if let Ok(Some(sandbox)) = claim.await {
                    drop(Held { inner, sandbox: Some(sandbox) });
                }
            });
        }
    }
}
