//! One reconciler a pool: no input, idempotent, run on a poke and on a timer. `sandbank_model::plan_pool` decides; this acts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sandbank_model::{
    Actor, Command, EventKind, Pace, Pool, PoolId, PoolPlan, PoolSnapshot, PoolState, Sandbox, StopCause, plan_pool, transition,
};
use sandbank_store::Write;

use crate::control::Inner;
use crate::make::order_of_pool;
use crate::runtimes::PoolRuntime;
use crate::templates::pool_event;
use crate::{Error, ErrorKind, Result};

/// The reconciler looks at least this often.
const LOOK_AT_LEAST: Duration = Duration::from_secs(30);
/// Pokes that come closer together are answered by one pass: under load a pass for each claim would slow the claims.
const PASS_DISTANCE: Duration = Duration::from_millis(2);
/// A pass that failed is repeated after so long.
const RETRY: Duration = Duration::from_secs(1);
/// Warm sandboxes that one pass destroys.
const DESTROY_BATCH: u32 = 256;
/// A pool may have this many times the number of places under way: the others' places are not behind all of its own.
const MAKING_FACTOR: usize = 2;
/// Filling a pool gently takes one of so many places.
const GENTLE_SHARE: usize = 4;

/// Says that no reconciler runs any more, also when one panicked: the supervisor starts another.
struct Running(Arc<PoolRuntime>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.reconciled.store(false, Ordering::Release);
    }
}

/// Counts a sandbox that is being made, also when the making is dropped.
struct Making(Arc<PoolRuntime>);

impl Making {
    fn begin(runtime: &Arc<PoolRuntime>) -> Self {
        runtime.making.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(runtime))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::AcqRel);
        self.0.poke.notify_one();
    }
}

