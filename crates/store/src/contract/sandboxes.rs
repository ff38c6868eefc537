//! Rules of sandboxes: conditional writes, claims, counters.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{
    Actor, Command, DriverHandle, EventKind, ExpiryCause, Failure, FailureReason, Pool, Sandbox, State, StopCause, Timestamp,
    Usage, transition,
};

use super::fixture::{ALL, Clock, apply, claim_request, event_of, lease, pool, pool_event, ready, recount, sandbox, warm};
use crate::{EventFilter, SandboxFilter, Store, StoreError, Write};

fn failure() -> Failure {
    Failure { reason: FailureReason::AgentDied, message: "it died".to_owned() }
}

/// Claims from a pool; panics when nothing is warm.
async fn claim(store: &Arc<dyn Store>, pool: &Pool, now: Timestamp) -> Sandbox {
    store.sandbox_claim(claim_request(pool.id, now)).await.unwrap().expect("a sandbox is warm")
}

/// Every field comes back, in every state on the way.
pub async fn a_sandbox_is_read_as_it_was_written(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let new = sandbox(&pool, clock.tick());
    assert_eq!(store.sandbox_get(new.id).await.unwrap(), None);
    store.sandbox_insert(new.clone(), 3, event_of(&new, EventKind::Created, clock.tick())).await.unwrap();
    assert_eq!(store.sandbox_get(new.id).await.unwrap(), Some(new.clone()));
    let mut record = new;
    for command in [
        Command::MarkReadyClaimed(DriverHandle("h".to_owned()), Box::new(lease(clock.tick(), &[("a", "b")]))),
        Command::FinishPause,
        Command::BeginStop(StopCause::Expired(ExpiryCause::Idle)),
        Command::FinishStop,
    ] {
        record = apply(&store, &record, command, clock.tick()).await;
        assert_eq!(store.sandbox_get(record.id).await.unwrap(), Some(record.clone()));
    }
}

/// Inserting an id again fails and changes nothing.
pub async fn a_sandbox_id_is_used_once(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let record = ready(&store, &pool, 1, clock.tick()).await;
    let again = Sandbox { id: record.id, ..sandbox(&pool, clock.tick()) };
    let event = event_of(&again, EventKind::Created, clock.tick());
    assert!(matches!(store.sandbox_insert(again, 1, event).await, Err(StoreError::Backend { .. })));
    assert_eq!(store.sandbox_get(record.id).await.unwrap(), Some(record));
    assert_eq!(store.pool_summary(pool.id, 1, clock.tick()).await.unwrap().counts.provisioning, 0);
}

/// `sandbox_update`: refused, missing, updated.
pub async fn a_sandbox_update_is_conditional_on_the_generation(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let first = ready(&store, &pool, 1, clock.tick()).await;
    let stop = |at| transition(&first, Command::BeginStop(StopCause::ScaledDown), &Actor::system(), at).unwrap();
    let fail = transition(&first, Command::Fail(failure()), &Actor::system(), clock.tick()).unwrap();
    let (stopping, event) = stop(clock.tick());
    let Write::Updated(stopping) = store.sandbox_update(stopping, first.generation, event).await.unwrap() else {
        panic!("the generation was right")
    };
    assert_eq!(stopping.generation, first.generation + 1);
    let late = store.sandbox_update(fail.0, first.generation, fail.1).await.unwrap();
    assert_eq!(late, Write::Refused(stopping.clone()), "the loser sees the record as it is");
    assert_eq!(store.sandbox_get(first.id).await.unwrap(), Some(stopping));
    let unknown = sandbox(&pool, clock.tick());
    let event = event_of(&unknown, EventKind::Ready, clock.tick());
    assert_eq!(store.sandbox_update(unknown, 1, event).await.unwrap(), Write::Missing);
}

/// The end is final.
pub async fn an_ended_sandbox_stays_readable_and_changes_no_more(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 1).await;
    let claimed = claim(&store, &pool, clock.tick()).await;
    let failed = apply(&store, &claimed, Command::Fail(failure()), clock.tick()).await;
    assert_eq!(store.sandbox_get(failed.id).await.unwrap(), Some(failed.clone()));
    let stale = transition(&claimed, Command::FinishPause, &Actor::system(), clock.tick()).unwrap();
    let refused = store.sandbox_update(stale.0, claimed.generation, stale.1).await.unwrap();
    assert_eq!(refused, Write::Refused(failed.clone()));
    store.sandbox_touch(vec![(failed.id, clock.tick())]).await.unwrap();
    assert_eq!(store.sandbox_get(failed.id).await.unwrap(), Some(failed));
}

