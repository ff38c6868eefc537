//! Tenants, their API keys, and who is asking.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ApiKeyId, NetworkPolicy, QuotaLimits, TenantId, Timestamp};

/// Whose objects. Native clients know it as a namespace made of a team and a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Id.
    pub id: TenantId,
    /// Unique name, such as `t-team-user`.
    pub name: String,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// What it may hold.
    pub quota: QuotaLimits,
    /// What its sandboxes may reach that say nothing of it. `None`: the installation's default.
    #[serde(default, with = "crate::shared")]
    pub network: Option<Arc<NetworkPolicy>>,
    /// When it was first seen.
    pub created_at: Timestamp,
}

/// What a key's holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Everything in every tenant, and the installation itself.
    Admin,
    /// Everything in its own tenant, keys and quotas included.
    Owner,
    /// Sandboxes, pools and templates of its tenant, and its own keys.
    Member,
    /// Claims and uses sandboxes; makes and changes no pools, templates or keys.
    Application,
}

/// SHA-256 of a key's 64 hexadecimal characters, without the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// 64 lower-case hexadecimal characters.
    #[must_use]
    pub fn to_hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// From 64 hexadecimal characters.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Sixteen characters name a key (native.md §3); the whole hash belongs in no log.
        write!(f, "KeyHash({}…)", &self.to_hex()[..16])
    }
}

impl TryFrom<String> for KeyHash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("a key hash has 64 hexadecimal characters")
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.to_hex()
    }
}

/// One API key, as remembered: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Id.
    pub id: ApiKeyId,
    /// Hash that finds it.
    pub hash: KeyHash,
    /// Whose.
    pub tenant: TenantId,
    /// What it may do.
    pub role: Role,
    /// For people.
    pub description: Option<String>,
    /// Attached by dialects, not interpreted.
    pub annotations: crate::StringMap,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it stops working; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked. Revoked keys stay in the records.
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it opens anything at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// Who is asking: the result of authentication, the input of authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Role.
    pub role: Role,
    /// The tenant acted for (after impersonation, the impersonated one).
    pub tenant: TenantId,
    /// That tenant's name.
    pub tenant_name: String,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// The key used; `None` for the static admin key.
    pub key: Option<ApiKeyId>,
    /// The tenant really asking, when an admin impersonates another.
    pub impersonated_by: Option<String>,
}
