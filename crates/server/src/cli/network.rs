//! `network`, and what other commands say of it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::One;

/// What a sandbox may reach.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NetworkArgs {
    /// Let it reach this, whatever --deny says: an address, a range, a name, *.name or *, with ports behind a colon; may be
    /// repeated
    #[arg(long, value_name = "TARGET[:PORTS]", help_heading = "Network")]
    pub(crate) allow: Vec<String>,
    /// Do not let it reach this unless it is allowed; may be repeated
    #[arg(long, value_name = "TARGET[:PORTS]", help_heading = "Network")]
    pub(crate) deny: Vec<String>,
    /// Let it reach nothing but what is allowed
    #[arg(long, help_heading = "Network")]
    pub(crate) no_internet: bool,
}

/// `network …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Show what a sandbox may reach
    Show(One),
    /// Replace what a sandbox may reach, at once; without options: all of the internet
    #[command(
        after_help = "Examples:\n  sandbank network set $ID --no-internet --allow example.com:443 --allow '*.example.org'\n  \
        sandbank network set $ID --deny '*:25'\n  sandbank network set $ID --file policy.json"
    )]
    Set(Box<NetworkSet>),
}

/// Options of `network set`.
#[derive(Debug, Args)]
pub(crate) struct NetworkSet {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Whole policy as JSON, in the words of the API; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["allow", "deny", "no_internet"])]
    pub(crate) file: Option<PathBuf>,
}
