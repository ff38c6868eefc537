//! Many callers at once, some of which go away: what was answered is there, and nobody waits for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{EventKind, EventSeq, Pool, SandboxId, Timestamp};
use sandbank_store::contract::{Clock, event_of, recount, sandbox, warm};
use sandbank_store::{EventFilter, SqliteStore, Store};

const CALLERS: u64 = 12;
const STEPS: u64 = 150;
/// Long enough for a machine that compiles meanwhile; a command that is left waiting would wait for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one caller was answered.
#[derive(Default)]
struct Answered {
    events: HashSet<EventSeq>,
    made: HashSet<SandboxId>,
    given_up: u64,
}

impl Answered {
    fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        self.made.extend(other.made);
        self.given_up += other.given_up;
    }
}

/// The answer, unless it is not there when this caller has let others go first a few times.
async fn impatient<T>(times: u64, command: impl Future<Output = T>) -> Option<T> {
    let patience = async {
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        answer = command => Some(answer),
        () = patience => None,
    }
}

/// Steps of one caller: promised ones, others, long ones; every third is given up early.
async fn call(store: Arc<dyn Store>, clock: Arc<Clock>, pool: Pool, caller: u64) -> Answered {
    let mut answered = Answered::default();
    let mut state = caller + 1;
    for _ in 0..STEPS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, times) = ((state >> 33) % 8, if (state >> 40).is_multiple_of(3) { (state >> 45) % 4 } else { 10_000_000 });
        let record = sandbox(&pool, clock.tick());
        let event = event_of(&record, EventKind::Created, clock.tick());
        let done = match kind {
            0..4 => impatient(times, store.event_append(event)).await.map(|seq| {
                answered.events.insert(seq.unwrap());
            }),
            4..7 => impatient(times, store.sandbox_insert(record.clone(), 1, event)).await.map(|made| {
                made.unwrap();
                answered.made.insert(record.id);
            }),
            _ => impatient(times, store.prune(Timestamp::default(), 10)).await.map(|pruned| assert_eq!(pruned.unwrap(), 0)),
        };
        answered.given_up += u64::from(done.is_none());
    }
    answered
}

async fn check(store: &Arc<dyn Store>, pool: &Pool, answered: &Answered) {
    let events: HashSet<_> = store.event_list(EventFilter::default(), 1_000_000).await.unwrap().iter().map(|e| e.seq).collect();
    assert!(answered.events.is_subset(&events), "an event that was answered is lost");
    let live: HashSet<_> = store.sandbox_live().await.unwrap().iter().map(|record| record.id).collect();
    assert!(answered.made.is_subset(&live), "a sandbox that was answered is lost");
    let (counts, usage) = recount(store, pool, Timestamp::default()).await;
    assert_eq!(store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap().counts, counts, "memory and disk agree");
    assert_eq!(store.tenant_usage(pool.tenant).await.unwrap(), usage);
}

async fn many_callers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let clock = Arc::new(Clock::default());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).unwrap());
    let pool = warm(&store, &clock, 1).await;
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| tokio::spawn(call(Arc::clone(&store), Arc::clone(&clock), pool.clone(), caller))).collect();
    let mut answered = Answered::default();
    for caller in callers {
        answered.add(tokio::time::timeout(PATIENCE, caller).await.expect("a command is left waiting").unwrap());
    }
    assert!(!answered.events.is_empty() && !answered.made.is_empty());
    assert!(answered.given_up > 0, "nobody has given up");
    check(&store, &pool, &answered).await;
    tokio::time::timeout(PATIENCE, store.close()).await.expect("the store does not close").unwrap();
    drop(store);
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).unwrap());
    check(&store, &pool, &answered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_are_all_answered() {
    many_callers().await;
}

#[tokio::test]
async fn callers_on_one_thread_are_all_answered() {
    many_callers().await;
}
