//! What use cases take and give.

mod build;
mod inside;
mod key;
mod network;
mod pool;
mod registry;
mod sandbox;

pub use build::*;
pub use inside::*;
pub use key::*;
pub use network::*;
pub use pool::*;
pub use registry::*;
pub use sandbox::*;

use std::collections::BTreeMap;
use std::time::Duration;

use sandbank_model::{Actor, ImageConfig, ImageName, LeaseChange, Principal, QuotaLimits, Role, SandboxId, Timestamp, Usage};

use crate::pulls::PullSettings;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// Draws random bytes fit for secrets.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// What an installation may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Aliases of image names: key means value. Followed once.
    pub image_aliases: BTreeMap<String, String>,
    /// Driver of pools and sandboxes that name none.
    pub default_driver: String,
    /// Longest wait of a claim that names none (native.md §7: 2 minutes).
    pub startup_timeout: Duration,
    /// Sandboxes that are made at the same time, over all pools.
    pub create_concurrency: usize,
    /// Claims that may wait for a sandbox at the same time, over all pools; one more is refused.
    pub waiting_claims_max: usize,
    /// How long records of ended sandboxes and events are kept.
    pub retention: Duration,
    /// Most bytes of output that a collected exec returns of each stream; the rest is dropped and said.
    pub exec_output_max: usize,
    /// Quota of a tenant that has none of its own.
    pub default_quota: QuotaLimits,
    /// Template defaults: image of a create call that names nothing.
    pub default_image: ImageName,
    /// Where images come from that are not here.
    pub pulls: PullSettings,
    /// A directory on a disk with room, for archives of images on their way in and out.
    pub scratch_dir: std::path::PathBuf,
    /// Builds.
    pub builds: BuildSettings,
    /// What sandboxes may reach.
    pub network: NetworkSettings,
}

/// Who is asking, in which request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// Request id, for events and logs.
    pub request_id: String,
}

impl Caller {
    /// As the actor of events.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let principal = &self.principal;
        let name = match &principal.impersonated_by {
            Some(by) => format!("{by} as {}", principal.tenant_name),
            None => principal.tenant_name.clone(),
        };
        Actor { name, request_id: Some(self.request_id.clone()) }
    }

    /// Whether the caller is an admin.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.principal.role == Role::Admin
    }
}

/// Names of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerView {
    /// Tenant name (namespace).
    pub name: String,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
}

/// A piece of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// Entries.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: u64,
}

/// A tenant's quota and use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaView {
    /// Owner.
    pub owner: OwnerView,
    /// Limits in force.
    pub limits: QuotaLimits,
    /// What is held now.
    pub used: Usage,
}

/// What recovery found after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Sandboxes that live on.
    pub adopted: usize,
    /// Sandboxes that were recorded and are gone.
    pub lost: usize,
    /// Half-made or half-destroyed ones that were cleaned away.
    pub cleaned: usize,
    /// Things on the machine that no record knew.
    pub orphans: usize,
}

/// Re-exported for dialects: a change of a lease's clocks.
pub type Renewal = LeaseChange;

/// Names one sandbox in a use case.
pub type Id = SandboxId;

/// An image's defaults given at import or commit.
pub type NewImageConfig = ImageConfig;