/// Of many writers that read the same generation one wins.
pub async fn concurrent_updates_of_one_generation_succeed_once(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 1).await;
    let claimed = claim(&store, &pool, clock.tick()).await;
    let racing: Vec<_> = (0..32)
        .map(|_| {
            let (store, claimed, now) = (Arc::clone(&store), claimed.clone(), clock.tick());
            tokio::spawn(async move {
                let (next, event) = transition(&claimed, Command::FinishPause, &Actor::system(), now).unwrap();
                matches!(store.sandbox_update(next, claimed.generation, event).await.unwrap(), Write::Updated(_))
            })
        })
        .collect();
    let mut winners = 0;
    for task in racing {
        winners += u32::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
    assert_eq!(store.sandbox_get(claimed.id).await.unwrap().unwrap().generation, claimed.generation + 1);
}

/// The order of claims.
pub async fn a_claim_takes_the_newest_revision_then_the_longest_warm(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let mut made = Vec::new();
    for revision in [1, 2, 1, 2] {
        made.push(ready(&store, &pool, revision, clock.tick()).await.id);
    }
    for expected in [made[1], made[3], made[0], made[2]] {
        assert_eq!(claim(&store, &pool, clock.tick()).await.id, expected);
    }
    assert_eq!(store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap(), None);
}

/// What is not warm, or is another pool's, is never handed out.
pub async fn a_claim_takes_nothing_but_ready_sandboxes_of_its_pool(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let mine = warm(&store, &clock, 0).await;
    let other = pool(mine.tenant, "other");
    store.pool_insert(other.clone(), pool_event(&other)).await.unwrap();
    ready(&store, &other, 1, clock.tick()).await;
    let provisioning = sandbox(&mine, clock.tick());
    store.sandbox_insert(provisioning.clone(), 1, event_of(&provisioning, EventKind::Created, clock.tick())).await.unwrap();
    for command in [Command::BeginStop(StopCause::Outdated), Command::Fail(failure())] {
        let record = ready(&store, &mine, 1, clock.tick()).await;
        apply(&store, &record, command, clock.tick()).await;
    }
    let record = ready(&store, &mine, 1, clock.tick()).await;
    assert_eq!(claim(&store, &mine, clock.tick()).await.id, record.id);
    assert_eq!(store.sandbox_claim(claim_request(mine.id, clock.tick())).await.unwrap(), None);
    let unknown = pool(mine.tenant, "unknown");
    assert_eq!(store.sandbox_claim(claim_request(unknown.id, clock.tick())).await.unwrap(), None);
}

/// What a claim writes.
pub async fn a_claim_attaches_the_lease_and_tells_of_it(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 1).await;
    let request = claim_request(pool.id, clock.tick());
    let (lease, now) = (request.lease.clone(), request.now);
    let actor = Actor { name: "t-a-b".to_owned(), request_id: Some("req-1".to_owned()) };
    let request = crate::ClaimRequest { actor: actor.clone(), ..request };
    let claimed = store.sandbox_claim(request).await.unwrap().expect("one is warm");
    assert_eq!((claimed.state, claimed.generation, &claimed.lease), (State::Running, 3, &Some(lease)));
    assert_eq!(claimed.last_activity_at, now);
    assert_eq!(store.sandbox_get(claimed.id).await.unwrap(), Some(claimed.clone()));
    let filter = EventFilter { sandbox: Some(claimed.id), newest_first: true, ..EventFilter::default() };
    let event = store.event_list(filter, 1).await.unwrap().remove(0);
    assert_eq!((event.kind, event.actor, event.at), (EventKind::Claimed, actor, now));
    let summary = store.pool_summary(pool.id, 1, now).await.unwrap();
    assert_eq!((summary.counts.claimed, summary.counts.ready, summary.last_claim_at), (1, 0, Some(now)));
}

