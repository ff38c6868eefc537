//! Logs to standard error, numbers for Prometheus.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};
use crate::failure::{Failure, Result};

/// Upper bounds of the histograms' buckets, seconds: 50 µs to 10 s, about three to a decade where claims are, two beyond.
const BUCKETS: [f64; 17] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Sends log lines to standard error. `quiet` is for `up`, whose person reads other things: warnings only, unless the
/// configuration says otherwise.
pub(crate) fn logging(log: &Log, quiet: bool) -> Result<()> {
    let level = if quiet && *log == Log::default() { "warn" } else { &log.level };
    let filter =
        EnvFilter::try_new(level).map_err(|error| Failure::new(format!("log.level {level:?} is not understood: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let set = match log.format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    set.map_err(|error| Failure::new(format!("cannot log: {error}")))
}

/// Takes the numbers of this process from now on.
pub(crate) fn metrics() -> Result<PrometheusHandle> {
    let failed = |error: metrics_exporter_prometheus::BuildError| Failure::new(format!("cannot keep metrics: {error}"));
    PrometheusBuilder::new().set_buckets(&BUCKETS).map_err(failed)?.install_recorder().map_err(failed)
}
