//! Registries' credentials on the wire. Secrets come in and never go out.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Credentials for a registry: `username` and `password`, or a `token`.
// No Debug: it holds secrets.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct RegistryLoginRequest {
    /// The registry's host, with a port if it has one.
    #[schema(max_length = 255, example = "ghcr.io")]
    pub host: Option<String>,
    /// User.
    #[schema(max_length = 255)]
    pub username: Option<String>,
    /// The user's password, or an access token in its place.
    #[schema(write_only, max_length = 16384)]
    pub password: Option<String>,
    /// A bearer token for the registry itself, without a user.
    #[schema(write_only, max_length = 16384)]
    pub token: Option<String>,
    /// For the whole installation: tenants without credentials of their own use them (admins).
    pub global: Option<bool>,
}

/// What a registry takes the secret for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RegistrySecret {
    /// The user's password.
    Password,
    /// A bearer token.
    Token,
}

/// A registry that there are credentials for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegistryItem {
    /// Host in lower case, with its port if it has one. Docker's is `docker.io`.
    pub host: String,
    /// User. Absent for a token, and of the installation's credentials for all but admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// What the secret is.
    pub kind: RegistrySecret,
    /// Whether the installation owns them (not the caller's namespace).
    pub global: bool,
    /// When they were given, RFC 3339.
    pub created_at: String,
}

/// One registry.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RegistryEnvelope {
    /// It.
    pub registry: RegistryItem,
}

/// Registries.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RegistryList {
    /// Entries, by host.
    pub items: Vec<RegistryItem>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// Whose credentials.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct RegistryScope {
    /// The installation's (admins), not the caller's own.
    #[param(default = false)]
    pub global: Option<bool>,
}