/// 64 callers, 200 sandboxes: each is handed out once.
pub async fn racing_claims_never_get_the_same_sandbox(store: Arc<dyn Store>) {
    let clock = Arc::new(Clock::default());
    let pool = warm(&store, &clock, 200).await;
    let racing: Vec<_> = (0..64)
        .map(|_| {
            let (store, clock, id) = (Arc::clone(&store), Arc::clone(&clock), pool.id);
            tokio::spawn(async move {
                let mut got = Vec::new();
                while let Some(claimed) = store.sandbox_claim(claim_request(id, clock.tick())).await.unwrap() {
                    got.push(claimed.id);
                }
                got
            })
        })
        .collect();
    let (mut all, mut different) = (0, HashSet::new());
    for task in racing {
        let got = task.await.unwrap();
        all += got.len();
        different.extend(got);
    }
    assert_eq!((all, different.len()), (200, 200));
}

/// One sandbox, many claims.
pub async fn claims_racing_for_the_last_sandbox_have_one_winner(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    for _ in 0..10 {
        ready(&store, &pool, 1, clock.tick()).await;
        let racing: Vec<_> = (0..16)
            .map(|_| {
                let (store, request) = (Arc::clone(&store), claim_request(pool.id, clock.tick()));
                tokio::spawn(async move { store.sandbox_claim(request).await.unwrap() })
            })
            .collect();
        let mut winners = 0;
        for task in racing {
            winners += u32::from(task.await.unwrap().is_some());
        }
        assert_eq!(winners, 1);
    }
}

/// A claim and a stop of the same warm sandbox: one of them sees the other.
pub async fn claims_race_with_updates_without_losing_either(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    for _ in 0..20 {
        let record = ready(&store, &pool, 1, clock.tick()).await;
        let (stopping, event) =
            transition(&record, Command::BeginStop(StopCause::ScaledDown), &Actor::system(), clock.tick()).unwrap();
        let claiming = {
            let (store, request) = (Arc::clone(&store), claim_request(pool.id, clock.tick()));
            tokio::spawn(async move { store.sandbox_claim(request).await.unwrap().is_some() })
        };
        let stopped = matches!(store.sandbox_update(stopping, record.generation, event).await.unwrap(), Write::Updated(_));
        let claimed = claiming.await.unwrap();
        assert!(stopped != claimed, "stopped {stopped}, claimed {claimed}");
    }
}

/// `sandbox_warm`.
pub async fn warm_sandboxes_are_listed_outdated_first_then_longest_warm(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let mut made = Vec::new();
    for revision in [2, 1, 2, 1, 3] {
        made.push(ready(&store, &pool, revision, clock.tick()).await.id);
    }
    let listed = async |revision, limit| {
        let warm = store.sandbox_warm(pool.id, revision, limit).await.unwrap();
        warm.into_iter().map(|record| record.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(2, 10).await, [made[1], made[3], made[0], made[2], made[4]]);
    assert_eq!(listed(3, 10).await, made, "all but the last are outdated alike");
    assert_eq!(listed(2, 3).await, [made[1], made[3], made[0]]);
    claim(&store, &pool, clock.tick()).await;
    assert_eq!(listed(1, 10).await, made[..4], "what was claimed is warm no more");
}

/// `sandbox_touch`.
pub async fn touching_moves_activity_forward_only_and_changes_nothing_else(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 2).await;
    let (a, b) = (claim(&store, &pool, clock.tick()).await, claim(&store, &pool, clock.tick()).await);
    let events = store.event_list(EventFilter::default(), 1000).await.unwrap().len();
    let later = a.last_activity_at.plus(Duration::from_secs(5));
    let earlier = Timestamp::from_millis(1);
    let unknown = sandbox(&pool, clock.tick()).id;
    store.sandbox_touch(vec![(a.id, later), (b.id, earlier), (unknown, later)]).await.unwrap();
    let touched = Sandbox { last_activity_at: later, ..a.clone() };
    assert_eq!(store.sandbox_get(a.id).await.unwrap(), Some(touched.clone()));
    assert_eq!(store.sandbox_get(b.id).await.unwrap(), Some(b), "time never runs backwards");
    assert_eq!(store.event_list(EventFilter::default(), 1000).await.unwrap().len(), events);
    let paused = apply(&store, &touched, Command::FinishPause, clock.tick()).await;
    assert_eq!(paused.generation, a.generation + 1, "a touch is no write that an update has to know of");
}

/// An update made from a record read before a touch does not undo the touch.
pub async fn an_update_keeps_the_later_activity(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 1).await;
    let read = claim(&store, &pool, clock.tick()).await;
    let later = read.last_activity_at.plus(Duration::from_secs(5));
    store.sandbox_touch(vec![(read.id, later)]).await.unwrap();
    let paused = apply(&store, &read, Command::FinishPause, clock.tick()).await;
    assert_eq!(paused.last_activity_at, later);
    assert_eq!(store.sandbox_get(read.id).await.unwrap(), Some(paused));
}

