//! The pool planner: what a pool needs next, as a pure function of what is there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Autoscaling, Counting, PoolState, ScaleUpMode, Sizing, Timestamp};

/// A pool's sandboxes, counted by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolCounts {
    /// Being made.
    pub provisioning: u32,
    /// Warm.
    pub ready: u32,
    /// Warm, but made from an older revision of the pool: contained in `ready`.
    pub outdated: u32,
    /// Claimed: running, pausing, paused, resuming or expired and kept.
    pub claimed: u32,
    /// Being destroyed.
    pub stopping: u32,
    /// Failed within the last ten minutes.
    pub failed: u32,
}

impl PoolCounts {
    /// All that hold a place in the pool: being made, warm or claimed.
    #[must_use]
    pub const fn all(&self) -> u32 {
        self.provisioning.saturating_add(self.ready).saturating_add(self.claimed)
    }
}

/// What the planner looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSnapshot {
    /// Whether the pool is wanted.
    pub state: PoolState,
    /// Its size.
    pub sizing: Sizing,
    /// How its size moves.
    pub autoscaling: Autoscaling,
    /// What is there.
    pub counts: PoolCounts,
    /// Claims that wait for a sandbox.
    pub waiting: u32,
    /// When `replicas` was last moved.
    pub scaled_at: Option<Timestamp>,
    /// When a sandbox of it was last claimed.
    pub last_claim_at: Option<Timestamp>,
    /// Since when no sandbox has been warm; `None` while one is.
    pub empty_since: Option<Timestamp>,
    /// Since when the oldest warm sandbox has been warm; `None` while there is none.
    pub oldest_ready_since: Option<Timestamp>,
    /// Making sandboxes is suspended until then, because it keeps failing.
    pub backoff_until: Option<Timestamp>,
}

/// How fast a pool is filled. Making sandboxes takes processor time from the claims that made it necessary, so as long as the
/// stock lasts it waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// As many at once as the server may make.
    #[default]
    Full,
    /// A few at once.
    Gentle,
}

