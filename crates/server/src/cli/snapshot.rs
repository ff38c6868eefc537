//! `snapshot` and `fork`: what a sandbox's file system was, to make others of.

use clap::{Args, Subcommand};

use super::{LeaseArgs, Named};

/// `snapshot …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Keep what a sandbox's file system is now; the sandbox goes on
    #[command(after_help = "Examples:\n  sandbank snapshot create $ID work:before\n  \
        sandbank run --image work:before -- ls          a sandbox of it\n  \
        sandbank pool create warm --image work:before --replicas 4   ready ones of it")]
    Create(SnapshotCreate),
    /// List snapshots
    List(SnapshotList),
    /// Show a snapshot
    Show(Named),
    /// Delete a snapshot that nothing uses
    #[command(visible_alias = "remove")]
    Delete(Named),
}

/// Options of `snapshot create`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotCreate {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Name of the snapshot, NAME[:TAG]; taken from the one that had it before
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// Options of `snapshot list`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotList {
    /// Only those of this sandbox
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
}

/// Options of `fork`.
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
}
