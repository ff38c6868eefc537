//! `registry`: the credentials that image registries are shown.

use clap::{Args, Subcommand};

/// `registry …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Keep credentials for a registry; they are stored encrypted and never shown again
    #[command(
        after_help = "The password is read from standard input with --password-stdin, else from SANDBANK_REGISTRY_PASSWORD.\n\n\
        Examples:\n  gh auth token | sandbank registry login ghcr.io -u me --password-stdin\n  \
        SANDBANK_REGISTRY_PASSWORD=... sandbank registry login reg.example:5000 -u me"
    )]
    Login(RegistryLogin),
    /// List the registries that there are credentials for
    List,
    /// Forget the credentials for a registry
    Logout(RegistryLogout),
}

/// Options of `registry login`.
#[derive(Debug, Args)]
pub(crate) struct RegistryLogin {
    /// The registry's host, with a port if it has one, such as ghcr.io or docker.io
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
    /// User
    #[arg(short = 'u', long, value_name = "USER", required_unless_present = "token")]
    pub(crate) username: Option<String>,
    /// The secret is a bearer token for the registry itself, without a user
    #[arg(long, conflicts_with = "username")]
    pub(crate) token: bool,
    /// Read the password, or the token, from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// For every tenant that has none of its own (admins)
    #[arg(long)]
    pub(crate) global: bool,
}

/// Options of `registry logout`.
#[derive(Debug, Args)]
pub(crate) struct RegistryLogout {
    /// The registry's host
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
    /// The installation's credentials (admins)
    #[arg(long)]
    pub(crate) global: bool,
}
