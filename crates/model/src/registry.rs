//! What is kept of a registry's credentials: who they belong to, and the secret only as it was sealed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{RegistryCredentialId, TenantId, Timestamp};

/// A secret as it is stored: encrypted, and opened only by whoever has the key that sealed it.
///
/// In records it is hexadecimal; in logs and errors it does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed(pub Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Sealed {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        text.as_bytes()
            .chunks(2)
            .map(pair)
            .collect::<Option<_>>()
            .map(Self)
            .ok_or("a sealed secret is written in pairs of hexadecimal digits")
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        use fmt::Write as _;
        sealed.0.iter().fold(Self::with_capacity(sealed.0.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What a registry takes the secret for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CredentialKind {
    /// The user's password, or what the registry accepts in its place (an access token).
    Password,
    /// A bearer token for the registry itself; it needs no user.
    Token,
}

/// How an owner proves to a registry who asks. An owner has at most one for each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredential {
    /// Id. Another one when the credentials are replaced.
    pub id: RegistryCredentialId,
    /// Owner; `None`: the installation, for every tenant that has none of its own.
    pub tenant: Option<TenantId>,
    /// The registry's host in lower case, with its port if it has one: `ghcr.io`, `localhost:5000`; Docker's is `docker.io`.
    pub host: String,
    /// User; `None` for a token.
    pub username: Option<String>,
    /// What the secret is.
    pub kind: CredentialKind,
    /// The secret.
    pub sealed: Sealed,
    /// When it was given.
    pub created_at: Timestamp,
}
