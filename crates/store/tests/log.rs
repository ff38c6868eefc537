//! The log that a store writes ahead: its room on disk, and what a crash leaves of it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbank_model::{EventKind, Pool};
use sandbank_store::contract::{Clock, claim_request, event_of, ready, sandbox, warm};
use sandbank_store::{EventFilter, PageRequest, SandboxFilter, SqliteStore, Store};

const ROOM: u64 = 16 * 1024 * 1024;
const FRAME: usize = 24 + 4096;
const HEADER: usize = 32;

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(path).unwrap())
}

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(log_of(path)).unwrap().len()
}

async fn records(store: &Arc<dyn Store>, pool: &Pool) -> String {
    let page = PageRequest { offset: 0, limit: 100_000 };
    let sandboxes = store.sandbox_list(SandboxFilter::default(), page).await.unwrap();
    let events = store.event_list(EventFilter::default(), 100_000).await.unwrap();
    format!("{:?}", (sandboxes, events, store.pool_by_id(pool.id).await.unwrap()))
}

/// The files as a crash at this moment would leave them, in a directory of their own.
fn crashed(path: &Path, into: &Path) -> PathBuf {
    std::fs::create_dir(into).unwrap();
    let copy = into.join("state.db");
    std::fs::copy(path, &copy).unwrap();
    std::fs::copy(log_of(path), log_of(&copy)).unwrap();
    copy
}

/// Ends the log behind its last frame.
fn without_room(path: &Path) {
    let log = std::fs::read(log_of(path)).unwrap();
    let end = log.iter().rposition(|byte| *byte != 0).unwrap();
    let frames = (end + 1 - HEADER).div_ceil(FRAME);
    std::fs::write(log_of(path), &log[..HEADER + frames * FRAME]).unwrap();
}

#[tokio::test]
async fn the_log_has_its_room_from_the_beginning_and_is_gone_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    for round in 0..2 {
        let store = open(&path);
        assert_eq!(length(&path), ROOM, "round {round}");
        warm(&store, &Clock::default(), 2).await;
        assert_eq!(length(&path), ROOM, "round {round}");
        store.close().await.unwrap();
        assert!(!log_of(&path).exists(), "a closed database has no log left");
    }
}

#[tokio::test]
async fn a_crash_loses_nothing_with_and_without_room_behind_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let clock = Clock::default();
    let store = open(&path);
    let pool = warm(&store, &clock, 5).await;
    store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap();
    let before = records(&store, &pool).await;

    let with_room = open(&crashed(&path, &dir.path().join("with")));
    assert_eq!(records(&with_room, &pool).await, before);

    // As a store that made no room leaves it. What is written behind must come after what is there.
    let path = crashed(&path, &dir.path().join("without"));
    without_room(&path);
    assert!(length(&path) < ROOM);
    let store = open(&path);
    assert_eq!(length(&path), ROOM);
    assert_eq!(records(&store, &pool).await, before);
    ready(&store, &pool, 1, clock.tick()).await;
    store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap();
    let after = records(&store, &pool).await;
    let again = open(&crashed(&path, &dir.path().join("again")));
    assert_eq!(records(&again, &pool).await, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_begins_anew_under_a_load_that_never_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let clock = Clock::default();
    let store = open(&path);
    let pool = warm(&store, &clock, 0).await;
    let record = sandbox(&pool, clock.tick());
    for _ in 0..4000 {
        store.event_append(event_of(&record, EventKind::Created, clock.tick())).await.unwrap();
    }
    // Each of them writes three pages at least: three times the room. A disk that is busy may make it longer than its room.
    let log = length(&path);
    assert!((ROOM..2 * ROOM).contains(&log), "{log}");
}
