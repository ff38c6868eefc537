//! `run` and `exec`: a program in a sandbox, as if it ran here.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{pairs, put_lease, put_network, put_process};
use crate::cli::{self, ProcessArgs, StdioArgs};
use crate::client::exec::{self, Exec};
use crate::client::{Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output;

/// Lease of a `run` that names none. It is renewed while we live, so a killed `run` holds its sandbox no longer than this.
const LEASE: &str = "5m";
/// How often that lease is renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// How long an interrupted claim may still answer, so that what it took can be given back.
const CLAIM_GRACE: Duration = Duration::from_secs(3);
/// How often giving back is tried.
const RELEASE_TRIES: u32 = 3;
/// Exit code of a `run` that was interrupted before its program began: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// `exec ID -- CMD`.
pub(crate) async fn exec(client: &Client, options: cli::Exec) -> Result<u8> {
    let exec = program(options.command, &options.process, options.stdio)?;
    exec::run(client, &options.id, &exec).await.map_err(Failure::into_infrastructure)
}

/// `run POOL -- CMD`.
pub(crate) async fn run(client: &Client, options: cli::Run) -> Result<u8> {
    // The environment goes with the program; user and directory too.
    let exec = program(options.command, &options.process, options.stdio)?;
    let own_lease = options.lease.timeout.is_none();
    let mut body = json!({ "metadata": { "sandbank.dev/run": "cli" } });
    match (&options.pool, &options.image) {
        (Some(pool), _) => body["poolName"] = json!(pool),
        (None, image) => {
            body["image"] = json!(image);
            put_process(&mut body, &options.process)?;
        }
    }
    put_lease(&mut body, &options.lease);
    put_network(&mut body, &options.network);
    if own_lease {
        body["timeout"] = json!(LEASE);
    }
    let id = claim(client, &body).await.map_err(Failure::into_infrastructure)?;
    let outcome = tokio::select! {
        outcome = exec::run(client, &id, &exec) => outcome,
        never = keep_alive(client, &id, own_lease) => never,
    };
    let released = release(client, &id).await;
    let code = outcome.map_err(Failure::into_infrastructure)?;
    if let Err(error) = released {
        // The program's own code matters more than ours; the lease ends by itself.
        output::note(&format!("sandbank: sandbox {id} could not be given back ({error}); its lease ends by itself"));
    }
    Ok(code)
}

fn program(argv: Vec<String>, process: &ProcessArgs, stdio: StdioArgs) -> Result<Exec> {
    Ok(Exec {
        argv,
        env: pairs("the environment variable", &process.env)?,
        cwd: process.workdir.clone(),
        user: process.user.clone(),
        stdin: stdio.interactive,
        tty: stdio.tty,
    })
}

/// Claims; an interrupt meanwhile gives back what the claim may have taken.
async fn claim(client: &Client, body: &Value) -> Result<String> {
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(format!("cannot watch for signals: {error}")))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Failure::new(format!("cannot watch for signals: {error}")))?;
    let mut answer = std::pin::pin!(client.post("/v1/sandboxes", body));
    let claimed = tokio::select! {
        answer = &mut answer => Some(answer?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if let Some(answer) = claimed {
        return sandbox_id(&answer);
    }
    if let Ok(Ok(answer)) = tokio::time::timeout(CLAIM_GRACE, answer).await {
        release(client, &sandbox_id(&answer)?).await?;
    }
    Err(Failure::silent(INTERRUPTED))
}

/// The id in an answer `{sandbox:{sandboxId}}`.
pub(super) fn sandbox_id(answer: &Value) -> Result<String> {
    let id = answer.pointer("/sandbox/sandboxId").and_then(Value::as_str);
    id.map(str::to_owned).ok_or_else(|| Failure::new("the server's answer names no sandbox: is it a Sandbank server?"))
}

/// Renews the lease for as long as it is polled. Ends only with an error: the lease is lost.
async fn keep_alive(client: &Client, id: &str, own_lease: bool) -> Result<u8> {
    if !own_lease {
        return std::future::pending().await;
    }
    let path = format!("/v1/sandboxes/{}/renew", encode_segment(id));
    loop {
        tokio::time::sleep(RENEWAL).await;
        // A server that restarts just now is asked again: the lease outlasts several renewals.
        let _ = client.post(&path, &json!({ "timeout": LEASE })).await;
    }
}

/// Gives the sandbox back; one that has ended already is fine.
async fn release(client: &Client, id: &str) -> Result<()> {
    let path = format!("/v1/sandboxes/{}", encode_segment(id));
    let mut tries = 1;
    loop {
        match client.delete(&path).await {
            Ok(_) => return Ok(()),
            Err(error) if error.to_string().contains("already terminated") => return Ok(()),
            Err(error) if tries == RELEASE_TRIES => return Err(error),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(200) * tries).await;
                tries += 1;
            }
        }
    }
}
