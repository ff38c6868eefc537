//! Rules of lists: order, pages, filters, pruning.

use std::sync::Arc;

use sandbank_model::{Command, Failure, FailureReason, Pool, Sandbox, SandboxId, State, StopCause, Timestamp};

use super::fixture::{ALL, Clock, apply, claim_request, lease, pool, pool_event, ready, tenant, warm};
use crate::{ClaimRequest, EventFilter, PageRequest, SandboxFilter, Store};

async fn end(store: &Arc<dyn Store>, record: &Sandbox, clock: &Clock) -> Sandbox {
    let stopping = apply(store, record, Command::BeginStop(StopCause::Released), clock.tick()).await;
    apply(store, &stopping, Command::FinishStop, clock.tick()).await
}

async fn claim_with(store: &Arc<dyn Store>, of: &Pool, clock: &Clock, metadata: &[(&str, &str)]) -> Sandbox {
    let request = claim_request(of.id, clock.tick());
    let request = ClaimRequest { lease: lease(request.now, metadata), ..request };
    store.sandbox_claim(request).await.unwrap().expect("a sandbox is warm")
}

async fn ids(store: &Arc<dyn Store>, filter: SandboxFilter, page: PageRequest) -> (Vec<SandboxId>, u64) {
    let page = store.sandbox_list(filter, page).await.unwrap();
    (page.items.into_iter().map(|record| record.id).collect(), page.total)
}

/// By claim, or by making where there was none; live and ended ones mixed.
pub async fn sandboxes_are_listed_most_recently_claimed_or_made_first(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 2).await;
    let unclaimed = ready(&store, &of, 1, clock.tick()).await;
    let first = claim_with(&store, &of, &clock, &[]).await;
    let ended = end(&store, &first, &clock).await;
    let second = claim_with(&store, &of, &clock, &[]).await;
    let newest = ready(&store, &of, 1, clock.tick()).await;
    let order = vec![newest.id, second.id, ended.id, unclaimed.id];
    assert_eq!(ids(&store, SandboxFilter::default(), ALL).await, (order, 4));
    let at = clock.tick();
    let mut same =
        vec![ready(&store, &of, 1, at).await.id, ready(&store, &of, 1, at).await.id, ready(&store, &of, 1, at).await.id];
    same.sort_unstable();
    let (listed, _) = ids(&store, SandboxFilter::default(), PageRequest { offset: 0, limit: 3 }).await;
    assert_eq!(listed, same, "of the same time, by id");
}

/// All pages together are the list.
pub async fn pages_join_without_gap_or_overlap(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 23).await;
    for n in 0..15 {
        let claimed = claim_with(&store, &of, &clock, &[]).await;
        if n % 2 == 0 {
            end(&store, &claimed, &clock).await;
        }
    }
    let (all, total) = ids(&store, SandboxFilter::default(), ALL).await;
    assert_eq!((all.len(), total), (23, 23));
    for limit in [1, 4, 7, 23] {
        let mut joined = Vec::new();
        for offset in (0..).step_by(usize::try_from(limit).unwrap()) {
            let (page, total) = ids(&store, SandboxFilter::default(), PageRequest { offset, limit }).await;
            assert_eq!(total, 23, "every page tells the whole length");
            if page.is_empty() {
                break;
            }
            joined.extend(page);
        }
        assert_eq!(joined, all, "in pages of {limit}");
    }
    let far = PageRequest { offset: u64::MAX, limit: u32::MAX };
    assert_eq!(ids(&store, SandboxFilter::default(), far).await, (vec![], 23));
    assert_eq!(ids(&store, SandboxFilter::default(), PageRequest { offset: 0, limit: 0 }).await, (vec![], 23));
}

/// Tenant, pool, pool's name, states, claimed.
pub async fn each_filter_restricts_and_all_restrict_together(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let mine = warm(&store, &clock, 3).await;
    let stranger = store.tenant_ensure(tenant("stranger")).await.unwrap();
    let theirs = pool(stranger.id, "base");
    store.pool_insert(theirs.clone(), pool_event(&theirs)).await.unwrap();
    ready(&store, &theirs, 1, clock.tick()).await;
    let gone = claim_with(&store, &mine, &clock, &[]).await;
    let gone = end(&store, &gone, &clock).await;
    let running = claim_with(&store, &mine, &clock, &[]).await;
    let unclaimed = ready(&store, &mine, 1, clock.tick()).await;
    apply(
        &store,
        &unclaimed,
        Command::Fail(Failure { reason: FailureReason::OutOfMemory, message: String::new() }),
        clock.tick(),
    )
    .await;

    let all = SandboxFilter::default;
    let count = async |filter| ids(&store, filter, ALL).await.1;
    assert_eq!(count(all()).await, 5);
    assert_eq!(count(SandboxFilter { tenant: Some(mine.tenant), ..all() }).await, 4);
    assert_eq!(count(SandboxFilter { tenant: Some(stranger.id), ..all() }).await, 1);
    assert_eq!(count(SandboxFilter { pool: Some(theirs.id), ..all() }).await, 1);
    assert_eq!(count(SandboxFilter { pool_name: Some(mine.name.clone()), ..all() }).await, 5, "names are the tenants' own");
    assert_eq!(count(SandboxFilter { states: vec![State::Ready], ..all() }).await, 2);
    assert_eq!(count(SandboxFilter { states: vec![State::Failed, State::Terminated], ..all() }).await, 2);
    assert_eq!(count(SandboxFilter { states: vec![State::Running, State::Terminated], ..all() }).await, 2);
    let claimed = SandboxFilter { claimed_only: true, ..all() };
    assert_eq!(ids(&store, claimed, ALL).await, (vec![running.id, gone.id], 2));
    let together = SandboxFilter {
        tenant: Some(mine.tenant),
        pool: Some(mine.id),
        pool_name: Some(mine.name.clone()),
        states: vec![State::Running],
        claimed_only: true,
        metadata: Vec::new(),
    };
    assert_eq!(ids(&store, together.clone(), ALL).await, (vec![running.id], 1));
    assert_eq!(count(SandboxFilter { tenant: Some(stranger.id), ..together }).await, 0);
    store.pool_remove(mine.id).await.unwrap();
    let by_name = SandboxFilter { tenant: Some(mine.tenant), pool_name: Some(mine.name.clone()), ..all() };
    assert_eq!(count(by_name).await, 4, "also the sandboxes of a pool that is gone");
}

