//! Counters and histograms, through the `metrics` facade. Labels come from small fixed sets.

use std::time::Duration;

use metrics::{counter, histogram};

/// How a claim ended: `warm`, `waited`, `created` or `refused`.
pub(crate) fn claim(outcome: &'static str, took: Duration) {
    counter!("sandbank_claims_total", "outcome" => outcome).increment(1);
    stage("claim", took);
}

/// How long a stage took: `claim`, `create`, `exec`, `pause`, `resume`.
pub(crate) fn stage(stage: &'static str, took: Duration) {
    histogram!("sandbank_stage_seconds", "stage" => stage).record(took.as_secs_f64());
}
