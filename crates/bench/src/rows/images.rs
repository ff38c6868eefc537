//! Images: creating from layers, committing, building again.

use std::path::Path;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Settings, id_of, release, rest, wait_gone};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::server::Server;
use crate::{BenchError, Result};

const MIB: u64 = 1024 * 1024;
/// Layers of the image that is compared with `host`.
const LAYERS: u32 = 5;
/// Files of the image's lowest layer.
const FILES: u32 = 200;
/// Sandboxes that are committed.
const COMMITS: usize = 7;
const CHANGED_MIB: u64 = 100;
/// Builds after the first.
const BUILDS: u32 = 20;
const BUILD_STEPS: u32 = 12;
const BUILD_WAIT: Duration = Duration::from_secs(300);

/// Creating from an image of five layers beside creating from `host`, turn by turn.
pub(crate) async fn layers(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let image = layered_image(&server, &mut client).await?;
    let (mut host, mut layered) = (Samples::new(), Samples::new());
    for _ in 0..settings.repeat {
        for (image, samples) in [("host", &mut host), (image.as_str(), &mut layered)] {
            let begun = Instant::now();
            let id = create(&mut client, image).await?;
            samples.add(begun.elapsed());
            release(&mut client, &id).await?;
            rest(&server, 0).await?;
        }
    }
    let (host, layered) = (
        Row::durations("create of host, beside", &host),
        Row::durations(format!("create of an image of {LAYERS} layers"), &layered),
    );
    let ratio = layered.p50.unwrap_or(f64::INFINITY) / host.p50.unwrap_or(f64::INFINITY);
    Ok(vec![host, layered.note(format!("{ratio:.2} times host")).target("p50 <= 1.2 times host", ratio <= 1.2)])
}

/// A root file system without programs, and on it four commits of one file each.
async fn layered_image(server: &Server, client: &mut Client) -> Result<String> {
    let root = tempfile::Builder::new().prefix("sandbank-bench-root-").tempdir()?;
    write_root(root.path())?;
    let mut name = "bench-layers:1".to_owned();
    let body = json!({ "name": name, "path": root.path().to_string_lossy() });
    client.post("/v1/admin/images/import", &body, StatusCode::CREATED).await?;
    for layer in 2..=LAYERS {
        let id = create(client, &name).await?;
        put_file(client, &id, &format!("/srv/layer{layer}"), MIB).await?;
        name = format!("bench-layers:{layer}");
        client.post(&format!("/v1/sandboxes/{id}/commit"), &json!({ "image": name }), StatusCode::CREATED).await?;
        release(client, &id).await?;
    }
    wait_gone(server).await?;
    Ok(name)
}

fn write_root(root: &Path) -> Result<()> {
    for number in 0..FILES {
        let directory = root.join(format!("usr/lib/part{}", number % 10));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("file{number}")), format!("{number}\n").repeat(1000))?;
    }
    Ok(())
}

async fn create(client: &mut Client, image: &str) -> Result<String> {
    let body = json!({ "image": image, "memory": "128Mi" });
    id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)
}

async fn put_file(client: &mut Client, id: &str, path: &str, bytes: u64) -> Result<()> {
    let (status, text) = client.upload(&format!("/v1/sandboxes/{id}/files?path={path}"), bytes).await?;
    if status == StatusCode::CREATED {
        return Ok(());
    }
    Err(BenchError::new(format!("writing {path} was answered {status}: {}", String::from_utf8_lossy(&text))))
}

/// Commit of a sandbox that wrote 100 MiB, and `cp` of as much on the same file system.
pub(crate) async fn commit(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let (mut commits, mut copies) = (Samples::new(), Samples::new());
    for round in 0..COMMITS {
        let body = json!({ "image": "host", "memory": "1Gi" });
        let id = id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)?;
        put_file(&mut client, &id, "/srv/changed", CHANGED_MIB * MIB).await?;
        let begun = Instant::now();
        let body = json!({ "image": format!("bench-commit:{round}") });
        client.post(&format!("/v1/sandboxes/{id}/commit"), &body, StatusCode::CREATED).await?;
        commits.add(begun.elapsed());
        copies.add(copied(&server)?);
        release(&mut client, &id).await?;
    }
    wait_gone(&server).await?;
    let control = Row::durations(format!("control: cp + sync of {CHANGED_MIB} MiB"), &copies);
    let committed = Row::durations(format!("commit of {CHANGED_MIB} MiB of changes"), &commits);
    let met = committed.p50.is_some_and(|p50| p50 <= 100.0) || committed.p50 <= control.p50.map(|p50| p50 * 1.2);
    Ok(vec![control, committed.target("p50 <= 100 ms with reflinks, else close to a copy", met)])
}

/// How long it takes to copy as much by `cp`, on the disk of the data directory.
fn copied(server: &Server) -> Result<Duration> {
    let directory = tempfile::Builder::new().prefix("bench-copy-").tempdir_in(server.data_dir())?;
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![0; usize::try_from(CHANGED_MIB * MIB).unwrap_or(0)])?;
    let begun = Instant::now();
    let status = std::process::Command::new("cp").arg(&source).arg(&target).status()?;
    std::fs::File::open(&target)?.sync_all()?;
    let took = begun.elapsed();
    if status.success() { Ok(took) } else { Err(BenchError::new(format!("cp ended with {status}"))) }
}

/// A build whose every step was made before.
pub(crate) async fn build(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let runs: String = (1..=BUILD_STEPS).map(|step| format!("RUN echo {step} > /srv/step{step}\n")).collect();
    let body = json!({ "name": "bench-build:1", "dockerfile": format!("FROM host\n{runs}") });
    let begun = Instant::now();
    built(&mut client, &body).await?;
    let first = begun.elapsed();
    let mut again = Samples::new();
    for _ in 0..BUILDS {
        let begun = Instant::now();
        let build = built(&mut client, &body).await?;
        again.add(begun.elapsed());
        let cached = &build["stepsCached"];
        if cached.as_u64() != Some(u64::from(BUILD_STEPS)) {
            return Err(BenchError::new(format!("{cached} of {BUILD_STEPS} steps came from the cache: {build}")));
        }
    }
    wait_gone(&server).await?;
    let row = Row::durations(format!("unchanged build of {BUILD_STEPS} steps"), &again);
    Ok(vec![row.note(format!("the first took {:.0} ms", first.as_secs_f64() * 1e3)).target_p50("p50 <= 200 ms", 200.0)])
}

/// Starts a build and follows its log to the end, as the command line does.
async fn built(client: &mut Client, body: &Value) -> Result<Value> {
    let answer = client.post("/v1/builds", body, StatusCode::ACCEPTED).await?;
    let id = answer["build"]["id"].as_str().ok_or_else(|| BenchError::new(format!("no build in {answer}")))?.to_owned();
    let log = format!("/v1/builds/{id}/logs");
    tokio::time::timeout(BUILD_WAIT, client.drain(&log)).await.map_err(|_| BenchError::new("the build did not end"))??;
    let answer = client.call(Method::GET, &format!("/v1/builds/{id}"), None, StatusCode::OK).await?;
    let build = answer["build"].clone();
    if build["state"] == "ready" { Ok(build) } else { Err(BenchError::new(format!("the build ended as {build}"))) }
}
