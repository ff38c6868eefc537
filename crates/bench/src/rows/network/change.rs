//! How soon another policy is in force.

use std::net::SocketAddr;
use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::outside::Outside;
use super::{FEW_ENTRIES, PROGRAM, Settings, id_of, policy, put_program, release, send_from, wait_gone};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::{BenchError, Result};

const MANY_ENTRIES: u32 = 1000;

/// `PUT …/network` on a running sandbox until its answer, when the policy is in force: of that a program inside is asked, before and
/// after, whether it reaches a host beyond this one.
pub(crate) async fn network_policy(settings: &Settings) -> Result<Vec<Row>> {
    let outside = Outside::start()?;
    let server = settings.server_with(&outside.config()).await?;
    let mut client = server.client().await?;
    let body = json!({ "image": "host", "memory": "1Gi" });
    let id = id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)?;
    put_program(&mut client, &id, PROGRAM).await?;
    let mut rows = Vec::new();
    for entries in [FEW_ENTRIES, MANY_ENTRIES] {
        let mut samples = Samples::new();
        let begin = policy(0, entries);
        in_force(&mut client, &id, &begin, outside.sink()).await?;
        for round in 1..=settings.repeat {
            let next = policy(round, entries);
            let begun = Instant::now();
            put(&mut client, &id, &next).await?;
            samples.add(begun.elapsed());
        }
        in_force(&mut client, &id, &begin, outside.sink()).await?;
        let row = Row::durations(format!("policy change, {entries} entries"), &samples).note("seen in force from inside");
        rows.push(if entries == FEW_ENTRIES { row.target_p50("p50 <= 5 ms", 5.0) } else { row });
    }
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    Ok(rows)
}

async fn put(client: &mut Client, id: &str, policy: &Value) -> Result<()> {
    client.call(Method::PUT, &format!("/v1/sandboxes/{id}/network"), Some(policy), StatusCode::OK).await.map(drop)
}

/// Puts this policy in force, and the same with the sink as one more target, and this one again: the sink is refused, reached, and
/// refused.
async fn in_force(client: &mut Client, id: &str, closed: &Value, sink: SocketAddr) -> Result<()> {
    let mut open = closed.clone();
    if let Some(allow) = open["allow"].as_array_mut() {
        allow.push(sink.to_string().into());
    }
    for (policy, reached) in [(closed, false), (&open, true), (closed, false)] {
        put(client, id, policy).await?;
        match send_from(client, id, sink, 0).await? {
            Ok(_) if reached => {}
            Err(said) if !reached && said.contains("refused") => {}
            other => return Err(BenchError::new(format!("{sink} should be reached: {reached}; the program inside: {other:?}"))),
        }
    }
    Ok(())
}