/// Five hundred operations drawn from a fixed sequence; the counters agree with the list after each twenty-five.
pub async fn counts_and_usage_equal_a_recount_after_many_operations(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let since = clock.tick();
    let mut drawn: u64 = 0x2545_f491_4f6c_dd1d;
    let mut draw = |below: usize| {
        drawn ^= drawn << 13;
        drawn ^= drawn >> 7;
        drawn ^= drawn << 17;
        usize::try_from(drawn % below as u64).unwrap()
    };
    for step in 1..=500 {
        let live = store.sandbox_live().await.unwrap();
        let now = clock.tick();
        if live.is_empty() || draw(4) == 0 {
            ready(&store, &pool, 1 + draw(3) as u64, now).await;
        } else if draw(3) == 0 {
            store.sandbox_claim(claim_request(pool.id, now)).await.unwrap();
        } else {
            let record = &live[draw(live.len())];
            let command = match draw(6) {
                0 => Command::FinishPause,
                1 => Command::FinishResume,
                2 => Command::BeginStop(StopCause::Released),
                3 => Command::FinishStop,
                4 => Command::ExpireAndKeep(ExpiryCause::Deadline),
                _ => Command::Fail(failure()),
            };
            if let Ok((next, event)) = transition(record, command, &Actor::system(), now) {
                store.sandbox_update(next, record.generation, event).await.unwrap();
            }
        }
        if step % 25 == 0 {
            let (counts, usage) = recount(&store, &pool, since).await;
            let summary = store.pool_summary(pool.id, 1, since).await.unwrap();
            assert_eq!((summary.counts, store.tenant_usage(pool.tenant).await.unwrap()), (counts, usage), "after {step} steps");
        }
    }
}

/// `pool_summary`.
pub async fn a_summary_counts_recent_failures_and_outdated_ones(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 0).await;
    let empty = store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap();
    assert_eq!(empty, crate::PoolSummary::default());
    let first = ready(&store, &pool, 1, clock.tick()).await;
    let second = ready(&store, &pool, 2, clock.tick()).await;
    ready(&store, &pool, 3, clock.tick()).await;
    let summary = store.pool_summary(pool.id, 3, Timestamp::default()).await.unwrap();
    assert_eq!((summary.counts.ready, summary.counts.outdated), (3, 2));
    assert_eq!(summary.oldest_ready_since, first.ready_at);
    apply(&store, &first, Command::Fail(failure()), clock.tick()).await;
    let between = clock.tick();
    let failed = apply(&store, &second, Command::Fail(failure()), clock.tick()).await;
    for (since, expected) in [(Timestamp::default(), 2), (between, 1), (failed.ended_at.unwrap(), 1), (clock.tick(), 0)] {
        let counts = store.pool_summary(pool.id, 3, since).await.unwrap().counts;
        assert_eq!((counts.failed, counts.ready, counts.outdated), (expected, 1, 0));
    }
}

/// `sandbox_live`, and usage ends with life.
pub async fn live_sandboxes_are_all_those_in_live_states(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let pool = warm(&store, &clock, 3).await;
    let claimed = claim(&store, &pool, clock.tick()).await;
    let kept = apply(&store, &claimed, Command::ExpireAndKeep(ExpiryCause::Deadline), clock.tick()).await;
    let other = claim(&store, &pool, clock.tick()).await;
    let stopping = apply(&store, &other, Command::BeginStop(StopCause::Released), clock.tick()).await;
    assert_eq!(store.sandbox_live().await.unwrap().len(), 3, "expired and stopping ones are live");
    apply(&store, &stopping, Command::FinishStop, clock.tick()).await;
    apply(&store, &kept, Command::Fail(failure()), clock.tick()).await;
    let live = store.sandbox_live().await.unwrap();
    assert_eq!(live.iter().map(|record| record.state).collect::<Vec<_>>(), [State::Ready]);
    let mut usage = Usage::default();
    usage.add(&live[0].spec.resources);
    assert_eq!(store.tenant_usage(pool.tenant).await.unwrap(), usage);
    let all = store.sandbox_list(SandboxFilter::default(), ALL).await.unwrap();
    assert_eq!(all.total, 3, "the records of ended ones stay");
}