/// Keys with quotes, dots, dollars and the like mean themselves; live and ended ones are searched alike.
pub async fn metadata_filters_take_any_key_literally(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 4).await;
    let entries = [("a.b", "1"), ("$.x", "\"quoted\""), ("it's", "%_"), ("日本", "語")];
    let running = claim_with(&store, &of, &clock, &entries).await;
    let ended = claim_with(&store, &of, &clock, &entries).await;
    let ended = end(&store, &ended, &clock).await;
    let other = claim_with(&store, &of, &clock, &[("a.b", "2"), ("b", "1")]).await;
    end(&store, &other, &clock).await;
    let find = async |pairs: &[(&str, &str)]| {
        let metadata = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ids(&store, SandboxFilter { metadata, ..SandboxFilter::default() }, ALL).await.0
    };
    for pair in entries {
        assert_eq!(find(&[pair]).await, [ended.id, running.id], "{pair:?}");
    }
    assert_eq!(find(&entries).await, [ended.id, running.id]);
    assert_eq!(find(&[("a.b", "1"), ("b", "1")]).await, [], "all must match");
    assert_eq!(find(&[("a", "1")]).await, []);
    assert_eq!(find(&[("a.b", "1' OR '1'='1")]).await, []);
}

/// `sandbox_count`.
pub async fn counts_by_state_follow_the_filter(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 5).await;
    let first = claim_with(&store, &of, &clock, &[]).await;
    claim_with(&store, &of, &clock, &[]).await;
    end(&store, &first, &clock).await;
    let counts = |filter| store.sandbox_count(filter);
    let all = counts(SandboxFilter::default()).await.unwrap();
    assert_eq!(all, [(State::Ready, 3), (State::Running, 1), (State::Terminated, 1)]);
    let some = SandboxFilter { states: vec![State::Ready, State::Paused], ..SandboxFilter::default() };
    assert_eq!(counts(some).await.unwrap(), [(State::Ready, 3)]);
    let claimed = SandboxFilter { claimed_only: true, ..SandboxFilter::default() };
    assert_eq!(counts(claimed).await.unwrap(), [(State::Running, 1), (State::Terminated, 1)]);
}

/// `prune`.
pub async fn pruning_forgets_what_ended_before_and_no_more_than_the_limit(store: Arc<dyn Store>) {
    let clock = Clock::default();
    let of = warm(&store, &clock, 6).await;
    let mut ended = Vec::new();
    for _ in 0..4 {
        let claimed = claim_with(&store, &of, &clock, &[]).await;
        ended.push(end(&store, &claimed, &clock).await);
    }
    let before = ended[2].ended_at.unwrap();
    let events = store.event_list(EventFilter::default(), 10_000).await.unwrap();
    let old_events = events.iter().filter(|event| event.at < before).count() as u64;
    assert_eq!(store.prune(before, 1).await.unwrap(), 2, "one sandbox and one event");
    assert_eq!(store.sandbox_get(ended[0].id).await.unwrap(), None, "the one that ended first goes first");
    assert!(store.sandbox_get(ended[1].id).await.unwrap().is_some());
    assert_eq!(store.prune(before, 1000).await.unwrap(), 1 + old_events - 1);
    assert_eq!(store.prune(before, 1000).await.unwrap(), 0);
    assert!(store.sandbox_get(ended[2].id).await.unwrap().is_some(), "what ended at that time stays");
    assert_eq!(store.sandbox_live().await.unwrap().len(), 2, "live ones are not pruned however old");
    let left = store.event_list(EventFilter::default(), 10_000).await.unwrap();
    assert_eq!(left.len() as u64, events.len() as u64 - old_events);
    assert!(left.iter().all(|event| event.at >= before));
    let far = Timestamp::MAX;
    store.prune(far, 1000).await.unwrap();
    assert_eq!(store.sandbox_list(SandboxFilter::default(), ALL).await.unwrap().total, 2);
}
