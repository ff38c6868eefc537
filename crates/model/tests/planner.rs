//! The pool planner: its rules for every input, and that it leads a simulated pool to its size.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use proptest::prelude::*;
use sandbank_model::{
    Autoscaling, Counting, Pace, PoolCounts, PoolPhase, PoolPlan, PoolSnapshot, PoolState, ScaleDownPolicy, ScaleUpMode,
    ScaleUpPolicy, Sizing, Timestamp, phase_of, plan_pool,
};

const NOW: Timestamp = Timestamp::from_millis(10_000_000);

fn ago(seconds: u64) -> Option<Timestamp> {
    Some(Timestamp::from_millis(NOW.as_millis() - seconds * 1000))
}

fn later(seconds: u64) -> Option<Timestamp> {
    Some(NOW.plus(Duration::from_secs(seconds)))
}

fn sizing(replicas: u32, counting: Counting) -> Sizing {
    Sizing { replicas, min: None, max: None, counting }
}

fn snapshot(sizing: Sizing, counts: PoolCounts) -> PoolSnapshot {
    PoolSnapshot {
        state: PoolState::Active,
        sizing,
        autoscaling: Autoscaling::default(),
        counts,
        waiting: 0,
        scaled_at: None,
        last_claim_at: None,
        empty_since: None,
        oldest_ready_since: None,
        backoff_until: None,
    }
}

fn plan(sizing: Sizing, counts: PoolCounts) -> PoolPlan {
    plan_pool(&snapshot(sizing, counts), NOW)
}

#[test]
fn a_total_pool_counts_claimed_sandboxes_and_a_warm_one_does_not() {
    let counts = PoolCounts { ready: 1, claimed: 3, ..PoolCounts::default() };
    assert_eq!(plan(sizing(5, Counting::Total), counts), PoolPlan { create: 1, ..PoolPlan::default() });
    assert_eq!(plan(sizing(5, Counting::Warm), counts), PoolPlan { create: 4, ..PoolPlan::default() });
    assert_eq!(plan(sizing(2, Counting::Total), counts), PoolPlan { destroy: 1, ..PoolPlan::default() });
    let bounded = Sizing { max: Some(6), ..sizing(5, Counting::Warm) };
    assert_eq!(plan(bounded, counts).create, 2, "max bounds all together");
}

#[test]
fn what_is_being_made_counts_and_what_is_being_destroyed_does_not() {
    let counts = PoolCounts { provisioning: 2, stopping: 5, failed: 9, ..PoolCounts::default() };
    assert_eq!(plan(sizing(3, Counting::Total), counts), PoolPlan { create: 1, ..PoolPlan::default() });
}

#[test]
fn outdated_sandboxes_go_only_as_fresh_ones_come() {
    let counts = PoolCounts { ready: 2, outdated: 2, ..PoolCounts::default() };
    assert_eq!(plan(sizing(2, Counting::Total), counts), PoolPlan { create: 2, ..PoolPlan::default() });
    let halfway = PoolCounts { provisioning: 2, ready: 2, outdated: 2, ..PoolCounts::default() };
    assert_eq!(plan(sizing(2, Counting::Total), halfway), PoolPlan { replace: 2, ..PoolPlan::default() });
    let full = Sizing { max: Some(2), ..sizing(2, Counting::Total) };
    assert_eq!(plan(full, counts), PoolPlan { replace: 1, ..PoolPlan::default() }, "without room one goes first");
}

#[test]
fn a_deleted_pool_drains_and_is_removed_when_nothing_is_left() {
    let deleting =
        |counts| plan_pool(&PoolSnapshot { state: PoolState::Deleting, ..snapshot(sizing(5, Counting::Total), counts) }, NOW);
    let counts = PoolCounts { ready: 3, outdated: 1, claimed: 2, provisioning: 1, ..PoolCounts::default() };
    assert_eq!(deleting(counts), PoolPlan { destroy: 3, ..PoolPlan::default() });
    for left in [
        PoolCounts { claimed: 1, ..PoolCounts::default() },
        PoolCounts { provisioning: 1, ..PoolCounts::default() },
        PoolCounts { stopping: 1, ..PoolCounts::default() },
    ] {
        assert_eq!(deleting(left), PoolPlan::default());
    }
    let gone = PoolCounts { failed: 4, ..PoolCounts::default() };
    assert_eq!(deleting(gone), PoolPlan { remove: true, ..PoolPlan::default() });
}

