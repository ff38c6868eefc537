//! Who may reach a sandbox's ports from outside.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Most ports that are public one by one.
pub const PUBLIC_PORTS_MAX: usize = 100;

/// Ports that anybody may reach who knows the sandbox's id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PublicPorts {
    /// None: each request needs a key or a port token.
    #[default]
    None,
    /// These; from 1 to [`PUBLIC_PORTS_MAX`] of them.
    Only(BTreeSet<u16>),
    /// All.
    All,
}

impl PublicPorts {
    /// Whether `port` is among them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::None => false,
            Self::Only(ports) => ports.contains(&port),
            Self::All => true,
        }
    }
}

/// Who may reach the ports of a claimed sandbox besides those who may use it anyway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortAccess {
    /// What is open to anybody.
    #[serde(default)]
    pub public: PublicPorts,
    /// Generation of the port tokens that count. Raising it ends all that were given out before.
    #[serde(default)]
    pub token_generation: u32,
}

impl PortAccess {
    /// Nothing is public and no token was ever revoked.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A change of [`PortAccess`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortAccessChange {
    /// Exactly these are public from now on.
    Public(PublicPorts),
    /// All port tokens given out so far stop working.
    RevokeTokens,
}
