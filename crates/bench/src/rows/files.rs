//! File write and read through the API.

use std::time::Instant;

use http::StatusCode;

use super::{Settings, create_one, release, wait_gone};
use crate::report::Row;
use crate::{BenchError, Result};

const MIB: u64 = 1024 * 1024;
const FILE_MIB: u64 = 256;
const ROUNDS: usize = 7;

/// Median throughput of a 256 MiB file, written whole and read whole.
pub(crate) async fn files(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let body = serde_json::json!({ "image": "host", "memory": "1Gi" });
    let answer = client.post("/v1/sandboxes", &body, StatusCode::CREATED).await?;
    let id = super::id_of(&answer)?;
    let path = format!("/v1/sandboxes/{id}/files?path=/home/user/big.bin");
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let (status, text) = client.upload(&path, FILE_MIB * MIB).await?;
        if status != StatusCode::CREATED {
            return Err(BenchError::new(format!("the write was answered {status}: {}", String::from_utf8_lossy(&text))));
        }
        writes.push(FILE_MIB as f64 / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let (status, length) = client.drain(&path).await?;
        if status != StatusCode::OK || length != FILE_MIB * MIB {
            return Err(BenchError::new(format!("the read was answered {status} with {length} bytes")));
        }
        reads.push(FILE_MIB as f64 / begun.elapsed().as_secs_f64());
    }
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    let small = create_one(&mut client).await?;
    release(&mut client, &small).await?;
    wait_gone(&server).await?;
    Ok(vec![row("file write, 256 MiB", writes), row("file read, 256 MiB", reads)])
}

fn row(name: &str, mut rates: Vec<f64>) -> Row {
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let spread = format!("median of {}, {:.0} to {:.0}", rates.len(), rates[0], rates[rates.len() - 1]);
    Row::number(name, median, "MiB/s", rates.len() as u64).note(spread).target(">= 500 MiB/s", median >= 500.0)
}
