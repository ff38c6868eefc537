//! What only a store in a file can get wrong: reopening, locks, schema versions, damage.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sandbank_model::{Command, EventKind, Failure, FailureReason, Pool, Sandbox, StopCause, Timestamp};
use sandbank_store::contract::{
    Clock, apply, claim_request, credential, event_of, image, key, ready, recount, sandbox, template, warm,
};
use sandbank_store::{EventFilter, PageRequest, SandboxFilter, SqliteStore, Store, StoreError};
use tempfile::TempDir;

const ALL: PageRequest = PageRequest { offset: 0, limit: 100_000 };

fn fresh() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    (dir, path)
}

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(path).unwrap())
}

/// All that can be asked of a store, as text.
async fn everything(store: &Arc<dyn Store>, pool: &Pool) -> String {
    let mut live = store.sandbox_live().await.unwrap();
    live.sort_by_key(|record| record.id);
    format!(
        "{:#?}",
        (
            store.tenant_list().await.unwrap(),
            store.key_list(None).await.unwrap(),
            store.template_list(&[None, Some(pool.tenant)]).await.unwrap(),
            store.pool_list(None, ALL).await.unwrap(),
            (live, store.sandbox_list(SandboxFilter::default(), ALL).await.unwrap()),
            store.event_list(EventFilter::default(), 100_000).await.unwrap(),
            store.image_all().await.unwrap(),
            store.registry_credential_list(&[None, Some(pool.tenant)]).await.unwrap(),
            store.pool_summary(pool.id, 2, Timestamp::default()).await.unwrap(),
            store.tenant_usage(pool.tenant).await.unwrap(),
            store.sandbox_warm(pool.id, 2, 100).await.unwrap(),
        )
    )
}

async fn lived_in(store: &Arc<dyn Store>, clock: &Clock) -> Pool {
    let pool = warm(store, clock, 4).await;
    ready(store, &pool, 2, clock.tick()).await;
    store.key_insert(key(pool.tenant, 5)).await.unwrap();
    store.template_insert(template(None, "base")).await.unwrap();
    store.template_insert(template(Some(pool.tenant), "base")).await.unwrap();
    store.image_put(image(None, "base", 7)).await.unwrap();
    store.registry_credential_put(credential(None, "ghcr.io", 8)).await.unwrap();
    store.registry_credential_put(credential(Some(pool.tenant), "ghcr.io", 9)).await.unwrap();
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.push(store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap());
    }
    let failure = Failure { reason: FailureReason::OutOfMemory, message: "too much".to_owned() };
    apply(store, &claimed[0], Command::Fail(failure), clock.tick()).await;
    let stopping = apply(store, &claimed[1], Command::BeginStop(StopCause::Released), clock.tick()).await;
    apply(store, &stopping, Command::FinishStop, clock.tick()).await;
    store.sandbox_touch(vec![(claimed[2].id, claimed[2].last_activity_at.plus(Duration::from_secs(9)))]).await.unwrap();
    pool
}

#[tokio::test]
async fn reopening_shows_everything_as_it_was() {
    let (_dir, path) = fresh();
    let clock = Clock::default();
    let store = open(&path);
    let pool = lived_in(&store, &clock).await;
    let before = everything(&store, &pool).await;
    drop(store);
    let store = open(&path);
    assert_eq!(everything(&store, &pool).await, before, "after a drop without close");
    let more = ready(&store, &pool, 2, clock.tick()).await;
    let before = everything(&store, &pool).await;
    store.close().await.unwrap();
    drop(store);
    assert!(!path.with_extension("db-wal").exists(), "a closed database has no log left");
    let store = open(&path);
    assert_eq!(everything(&store, &pool).await, before, "after close");
    assert_eq!(store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap().id, more.id);
}

#[tokio::test]
async fn the_last_claim_and_recent_failures_of_ended_sandboxes_survive_reopening() {
    let (_dir, path) = fresh();
    let clock = Clock::default();
    let store = open(&path);
    let pool = warm(&store, &clock, 1).await;
    let claimed = store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap();
    let failure = Failure { reason: FailureReason::AgentDied, message: String::new() };
    apply(&store, &claimed, Command::Fail(failure), clock.tick()).await;
    let before = store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap();
    assert_eq!((before.counts.failed, before.last_claim_at), (1, claimed.lease.map(|lease| lease.claimed_at)));
    drop(store);
    assert_eq!(open(&path).pool_summary(pool.id, 1, Timestamp::default()).await.unwrap(), before);
}

