//! What sandboxes may reach.

use std::fmt;
use std::sync::Arc;

use sandbank_model::{Cidr, Floor, NetworkPlan, NetworkPolicy};
use zeroize::Zeroizing;

/// A policy as a request gives it: the values of injected headers are still readable.
pub type NetworkRequest = NetworkPolicy<HeaderValue>;

/// The value of a header to inject.
#[derive(Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// This one. It shows in no log, and its memory is wiped when it is dropped.
    Set(Zeroizing<String>),
    /// The one that the policy has already for this header and these hosts.
    Kept,
}

impl HeaderValue {
    /// This one.
    #[must_use]
    pub fn set(value: String) -> Self {
        Self::Set(Zeroizing::new(value))
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set(_) => "Set(..)",
            Self::Kept => "Kept",
        })
    }
}

/// What an installation says of its sandboxes' network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSettings {
    /// What sandboxes may reach that say nothing of it, of tenants that have no default of their own.
    pub default_policy: Arc<NetworkPolicy>,
    /// Ranges that are denied to everybody elsewhere (private ones, say) and of which policies decide here.
    pub allow_private: Vec<Cidr>,
    /// Certificate in PEM of the authority that signs for hosts whose requests get headers. Sandboxes whose policy adds headers are
    /// made to trust it; `None`: nobody adds any.
    pub authority_pem: Option<Arc<str>>,
}

impl NetworkSettings {
    /// What the driver enforces where nobody says anything.
    #[must_use]
    pub fn default_plan(&self) -> NetworkPlan {
        self.default_policy.plan(&Floor::new(&self.allow_private))
    }
}

/// Who said what a sandbox may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetworkSource {
    /// Its holder, with the claim, with the create or since.
    Sandbox,
    /// Its template or pool.
    Template,
    /// Its tenant's default.
    Tenant,
    /// The installation's default.
    Server,
    /// Its driver, which gives sandboxes no network.
    Driver,
}

impl NetworkSource {
    /// The word that dialects show.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Template => "template",
            Self::Tenant => "tenant",
            Self::Server => "server",
            Self::Driver => "driver",
        }
    }
}

/// What a sandbox may reach, and who said so. Of headers' values nothing can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkView {
    /// The policy in force.
    pub policy: Arc<NetworkPolicy>,
    /// Where it comes from.
    pub source: NetworkSource,
}

/// Bytes that crossed a sandbox's network interface since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkTraffic {
    /// Into the sandbox.
    pub in_bytes: u64,
    /// Out of it.
    pub out_bytes: u64,
}

/// What a sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxMetrics {
    /// Processor, memory, disk, processes.
    pub inside: sandbank_agent_protocol::Metrics,
    /// Network; `None` where sandboxes have none.
    pub traffic: Option<NetworkTraffic>,
}
