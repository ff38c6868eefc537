//! Many sandboxes with a policy of their own each.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::{FEW_ENTRIES, Settings, id_of, policy, release, rest};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::rows::{POOL, drain, give_back, make_pool_of, warm_now};
use crate::server::Server;
use crate::{BenchError, Result};

/// Sandboxes alive in the rows that the others are compared with.
const FEW: u32 = 10;
/// Warm ones beside them, to be claimed.
const WARM: u32 = 32;
const MEMORY: &str = "64Mi";
/// Connections that make sandboxes which are only there to be many.
const MAKERS: usize = 4;
/// Numbers of the policies of sandboxes that are measured; the others' are below. Ten times so many targets are all different.
const MEASURED: u32 = 1 << 16;
const TIMES_MAX: f64 = 1.5;
/// Longest wait for the refill of one.
const FULL_WAIT: Duration = Duration::from_secs(60);

/// Claims and creates with a policy of ten entries, no two alike, while few sandboxes with such a policy are alive, and many.
pub(crate) async fn network_many(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    make_pool_of(&mut server.client().await?, WARM, MEMORY).await?;
    let mut held = Vec::new();
    fill(&server, &mut held, FEW.min(settings.idle)).await?;
    let few = Latency::measure(&server, settings.repeat, held.len()).await?;
    fill(&server, &mut held, settings.idle).await?;
    let many = Latency::measure(&server, settings.repeat, held.len()).await?;
    give_back(&server, held).await?;
    drain(&server, &mut server.client().await?).await?;
    let mut rows = compare("claim with a policy", few.alive, &few.claims, many.alive, &many.claims);
    rows.extend(compare("create with a policy", few.alive, &few.creates, many.alive, &many.creates));
    Ok(rows)
}

fn compare(what: &str, few_alive: usize, few: &Samples, many_alive: usize, many: &Samples) -> Vec<Row> {
    let few = Row::durations(format!("{what}, {few_alive} alive"), few);
    let many = Row::durations(format!("{what}, {many_alive} alive"), many);
    let ratio = many.p50.unwrap_or(f64::INFINITY) / few.p50.unwrap_or(f64::MIN_POSITIVE);
    let many = many.note(format!("{ratio:.2} times the row above")).target("p50 <= 1.5 times", ratio <= TIMES_MAX);
    vec![few, many]
}

/// What claims and creates took while so many were alive.
struct Latency {
    alive: usize,
    claims: Samples,
    creates: Samples,
}

impl Latency {
    /// One after the other, each when nothing else goes on: creates first, since a claim is followed by the refill.
    async fn measure(server: &Server, repeat: u32, alive: usize) -> Result<Self> {
        let mut client = server.client().await?;
        let mut latency = Self { alive, claims: Samples::new(), creates: Samples::new() };
        let all = u32::try_from(alive).unwrap_or(u32::MAX).saturating_add(WARM);
        for number in MEASURED..MEASURED + repeat {
            rest(server, all).await?;
            let begun = Instant::now();
            let id = create(&mut client, number).await?;
            latency.creates.add(begun.elapsed());
            release(&mut client, &id).await?;
        }
        for number in MEASURED + repeat..MEASURED + 2 * repeat {
            full(&mut client).await?;
            rest(server, all).await?;
            let begun = Instant::now();
            let id = claim(&mut client, number).await?;
            latency.claims.add(begun.elapsed());
            release(&mut client, &id).await?;
        }
        Ok(latency)
    }
}

/// Waits until the pool is full: the directory of one that is being made counts for [`rest`] as if it were there.
async fn full(client: &mut Client) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + FULL_WAIT;
    while warm_now(client).await? < u64::from(WARM) {
        if Instant::now() > deadline {
            return Err(BenchError::new(format!("the pool is not full after {FULL_WAIT:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn claim(client: &mut Client, number: u32) -> Result<String> {
    let body = json!({ "poolName": POOL, "whenEmpty": "refuse", "network": policy(number, FEW_ENTRIES) });
    id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)
}

async fn create(client: &mut Client, number: u32) -> Result<String> {
    let body = json!({ "image": "host", "memory": MEMORY, "network": policy(number, FEW_ENTRIES) });
    id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)
}

/// Makes sandboxes with a policy each until so many are held.
async fn fill(server: &Server, held: &mut Vec<String>, wanted: u32) -> Result<()> {
    let first = u32::try_from(held.len()).unwrap_or(u32::MAX);
    let mut makers = Vec::new();
    for maker in 0..MAKERS as u32 {
        let mut client = server.client().await?;
        makers.push(tokio::spawn(async move {
            let mut made = Vec::new();
            for number in (first + maker..wanted).step_by(MAKERS) {
                made.push(create(&mut client, number).await?);
            }
            Ok::<_, BenchError>(made)
        }));
    }
    for maker in makers {
        held.extend(maker.await.map_err(|error| BenchError::new(error.to_string()))??);
    }
    Ok(())
}