#[tokio::test]
async fn a_database_that_is_in_use_is_refused_until_its_store_is_gone() {
    let (_dir, path) = fresh();
    let store = open(&path);
    let refused = SqliteStore::open(&path).unwrap_err();
    assert_eq!(refused, StoreError::InUse { path: path.display().to_string() });
    assert!(refused.to_string().contains("--data-dir"), "{refused}");
    store.close().await.unwrap();
    open(&path);
}

#[tokio::test]
async fn a_database_from_before_credentials_is_migrated_with_all_it_holds() {
    let (_dir, path) = fresh();
    let store = open(&path);
    store.image_put(image(None, "base", 7)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let before =
        "DROP TABLE registry_credential; DROP TABLE build; DROP TABLE build_step; DROP TABLE snapshot; PRAGMA user_version = 1;";
    Connection::open(&path).unwrap().execute_batch(before).unwrap();
    let store = open(&path);
    assert_eq!(store.image_all().await.unwrap(), [image(None, "base", 7)]);
    let kept = credential(None, "ghcr.io", 1);
    store.registry_credential_put(kept.clone()).await.unwrap();
    assert_eq!(store.registry_credential_get(None, "ghcr.io").await.unwrap(), Some(kept));
}

#[tokio::test]
async fn a_damaged_credential_is_told_by_its_host() {
    let (_dir, path) = fresh();
    let store = open(&path);
    store.registry_credential_put(credential(None, "ghcr.io", 1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    Connection::open(&path).unwrap().execute("UPDATE registry_credential SET record = '{}'", []).unwrap();
    let refused = open(&path).registry_credential_get(None, "ghcr.io").await.unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { key, .. } if key == "ghcr.io"), "{refused:?}");
}

#[tokio::test]
async fn a_database_of_a_newer_schema_is_refused_and_left_alone() {
    let (_dir, path) = fresh();
    drop(open(&path));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(&refused, StoreError::NewerSchema { found: 99, known, .. } if *known < 99), "{refused:?}");
    assert!(refused.to_string().contains("newer sandbank"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let (_dir, path) = fresh();
    std::fs::write(&path, "this is not a database, but it is long enough to be read as one".repeat(100)).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Backend { .. })));
    let missing = path.join("below/a/file");
    assert!(matches!(SqliteStore::open(missing), Err(StoreError::Backend { .. })));
}