/// While claims follow each other closer than this, a stock that is at least half full is left alone.
pub const BURST_GAP: Duration = Duration::from_millis(10);
/// So long after a claim a stock that is more than a quarter full is filled gently.
pub const GENTLE_AFTER_CLAIM: Duration = Duration::from_millis(250);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolPlan {
    /// New value of `replicas`, if the autoscaler moves it.
    pub set_replicas: Option<u32>,
    /// Sandboxes to make.
    pub create: u32,
    /// How many of them at once.
    pub pace: Pace,
    /// Warm sandboxes of an older revision to destroy.
    pub replace: u32,
    /// Other warm sandboxes to destroy, longest warm first.
    pub destroy: u32,
    /// The pool's record can go: it is unwanted and nothing of it is left.
    pub remove: bool,
    /// Look again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// Decides for one pool.
///
/// Holds for every input: never creates and destroys for size in one plan; never plans past `max`; a pool that is not wanted
/// creates nothing; the plan of a pool at its size, without waiting claims and with nothing outdated, is empty; a pool below its
/// size creates something now or says when it will.
#[must_use]
pub fn plan_pool(snapshot: &PoolSnapshot, now: Timestamp) -> PoolPlan {
    let counts = &snapshot.counts;
    if snapshot.state == PoolState::Deleting {
        let left = counts.all().saturating_add(counts.stopping);
        return PoolPlan { destroy: counts.ready, remove: left == 0, ..PoolPlan::default() };
    }
    let (replicas, mut wake_at) = autoscale(snapshot, now);
    let wanted_warm = wanted_warm(&Sizing { replicas, ..snapshot.sizing }, counts);
    // Outdated sandboxes are replaced one for one: they go only as far as fresh ones are there or coming.
    let fresh = counts.ready.saturating_sub(counts.outdated).saturating_add(counts.provisioning);
    let mut create = wanted_warm.saturating_sub(fresh).min(room(&snapshot.sizing, counts));
    if let Some(until) = snapshot.backoff_until.filter(|until| *until > now) {
        wake_at = earliest(wake_at, Some(until));
        create = 0;
    }
    let mut pace = Pace::Full;
    if create > 0 {
        match pace_of(snapshot, wanted_warm, now) {
            Ok(allowed) => pace = allowed,
            Err(burst_ends) => {
                wake_at = earliest(wake_at, Some(burst_ends));
                create = 0;
            }
        }
    }
    let fresh_ready = counts.ready.saturating_sub(counts.outdated);
    let surplus = counts.ready.saturating_add(counts.provisioning).saturating_sub(wanted_warm);
    let replace = counts.outdated.min(surplus.max(outdated_without_room(snapshot, wanted_warm)));
    let destroy = if create > 0 { 0 } else { surplus.saturating_sub(replace).min(fresh_ready) };
    PoolPlan {
        set_replicas: (replicas != snapshot.sizing.replicas).then_some(replicas),
        create,
        pace,
        replace,
        destroy,
        remove: false,
        wake_at,
    }
}

/// How fast to make what is missing; `Err`: not before that time, because claims are coming in and the stock lasts.
fn pace_of(snapshot: &PoolSnapshot, wanted_warm: u32, now: Timestamp) -> Result<Pace, Timestamp> {
    let Some(last_claim) = snapshot.last_claim_at.filter(|_| snapshot.waiting == 0) else { return Ok(Pace::Full) };
    let ready = u64::from(snapshot.counts.ready);
    let wanted = u64::from(wanted_warm);
    let burst_ends = last_claim.plus(BURST_GAP);
    // A clock that was set back must not hold the pool up: a claim of the future counts as long past.
    let after_claim = |gap: Duration| last_claim <= now && now < last_claim.plus(gap);
    if ready * 2 >= wanted && after_claim(BURST_GAP) {
        Err(burst_ends)
    } else if ready * 4 > wanted && after_claim(GENTLE_AFTER_CLAIM) {
        Ok(Pace::Gentle)
    } else {
        Ok(Pace::Full)
    }
}

/// Warm sandboxes that the pool should have.
fn wanted_warm(sizing: &Sizing, counts: &PoolCounts) -> u32 {
    let wanted = match sizing.counting {
        Counting::Total => sizing.replicas.saturating_sub(counts.claimed),
        Counting::Warm => sizing.replicas,
    };
    let bound = sizing.max.map_or(u32::MAX, |max| max.saturating_sub(counts.claimed));
    wanted.min(bound)
}

/// How many more sandboxes fit under `max` (outdated ones do not hold a place of their own: see `outdated_without_room`).
fn room(sizing: &Sizing, counts: &PoolCounts) -> u32 {
    let all = counts.all();
    let bound = match (sizing.counting, sizing.max) {
        (_, Some(max)) => max,
        // During a replacement a pool counted in total may hold one generation beside the other.
        (Counting::Total, None) => sizing.replicas.saturating_add(counts.outdated).max(all),
        (Counting::Warm, None) => u32::MAX,
    };
    bound.saturating_sub(all)
}

/// When the pool is full up to `max` with outdated sandboxes, one has to go before a fresh one can come.
fn outdated_without_room(snapshot: &PoolSnapshot, wanted_warm: u32) -> u32 {
    let counts = &snapshot.counts;
    let needs_fresh = wanted_warm > counts.ready.saturating_sub(counts.outdated).saturating_add(counts.provisioning);
    u32::from(needs_fresh && counts.outdated > 0 && room(&snapshot.sizing, counts) == 0)
}

/// The size that the autoscaler wants, and when to look again.
fn autoscale(snapshot: &PoolSnapshot, now: Timestamp) -> (u32, Option<Timestamp>) {
    let current = snapshot.sizing.replicas;
    let (true, Some(min), Some(max)) = (snapshot.autoscaling.enabled, snapshot.sizing.min, snapshot.sizing.max) else {
        return (current, None);
    };
    let bounded = current.clamp(min, max);
    if bounded != current {
        return (bounded, None);
    }
    if let Some(at) = scale_up_at(snapshot).filter(|_| current < max) {
        let next = step_up(snapshot.autoscaling.scale_up.mode, current).min(max);
        return if at <= now { (next, None) } else { (current, Some(at)) };
    }
    if let Some(at) = scale_down_at(snapshot).filter(|_| current > min) {
        return if at <= now { (current - 1, None) } else { (current, Some(at)) };
    }
    (current, None)
}

fn step_up(mode: ScaleUpMode, current: u32) -> u32 {
    let step = match mode {
        ScaleUpMode::Conservative => 1,
        ScaleUpMode::Default => current.div_ceil(2).max(1),
        ScaleUpMode::Aggressive => current.max(1),
    };
    current.saturating_add(step)
}

/// From when growing is due; `None` when nothing asks for it. A waiting claim asks at once, an empty pool after
/// `idle_threshold`; sandboxes that are being made answer the question first.
fn scale_up_at(snapshot: &PoolSnapshot) -> Option<Timestamp> {
    let policy = &snapshot.autoscaling.scale_up;
    if snapshot.counts.provisioning > 0 && snapshot.waiting <= snapshot.counts.provisioning {
        return None;
    }
    let due = if snapshot.waiting > 0 { Timestamp::default() } else { snapshot.empty_since?.plus(policy.idle_threshold) };
    let cooled = snapshot.scaled_at.map_or(Timestamp::default(), |at| at.plus(policy.cooldown));
    Some(due.max(cooled))
}

/// From when shrinking by one is due; `None` when nothing is idle.
fn scale_down_at(snapshot: &PoolSnapshot) -> Option<Timestamp> {
    let policy = &snapshot.autoscaling.scale_down;
    if snapshot.waiting > 0 || snapshot.counts.provisioning > 0 {
        return None;
    }
    let idle = snapshot.oldest_ready_since?.plus(policy.idle_timeout);
    let stable = snapshot.scaled_at.map_or(Timestamp::default(), |at| at.plus(policy.stabilization));
    let protected = snapshot.last_claim_at.map_or(Timestamp::default(), |at| at.plus(policy.protection_window));
    Some(idle.max(stable).max(protected))
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
