//! Registries.

use sandbank_model::{CredentialKind, Timestamp};

/// What is shown of a registry's credentials: never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryView {
    /// The registry's host, with its port if it has one.
    pub host: String,
    /// User; `None` for a token, and where the caller may not see it.
    pub username: Option<String>,
    /// What the secret is.
    pub kind: CredentialKind,
    /// Whether the installation owns them (not the caller's tenant).
    pub global: bool,
    /// When they were given.
    pub created_at: Timestamp,
}
