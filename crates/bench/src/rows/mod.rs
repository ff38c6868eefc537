//! The rows.

mod churn;
mod claim;
mod files;
mod idle;
mod images;
mod network;
mod ports;
mod pull;
mod restart;
mod single;

pub(crate) use churn::churn;
pub(crate) use claim::{claim, claim_alone};
pub(crate) use files::files;
pub(crate) use idle::idle;
pub(crate) use images::{build, commit, layers};
pub(crate) use network::{network_create, network_many, network_outbound, network_policy};
pub(crate) use ports::ports;
pub(crate) use pull::pull;
pub(crate) use restart::restart;
pub(crate) use single::{claim_exec, create, exec, pause};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Client, full};
use crate::server::Server;
use crate::{BenchError, Result};

/// What the rows are told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) binary: PathBuf,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) seconds: u64,
    pub(crate) rate: f64,
    pub(crate) warm: u32,
    pub(crate) repeat: u32,
    pub(crate) idle: u32,
    pub(crate) restart: u32,
}

impl Settings {
    pub(crate) async fn server(&self) -> Result<Server> {
        self.server_with("").await
    }

    /// A server with this configuration.
    pub(crate) async fn server_with(&self, config: &str) -> Result<Server> {
        Server::start(&self.binary, self.data_dir.as_deref(), config).await
    }

    /// One of several servers at the same time: where a data directory was given, each has a part of it.
    pub(crate) async fn server_beside(&self, part: &str, config: &str) -> Result<Server> {
        let data_dir = self.data_dir.as_ref().map(|path| path.join(part));
        if let Some(path) = &data_dir {
            std::fs::create_dir_all(path)?;
        }
        Server::start(&self.binary, data_dir.as_deref(), config).await
    }
}

const POOL: &str = "bench";
/// Longest wait until everything is destroyed: some tens of thousands.
const GONE_WAIT: Duration = Duration::from_secs(600);

/// Makes the pool `bench` of the `host` image that keeps `warm` ready, and waits until they are.
pub(crate) async fn make_pool(client: &mut Client, warm: u32) -> Result<()> {
    make_pool_of(client, warm, "128Mi").await
}

/// The same with so much memory for each.
pub(crate) async fn make_pool_of(client: &mut Client, warm: u32, memory: &str) -> Result<()> {
    let body = json!({ "name": POOL, "image": "host", "replicas": warm, "replicaMode": "Warm", "memory": memory });
    client.post("/v1/sandboxpools", &body, StatusCode::CREATED).await?;
    wait_warm(client, warm).await
}

/// Waits until the pool has so many warm.
pub(crate) async fn wait_warm(client: &mut Client, warm: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60 + u64::from(warm) / 20);
    loop {
        let status = warm_now(client).await?;
        if status >= u64::from(warm) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(BenchError::new(format!("the pool has {status} of {warm} warm sandboxes and does not go on")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many are warm.
pub(crate) async fn warm_now(client: &mut Client) -> Result<u64> {
    let pool = client.get(&format!("/v1/sandboxpools/{POOL}")).await?;
    Ok(pool["template"]["status"]["idleReplicas"].as_u64().unwrap_or(0))
}

/// Claims a warm sandbox; refused when none is warm.
pub(crate) async fn claim_one(client: &mut Client) -> Result<String> {
    let body = json!({ "poolName": POOL, "whenEmpty": "refuse" });
    id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)
}

/// Makes a sandbox without a pool.
pub(crate) async fn create_one(client: &mut Client) -> Result<String> {
    let body = json!({ "image": "host", "memory": "128Mi" });
    id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)
}

/// Puts this program into a sandbox at `path`, to be run there: the `host` image has the libraries that it needs.
pub(crate) async fn put_program(client: &mut Client, id: &str, path: &str) -> Result<()> {
    let program = Bytes::from(std::fs::read(std::env::current_exe()?)?);
    let (status, answer) = client.raw(Method::PUT, &format!("/v1/sandboxes/{id}/files?path={path}"), full(program)).await?;
    if status != StatusCode::CREATED {
        return Err(BenchError::new(format!("the write was answered {status}: {}", String::from_utf8_lossy(&answer))));
    }
    let body = json!({ "command": ["chmod", "755", path] });
    let answer = client.post(&format!("/v1/sandboxes/{id}/exec"), &body, StatusCode::OK).await?;
    if answer["exitCode"] == 0 { Ok(()) } else { Err(BenchError::new(format!("chmod ended with {answer}"))) }
}

/// Gives a sandbox back.
pub(crate) async fn release(client: &mut Client, id: &str) -> Result<()> {
    client.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None, StatusCode::ACCEPTED).await.map(drop)
}

/// Runs `true` in it and checks that it ended with 0.
pub(crate) async fn exec_true(client: &mut Client, id: &str) -> Result<()> {
    let body = json!({ "command": ["true"] });
    let answer = client.post(&format!("/v1/sandboxes/{id}/exec"), &body, StatusCode::OK).await?;
    if answer["exitCode"] == 0 { Ok(()) } else { Err(BenchError::new(format!("true ended with {answer}"))) }
}

/// Gives many back.
pub(crate) async fn give_back(server: &Server, held: Vec<String>) -> Result<()> {
    /// Connections that do it.
    const RELEASERS: usize = 4;
    let mut releasers = Vec::new();
    for part in held.chunks(held.len().div_ceil(RELEASERS).max(1)) {
        let (mut client, part) = (server.client().await?, part.to_vec());
        releasers.push(tokio::spawn(async move {
            for id in part {
                release(&mut client, &id).await?;
            }
            Ok::<_, BenchError>(())
        }));
    }
    for releaser in releasers {
        releaser.await.map_err(|error| BenchError::new(error.to_string()))??;
    }
    Ok(())
}

/// Deletes the pool and waits until nothing of this server's is left on the machine.
pub(crate) async fn drain(server: &Server, client: &mut Client) -> Result<()> {
    let (_, _) = client.raw(Method::DELETE, &format!("/v1/sandboxpools/{POOL}"), full(Bytes::new())).await?;
    wait_gone(server).await
}

/// Waits until the data directory holds just so many sandboxes, and a moment longer: what is measured next begins with a machine
/// at rest, neither destroying the last sandbox nor making the next.
pub(crate) async fn rest(server: &Server, sandboxes: u32) -> Result<()> {
    const LOOK: Duration = Duration::from_micros(500);
    let deadline = Instant::now() + GONE_WAIT;
    let mut still = 0;
    while still < 6 {
        let here = server.sandboxes();
        still = if here == sandboxes as usize { still + 1 } else { 0 };
        if Instant::now() > deadline {
            return Err(BenchError::new(format!("{here} sandboxes instead of {sandboxes} after {GONE_WAIT:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until the data directory holds no sandbox.
pub(crate) async fn wait_gone(server: &Server) -> Result<()> {
    let deadline = Instant::now() + GONE_WAIT;
    loop {
        let left = server.sandboxes();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(BenchError::new(format!("{left} sandboxes are still there after {GONE_WAIT:?}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn id_of(answer: &Value) -> Result<String> {
    let id = answer["sandbox"]["sandboxId"].as_str();
    id.map(str::to_owned).ok_or_else(|| BenchError::new(format!("no sandboxId in {answer}")))
}
