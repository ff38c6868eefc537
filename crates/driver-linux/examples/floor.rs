//! Measures the driver alone: how long create, destroy, pause and resume take, without server, store or HTTP.
//!
//! `cargo run --release -p sandbank-driver-linux --example floor -- [ROUNDS [PARALLEL [IDLE]]]`
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_driver::{CreateRequest, Driver, Target};
use sandbank_driver_linux::{LinuxConfig, LinuxDriver};
use sandbank_model::{Image, ImageName, ImageSource, SandboxId, SandboxSpec, Timestamp};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("launcher") {
        sandbank_driver_linux::launcher_main();
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(measure());
}

async fn measure() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let rounds = numbers.next().unwrap_or(200);
    let parallel = numbers.next().unwrap_or(4);
    let idle = numbers.next().unwrap_or(0);
    let data = std::env::temp_dir().join(format!("sandbank-floor-{}", std::process::id()));
    std::fs::create_dir_all(&data).unwrap();
    let driver = Arc::new(LinuxDriver::start(LinuxConfig::new(&data)).await.expect("the driver starts"));
    latencies(&driver, rounds).await;
    throughput(&driver, rounds, parallel).await;
    if idle > 0 {
        idle_memory(&driver, idle).await;
    }
    drop(driver);
    remove(data);
}

fn remove(data: PathBuf) {
    std::fs::remove_dir_all(data).unwrap();
}

fn request(driver: &LinuxDriver) -> CreateRequest {
    let built_in = driver.builtin_image().unwrap();
    let name: ImageName = "host".parse().unwrap();
    let image = Image {
        name: name.clone(),
        tenant: None,
        layers: built_in.layers,
        on_host: built_in.on_host,
        config: built_in.config,
        source: ImageSource::Host,
        created_at: Timestamp::from_millis(0),
    };
    let mut random = [0; 10];
    getrandom::fill(&mut random).unwrap();
    let id = SandboxId::new(Timestamp::from_millis(1_700_000_000_000), random);
    CreateRequest { id, spec: SandboxSpec::of_image(name), image }
}

async fn latencies(driver: &LinuxDriver, rounds: usize) {
    let (mut create, mut pause, mut resume, mut destroy) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let request = request(driver);
        let id = request.id;
        let began = Instant::now();
        let handle = driver.create(request).await.expect("create");
        create.push(began.elapsed());
        let target = Target { id, handle: &handle };
        let began = Instant::now();
        driver.pause(target).await.expect("pause");
        pause.push(began.elapsed());
        let began = Instant::now();
        driver.resume(target).await.expect("resume");
        resume.push(began.elapsed());
        let began = Instant::now();
        driver.destroy(id).await.expect("destroy");
        destroy.push(began.elapsed());
    }
    for (name, times) in [("create", create), ("pause", pause), ("resume", resume), ("destroy", destroy)] {
        print(name, times);
    }
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!("{name:>8}: p50 {:.3} ms  p95 {:.3}  p99 {:.3}  max {:.3}  n {}", at(0.5), at(0.95), at(0.99), at(1.0), times.len());
}

async fn throughput(driver: &Arc<LinuxDriver>, rounds: usize, parallel: usize) {
    let began = Instant::now();
    let tasks: Vec<_> = (0..parallel)
        .map(|_| {
            let driver = Arc::clone(driver);
            tokio::spawn(async move {
                for _ in 0..rounds {
                    let request = request(&driver);
                    let id = request.id;
                    driver.create(request).await.expect("create");
                    driver.destroy(id).await.expect("destroy");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("create + destroy, {parallel} at a time: {:.0} a second", (rounds * parallel) as f64 / seconds);
}

fn available_kib() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn idle_memory(driver: &LinuxDriver, count: usize) {
    let before = available_kib();
    let mut ids = Vec::new();
    for _ in 0..count {
        let request = request(driver);
        ids.push(request.id);
        driver.create(request).await.expect("create");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{count} idle sandboxes: {} KiB each", (before - available_kib()) / count as i64);
    for id in ids {
        driver.destroy(id).await.expect("destroy");
    }
}
