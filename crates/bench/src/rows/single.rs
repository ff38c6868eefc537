//! Rows that go one after the other on one connection.

use std::time::Instant;

use http::StatusCode;
use serde_json::json;

use super::{Settings, claim_one, create_one, drain, exec_true, make_pool, release, rest, wait_gone};
use crate::Result;
use crate::report::{Row, Samples};

/// Create without a pool, until the agent has answered.
pub(crate) async fn create(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let mut samples = Samples::new();
    for _ in 0..settings.repeat {
        let begun = Instant::now();
        let id = create_one(&mut client).await?;
        samples.add(begun.elapsed());
        release(&mut client, &id).await?;
        // Destroying the last one belongs to the row of create + destroy.
        rest(&server, 0).await?;
    }
    Ok(vec![Row::durations("create without a pool", &samples).target_p50("p50 <= 4 ms", 4.0)])
}

/// Claim and a first `true`.
pub(crate) async fn claim_exec(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    make_pool(&mut client, 32).await?;
    let mut samples = Samples::new();
    for _ in 0..settings.repeat {
        // One at a time, the pool full again before the next: this row is about one user's first program.
        rest(&server, 32).await?;
        let begun = Instant::now();
        let id = claim_one(&mut client).await?;
        exec_true(&mut client, &id).await?;
        samples.add(begun.elapsed());
        release(&mut client, &id).await?;
    }
    drain(&server, &mut client).await?;
    Ok(vec![Row::durations("claim + first true", &samples).target_p50("p50 <= 2.5 ms", 2.5)])
}

/// `true` on a held sandbox.
pub(crate) async fn exec(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let id = create_one(&mut client).await?;
    let mut samples = Samples::new();
    for _ in 0..settings.repeat {
        let begun = Instant::now();
        exec_true(&mut client, &id).await?;
        samples.add(begun.elapsed());
    }
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    Ok(vec![Row::durations("exec true, held sandbox", &samples).target_p50("p50 <= 1.2 ms", 1.2)])
}

/// Pause and resume.
pub(crate) async fn pause(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let id = create_one(&mut client).await?;
    let (mut pauses, mut resumes) = (Samples::new(), Samples::new());
    for _ in 0..settings.repeat {
        let begun = Instant::now();
        client.post(&format!("/v1/sandboxes/{id}/pause"), &json!({}), StatusCode::OK).await?;
        pauses.add(begun.elapsed());
        let begun = Instant::now();
        client.post(&format!("/v1/sandboxes/{id}/resume"), &json!({}), StatusCode::OK).await?;
        resumes.add(begun.elapsed());
    }
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    Ok(vec![
        Row::durations("pause", &pauses).target_p50("p50 <= 0.5 ms", 0.5),
        Row::durations("resume", &resumes).target_p50("p50 <= 0.5 ms", 0.5),
    ])
}
