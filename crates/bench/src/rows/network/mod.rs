//! The network of sandboxes: what it adds to a create, how soon a policy is in force, how fast bytes leave, and what many policies do
//! to claims and creates.

mod beside;
mod change;
mod many;
mod outbound;
mod outside;

pub(crate) use beside::network_create;
pub(crate) use change::network_policy;
pub(crate) use many::network_many;
pub(crate) use outbound::network_outbound;

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Settings, id_of, put_program, release, rest, wait_gone};
use crate::client::Client;
use crate::{BenchError, Result};

/// Where [`put_program`] puts this program in a sandbox.
const PROGRAM: &str = "/tmp/bench";
/// Longest run of a program in a sandbox: the most that the API takes.
const PROGRAM_SECONDS: u32 = 300;
/// Entries of a small list.
const FEW_ENTRIES: u32 = 10;

/// A policy that allows nothing but `entries` targets, and other ones for each `number`. In ten of them six ranges on port 443, two on
/// a port of their own, and two names.
fn policy(number: u32, entries: u32) -> Value {
    let allow: Vec<String> = (0..entries).map(|at| target(number.wrapping_mul(entries).wrapping_add(at), at)).collect();
    json!({ "internet": false, "allow": allow })
}

/// The target of this number; `at`: its place in the list, which says of what kind it is.
fn target(number: u32, at: u32) -> String {
    // Sixteen addresses each, of a block that is nobody's own: 20.0.0.0/8.
    let [_, a, b, c] = (number << 4).to_be_bytes();
    match at % 5 {
        0 => format!("host{number}.example.com:443"),
        1 => format!("20.{a}.{b}.{c}/28:{}", 1024 + number % 60_000),
        _ => format!("20.{a}.{b}.{c}/28:443"),
    }
}

/// Runs this program in a sandbox, to send so many bytes to a sink: the nanoseconds that it took, or what it said.
async fn send_from(client: &mut Client, id: &str, to: SocketAddr, bytes: u64) -> Result<std::result::Result<u64, String>> {
    let command = [PROGRAM.to_owned(), "send".to_owned(), to.to_string(), bytes.to_string()];
    let body = json!({ "command": command, "timeoutSeconds": PROGRAM_SECONDS });
    let answer = client.post(&format!("/v1/sandboxes/{id}/exec"), &body, StatusCode::OK).await?;
    if answer["exitCode"] != 0 {
        return Ok(Err(answer["stderr"].as_str().unwrap_or_default().trim().to_owned()));
    }
    let printed = answer["stdout"].as_str().unwrap_or_default();
    nanoseconds(printed).map(Ok)
}

/// What a sender printed.
fn nanoseconds(printed: &str) -> Result<u64> {
    printed.trim().parse().map_err(|_| BenchError::new(format!("the sender printed {printed:?}")))
}
