//! Claims of warm sandboxes at a given rate, arrivals as a Poisson process, refill on.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Settings, claim_one, drain, give_back, make_pool, warm_now};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::{BenchError, Result};

/// Kept-alive connections that claims are spread over.
const CLAIMERS: usize = 16;

/// Both views of the same claims: from the moment the request was sent, and from the moment it was due (so that a stall of the
/// server is not hidden by requests that waited for it). What was claimed is held until the run is over, as its holders would.
pub(crate) async fn claim(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    make_pool(&mut client, settings.warm).await?;
    let flushing = Flushing::begin(server.data_dir())?;
    let (give, take) = async_queue();
    let mut claimers = Vec::new();
    for _ in 0..CLAIMERS {
        claimers.push(tokio::spawn(claimer(server.client().await?, take.clone())));
    }
    let behind = generate(settings, give).await?;
    let mut all = Claims::default();
    for claimer in claimers {
        all.merge(claimer.await.map_err(|error| BenchError::new(error.to_string()))??);
    }
    let flushed = flushing.end()?;
    let warm_at_end = warm_now(&mut server.client().await?).await?;
    let claimed = all.held.len();
    give_back(&server, all.held).await?;
    // The server has closed the connection that was idle for the whole run.
    drain(&server, &mut server.client().await?).await?;
    let refilled = (claimed as u64 + warm_at_end).saturating_sub(u64::from(settings.warm));
    let served = Row::durations(format!("claim warm, {}/s Poisson, refill on", settings.rate), &all.served);
    let met = served.p50.is_some_and(|p50| p50 <= 0.3) && served.p99.is_some_and(|p99| p99 <= 4.0);
    let stock = format!("{} warm at first, {warm_at_end} at the end, {refilled} made meanwhile", settings.warm);
    Ok(vec![
        served.target("p50 <= 0.3 ms, p99 <= 4 ms", met),
        Row::durations("the same, from when it was due", &all.due)
            .note(format!("generator at most {:.1} ms late", behind.as_secs_f64() * 1e3)),
        Row::number("claims that found no warm sandbox", all.empty as f64, "claims", claimed as u64 + all.empty)
            .note(stock)
            .target("none", all.empty == 0),
        Row::durations("control: write + flush of a page beside it, same disk", &flushed),
    ])
}

/// Claims one after the other while nothing else goes on: what a claim itself takes. Beside them, turn by turn, what any request and
/// what any commit takes here at least: a health check over the same connection, and a page written and flushed.
///
/// More than half of the stock stays, so the refill waits and its work is not in the row.
pub(crate) async fn claim_alone(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    make_pool(&mut client, settings.repeat * 2 + 20).await?;
    let page = Page::on_disk_of(server.data_dir())?;
    let (mut claims, mut checks, mut flushes) = (Samples::new(), Samples::new(), Samples::new());
    let mut held = Vec::new();
    for _ in 0..settings.repeat {
        let begun = Instant::now();
        held.push(claim_one(&mut client).await?);
        claims.add(begun.elapsed());
        let begun = Instant::now();
        client.get("/health").await?;
        checks.add(begun.elapsed());
        flushes.add(page.flush()?);
    }
    give_back(&server, held).await?;
    drain(&server, &mut client).await?;
    Ok(vec![
        Row::durations("claim warm, one after the other, nothing beside", &claims),
        Row::durations("control: health check, turn by turn with it", &checks),
        Row::durations("control: write + flush of a page, turn by turn with it", &flushes),
    ])
}

/// A page of a file on the disk of the data directory.
struct Page(std::fs::File);

impl Page {
    const BYTES: [u8; 4096] = [1; 4096];

    fn on_disk_of(directory: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        file.write_all_at(&Self::BYTES, 0)?;
        file.sync_all()?;
        Ok(Self(file))
    }

    /// Writes it and flushes it; how long that took.
    fn flush(&self) -> std::io::Result<Duration> {
        let begun = Instant::now();
        self.0.write_all_at(&Self::BYTES, 0)?;
        self.0.sync_data()?;
        Ok(begun.elapsed())
    }
}

/// Writes a page and flushes it, some twenty times a second, on the disk of the data directory: what a claim's commit does there at
/// least, while the claims and the refill go on.
struct Flushing {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<std::io::Result<Samples>>,
}

impl Flushing {
    fn begin(directory: &Path) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(50);
        let page = Page::on_disk_of(directory)?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut samples = Samples::new();
            while !seen.load(Ordering::Relaxed) {
                samples.add(page.flush()?);
                std::thread::sleep(PAUSE);
            }
            Ok(samples)
        });
        Ok(Self { ended, thread })
    }

    fn end(self) -> Result<Samples> {
        self.ended.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| BenchError::new("the flushing thread panicked"))??)
    }
}

/// What one connection, or all of them, claimed.
#[derive(Default)]
struct Claims {
    /// Since the request was sent.
    served: Samples,
    /// Since it was due.
    due: Samples,
    /// Claims that found nothing.
    empty: u64,
    /// What is held.
    held: Vec<String>,
}

impl Claims {
    fn merge(&mut self, other: Self) {
        self.served.merge(&other.served);
        self.due.merge(&other.due);
        self.empty += other.empty;
        self.held.extend(other.held);
    }
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

async fn claimer(mut client: Client, due: Shared<Instant>) -> Result<Claims> {
    let mut claims = Claims::default();
    loop {
        let Some(at) = due.lock().await.recv().await else { return Ok(claims) };
        let sent = Instant::now();
        match claim_one(&mut client).await {
            Ok(id) => {
                claims.served.add(sent.elapsed());
                claims.due.add(at.elapsed());
                claims.held.push(id);
            }
            Err(error) if error.to_string().contains("429") => claims.empty += 1,
            Err(error) => return Err(error),
        }
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