#[tokio::test]
async fn a_damaged_record_is_named_and_hurts_nobody_else() {
    let (_dir, path) = fresh();
    let clock = Clock::default();
    let store = open(&path);
    let pool = warm(&store, &clock, 2).await;
    let first = store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().unwrap();
    let stopping = apply(&store, &first, Command::BeginStop(StopCause::Released), clock.tick()).await;
    apply(&store, &stopping, Command::FinishStop, clock.tick()).await;
    drop(store);
    let damage = |sql: &str| assert_eq!(Connection::open(&path).unwrap().execute(sql, []).unwrap(), 1);
    damage("UPDATE sandbox SET record = '{\"id\": 5}' WHERE live = 0");
    let store = open(&path);
    let corrupt = store.sandbox_get(first.id).await.unwrap_err();
    assert!(matches!(&corrupt, StoreError::Corrupt { what: "sandbox", key, .. } if *key == first.id.to_string()), "{corrupt:?}");
    assert!(store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap().is_some());
    drop(store);
    // What must be in memory must be readable: a server that forgets a live sandbox would leak it, and one that forgets an
    // image would collect what sandboxes are made from.
    let store = open(&path);
    store.image_put(image(None, "base", 7)).await.unwrap();
    drop(store);
    let whole: String = Connection::open(&path).unwrap().query_row("SELECT record FROM image", [], |row| row.get(0)).unwrap();
    damage("UPDATE image SET record = '{}'");
    let refused = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { what: "image", key, .. } if key.starts_with("base")), "{refused:?}");
    Connection::open(&path).unwrap().execute("UPDATE image SET record = ?1", [whole]).unwrap();
    damage("UPDATE sandbox SET record = 'nonsense' WHERE live = 1");
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Corrupt { what: "sandbox", .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_command_takes_no_other_along() {
    let (_dir, path) = fresh();
    let clock = Clock::default();
    let store = open(&path);
    let pool = warm(&store, &clock, 0).await;
    let taken = ready(&store, &pool, 1, clock.tick()).await;
    // All are submitted before the writer can have answered the first, so most of them share transactions.
    let inserts: Vec<_> = (0..200)
        .map(|n| {
            let mut record = sandbox(&pool, clock.tick());
            if n % 3 == 0 {
                record.id = taken.id;
            }
            let event = event_of(&record, EventKind::Created, clock.tick());
            let store = Arc::clone(&store);
            tokio::spawn(async move { (n, record.id, store.sandbox_insert(record, 1, event).await) })
        })
        .collect();
    let mut inserted: Vec<_> = Vec::new();
    for insert in inserts {
        let (n, id, outcome) = insert.await.unwrap();
        assert_eq!(outcome.is_err(), n % 3 == 0, "{outcome:?}");
        inserted.extend(outcome.is_ok().then_some(id));
    }
    let (counts, usage) = recount(&store, &pool, Timestamp::default()).await;
    assert_eq!((counts.provisioning as usize, counts.ready), (inserted.len(), 1));
    assert_eq!(store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap().counts, counts);
    assert_eq!(store.tenant_usage(pool.tenant).await.unwrap(), usage);
    let created = store.event_list(EventFilter::default(), 10_000).await.unwrap();
    let created = created.iter().filter(|event| event.kind == EventKind::Created).count();
    assert_eq!(created, inserted.len() + 1, "what failed left no event");
}

/// A file system of a few megabytes, gone again when this is dropped.
struct TinyDisk(TempDir);

impl TinyDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(dir.path()).output();
        match mount {
            Ok(done) if done.status.success() => Some(Self(dir)),
            other => {
                eprintln!("skipped: no tmpfs can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_what_was_answered_and_recovers() {
    let Some(disk) = TinyDisk::mount() else { return };
    let path = disk.0.path().join("state.db");
    let filler = disk.0.path().join("filler");
    let clock = Clock::default();
    let store = open(&path);
    let log = std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
    assert!(log < 1024 * 1024, "room that the disk does not have was given back: {log}");
    let pool = warm(&store, &clock, 3).await;
    std::fs::write(&filler, vec![0; 4 * 1024 * 1024]).unwrap();
    let mut answered: Vec<Sandbox> = Vec::new();
    let refused = loop {
        let record = sandbox(&pool, clock.tick());
        let event = event_of(&record, EventKind::Created, clock.tick());
        match store.sandbox_insert(record.clone(), 1, event).await {
            Ok(()) => answered.push(record),
            Err(error) => break (record, error),
        }
        assert!(answered.len() < 20_000, "two megabytes must have an end");
    };
    assert_eq!(refused.1, StoreError::DiskFull);
    assert!(store.sandbox_get(refused.0.id).await.unwrap().is_none(), "memory was taken back");
    let summary = store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap();
    assert_eq!(summary.counts.provisioning as usize, answered.len());
    // What fits into the log's old pages may still be written; either way memory and disk agree.
    let claim = store.sandbox_claim(claim_request(pool.id, clock.tick())).await;
    assert!(matches!(&claim, Ok(Some(_)) | Err(StoreError::DiskFull)), "{claim:?}");
    let (counts, _) = recount(&store, &pool, Timestamp::default()).await;
    assert_eq!(store.pool_summary(pool.id, 1, Timestamp::default()).await.unwrap().counts, counts);

    std::fs::remove_file(&filler).unwrap();
    let claimed = store.sandbox_claim(claim_request(pool.id, clock.tick())).await.unwrap();
    assert!(claimed.is_some(), "with room again everything goes on");
    let before = everything(&store, &pool).await;
    drop(store);
    let store = open(&path);
    assert_eq!(everything(&store, &pool).await, before);
    assert_eq!(store.sandbox_live().await.unwrap().len(), answered.len() + 3);
    drop(store);
}