#[test]
fn backing_off_makes_nothing_until_its_end() {
    let mut waiting = snapshot(sizing(3, Counting::Total), PoolCounts::default());
    waiting.backoff_until = later(20);
    assert_eq!(plan_pool(&waiting, NOW), PoolPlan { wake_at: later(20), ..PoolPlan::default() });
    assert_eq!(plan_pool(&waiting, later(20).unwrap()).create, 3);
}

/// A pool of `replicas` between 1 and 20 whose size moves by itself.
fn scaling(replicas: u32, counts: PoolCounts) -> PoolSnapshot {
    let sizing = Sizing { replicas, min: Some(1), max: Some(20), counting: Counting::Total };
    PoolSnapshot { autoscaling: Autoscaling { enabled: true, ..Autoscaling::default() }, ..snapshot(sizing, counts) }
}

fn all_claimed(replicas: u32) -> PoolSnapshot {
    scaling(replicas, PoolCounts { claimed: replicas, ..PoolCounts::default() })
}

#[test]
fn the_policies_default_to_the_contracts_numbers() {
    let up = ScaleUpPolicy::default();
    assert_eq!((up.mode, up.cooldown.as_secs(), up.idle_threshold.as_secs()), (ScaleUpMode::Default, 30, 30));
    let down = ScaleDownPolicy::default();
    let seconds = (down.idle_timeout.as_secs(), down.stabilization.as_secs(), down.protection_window.as_secs());
    assert_eq!(seconds, (300, 60, 10));
}

#[test]
fn growing_takes_the_steps_of_its_mode() {
    for (mode, steps) in [
        (ScaleUpMode::Conservative, [(1, 2), (2, 3), (5, 6), (19, 20)]),
        (ScaleUpMode::Default, [(1, 2), (2, 3), (5, 8), (19, 20)]),
        (ScaleUpMode::Aggressive, [(1, 2), (2, 4), (5, 10), (19, 20)]),
    ] {
        for (from, to) in steps {
            let mut pool = PoolSnapshot { empty_since: ago(30), ..all_claimed(from) };
            pool.autoscaling.scale_up.mode = mode;
            let plan = plan_pool(&pool, NOW);
            assert_eq!((plan.set_replicas, plan.create), (Some(to), to - from), "{mode:?} from {from}");
        }
    }
}

#[test]
fn an_empty_pool_grows_after_the_threshold_and_a_waiting_claim_at_once() {
    let early = PoolSnapshot { empty_since: ago(29), ..all_claimed(4) };
    assert_eq!(plan_pool(&early, NOW), PoolPlan { wake_at: later(1), ..PoolPlan::default() });
    let due = PoolSnapshot { empty_since: ago(30), ..all_claimed(4) };
    assert_eq!(plan_pool(&due, NOW).set_replicas, Some(6));
    let waiting = PoolSnapshot { empty_since: ago(0), waiting: 1, ..all_claimed(4) };
    assert_eq!(plan_pool(&waiting, NOW).set_replicas, Some(6));
    let cooling = PoolSnapshot { scaled_at: ago(10), ..waiting };
    assert_eq!(plan_pool(&cooling, NOW), PoolPlan { wake_at: later(20), ..PoolPlan::default() }, "not within the cooldown");
    let cooled = PoolSnapshot { scaled_at: ago(30), ..waiting };
    assert_eq!(plan_pool(&cooled, NOW).set_replicas, Some(6));
}

#[test]
fn sandboxes_that_are_being_made_answer_waiting_claims_first() {
    let counts = PoolCounts { claimed: 2, provisioning: 2, ..PoolCounts::default() };
    let coming = PoolSnapshot { waiting: 2, ..scaling(4, counts) };
    assert_eq!(plan_pool(&coming, NOW).set_replicas, None);
    let too_few = PoolSnapshot { waiting: 3, ..coming };
    assert_eq!(plan_pool(&too_few, NOW).set_replicas, Some(6));
}

