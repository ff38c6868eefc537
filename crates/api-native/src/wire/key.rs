//! API keys on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the caller is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WhoAmI {
    /// `admin` or `tenant`.
    pub role: String,
    /// User.
    pub user: String,
    /// Team.
    pub team: String,
    /// Namespace.
    pub namespace: String,
}

/// A new key for the caller.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateKeyRequest {
    /// For people.
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// When it stops working, RFC 3339.
    #[schema(max_length = 64, example = "2030-01-01T00:00:00Z")]
    pub expires_at: Option<String>,
}

/// What a key's holder may do.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyRole {
    /// Everything.
    Admin,
    /// The same as `owner`.
    Tenant,
    /// Everything in its own namespace.
    Owner,
    /// Sandboxes, pools and templates of its namespace.
    Member,
    /// Claims and uses sandboxes.
    Application,
}

/// A new key made by an admin; with `tokenHash`, one that was made elsewhere.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdminCreateKeyRequest {
    /// Namespace; default `t-{team}-{user}`.
    #[schema(max_length = 200)]
    pub namespace: Option<String>,
    /// User.
    #[schema(max_length = 63)]
    pub user: Option<String>,
    /// Team.
    #[schema(max_length = 63)]
    pub team: Option<String>,
    /// Default `tenant`.
    pub role: Option<KeyRole>,
    /// For people.
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// When it stops working, RFC 3339.
    #[schema(max_length = 64)]
    pub expires_at: Option<String>,
    /// Import: SHA-256 of the key's 64 hexadecimal characters (without its prefix), in hexadecimal.
    #[schema(min_length = 64, max_length = 64, pattern = "^[0-9a-fA-F]{64}$")]
    pub token_hash: Option<String>,
    /// Import: the first 16 characters of `tokenHash`, as a check.
    #[schema(min_length = 16, max_length = 16, pattern = "^[0-9a-fA-F]{16}$")]
    pub hash_prefix: Option<String>,
    /// Import: when it was made, RFC 3339.
    #[schema(max_length = 64)]
    pub issued_at: Option<String>,
    /// Kept with the key.
    #[serde(rename = "quotaURL", alias = "quotaUrl")]
    #[schema(max_length = 1000)]
    pub quota_url: Option<String>,
}

/// A new key: the only time that its secret is shown.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateKeyResult {
    /// The secret; empty for an imported key.
    pub api_key: String,
    /// Id.
    pub key_id: String,
    /// `admin` or `tenant`.
    pub role: String,
    /// When it was made, RFC 3339.
    pub issued_at: String,
    /// User.
    pub user: String,
    /// Team.
    pub team: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it stops working, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyItem {
    /// Id.
    pub key_id: String,
    /// Namespace.
    pub namespace: String,
    /// The first 16 hexadecimal characters of its hash.
    pub hash_prefix: String,
    /// `admin` or `tenant`.
    pub role: String,
    /// When it was made, RFC 3339.
    pub issued_at: String,
    /// User.
    pub user: String,
    /// Team.
    pub team: String,
    /// Kept with the key.
    #[serde(rename = "quotaURL", skip_serializing_if = "Option::is_none")]
    pub quota_url: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it stops working, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When it was revoked, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
}

/// Keys.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyList {
    /// Entries, the oldest first.
    pub items: Vec<KeyItem>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// A key that was revoked.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeletedKey {
    /// Id.
    pub key_id: String,
    /// `Deleted`.
    pub status: String,
}
