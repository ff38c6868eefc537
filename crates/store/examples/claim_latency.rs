//! Latency of claims on the SQLite store: `cargo run --release -p sandbank-store --example claim_latency [DIR]`.
//!
//! Prints p50, p95, p99 and the largest latency in microseconds, one caller after the other and 64 at once, and the bare
//! `fdatasync` of the same directory beside them. Each warm sandbox is claimed once, so both runs fill their pool first.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sandbank_model::{
    Actor, AssignmentId, Command, DriverHandle, Event, EventKind, EventSeq, ExpiryAction, Lease, PoolId, Sandbox, SandboxId,
    SandboxSpec, TenantId, Timestamp, transition,
};
use sandbank_store::{ClaimRequest, SqliteStore, Store};

const SINGLE: u64 = 4000;
const CONCURRENT: u64 = 20_000;
const CALLERS: u64 = 64;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir).unwrap();
    sync_floor(dir.path());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path().join("state.db")).unwrap());
    let pool = fill(&store, 1, SINGLE).await;
    let mut latency = histogram();
    for n in 0..SINGLE {
        claim(&store, pool, n, &mut latency).await;
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    report("claim, one caller, idle between", &latency, None);

    let pool = fill(&store, 2, CONCURRENT).await;
    let began = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut latency = histogram();
                for n in 0..CONCURRENT / CALLERS {
                    claim(&store, pool, caller * 1_000_000 + n, &mut latency).await;
                }
                latency
            })
        })
        .collect();
    let mut latency = histogram();
    for caller in callers {
        latency.add(caller.await.unwrap()).unwrap();
    }
    report("claim, 64 callers", &latency, Some(began.elapsed()));
    store.close().await.unwrap();
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

fn report(what: &str, latency: &Histogram<u64>, elapsed: Option<Duration>) {
    let us = |q: f64| latency.value_at_quantile(q) as f64 / 1000.0;
    let rate = elapsed.map_or(String::new(), |elapsed| format!(", {:.0}/s", latency.len() as f64 / elapsed.as_secs_f64()));
    let max = latency.max() as f64 / 1000.0;
    println!(
        "{what}: n {}, p50 {:.0} µs, p95 {:.0} µs, p99 {:.0} µs, max {max:.0} µs{rate}",
        latency.len(),
        us(0.5),
        us(0.95),
        us(0.99)
    );
}

fn sync_floor(dir: &Path) {
    let mut file = std::fs::File::create(dir.join("floor")).unwrap();
    file.write_all(&[0; 1024 * 1024]).unwrap();
    file.sync_all().unwrap();
    let mut latency = histogram();
    for n in 0..500u64 {
        let began = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 16 * 1024], (n % 60) * 16 * 1024).unwrap();
        file.sync_data().unwrap();
        latency.record(began.elapsed().as_nanos() as u64).unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
    report("floor: 16 KiB write + fdatasync", &latency, None);
}

async fn fill(store: &Arc<dyn Store>, number: u64, count: u64) -> PoolId {
    let pool = PoolId::new(Timestamp::from_millis(number), [7; 10]);
    let fillers: Vec<_> = (0..CALLERS)
        .map(|filler| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for n in (filler..count).step_by(usize::try_from(CALLERS).unwrap()) {
                    add_warm(&store, pool, n).await;
                }
            })
        })
        .collect();
    for filler in fillers {
        filler.await.unwrap();
    }
    pool
}

async fn add_warm(store: &Arc<dyn Store>, pool: PoolId, n: u64) {
    let now = Timestamp::from_millis(1_000_000 + n);
    let tenant = TenantId::new(Timestamp::default(), [1; 10]);
    let spec = SandboxSpec::of_image("host".parse().unwrap());
    let mut random = [0; 10];
    random[..8].copy_from_slice(&n.to_be_bytes());
    random[8] = pool.uuid().as_bytes()[5];
    let mut sandbox = Sandbox::provisioning(SandboxId::new(now, random), tenant, spec, "fake", now);
    sandbox.pool = Some(pool);
    let (id, actor) = (sandbox.id, Actor::system());
    let created =
        Event { seq: EventSeq(0), at: now, tenant, sandbox: Some(id), pool: Some(pool), kind: EventKind::Created, actor };
    store.sandbox_insert(sandbox.clone(), 1, created).await.unwrap();
    let handle = DriverHandle(format!("fake:{id}"));
    let (ready, event) = transition(&sandbox, Command::MarkReady(handle), &Actor::system(), now).unwrap();
    store.sandbox_update(ready, 1, event).await.unwrap();
}

async fn claim(store: &Arc<dyn Store>, pool: PoolId, n: u64, latency: &mut Histogram<u64>) {
    let now = Timestamp::from_millis(2_000_000 + n);
    let lease = Lease {
        holder: "t-team-user".to_owned(),
        assignment: AssignmentId::new(now, [2; 10]),
        claimed_at: now,
        expires_at: Some(now.plus(Duration::from_secs(300))),
        idle_timeout: None,
        on_expiry: ExpiryAction::Kill,
        metadata: [("purpose".to_owned(), "measuring".to_owned())].into(),
        labels: Default::default(),
        annotations: Default::default(),
        env: Default::default(),
        network: None,
        ports: Default::default(),
    };
    let actor = Actor { name: "t-team-user".to_owned(), request_id: Some(format!("req-{n}")) };
    let began = Instant::now();
    let claimed = store.sandbox_claim(ClaimRequest { pool, lease, actor, now }).await.unwrap();
    latency.record(began.elapsed().as_nanos() as u64).unwrap();
    assert!(claimed.is_some(), "the pool was filled for every claim");
}
