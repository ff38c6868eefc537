//! Pools.

use serde_json::{Value, json};

use super::{on_expiry, put, put_network, put_process, put_resources};
use crate::cli::{Pool, PoolCreate, PoolScale};
use crate::client::{Client, encode_segment};
use crate::failure::Result;
use crate::output::{self, field};

/// `pool …`.
pub(crate) async fn run(client: &Client, command: Pool, json: bool) -> Result<()> {
    match command {
        Pool::Create(options) => {
            let answer = client.post("/v1/sandboxpools", &create_body(&options)?).await?;
            show(&answer, json)
        }
        Pool::List => {
            let pools = client.list("/v1/sandboxpools").await?;
            if json {
                return output::document(&json!({ "total": pools.len(), "items": pools }));
            }
            output::table(&HEADINGS, &pools.iter().map(row).collect::<Vec<_>>())
        }
        Pool::Show(named) => {
            let answer = client.get(&path(&named.name)).await?;
            show(&answer, json)
        }
        Pool::Scale(options) => {
            let answer = client.put(&path(&options.name), &scale_body(&options)).await?;
            show(&answer, json)
        }
        Pool::Sync(named) => {
            let answer = client.post(&format!("{}/sync-template", path(&named.name)), &json!({})).await?;
            show(&answer, json)
        }
        Pool::Delete(named) => {
            let answer = client.delete(&path(&named.name)).await?;
            if json { output::document(&answer) } else { output::line(&named.name) }
        }
    }
}

/// The body that makes a pool.
fn create_body(options: &PoolCreate) -> Result<Value> {
    let mut body = json!({
        "name": options.name,
        "replicas": options.replicas,
        "replicaMode": if options.total { "Total" } else { "Warm" },
    });
    put(&mut body, "templateName", options.template.as_ref());
    put(&mut body, "image", options.image.as_ref());
    put(&mut body, "minReplicas", options.min);
    put(&mut body, "maxReplicas", options.max);
    put_resources(&mut body, &options.resources);
    put_process(&mut body, &options.process)?;
    put_network(&mut body, &options.network);
    put(&mut body, "timeout", options.lease.timeout.as_ref());
    put(&mut body, "onExpiry", options.lease.on_expiry.map(on_expiry));
    // The one default that AgentBox's contract knows has its place there (native.md §8).
    put(&mut body, "spec", options.lease.idle_timeout.as_ref().map(|life| json!({ "defaultIdleTimeout": life })));
    Ok(body)
}

fn scale_body(options: &PoolScale) -> Value {
    let mut body = json!({});
    put(&mut body, "replicas", options.replicas);
    put(&mut body, "minReplicas", options.min);
    put(&mut body, "maxReplicas", options.max);
    body
}

fn path(name: &str) -> String {
    format!("/v1/sandboxpools/{}", encode_segment(name))
}

const HEADINGS: [&str; 9] = ["NAME", "PHASE", "REPLICAS", "READY", "STARTING", "CLAIMED", "FAILED", "CPU", "MEMORY"];

fn row(pool: &Value) -> Vec<String> {
    let paths = [
        "name",
        "status.phase",
        "spec.replicas",
        "status.idleReplicas",
        "status.startingReplicas",
        "status.runningReplicas",
        "status.failedReplicas",
        "cpu",
        "memory",
    ];
    paths.iter().map(|path| field(pool, path)).collect()
}

/// The envelope's key is literally `template` (native.md §6).
fn show(answer: &Value, json: bool) -> Result<()> {
    if json { output::document(answer) } else { output::table(&HEADINGS, &[row(answer.get("template").unwrap_or(&Value::Null))]) }
}
