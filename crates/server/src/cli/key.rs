//! `key`: API keys.

use clap::{Args, Subcommand};

use super::Named;

/// `key …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key and print it, once
    Create(KeyCreate),
    /// List keys
    List(KeyList),
    /// Revoke a key, by its key id
    Revoke(Named),
}

/// Options of `key create`.
#[derive(Debug, Args)]
pub(crate) struct KeyCreate {
    /// Team that the key is for (admins; without it the key is your own)
    #[arg(long, value_name = "TEAM", requires = "user")]
    pub(crate) team: Option<String>,
    /// User that the key is for (admins)
    #[arg(long, value_name = "USER", requires = "team")]
    pub(crate) user: Option<String>,
    /// What the key may do (admins)
    #[arg(long, value_name = "ROLE", requires = "team", value_parser = ["tenant", "admin", "owner", "member", "application"])]
    pub(crate) role: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Stop working after this long, such as 720h
    #[arg(long, value_name = "DURATION")]
    pub(crate) expires_in: Option<String>,
}

/// Options of `key list`.
#[derive(Debug, Args)]
pub(crate) struct KeyList {
    /// Keys of all tenants (admins)
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
}
