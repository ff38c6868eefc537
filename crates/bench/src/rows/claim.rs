//! Claims of warm sandboxes at a given rate, arrivals as a Poisson process, refill on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Settings, claim_one, drain, make_pool, release};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::{BenchError, Result};

/// Kept-alive connections that claims are spread over.
const CLAIMERS: usize = 16;
/// Connections that give sandboxes back.
const RELEASERS: usize = 4;

/// Both views of the same claims: from the moment the request was sent, and from the moment it was due (so that a stall of the
/// server is not hidden by requests that waited for it).
pub(crate) async fn claim(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    make_pool(&mut client, settings.warm).await?;
    let (give, take) = async_queue();
    let (back, returned) = async_queue::<String>();
    let empty = Arc::new(AtomicU64::new(0));
    let mut claimers = Vec::new();
    for _ in 0..CLAIMERS {
        claimers.push(tokio::spawn(claimer(server.client().await?, take.clone(), back.clone(), Arc::clone(&empty))));
    }
    let mut releasers = Vec::new();
    for _ in 0..RELEASERS {
        releasers.push(tokio::spawn(releaser(server.client().await?, returned.clone())));
    }
    drop(back);
    let behind = generate(settings, give).await?;
    let (mut served, mut due, mut count) = (Samples::new(), Samples::new(), 0u64);
    for claimer in claimers {
        let (theirs_served, theirs_due, n) = claimer.await.map_err(|error| BenchError::new(error.to_string()))??;
        served.merge(&theirs_served);
        due.merge(&theirs_due);
        count += n;
    }
    for releaser in releasers {
        releaser.await.map_err(|error| BenchError::new(error.to_string()))??;
    }
    // The server has closed the connection that was idle for the whole run.
    drain(&server, &mut server.client().await?).await?;
    let missed = empty.load(Ordering::Relaxed);
    let served = Row::durations(format!("claim warm, {}/s Poisson, refill on", settings.rate), &served);
    let met = served.p50.is_some_and(|p50| p50 <= 0.3) && served.p99.is_some_and(|p99| p99 <= 4.0);
    Ok(vec![
        served.target("p50 <= 0.3 ms, p99 <= 4 ms", met),
        Row::durations("the same, from when it was due", &due)
            .note(format!("generator at most {:.1} ms late", behind.as_secs_f64() * 1e3)),
        Row::number("claims that found no warm sandbox", missed as f64, "claims", count).target("none", missed == 0),
    ])
}

type Shared<T> = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<T>>>;

/// A queue that several tasks take from. Unbounded on purpose: an open-loop generator never waits for the server.
fn async_queue<T>() -> (mpsc::UnboundedSender<T>, Shared<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Arc::new(tokio::sync::Mutex::new(receiver)))
}

/// Sends due times. How late the generator itself was at worst.
async fn generate(settings: &Settings, give: mpsc::UnboundedSender<Instant>) -> Result<Duration> {
    let settings = settings.clone();
    // A thread of its own: tokio's timer ticks in whole milliseconds, which is longer than what is measured.
    let thread = std::thread::spawn(move || {
        let begun = Instant::now();
        let (mut due, mut worst) = (Duration::ZERO, Duration::ZERO);
        let mut random = Random::new()?;
        while due < Duration::from_secs(settings.seconds) {
            due += Duration::from_secs_f64(random.exponential(settings.rate));
            if let Some(wait) = due.checked_sub(begun.elapsed()) {
                std::thread::sleep(wait);
            }
            worst = worst.max(begun.elapsed().saturating_sub(due));
            if give.send(begun + due).is_err() {
                break;
            }
        }
        Ok(worst)
    });
    tokio::task::spawn_blocking(move || thread.join())
        .await
        .map_err(|error| BenchError::new(error.to_string()))?
        .map_err(|_| BenchError::new("the generator panicked"))?
}

async fn claimer(
    mut client: Client,
    due: Shared<Instant>,
    back: mpsc::UnboundedSender<String>,
    empty: Arc<AtomicU64>,
) -> Result<(Samples, Samples, u64)> {
    let (mut served, mut since_due, mut count) = (Samples::new(), Samples::new(), 0);
    loop {
        let Some(at) = due.lock().await.recv().await else { return Ok((served, since_due, count)) };
        let sent = Instant::now();
        match claim_one(&mut client).await {
            Ok(id) => {
                served.add(sent.elapsed());
                since_due.add(at.elapsed());
                count += 1;
                let _ = back.send(id);
            }
            Err(error) if error.to_string().contains("429") => {
                empty.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn releaser(mut client: Client, returned: Shared<String>) -> Result<()> {
    loop {
        let Some(id) = returned.lock().await.recv().await else { return Ok(()) };
        release(&mut client, &id).await?;
    }
}

/// splitmix64, seeded by the kernel: arrivals need no better.
struct Random(u64);

impl Random {
    fn new() -> Result<Self> {
        getrandom::u64().map(Self).map_err(|error| BenchError::new(error.to_string()))
    }

    /// A waiting time, in seconds, of a Poisson process with `rate` arrivals a second.
    fn exponential(&mut self, rate: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let uniform = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        -(1.0 - uniform).ln() / rate
    }
}
