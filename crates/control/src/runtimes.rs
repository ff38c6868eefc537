//! What is remembered of each pool while the server runs: who waits for it, and how making sandboxes for it goes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sandbank_model::{PoolId, Timestamp};
use tokio::sync::Notify;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// All pools that were seen.
#[derive(Debug)]
pub(crate) struct PoolRuntimes {
    pools: Mutex<HashMap<PoolId, Arc<PoolRuntime>>>,
    /// Pools that a quota keeps from growing: any sandbox that ends may make room.
    held_back: Mutex<HashSet<PoolId>>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// One pool.
#[derive(Debug, Default)]
pub(crate) struct PoolRuntime {
    /// Asks its reconciler to look.
    pub(crate) poke: Notify,
    /// A reconciler runs for it.
    pub(crate) reconciled: AtomicBool,
    /// Sandboxes that are being made for it by its reconciler.
    pub(crate) making: AtomicUsize,
    /// Its image is being pulled.
    pub(crate) pulling: AtomicBool,
    /// Held while sandboxes are counted against `max` and inserted.
    pub(crate) growing: tokio::sync::Mutex<()>,
    state: Mutex<RuntimeState>,
}

#[derive(Debug, Default)]
struct RuntimeState {
    queue: VecDeque<Arc<Notify>>,
    failures: u32,
    backoff_until: Option<Timestamp>,
    last_error: Option<String>,
    empty_since: Option<Timestamp>,
}

/// A claim that waits for a sandbox of one pool. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Waiter {
    pool: Arc<PoolRuntime>,
    turn: Arc<Notify>,
    waiting: Arc<AtomicUsize>,
}

impl PoolRuntimes {
    pub(crate) fn new(waiting_max: usize) -> Self {
        Self { pools: Mutex::default(), held_back: Mutex::default(), waiting: Arc::default(), waiting_max }
    }

    pub(crate) fn get(&self, id: PoolId) -> Arc<PoolRuntime> {
        Arc::clone(self.pools.lock().entry(id).or_default())
    }

    pub(crate) fn remove(&self, id: PoolId) {
        if let Some(pool) = self.pools.lock().remove(&id) {
            pool.wake_all();
        }
    }

    /// Asks the pool's reconciler to look.
    pub(crate) fn poke(&self, id: Option<PoolId>) {
        if let Some(pool) = id.and_then(|id| self.pools.lock().get(&id).cloned()) {
            pool.poke.notify_one();
        }
    }

    /// A quota keeps this pool from growing.
    pub(crate) fn hold_back(&self, id: PoolId) {
        self.held_back.lock().insert(id);
    }

    /// A sandbox is gone: pools that a quota held back look again.
    pub(crate) fn poke_held_back(&self) {
        let held_back = std::mem::take(&mut *self.held_back.lock());
        held_back.into_iter().for_each(|id| self.poke(Some(id)));
    }

    /// Asks all reconcilers to look.
    pub(crate) fn poke_all(&self) {
        self.pools.lock().values().for_each(|pool| pool.poke.notify_one());
    }

    /// Puts a claim at the end of the pool's queue; `None` when too many wait already, over all pools.
    pub(crate) fn wait(&self, pool: &Arc<PoolRuntime>) -> Option<Waiter> {
        let place = self.waiting.fetch_add(1, Ordering::AcqRel);
        if place >= self.waiting_max {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let turn = Arc::new(Notify::new());
        pool.state.lock().queue.push_back(Arc::clone(&turn));
        Some(Waiter { pool: Arc::clone(pool), turn, waiting: Arc::clone(&self.waiting) })
    }

    /// Claims that wait, over all pools.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

impl PoolRuntime {
    /// A sandbox became warm: the longest-waiting claim tries.
    pub(crate) fn wake_first(&self) {
        if let Some(first) = self.state.lock().queue.front() {
            first.notify_one();
        }
    }

    /// The pool changed: everybody looks again.
    pub(crate) fn wake_all(&self) {
        self.state.lock().queue.iter().for_each(|waiter| waiter.notify_one());
    }

    /// Claims that wait for it.
    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.state.lock().queue.len()).unwrap_or(u32::MAX)
    }

    /// Making a sandbox worked.
    pub(crate) fn succeeded(&self) {
        let mut state = self.state.lock();
        state.failures = 0;
        state.backoff_until = None;
        state.last_error = None;
    }

    /// Making a sandbox failed: the next try waits, longer each time. Failures during one wait count once.
    pub(crate) fn failed(&self, now: Timestamp, why: &str) {
        let mut state = self.state.lock();
        state.last_error = Some(why.to_owned());
        if state.backoff_until.is_some_and(|until| now < until) {
            return;
        }
        let wait = BACKOFF_FIRST.saturating_mul(1 << state.failures.min(6)).min(BACKOFF_MAX);
        state.failures = state.failures.saturating_add(1);
        state.backoff_until = Some(now.plus(wait));
    }

    /// Why it does not grow, without holding it back.
    pub(crate) fn note(&self, why: Option<String>) {
        let mut state = self.state.lock();
        if state.failures == 0 {
            state.last_error = why;
        }
    }

    pub(crate) fn backoff_until(&self) -> Option<Timestamp> {
        self.state.lock().backoff_until
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// Since when no sandbox has been warm, given whether one is now.
    pub(crate) fn empty_since(&self, empty: bool, now: Timestamp) -> Option<Timestamp> {
        let mut state = self.state.lock();
        state.empty_since = empty.then(|| state.empty_since.unwrap_or(now));
        state.empty_since
    }
}

impl Waiter {
    /// Whether it is the longest-waiting: only that one tries to claim.
    pub(crate) fn is_first(&self) -> bool {
        self.pool.state.lock().queue.front().is_some_and(|first| Arc::ptr_eq(first, &self.turn))
    }

    /// Returns when it is worth looking again.
    pub(crate) async fn turn(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let mut state = self.pool.state.lock();
        state.queue.retain(|waiter| !Arc::ptr_eq(waiter, &self.turn));
        drop(state);
        // The next may have been passed over while this one was first: a wake-up is never lost with its receiver.
        self.pool.wake_first();
    }
}