#[test]
fn shrinking_waits_for_idleness_stability_and_the_last_claim() {
    let counts = PoolCounts { ready: 4, ..PoolCounts::default() };
    let idle = PoolSnapshot { oldest_ready_since: ago(300), ..scaling(4, counts) };
    assert_eq!(plan_pool(&idle, NOW), PoolPlan { set_replicas: Some(3), destroy: 1, ..PoolPlan::default() });
    let young = PoolSnapshot { oldest_ready_since: ago(299), ..idle };
    assert_eq!(plan_pool(&young, NOW), PoolPlan { wake_at: later(1), ..PoolPlan::default() });
    let unstable = PoolSnapshot { scaled_at: ago(59), ..idle };
    assert_eq!(plan_pool(&unstable, NOW).wake_at, later(1));
    let protected = PoolSnapshot { last_claim_at: ago(9), ..idle };
    assert_eq!(plan_pool(&protected, NOW).wake_at, later(1));
    let all_over = PoolSnapshot { scaled_at: ago(60), last_claim_at: ago(10), ..idle };
    assert_eq!(plan_pool(&all_over, NOW).set_replicas, Some(3));
    let least = PoolSnapshot { oldest_ready_since: ago(900), ..scaling(1, PoolCounts { ready: 1, ..PoolCounts::default() }) };
    assert_eq!(plan_pool(&least, NOW), PoolPlan::default(), "never below min");
}

#[test]
fn replicas_out_of_bounds_are_brought_back_and_off_means_off() {
    assert_eq!(plan_pool(&scaling(50, PoolCounts::default()), NOW).set_replicas, Some(20));
    assert_eq!(plan_pool(&scaling(0, PoolCounts::default()), NOW).set_replicas, Some(1));
    let mut off = PoolSnapshot { empty_since: ago(900), waiting: 5, ..all_claimed(4) };
    off.autoscaling.enabled = false;
    assert_eq!(plan_pool(&off, NOW), PoolPlan::default());
}

#[test]
fn a_stock_that_lasts_is_filled_when_the_claims_let_it() {
    let claimed_ago = |millis: u64, ready: u32| {
        let counts = PoolCounts { ready, ..PoolCounts::default() };
        let last_claim_at = Some(Timestamp::from_millis(NOW.as_millis() - millis));
        PoolSnapshot { last_claim_at, ..snapshot(sizing(100, Counting::Warm), counts) }
    };
    let told = |pool: &PoolSnapshot| {
        let plan = plan_pool(pool, NOW);
        check_plan(pool, &plan);
        (plan.create, plan.pace, plan.wake_at)
    };
    let burst_ends = Some(NOW.plus(Duration::from_millis(7)));
    assert_eq!(told(&claimed_ago(3, 99)), (0, Pace::Full, burst_ends), "claims are coming in: not now, but soon");
    assert_eq!(told(&claimed_ago(3, 50)), (0, Pace::Full, burst_ends));
    assert_eq!(told(&claimed_ago(3, 49)), (51, Pace::Gentle, None), "below half the stock is filled beside them");
    assert_eq!(told(&claimed_ago(10, 99)), (1, Pace::Gentle, None));
    assert_eq!(told(&claimed_ago(249, 26)), (74, Pace::Gentle, None));
    assert_eq!(told(&claimed_ago(250, 26)), (74, Pace::Full, None));
    assert_eq!(told(&claimed_ago(0, 25)), (75, Pace::Full, None), "from a quarter on nothing is spared");
    assert_eq!(told(&PoolSnapshot { waiting: 1, ..claimed_ago(0, 99) }).1, Pace::Full, "somebody waits");
    let in_the_future = PoolSnapshot { last_claim_at: later(3600), ..claimed_ago(0, 99) };
    assert_eq!(told(&in_the_future), (1, Pace::Full, None), "a clock that was set back holds nothing up");
    let small = PoolSnapshot { sizing: sizing(1, Counting::Warm), ..claimed_ago(0, 0) };
    assert_eq!(told(&small), (1, Pace::Full, None), "a pool of one is empty after one claim");
}

