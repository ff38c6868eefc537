//! Sandboxes one by one: claim, list, pause, resume, renew, give back, commit, counters.

use serde_json::{Value, json};

use super::{pairs, put, put_lease, put_network};
use crate::cli::{ClaimArgs, Commit, Ps, Renew};
use crate::client::{Client, encode_query, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, bytes, distance, field};

/// Statuses of sandboxes that have ended (native.md §7).
const ENDED: [&str; 4] = ["Failed", "Completed", "Canceled", "Released"];

/// What `each` does to a sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Give back.
    Release,
}

/// `claim POOL`.
pub(crate) async fn claim(client: &Client, options: ClaimArgs, json: bool) -> Result<()> {
    let mut body = json!({ "poolName": options.pool });
    put_lease(&mut body, &options.lease);
    put_network(&mut body, &options.network);
    let metadata = pairs("the metadata", &options.metadata)?;
    put(&mut body, "metadata", (!metadata.is_empty()).then_some(metadata));
    let env = pairs("the environment variable", &options.env)?;
    put(&mut body, "env", (!env.is_empty()).then_some(env));
    put(&mut body, "whenEmpty", options.no_wait.then_some("refuse"));
    let answer = client.post("/v1/sandboxes", &body).await?;
    let id = super::run::sandbox_id(&answer)?;
    if json { output::document(&answer) } else { output::line(&id) }
}

/// `ps`.
pub(crate) async fn ps(client: &Client, options: &Ps, json: bool) -> Result<()> {
    let mut path = format!("/v1/sandboxes?warm={}", options.warm);
    if let Some(pool) = &options.pool {
        path.push_str(&format!("&poolName={}", encode_query(pool)));
    }
    let mut sandboxes = client.list(&path).await?;
    if !options.all {
        sandboxes.retain(|sandbox| !ENDED.contains(&field(sandbox, "status").as_str()));
    }
    if json {
        return output::document(&json!({ "total": sandboxes.len(), "items": sandboxes }));
    }
    if options.quiet {
        return sandboxes.iter().try_for_each(|sandbox| output::line(&field(sandbox, "sandboxId")));
    }
    let now = jiff::Timestamp::now();
    let row = |sandbox: &Value| {
        vec![
            field(sandbox, "sandboxId"),
            field(sandbox, "poolName"),
            field(sandbox, "status"),
            distance(sandbox, "claimedAt", now),
            distance(sandbox, "expiresAt", now),
            field(sandbox, "cpu"),
            field(sandbox, "memory"),
        ]
    };
    output::table(
        &["ID", "POOL", "STATUS", "CLAIMED", "EXPIRES", "CPU", "MEMORY"],
        &sandboxes.iter().map(row).collect::<Vec<_>>(),
    )
}

/// The same for each of several sandboxes; goes on after an error and fails at the end.
pub(crate) async fn each(client: &Client, ids: &[String], act: Act, json: bool) -> Result<()> {
    let mut failed = 0;
    for id in ids {
        let path = format!("/v1/sandboxes/{}", encode_segment(id));
        let answer = match act {
            Act::Pause => client.post(&format!("{path}/pause"), &json!({})).await,
            Act::Resume => client.post(&format!("{path}/resume"), &json!({})).await,
            Act::Release => client.delete(&path).await,
        };
        match answer {
            Ok(answer) if json => output::json_line(&answer)?,
            Ok(_) => output::line(id)?,
            Err(error) => {
                error.report();
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::silent(Failure::ERROR)) }
}

/// `renew ID…`.
pub(crate) async fn renew(client: &Client, options: &Renew, json: bool) -> Result<()> {
    let mut body = json!({});
    put_lease(&mut body, &options.lease);
    if body.as_object().is_some_and(serde_json::Map::is_empty) {
        return Err(Failure::usage("nothing to renew: give --timeout, --idle-timeout or --on-expiry"));
    }
    put(&mut body, "onlyExtend", options.only_extend.then_some(true));
    for id in &options.ids {
        let answer = client.post(&format!("/v1/sandboxes/{}/renew", encode_segment(id)), &body).await?;
        if json {
            output::json_line(&answer)?;
        } else {
            let end = distance(&answer, "sandbox.expiresAt", jiff::Timestamp::now());
            output::line(&format!("{id}  expires {}", if end == "-" { "never" } else { &end }))?;
        }
    }
    Ok(())
}

/// `commit ID IMAGE`.
pub(crate) async fn commit(client: &Client, options: &Commit, json: bool) -> Result<()> {
    let path = format!("/v1/sandboxes/{}/commit", encode_segment(&options.id));
    let answer = client.post(&path, &json!({ "image": options.image })).await?;
    if json { output::document(&answer) } else { output::line(&field(&answer, "image.name")) }
}

/// `stats ID`.
pub(crate) async fn stats(client: &Client, id: &str, json: bool) -> Result<()> {
    let answer = client.get(&format!("/v1/sandboxes/{}/metrics", encode_segment(id))).await?;
    if json {
        return output::document(&answer);
    }
    let metrics = answer.get("metrics").unwrap_or(&Value::Null);
    let size = |name: &str| metrics.get(name).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes);
    let rows = [
        ("cpu", format!("{} s", field(metrics, "cpuUsedSeconds")), field(metrics, "cpuLimit")),
        ("memory", size("memoryUsedBytes"), size("memoryLimitBytes")),
        ("memory, cached files", size("memoryCacheBytes"), "-".to_owned()),
        ("disk", size("diskUsedBytes"), size("diskLimitBytes")),
        ("processes", field(metrics, "pids"), field(metrics, "pidsLimit")),
        ("killed for memory", field(metrics, "oomKills"), "-".to_owned()),
        ("network in", size("networkInBytes"), "-".to_owned()),
        ("network out", size("networkOutBytes"), "-".to_owned()),
    ];
    output::table(&["", "USED", "LIMIT"], &rows.map(|(what, used, limit)| vec![what.to_owned(), used, limit]))
}
