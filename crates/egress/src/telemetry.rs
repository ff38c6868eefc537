//! Counters through the `metrics` facade. Labels come from small fixed sets.

use std::time::Duration;

use metrics::{counter, histogram};

/// How a DNS query ended: `answered`, `denied`, `refused`, `failed` or `dropped`.
pub(crate) fn query(outcome: &'static str) {
    counter!("sandbank_egress_queries_total", "outcome" => outcome).increment(1);
}

/// How long an upstream took to answer one question.
pub(crate) fn upstream(took: Duration) {
    histogram!("sandbank_egress_upstream_seconds").record(took.as_secs_f64());
}

/// What became of a connection to the proxy: `passed`, `ended` (its TLS), `served` (HTTP), `denied`, `failed`, `limited`,
/// `unknown` (whose it is), `idle`, `revoked` or `stopped`.
pub(crate) fn connection(kind: &'static str, outcome: &'static str) {
    counter!("sandbank_egress_connections_total", "kind" => kind, "outcome" => outcome).increment(1);
}

/// What became of a request that the proxy read: `forwarded`, `denied`, `refused` or `failed`.
pub(crate) fn request(outcome: &'static str) {
    counter!("sandbank_egress_requests_total", "outcome" => outcome).increment(1);
}

/// Bytes that went through a connection of the proxy, counted when it ends.
pub(crate) fn bytes(out: u64, into: u64) {
    counter!("sandbank_egress_bytes_total", "direction" => "out").increment(out);
    counter!("sandbank_egress_bytes_total", "direction" => "in").increment(into);
}
