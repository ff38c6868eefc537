//! Keys.

use sandbank_model::{KeyHash, Role, StringMap, Timestamp};

/// A fresh API key: the only time that its secret is seen.
#[derive(Clone)]
pub struct NewKey {
    /// `<prefix>_<64 hex>`.
    pub secret: String,
    /// The record.
    pub key: sandbank_model::ApiKey,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A key to make.
#[derive(Debug, Clone, Default)]
pub struct KeyRequest {
    /// For people; at most 1,000 characters.
    pub description: Option<String>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// Attached, not interpreted.
    pub annotations: StringMap,
}

/// A key to make or import by an admin.
#[derive(Debug, Clone)]
pub struct AdminKeyRequest {
    /// Namespace (tenant name); `None`: `t-{team}-{user}`.
    pub namespace: Option<String>,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// Role.
    pub role: Role,
    /// The rest.
    pub key: KeyRequest,
    /// Import: the hash of a secret that somebody else made. Repeating it changes nothing.
    pub import: Option<ImportedKey>,
}

/// The known half of a key made elsewhere.
#[derive(Debug, Clone)]
pub struct ImportedKey {
    /// SHA-256 of the 64 hexadecimal characters.
    pub hash: KeyHash,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
}
