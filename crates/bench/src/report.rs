//! Rows and how they are printed.

use std::future::Future;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Result;

/// Longer durations count as this one: ten minutes.
const LONGEST_NANOS: u64 = 600_000_000_000;

/// Durations of one operation, in nanoseconds.
pub(crate) struct Samples(Histogram<u64>);

impl Default for Samples {
    fn default() -> Self {
        Self::new()
    }
}

impl Samples {
    pub(crate) fn new() -> Self {
        // The constructor refuses only bounds out of order and digits other than 0 to 5.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NANOS, 3);
        Self(histogram.unwrap_or_else(|_| unreachable!("constant bounds and three digits are valid")))
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same precision and grow by themselves.
        let _ = self.0.add(&other.0);
    }

    fn ms(&self, quantile: f64) -> f64 {
        to_ms(self.0.value_at_quantile(quantile))
    }
}

fn to_ms(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() * 1e3
}

/// One printed row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// "ms" for durations; otherwise the unit of `value`.
    pub(crate) unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<f64>,
    pub(crate) n: u64,
    /// What the issue asks for, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) met: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Row {
    /// A row of durations.
    pub(crate) fn durations(name: impl Into<String>, samples: &Samples) -> Self {
        Self {
            name: name.into(),
            unit: "ms",
            p50: Some(samples.ms(0.5)),
            p95: Some(samples.ms(0.95)),
            p99: Some(samples.ms(0.99)),
            max: Some(to_ms(samples.0.max())),
            value: None,
            n: samples.0.len(),
            target: None,
            met: None,
            note: None,
        }
    }

    /// A row of one number.
    pub(crate) fn number(name: impl Into<String>, value: f64, unit: &'static str, n: u64) -> Self {
        Self {
            name: name.into(),
            unit,
            p50: None,
            p95: None,
            p99: None,
            max: None,
            value: Some(value),
            n,
            target: None,
            met: None,
            note: None,
        }
    }

    pub(crate) fn target(mut self, words: &'static str, met: bool) -> Self {
        self.target = Some(words);
        self.met = Some(met);
        self
    }

    pub(crate) fn target_p50(self, words: &'static str, most_ms: f64) -> Self {
        let met = self.p50.is_some_and(|p50| p50 <= most_ms);
        self.target(words, met)
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// All rows of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: crate::host::Machine,
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { machine: crate::host::Machine::read(), rows: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Notes why a row that was wanted is not there.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        eprintln!("{name}: not measured: {why}");
        self.rows.push(Row::number(name, 0.0, "", 0).note(format!("not measured: {why}")));
    }

    /// Runs one group of rows; a failure is noted and the other groups still run.
    pub(crate) async fn attempt(&mut self, name: &str, rows: impl Future<Output = Result<Vec<Row>>>) {
        eprintln!("-- {name}");
        match rows.await {
            Ok(rows) => rows.into_iter().for_each(|row| self.push(row)),
            Err(error) => {
                eprintln!("{name} failed: {error}");
                self.failures.push(format!("{name}: {error}"));
            }
        }
    }

    pub(crate) fn all_done(&self) -> bool {
        self.failures.is_empty()
    }

    pub(crate) fn print(&self, json: bool) {
        if json {
            match serde_json::to_string_pretty(self) {
                Ok(text) => println!("{text}"),
                Err(error) => eprintln!("sandbank-bench: cannot print the report: {error}"),
            }
            return;
        }
        println!("{}", self.machine.line());
        self.rows.iter().for_each(|row| println!("{}", line(row)));
        self.failures.iter().for_each(|failure| println!("FAILED {failure}"));
    }
}

fn line(row: &Row) -> String {
    let figures = match (row.p50, row.p95, row.p99, row.max, row.value) {
        (Some(p50), Some(p95), Some(p99), Some(max), _) => {
            format!("p50 {p50:8.3}  p95 {p95:8.3}  p99 {p99:8.3}  max {max:9.3} ms")
        }
        (.., Some(value)) => format!("{value:12.2} {}", row.unit),
        _ => String::new(),
    };
    let verdict = match (row.target, row.met) {
        (Some(target), Some(true)) => format!("  [{target}: met]"),
        (Some(target), _) => format!("  [{target}: MISSED]"),
        _ => String::new(),
    };
    let note = row.note.as_deref().map(|note| format!("  ({note})")).unwrap_or_default();
    format!("{:<44} {figures}  n {}{verdict}{note}", row.name, row.n)
}