impl Inner {
    /// Starts the pool's reconciler unless one runs, or none should yet.
    pub(crate) fn reconcile_pool(self: &Arc<Self>, id: PoolId) {
        if !self.started.load(Ordering::Acquire) {
            return;
        }
        let runtime = self.pools.get(id);
        if runtime.reconciled.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move { inner.run_reconciler(id, runtime).await });
    }

    async fn run_reconciler(self: Arc<Self>, id: PoolId, runtime: Arc<PoolRuntime>) {
        let _running = Running(Arc::clone(&runtime));
        loop {
            let wait = match self.reconcile_once(id, &runtime).await {
                Ok(Some(wait)) => wait,
                Ok(None) => {
                    self.pools.remove(id);
                    return;
                }
                Err(error) => {
                    tracing::warn!(pool = %id, error = %error, "a pass over a pool failed; it is repeated");
                    runtime.note(Some(error.message));
                    RETRY
                }
            };
            tokio::select! {
                () = self.tasks.closing.cancelled() => return,
                () = runtime.poke.notified() => tokio::time::sleep(PASS_DISTANCE).await,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One pass: how long to wait for the next if nothing happens; `None` when the pool is gone.
    async fn reconcile_once(self: &Arc<Self>, id: PoolId, runtime: &Arc<PoolRuntime>) -> Result<Option<Duration>> {
        let Some(pool) = self.store.pool_by_id(id).await? else {
            return Ok(None);
        };
        // Nobody else counts and inserts for this pool meanwhile: `max` is never passed.
        let growing = runtime.growing.lock().await;
        let now = self.now();
        let summary = self.pool_summary(pool.id, pool.revision).await?;
        let counts = summary.counts;
        let plan = plan_pool(
            &PoolSnapshot {
                state: pool.state,
                sizing: pool.sizing,
                autoscaling: pool.autoscaling,
                counts,
                waiting: runtime.waiting(),
                scaled_at: pool.scaled_at,
                last_claim_at: summary.last_claim_at,
                empty_since: runtime.empty_since(counts.ready == 0, now),
                oldest_ready_since: summary.oldest_ready_since,
                backoff_until: runtime.backoff_until(),
            },
            now,
        );
        if plan.remove {
            self.store.pool_remove(pool.id).await?;
            return Ok(None);
        }
        self.grow(&pool, runtime, plan.create, plan.pace).await?;
        drop(growing);
        self.shrink(&pool, counts.outdated, &plan).await?;
        if let Some(replicas) = plan.set_replicas {
            self.rescale(&pool, replicas).await?;
            return Ok(Some(Duration::ZERO));
        }
        let more = plan.replace + plan.destroy > DESTROY_BATCH;
        let wait = plan.wake_at.map_or(LOOK_AT_LEAST, |at| at.since(self.now()).min(LOOK_AT_LEAST));
        Ok(Some(if more { Duration::ZERO } else { wait.max(PASS_DISTANCE) }))
    }

    /// Inserts the records of up to `wanted` sandboxes and makes them beside this pass.
    async fn grow(self: &Arc<Self>, pool: &Pool, runtime: &Arc<PoolRuntime>, wanted: u32, pace: Pace) -> Result<()> {
        let places = self.settings.create_concurrency.max(1);
        let most = match pace {
            Pace::Full => places * MAKING_FACTOR,
            Pace::Gentle => (places / GENTLE_SHARE).max(1),
        };
        let room = most.saturating_sub(runtime.making.load(Ordering::Acquire));
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(room);
        if wanted == 0 {
            return Ok(());
        }
        let spec = pool.sandbox_spec();
        let layers = self.layers_in_use.read().await;
        let image = match self.resolve_image(&spec.image, pool.tenant).await {
            Ok(image) => image,
            Err(error) if error.kind == ErrorKind::Invalid => {
                runtime.failed(self.now(), &error.message);
                self.obtain_beside(pool, runtime);
                runtime.poke.notify_one();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut allowance = self.allowance(pool.tenant).await?;
        let mut why_less = None;
        let mut inserts = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            if let Err(error) = allowance.take(&spec.resources) {
                self.pools.hold_back(pool.id);
                why_less = Some(error.message);
                break;
            }
            inserts.push(self.insert_allowed(order_of_pool(pool, spec.clone(), image.clone(), Actor::system())));
        }
        // Together, so that the store commits them together.
        let inserted = futures_util::future::join_all(inserts).await;
        drop((layers, allowance));
        for record in inserted {
            self.make_warm(record?, runtime);
        }
        runtime.note(why_less);
        Ok(())
    }

    /// The pool's image was here when the pool was made, and was removed since: it is pulled again beside the passes.
    fn obtain_beside(self: &Arc<Self>, pool: &Pool, runtime: &Arc<PoolRuntime>) {
        if runtime.pulling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, runtime) = (Arc::clone(self), Arc::clone(runtime));
        let (image, tenant) = (pool.sandbox_spec().image, pool.tenant);
        self.tasks.spawn(async move {
            match inner.obtain_image(&image, tenant, None).await {
                Ok(_) => runtime.succeeded(),
                Err(error) => runtime.failed(inner.now(), &error.message),
            }
            runtime.pulling.store(false, Ordering::Release);
            runtime.poke.notify_one();
        });
    }

    fn make_warm(self: &Arc<Self>, record: Sandbox, runtime: &Arc<PoolRuntime>) {
        let (inner, runtime) = (Arc::clone(self), Arc::clone(runtime));
        let making = Making::begin(&runtime);
        self.tasks.spawn(async move {
            match inner.build(record, None, &Actor::system(), &inner.refill_places).await {
                Ok(_) => runtime.succeeded(),
                Err(error) => runtime.failed(inner.now(), &error.message),
            }
            drop(making);
        });
    }

    /// Destroys warm sandboxes: outdated ones first, then those that are too many. One that is claimed meanwhile stays.
    async fn shrink(self: &Arc<Self>, pool: &Pool, outdated: u32, plan: &PoolPlan) -> Result<()> {
        if plan.replace + plan.destroy == 0 {
            return Ok(());
        }
        let limit = outdated.saturating_add(plan.destroy).min(DESTROY_BATCH);
        let warm = self.store.sandbox_warm(pool.id, pool.revision, limit).await?;
        let (old, fresh) = warm.split_at(warm.len().min(outdated as usize));
        let replaced = old.iter().take(plan.replace as usize).map(|sandbox| (sandbox, StopCause::Outdated));
        let surplus = fresh.iter().take(plan.destroy as usize).map(|sandbox| (sandbox, StopCause::ScaledDown));
        let stops = replaced.chain(surplus).map(|(sandbox, cause)| self.stop_warm(sandbox, cause));
        futures_util::future::try_join_all(stops).await?;
        Ok(())
    }

    async fn stop_warm(self: &Arc<Self>, sandbox: &Sandbox, cause: StopCause) -> Result<()> {
        let Ok((next, event)) = transition(sandbox, Command::BeginStop(cause), &Actor::system(), self.now()) else {
            return Ok(());
        };
        if let Write::Updated(stopped) = self.store.sandbox_update(next, sandbox.generation, event).await? {
            self.settle(&stopped);
            self.destroy_stopping(&stopped);
        }
        Ok(())
    }

    async fn rescale(&self, pool: &Pool, replicas: u32) -> Result<()> {
        if pool.state != PoolState::Active {
            return Ok(());
        }
        let now = self.now();
        let mut next = Pool { scaled_at: Some(now), updated_at: now, ..pool.clone() };
        next.sizing.replicas = replicas;
        let event = pool_event(&next, EventKind::PoolScaled(pool.sizing.replicas, replicas), &Actor::system(), now);
        // Refused: somebody changed the pool; the next pass plans anew.
        self.store.pool_update(next, pool.generation, Some(event)).await.map(|_| ()).map_err(Error::from)
    }
}
