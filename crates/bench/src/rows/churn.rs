//! Create and destroy, sustained, with a leak check.

use std::time::{Duration, Instant};

use super::{Settings, create_one, release, wait_gone};
use crate::report::{Row, Samples};
use crate::server::Server;
use crate::{BenchError, Result};

/// Connections that create and release at the same time.
const CONNECTIONS: usize = 4;

/// Sandboxes made and destroyed a second, over the whole run: a sandbox counts when it was made, released, and everything of it
/// was gone, so the time until the last one is gone belongs to the run.
pub(crate) async fn churn(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    // The first ones leave caches behind that stay (a user namespace for each id range in use at once): they belong before the
    // census.
    sustain(&server, Duration::from_secs(settings.seconds.min(5))).await?;
    drop(client.get("/ping").await?);
    let before = settled(&server).await;
    let begun = Instant::now();
    let (samples, count) = sustain(&server, Duration::from_secs(settings.seconds)).await?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let after = settled(&server).await;
    let leaks = after.differences(&before);
    let verdict = if leaks.is_empty() { "everything back where it was".to_owned() } else { leaks.join(", ") };
    Ok(vec![
        Row::number("create + destroy, sustained", rate, "/s", count).target(">= 300/s", rate >= 300.0),
        Row::durations("create, while sustained", &samples),
        Row::number("left over afterwards", leaks.len() as f64, "kinds", count).note(verdict).target("nothing", leaks.is_empty()),
    ])
}

/// Creates and releases on all connections for so long, and waits until nothing is left.
async fn sustain(server: &Server, length: Duration) -> Result<(Samples, u64)> {
    let until = Instant::now() + length;
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = server.client().await?;
        workers.push(tokio::spawn(async move {
            let (mut samples, mut count) = (Samples::new(), 0u64);
            while Instant::now() < until {
                let started = Instant::now();
                let id = create_one(&mut client).await?;
                samples.add(started.elapsed());
                release(&mut client, &id).await?;
                count += 1;
            }
            Ok::<_, BenchError>((samples, count))
        }));
    }
    let (mut samples, mut count) = (Samples::new(), 0);
    for worker in workers {
        let (theirs, n) = worker.await.map_err(|error| BenchError::new(error.to_string()))??;
        samples.merge(&theirs);
        count += n;
    }
    wait_gone(server).await?;
    Ok((samples, count))
}

/// The census once it stands still: our own connections close, kernel workers finish.
async fn settled(server: &Server) -> crate::host::Census {
    let mut last = server.census();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = server.census();
        if now == last {
            break;
        }
        last = now;
    }
    last
}
