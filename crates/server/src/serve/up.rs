//! `up`: a pool that is ready, and what to type next.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output;

/// Name of the pool.
const POOL: &str = "base";
/// Longest wait for its first sandbox.
const READY_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Program of the demonstration: files, output, a child process, and the limits it lives under. For the shell, because the image
/// `host` has what this machine has, and a freshly installed one has no Python.
const PROGRAM: &str = r#"child=$(sh -c 'echo $$')
echo "$(uname -sr) ran it as uid $(id -u) on $(uname -n)" >result.txt
echo "my pid is $$, my child's was $child, and I see $(ls /proc | grep -c '^[0-9]') processes in all"
"#;

/// What `up` was asked for.
#[derive(Debug, Clone)]
pub(crate) struct UpOptions {
    /// Sandboxes to keep ready.
    pub(crate) replicas: u32,
    /// Show a sandbox at work first.
    pub(crate) demo: bool,
}

/// Makes the pool, waits for it, and tells the person what to do.
pub(crate) async fn guide(client: &Client, data_dir: &Path, options: &UpOptions) -> Result<()> {
    let begin = Instant::now();
    ensure_pool(client, options.replicas).await?;
    let ready = wait_until_ready(client, options.replicas).await?;
    output::line(&format!("Sandbank serves at {}", client.base()))?;
    output::line(&format!("Pool {POOL:?} has {ready} sandboxes ready after {} ms.", begin.elapsed().as_millis()))?;
    if options.demo {
        demonstrate(client).await?;
    }
    next_steps(client, data_dir)
}

async fn ensure_pool(client: &Client, replicas: u32) -> Result<()> {
    let path = format!("/v1/sandboxpools/{POOL}");
    let Some(_) = client.get_if_any(&path).await? else {
        let body = json!({ "name": POOL, "image": "host", "replicas": replicas, "replicaMode": "Warm" });
        client.post("/v1/sandboxpools", &body).await?;
        return Ok(());
    };
    client.put(&path, &json!({ "replicas": replicas })).await.map(|_| ())
}

/// Waits until at least one is ready; gives how many are.
async fn wait_until_ready(client: &Client, replicas: u32) -> Result<u64> {
    let deadline = Instant::now() + READY_WAIT;
    loop {
        let answer = client.get(&format!("/v1/sandboxpools/{POOL}")).await?;
        let ready = answer.pointer("/template/status/idleReplicas").and_then(Value::as_u64).unwrap_or(0);
        if ready >= u64::from(replicas) || (ready > 0 && Instant::now() + READY_WAIT * 9 / 10 > deadline) {
            return Ok(ready);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "pool {POOL:?} has no sandbox ready after {} s: look at `sandbank events` and `sandbank doctor`",
                READY_WAIT.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A sandbox from claim to release, step by step with times as this client sees them.
async fn demonstrate(client: &Client) -> Result<()> {
    output::line("\nA sandbox at work:")?;
    let (answer, took) = timed(client.post("/v1/sandboxes", &json!({ "poolName": POOL }))).await?;
    let id = answer.pointer("/sandbox/sandboxId").and_then(Value::as_str).unwrap_or_default().to_owned();
    step("claimed a sandbox", took, &id)?;
    let shown = work(client, &id).await;
    let (_, took) = timed(client.delete(&format!("/v1/sandboxes/{}", encode_segment(&id)))).await?;
    step("gave it back", took, "")?;
    shown
}

async fn work(client: &Client, id: &str) -> Result<()> {
    let base = format!("/v1/sandboxes/{}", encode_segment(id));
    let write = client.request(http::Method::PUT, &format!("{base}/files?path=/tmp/app.sh"));
    let (_, took) = timed(client.send(write, crate::client::full(PROGRAM.into()))).await?;
    step("wrote a program into it", took, "")?;
    let command = json!({ "command": "cd /tmp && sh app.sh" });
    let (answer, took) = timed(client.post(&format!("{base}/exec"), &command)).await?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    step("ran it", took, &text("stdout"))?;
    if answer.get("exitCode").and_then(Value::as_i64) != Some(0) {
        return Err(Failure::new(format!("the program failed: {}", output::harmless(&text("stderr")))));
    }
    let read = json!({ "command": "cat /tmp/result.txt" });
    let (answer, took) = timed(client.post(&format!("{base}/exec"), &read)).await?;
    step("read the file that it made", took, answer.get("stdout").and_then(Value::as_str).unwrap_or_default().trim())
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let begin = Instant::now();
    let value = work.await?;
    Ok((value, begin.elapsed()))
}

fn step(what: &str, took: Duration, shown: &str) -> Result<()> {
    let millis = took.as_secs_f64() * 1000.0;
    output::line(format!("  {what:<32} {millis:>8.2} ms   {}", output::harmless(shown)).trim_end())
}

/// Where to go from here. The key itself stays in its file.
fn next_steps(client: &Client, data_dir: &Path) -> Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "sandbank".to_owned());
    let quote = |text: &str| crate::commands::quoted(text);
    let program = quote(&program);
    let option = match std::env::var_os("SANDBANK_DATA_DIR") {
        Some(_) => String::new(),
        None => format!(" --data-dir {}", quote(&data_dir.to_string_lossy())),
    };
    let text = format!(
        "
Next steps, in another terminal:
  eval \"$({program} env native{option})\"
  {program} run {POOL} -- sh -c 'echo $((6 * 7))'
  ID=$({program} claim {POOL}); {program} exec -it $ID -- bash
  curl -s -H \"AGENTBOX-API-KEY: $SANDBANK_KEY\" -H 'content-type: application/json' \\
       -d '{{\"poolName\":\"{POOL}\"}}' {}/v1/sandboxes

Press Ctrl-C to stop the server. Claimed sandboxes live on and are found again by the next start.",
        client.base()
    );
    output::line(&text)
}