#[test]
fn phases_say_what_the_counts_mean() {
    let phase = |state, replicas, counts| phase_of(state, &sizing(replicas, Counting::Total), &counts);
    let counts = PoolCounts::default();
    let active = PoolState::Active;
    assert_eq!(phase(PoolState::Deleting, 3, PoolCounts { ready: 3, ..counts }), PoolPhase::Terminating);
    assert_eq!(phase(active, 0, counts), PoolPhase::Ready);
    assert_eq!(phase(active, 3, counts), PoolPhase::Pending);
    assert_eq!(phase(active, 3, PoolCounts { provisioning: 3, ..counts }), PoolPhase::Pending);
    assert_eq!(phase(active, 3, PoolCounts { failed: 1, ..counts }), PoolPhase::Degraded);
    assert_eq!(phase(active, 3, PoolCounts { ready: 1, provisioning: 2, ..counts }), PoolPhase::ScalingUp);
    assert_eq!(phase(active, 3, PoolCounts { ready: 2, ..counts }), PoolPhase::ScalingUp);
    assert_eq!(phase(active, 3, PoolCounts { ready: 2, claimed: 1, ..counts }), PoolPhase::Ready);
    assert_eq!(phase(active, 3, PoolCounts { claimed: 3, ..counts }), PoolPhase::Ready);
    assert_eq!(phase(active, 3, PoolCounts { ready: 4, ..counts }), PoolPhase::ScalingDown);
    assert_eq!(phase(active, 3, PoolCounts { claimed: 4, ..counts }), PoolPhase::Ready, "claimed ones are not taken away");
    let warm = sizing(3, Counting::Warm);
    assert_eq!(phase_of(active, &warm, &PoolCounts { ready: 2, claimed: 5, ..counts }), PoolPhase::ScalingUp);
    assert_eq!(phase_of(active, &warm, &PoolCounts { ready: 3, claimed: 5, ..counts }), PoolPhase::Ready);
}

fn any_count() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..30_u32, 1 => Just(Sizing::REPLICAS_MAX), 1 => any::<u32>()]
}

fn any_time() -> impl Strategy<Value = Option<Timestamp>> {
    proptest::option::of((0..20_000_000_u64).prop_map(Timestamp::from_millis))
}

prop_compose! {
    fn any_sizing()(
        replicas in any_count(),
        min in proptest::option::of(0..20_u32),
        max in proptest::option::of(any_count()),
        warm in any::<bool>(),
    ) -> Sizing {
        Sizing { replicas, min, max, counting: if warm { Counting::Warm } else { Counting::Total } }
    }
}

prop_compose! {
    fn any_snapshot()(
        deleting in any::<bool>(),
        sizing in any_sizing(),
        enabled in any::<bool>(),
        mode in 0..3_usize,
        (provisioning, ready, old, claimed, stopping, failed) in
            (any_count(), any_count(), any_count(), any_count(), any_count(), any_count()),
        waiting in any_count(),
        times in (any_time(), any_time(), any_time(), any_time(), any_time()),
    ) -> PoolSnapshot {
        let mode = [ScaleUpMode::Conservative, ScaleUpMode::Default, ScaleUpMode::Aggressive][mode];
        let scale_up = ScaleUpPolicy { mode, ..ScaleUpPolicy::default() };
        PoolSnapshot {
            state: if deleting { PoolState::Deleting } else { PoolState::Active },
            sizing,
            autoscaling: Autoscaling { enabled, scale_up, ..Autoscaling::default() },
            counts: PoolCounts { provisioning, ready, outdated: old.min(ready), claimed, stopping, failed },
            waiting,
            scaled_at: times.0,
            last_claim_at: times.1,
            empty_since: times.2,
            oldest_ready_since: times.3,
            backoff_until: times.4,
        }
    }
}

fn all(counts: &PoolCounts) -> u64 {
    u64::from(counts.provisioning) + u64::from(counts.ready) + u64::from(counts.claimed)
}

/// What holds for every plan.
fn check_plan(pool: &PoolSnapshot, plan: &PoolPlan) {
    assert!(plan.create == 0 || plan.destroy == 0, "making and destroying for size in one plan: {plan:?}");
    let destroyable =
        if pool.state == PoolState::Deleting { pool.counts.ready } else { pool.counts.ready - pool.counts.outdated };
    assert!(plan.destroy <= destroyable && plan.replace <= pool.counts.outdated, "{plan:?}");
    if let Some(max) = pool.sizing.max {
        assert!(plan.create == 0 || all(&pool.counts) + u64::from(plan.create) <= u64::from(max), "past max: {plan:?}");
    }
    if pool.state == PoolState::Deleting {
        assert!(plan.create == 0 && plan.set_replicas.is_none());
    }
    if let Some(replicas) = plan.set_replicas {
        assert!(pool.autoscaling.enabled && replicas != pool.sizing.replicas);
        assert!((pool.sizing.min.unwrap()..=pool.sizing.max.unwrap()).contains(&replicas));
    }
    if plan.remove {
        assert_eq!(all(&pool.counts) + u64::from(pool.counts.stopping), 0);
    }
    if let Some(at) = plan.wake_at {
        assert!(at > NOW, "waking in the past would spin");
    }
    if plan.create == 0 && plan.pace == Pace::Gentle {
        panic!("a pace for nothing: {plan:?}");
    }
}

