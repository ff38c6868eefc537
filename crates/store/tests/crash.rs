//! `kill -9` under load: everything that was answered is there afterwards, and nothing is doubled.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use sandbank_model::{EventKind, Pool, SandboxId, State};
use sandbank_store::contract::{Clock, claim_request, ready, tenant};
use sandbank_store::{EventFilter, PageRequest, SandboxFilter, SqliteStore, Store};

const CHILD_WORKS_IN: &str = "SANDBANK_TEST_CRASH_DIR";
const ROUNDS: u64 = 20;
const WORKERS: u64 = 8;

/// A child that is killed when this is dropped, however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_answered_survives_kill_9() {
    if let Ok(dir) = std::env::var(CHILD_WORKS_IN) {
        work(Path::new(&dir)).await;
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut answered = Answered::default();
    for round in 0..ROUNDS {
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "everything_answered_survives_kill_9", "--nocapture"])
                .env(CHILD_WORKS_IN, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let lines = BufReader::new(child.0.stdout.take().unwrap());
        let stop_after = 40 + (round * 7919) % 400;
        let mut seen = 0;
        for line in lines.lines() {
            let line = line.unwrap();
            // The last line may be cut off by the kill: its answer had not arrived.
            if answered.note(&line) {
                seen += 1;
            }
            if seen == stop_after {
                child.0.kill().unwrap();
            }
        }
        drop(child);
        assert!(seen >= stop_after, "the child ended by itself after {seen} answers");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path().join("state.db")).unwrap());
        answered.check(&store, round).await;
    }
}

#[derive(Default)]
struct Answered {
    made: HashSet<SandboxId>,
    /// Sandbox to the assignment that it was claimed by.
    claimed: HashMap<SandboxId, String>,
}

impl Answered {
    /// Whether the line tells of an answer.
    fn note(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["made", id, "."] => self.made.insert(id.parse().unwrap()),
            ["claimed", id, assignment, "."] => {
                let before = self.claimed.insert(id.parse().unwrap(), assignment.to_owned());
                assert!(before.is_none(), "{id} was handed out twice");
                true
            }
            _ => false,
        }
    }

    async fn check(&self, store: &Arc<dyn Store>, round: u64) {
        let page = store.sandbox_list(SandboxFilter::default(), PageRequest { offset: 0, limit: 1_000_000 }).await.unwrap();
        let there: HashMap<_, _> = page.items.into_iter().map(|record| (record.id, record)).collect();
        assert_eq!(there.len() as u64, page.total, "nothing is doubled");
        for id in &self.made {
            assert!(there.contains_key(id), "round {round}: {id} was made and is lost");
        }
        for (id, assignment) in &self.claimed {
            let record = &there[id];
            let lease = record.lease.as_ref().unwrap_or_else(|| panic!("round {round}: the claim of {id} is lost"));
            assert_eq!((record.state, &lease.assignment.to_string()), (State::Running, assignment));
        }
        let mut claims = HashMap::<_, u32>::new();
        for event in store.event_list(EventFilter::default(), 1_000_000).await.unwrap() {
            if event.kind == EventKind::Claimed {
                *claims.entry(event.sandbox.unwrap()).or_default() += 1;
            }
        }
        let leased: HashSet<_> = there.values().filter(|record| record.lease.is_some()).map(|record| record.id).collect();
        assert_eq!(claims.keys().copied().collect::<HashSet<_>>(), leased, "each claim has its event and each event its claim");
        assert!(claims.values().all(|count| *count == 1));
    }
}

/// The child: makes and claims until it is killed, and says so after each answer.
async fn work(dir: &Path) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.join("state.db")).unwrap());
    let tenant = store.tenant_ensure(tenant("t-a-b")).await.unwrap();
    let name = "crash".parse().unwrap();
    let pool: Pool = match store.pool_get(tenant.id, &name).await.unwrap() {
        Some(pool) => pool,
        None => {
            let pool = sandbank_store::contract::pool(tenant.id, "crash");
            let event = sandbank_store::contract::pool_event(&pool);
            store.pool_insert(pool.clone(), event).await.unwrap();
            pool
        }
    };
    let clock = Arc::new(Clock::default());
    let workers: Vec<tokio::task::JoinHandle<()>> = (0..WORKERS)
        .map(|_| {
            let (store, clock, pool) = (Arc::clone(&store), Arc::clone(&clock), pool.clone());
            tokio::spawn(async move {
                loop {
                    let made = ready(&store, &pool, 1, clock.tick()).await;
                    say(&format!("made {} .", made.id));
                    if let Some(claimed) = store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap() {
                        say(&format!("claimed {} {} .", claimed.id, claimed.lease.unwrap().assignment));
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

fn say(line: &str) {
    // One write for the whole line, so that lines of two workers never mix.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}
