//! Many idle sandboxes: what each takes of the machine's memory, and what they do to the latency of claims.

use std::time::{Duration, Instant};

use super::{Settings, claim_one, drain, make_pool, release, rest};
use crate::Result;
use crate::client::Client;
use crate::host::meminfo;
use crate::report::{Row, Samples};
use crate::server::Server;

/// Claims measured among few and among many.
const CLAIMS: u32 = 200;

/// Memory is the fall of `MemAvailable`, so everything counts: kernel structures, page tables, the server's own records.
pub(crate) async fn idle(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    make_pool(&mut client, 10).await?;
    let few = claims(&server, &mut client, 10).await?;
    drain(&server, &mut client).await?;
    let before = still(Duration::from_secs(3)).await;
    make_pool(&mut client, settings.idle).await?;
    let after = still(Duration::from_secs(3)).await;
    let each = before.saturating_sub(after) as f64 / 1024.0 / f64::from(settings.idle);
    let many = claims(&server, &mut client, settings.idle).await?;
    drain(&server, &mut client).await?;
    let few = Row::durations("claim among 10 idle", &few);
    let many = Row::durations(format!("claim among {} idle", settings.idle), &many);
    let ratio = many.p50.unwrap_or(f64::MAX) / few.p50.unwrap_or(f64::MIN_POSITIVE);
    Ok(vec![
        Row::number(format!("{} idle sandboxes, memory each", settings.idle), each, "MiB", u64::from(settings.idle))
            .target("<= 2 MiB", each <= 2.0),
        few,
        many.note(format!("{ratio:.2} times the row above")).target("<= 2 times", ratio <= 2.0),
    ])
}

/// Claims one after the other, the pool full again and the last one gone before each: only the claim is measured.
async fn claims(server: &Server, client: &mut Client, warm: u32) -> Result<Samples> {
    let mut samples = Samples::new();
    for _ in 0..CLAIMS {
        rest(server, warm).await?;
        let begun = Instant::now();
        let id = claim_one(client).await?;
        samples.add(begun.elapsed());
        release(client, &id).await?;
    }
    Ok(samples)
}

/// `MemAvailable` in KiB after the machine has been left alone for a while.
async fn still(pause: Duration) -> u64 {
    tokio::time::sleep(pause).await;
    meminfo("MemAvailable")
}
