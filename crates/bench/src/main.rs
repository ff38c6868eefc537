//! The load generator and the micro-benchmarks.
//!
//! Every row drives a real `sandbank serve` over HTTP on loopback, and prints p50, p95, p99, max and n. The control rows (bare
//! fork + wait, and `runc` and `crun` where installed) run in the same process right beside them, because these machines are
//! noisy and only a comparison within one run says anything.

mod backend;
mod client;
mod control;
mod host;
mod report;
mod rows;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;
use rows::Settings;

/// What can go wrong in a benchmark; the message says in which step.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BenchError(String);

impl BenchError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<std::io::Error> for BenchError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

pub(crate) type Result<T> = std::result::Result<T, BenchError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// Every row below.
    All,
    /// Claims of warm sandboxes, Poisson arrivals, refill on.
    Claim,
    /// Create without a pool, until the agent has answered.
    Create,
    /// Claims one after the other, nothing beside them.
    ClaimAlone,
    /// Claim and a first `true`.
    ClaimExec,
    /// `true` on a held sandbox.
    Exec,
    /// Pause and resume.
    Pause,
    /// Create and destroy, sustained, with a leak check.
    Churn,
    /// Many idle sandboxes: memory of each, and claims among them.
    Idle,
    /// Restart of the server under many sandboxes.
    Restart,
    /// File write and read through the API.
    Files,
    /// Create from an image of several layers, beside `host`.
    Layers,
    /// Pull and unpack from a registry on this machine, beside skopeo and umoci.
    Pull,
    /// Commit of a sandbox with 100 MiB of changes.
    Commit,
    /// A build whose every step is in the cache.
    Build,
    /// Requests to a port inside, beside the same program on the host.
    Ports,
    /// The four rows below.
    Network,
    /// Create with a network, beside one without.
    NetworkCreate,
    /// Replacing what a running sandbox may reach.
    NetworkPolicy,
    /// TCP from a sandbox to a host beyond this one, beside the same without a sandbox.
    NetworkOutbound,
    /// Claims and creates among many sandboxes with a policy of their own each.
    NetworkMany,
}

impl Row {
    /// Whether asking for `asked` asks for this row.
    fn is_of(self, asked: Self) -> bool {
        match asked {
            Self::All => true,
            Self::Network => {
                matches!(self, Self::NetworkCreate | Self::NetworkPolicy | Self::NetworkOutbound | Self::NetworkMany)
            }
            one => one == self,
        }
    }
}

/// Measures Sandbank.
#[derive(Debug, Parser)]
#[command(name = "sandbank-bench")]
struct Options {
    /// Which rows.
    #[arg(value_enum, default_values_t = [Row::All])]
    rows: Vec<Row>,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
    /// The server binary. Default: `sandbank` beside this program, built first when cargo runs us.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Keep the data directory here instead of in a temporary one.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Seconds of the sustained rows.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Claims a second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Warm sandboxes before the claims begin.
    #[arg(long, default_value_t = 2000)]
    warm: u32,
    /// Repetitions of the rows that go one after the other.
    #[arg(long, default_value_t = 500)]
    repeat: u32,
    /// Idle sandboxes.
    #[arg(long, default_value_t = 2000)]
    idle: u32,
    /// Sandboxes under the restart.
    #[arg(long, default_value_t = 1000)]
    restart: u32,
    /// Without the rows of other runtimes.
    #[arg(long)]
    no_others: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(ended) = backend::run(&arguments) {
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("sandbank-bench {}: {error}", arguments[1]);
                ExitCode::FAILURE
            }
        };
    }
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sandbank-bench: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&options)) {
        Ok(report) => {
            report.print(options.json);
            if report.all_done() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("sandbank-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The rows in the order in which they are measured, as they are called where one fails.
const ROWS: [(Row, &str); 19] = [
    (Row::Create, "create without a pool"),
    (Row::ClaimAlone, "claim alone"),
    (Row::ClaimExec, "claim + first true"),
    (Row::Exec, "exec true"),
    (Row::Pause, "pause and resume"),
    (Row::Files, "files"),
    (Row::Layers, "create from layers"),
    (Row::Commit, "commit"),
    (Row::Build, "unchanged build"),
    (Row::Pull, "pull"),
    (Row::Ports, "ports"),
    (Row::NetworkCreate, "create with a network"),
    (Row::NetworkPolicy, "policy change"),
    (Row::NetworkOutbound, "outbound"),
    (Row::Churn, "create + destroy"),
    (Row::Claim, "claim"),
    (Row::Idle, "idle sandboxes"),
    (Row::Restart, "restart"),
    // Last: thousands of sandboxes leave memory behind that the host has found already, and the rows of memory want it fresh.
    (Row::NetworkMany, "sandboxes with a policy each"),
];

async fn measure(row: Row, settings: &Settings) -> Result<Vec<report::Row>> {
    match row {
        // Groups: their rows have lines of their own in `ROWS`.
        Row::All | Row::Network => Ok(Vec::new()),
        Row::Create => rows::create(settings).await,
        Row::ClaimAlone => rows::claim_alone(settings).await,
        Row::ClaimExec => rows::claim_exec(settings).await,
        Row::Exec => rows::exec(settings).await,
        Row::Pause => rows::pause(settings).await,
        Row::Files => rows::files(settings).await,
        Row::Layers => rows::layers(settings).await,
        Row::Commit => rows::commit(settings).await,
        Row::Build => rows::build(settings).await,
        Row::Pull => rows::pull(settings).await,
        Row::Ports => rows::ports(settings).await,
        Row::NetworkCreate => rows::network_create(settings).await,
        Row::NetworkPolicy => rows::network_policy(settings).await,
        Row::NetworkOutbound => rows::network_outbound(settings).await,
        Row::NetworkMany => rows::network_many(settings).await,
        Row::Churn => rows::churn(settings).await,
        Row::Claim => rows::claim(settings).await,
        Row::Idle => rows::idle(settings).await,
        Row::Restart => rows::restart(settings).await,
    }
}

async fn run(options: &Options) -> Result<Report> {
    let wanted = |row: Row| options.rows.iter().any(|asked| row.is_of(*asked));
    let binary = server::find_binary(options.server.as_deref())?;
    let settings = Settings {
        binary,
        data_dir: options.data_dir.clone(),
        seconds: options.seconds,
        rate: options.rate,
        warm: options.warm,
        repeat: options.repeat,
        idle: options.idle,
        restart: options.restart,
    };
    let mut report = Report::new();
    control::fork_wait(&mut report, options.repeat);
    control::spawn_true(&mut report, options.repeat);
    control::first_touch(&mut report);
    if !options.no_others {
        control::other_runtimes(&mut report, &settings);
    }
    for (row, name) in ROWS {
        if wanted(row) {
            report.attempt(name, measure(row, &settings)).await;
        }
    }
    // The control once more: a machine that got slower in between shows here.
    control::fork_wait(&mut report, options.repeat);
    control::first_touch(&mut report);
    Ok(report)
}
