//! Options of the commands that work on sandboxes.

use clap::Args;

use super::{LeaseArgs, NetworkArgs, ProcessArgs, StdioArgs};

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sandbank run base -- python3 -c 'print(42)'\n  sandbank run -it base -- bash\n  \
    sandbank run --image host -- sh -c 'exit 7'; echo $?")]
pub(crate) struct Run {
    /// Pool to claim from
    #[arg(value_name = "POOL", required_unless_present = "image", conflicts_with = "image")]
    pub(crate) pool: Option<String>,
    /// Make a sandbox of this image instead of claiming one from a pool
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) stdio: StdioArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Options of `claim`.
#[derive(Debug, Args)]
pub(crate) struct ClaimArgs {
    /// Pool to claim from
    #[arg(value_name = "POOL")]
    pub(crate) pool: String,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Your own words about it; may be repeated
    #[arg(short = 'm', long = "metadata", value_name = "NAME=VALUE")]
    pub(crate) metadata: Vec<String>,
    /// Environment variable of everything that runs in it; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Do not wait when no sandbox is ready
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sandbank exec $ID -- python3 app.py\n  sandbank exec -it $ID -- bash\n  \
    tar c src | sandbank exec -i $ID -- tar x -C /home/user")]
pub(crate) struct Exec {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) stdio: StdioArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Options of `cp`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sandbank cp app/ $ID:/home/user/        the directory app, into /home/user\n  \
    sandbank cp $ID:/home/user/out.csv .    a file, out of it\n  sandbank cp $ID:/etc/passwd -           a file, to standard output")]
pub(crate) struct Cp {
    /// What to copy: a path, ID:PATH, or - for standard input
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// Where to: a path, ID:PATH, or - for standard output
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    /// Own what is made in the sandbox as this user
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that have ended
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Also those that wait for a claim
    #[arg(long)]
    pub(crate) warm: bool,
    /// Only those of this pool
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// Only ids, one a line
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Go on with what is written from now on
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "follow")]
    pub(crate) lines: Option<u32>,
}

/// Options of `renew`.
#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// Sandbox ids
    #[arg(value_name = "ID", required = true, num_args = 1..)]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Never move the end earlier
    #[arg(long)]
    pub(crate) only_extend: bool,
}

/// Options of `commit`.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Name of the new image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only those of this sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Go on with what happens from now on
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// How many of the newest
    #[arg(short = 'n', long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) last: u32,
}
