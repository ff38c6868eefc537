//! Rules of the event log.

use std::sync::Arc;

use sandbank_model::{Actor, Command, Event, EventKind, EventSeq, StopCause, Timestamp, transition};

use super::fixture::{Clock, apply, claim_request, event_of, pool, pool_event, ready, tenant, warm};
use crate::{EventFilter, Store, StoreError, Write};

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// Positions grow, and the newest can come first.
pub async fn every_write_appends_its_event_in_order(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 1).await;
    let claimed = store.sandbox_claim(claim_request(of.id, clock.tick())).await.unwrap().unwrap();
    let paused = apply(&store, &claimed, Command::FinishPause, clock.tick()).await;
    let position = store.event_append(event_of(&paused, EventKind::Committed("image".to_owned()), clock.tick())).await.unwrap();
    let events = store.event_list(EventFilter::default(), 100).await.unwrap();
    assert_eq!(kinds(&events), ["pool-created", "created", "ready", "claimed", "paused", "committed"]);
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert_eq!(events.last().unwrap().seq, position);
    let newest = store.event_list(EventFilter { newest_first: true, ..EventFilter::default() }, 2).await.unwrap();
    assert_eq!(kinds(&newest), ["committed", "paused"]);
    assert_eq!(store.event_list(EventFilter::default(), 0).await.unwrap(), []);
}

/// An event tells of something that happened.
pub async fn a_refused_write_appends_no_event(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 0).await;
    let record = ready(&store, &of, 1, clock.tick()).await;
    let before = store.event_list(EventFilter::default(), 100).await.unwrap();
    let (next, event) = transition(&record, Command::BeginStop(StopCause::Outdated), &Actor::system(), clock.tick()).unwrap();
    let refused = store.sandbox_update(next, record.generation + 5, event).await.unwrap();
    assert!(matches!(refused, Write::Refused(_)));
    let same = pool(of.tenant, "base");
    store.pool_insert(same.clone(), pool_event(&same)).await.unwrap();
    store.pool_update(of.clone(), 77, Some(pool_event(&of))).await.unwrap();
    assert_eq!(store.event_list(EventFilter::default(), 100).await.unwrap(), before);
}

/// Tenant, sandbox, pool, position.
pub async fn events_are_filtered_and_continue_after_a_position(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 2).await;
    let stranger = store.tenant_ensure(tenant("stranger")).await.unwrap();
    let theirs = pool(stranger.id, "base");
    store.pool_insert(theirs.clone(), pool_event(&theirs)).await.unwrap();
    let record = ready(&store, &theirs, 1, clock.tick()).await;
    let list = |filter| store.event_list(filter, 100);
    let of_tenant = list(EventFilter { tenant: Some(stranger.id), ..EventFilter::default() }).await.unwrap();
    assert_eq!(kinds(&of_tenant), ["pool-created", "created", "ready"]);
    let of_pool = list(EventFilter { pool: Some(of.id), ..EventFilter::default() }).await.unwrap();
    assert_eq!(kinds(&of_pool), ["pool-created", "created", "ready", "created", "ready"]);
    let of_sandbox = EventFilter { sandbox: Some(record.id), ..EventFilter::default() };
    assert_eq!(kinds(&list(of_sandbox.clone()).await.unwrap()), ["created", "ready"]);
    let other_tenant = EventFilter { tenant: Some(of.tenant), pool: Some(theirs.id), ..of_sandbox };
    assert_eq!(list(other_tenant).await.unwrap(), [], "all conditions hold together");

    let all = list(EventFilter::default()).await.unwrap();
    let mut followed: Vec<Event> = Vec::new();
    loop {
        let after = followed.last().map(|event| event.seq);
        let piece = store.event_list(EventFilter { after, ..EventFilter::default() }, 3).await.unwrap();
        if piece.is_empty() {
            break;
        }
        followed.extend(piece);
    }
    assert_eq!(followed, all);
    let past = EventFilter { after: Some(EventSeq(u64::MAX)), ..EventFilter::default() };
    assert_eq!(list(past).await.unwrap(), []);
}

/// A follower's position means the same after its event was pruned.
pub async fn event_positions_go_on_after_pruning(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 3).await;
    let last = store.event_list(EventFilter { newest_first: true, ..EventFilter::default() }, 1).await.unwrap()[0].seq;
    store.prune(Timestamp::MAX, 1000).await.unwrap();
    let next = store.event_append(pool_event(&of)).await.unwrap();
    assert!(next > last);
    let followed = store.event_list(EventFilter { after: Some(last), ..EventFilter::default() }, 10).await.unwrap();
    assert_eq!(followed.len(), 1);
}

/// After `close` nothing is written any more, and the refusal says so.
pub async fn a_closed_store_refuses_writes(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 1).await;
    store.close().await.unwrap();
    assert_eq!(store.sandbox_claim(claim_request(of.id, clock.tick())).await, Err(StoreError::Closed));
    assert_eq!(store.tenant_ensure(tenant("late")).await, Err(StoreError::Closed));
    store.close().await.unwrap();
}
