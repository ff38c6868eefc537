//! How fast bytes leave a sandbox.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::outside::{Direct, Outside};
use super::{PROGRAM, Settings, id_of, put_program, release, send_from, wait_gone};
use crate::report::Row;
use crate::{BenchError, Result};

/// Bytes of one round: 2 GiB.
const BYTES: u64 = 2 << 30;
const ROUNDS: usize = 7;
const MIB: f64 = 1024.0 * 1024.0;

/// One TCP connection to a host beyond this one: from a sandbox, which goes through its policy, the host's forwarding and translation
/// of addresses; and turn by turn with it from a neighbour of that host, over a pair of interfaces and nothing else.
pub(crate) async fn network_outbound(settings: &Settings) -> Result<Vec<Row>> {
    let outside = Outside::start()?;
    let direct = Direct::start(&outside)?;
    let server = settings.server_with(&outside.config()).await?;
    let mut client = server.client().await?;
    // Processors enough: its quota of them is not what this is about.
    let network = json!({ "internet": false, "allow": [outside.sink().to_string()] });
    let body = json!({ "image": "host", "memory": "1Gi", "cpu": "4", "network": network });
    let id = id_of(&client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?)?;
    put_program(&mut client, &id, PROGRAM).await?;
    let (mut control, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        control.push(rate(direct.send(BYTES)?));
        let sent = send_from(&mut client, &id, outside.sink(), BYTES).await?;
        through.push(rate(sent.map_err(|said| BenchError::new(format!("the sender in the sandbox: {said}")))?));
    }
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    let (control, through) =
        (row("control: 2 GiB over a pair of interfaces", control), row("2 GiB from a sandbox to outside", through));
    let share = through.value.unwrap_or(0.0) / control.value.unwrap_or(f64::INFINITY) * 100.0;
    let share = Row::number("2 GiB from a sandbox, of the control", share, "%", ROUNDS as u64).target(">= 70 %", share >= 70.0);
    Ok(vec![control, through, share])
}

/// MiB/s.
fn rate(nanoseconds: u64) -> f64 {
    BYTES as f64 / MIB / Duration::from_nanos(nanoseconds.max(1)).as_secs_f64()
}

fn row(name: &str, mut rates: Vec<f64>) -> Row {
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    let note = format!("median of {}, {least:.0} to {most:.0}", rates.len());
    Row::number(name, rates[rates.len() / 2], "MiB/s", rates.len() as u64).note(note)
}