/// A pool with a driver that does what it is told, or fails.
#[derive(Debug, Clone)]
struct World {
    pool: PoolSnapshot,
}

impl World {
    fn step(&mut self, fails: u32) -> PoolPlan {
        let plan = plan_pool(&self.pool, NOW);
        check_plan(&self.pool, &plan);
        let counts = &mut self.pool.counts;
        counts.stopping = plan.replace + plan.destroy;
        counts.ready -= plan.replace + plan.destroy;
        if self.pool.state == PoolState::Active {
            counts.outdated -= plan.replace;
        } else {
            counts.outdated = counts.outdated.min(counts.ready);
        }
        counts.provisioning += plan.create;
        let failed = fails.min(counts.provisioning);
        counts.ready += counts.provisioning - failed;
        counts.failed += failed;
        counts.provisioning = 0;
        plan
    }

    fn disturb(&mut self, what: u32) {
        let counts = &mut self.pool.counts;
        match what % 4 {
            0 if counts.ready > 0 => {
                counts.ready -= 1;
                counts.outdated = counts.outdated.min(counts.ready);
                counts.claimed += 1;
            }
            1 => counts.claimed = counts.claimed.saturating_sub(1),
            2 => counts.outdated = counts.ready,
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_plan_keeps_the_rules(mut pool in any_snapshot()) {
        // Autoscaling is only accepted with bounds that are in order (`Sizing::validate`).
        if let (Some(min), Some(max)) = (pool.sizing.min, pool.sizing.max) {
            pool.sizing.max = Some(max.max(min));
        }
        check_plan(&pool, &plan_pool(&pool, NOW));
        let _ = phase_of(pool.state, &pool.sizing, &pool.counts);
    }

    #[test]
    fn a_disturbed_pool_comes_to_rest_at_its_size(
        replicas in 0..12_u32,
        max in proptest::option::of(0..12_u32),
        warm in any::<bool>(),
        disturbances in proptest::collection::vec((any::<u32>(), 0..3_u32), 0..40),
    ) {
        let counting = if warm { Counting::Warm } else { Counting::Total };
        let max = max.map(|max| max.max(replicas));
        let mut world = World { pool: snapshot(Sizing { replicas, min: None, max, counting }, PoolCounts::default()) };
        for (what, fails) in disturbances {
            world.disturb(what);
            world.step(fails);
        }
        // One sandbox may be replaced at a time, by one step out and one step in.
        let mut steps = 0;
        while world.step(0) != PoolPlan::default() {
            steps += 1;
            prop_assert!(steps <= 2 * 12 + 4, "no rest: {world:?}");
        }
        world.pool.counts.stopping = 0;
        prop_assert_eq!(plan_pool(&world.pool, NOW), PoolPlan::default(), "rest is rest");
        let counts = world.pool.counts;
        let wanted = if warm { replicas } else { replicas.saturating_sub(counts.claimed) };
        let wanted = max.map_or(wanted, |max| wanted.min(max.saturating_sub(counts.claimed)));
        prop_assert_eq!((counts.ready, counts.outdated, counts.provisioning), (wanted, 0, 0));
    }

    #[test]
    fn a_deleted_pool_is_removed_once_its_claims_are_over(ready in 0..9_u32, claimed in 0..9_u32, provisioning in 0..9_u32) {
        let counts = PoolCounts { ready, claimed, provisioning, ..PoolCounts::default() };
        let mut world = World { pool: PoolSnapshot { state: PoolState::Deleting, ..snapshot(sizing(5, Counting::Total), counts) } };
        for _ in 0..3 {
            world.step(0);
        }
        prop_assert_eq!(world.pool.counts.ready, 0);
        world.pool.counts.claimed = 0;
        world.pool.counts.stopping = 0;
        prop_assert!(plan_pool(&world.pool, NOW).remove);
    }
}
