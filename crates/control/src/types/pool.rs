//! Templates and pools.

use std::collections::BTreeMap;

use sandbank_model::{
    Autoscaling, ImageName, Overrides, Pool, PoolCounts, PoolName, PoolPhase, PoolPolicies, SemVer, Sizing, StringMap, Template,
    TemplateSpec,
};

use super::{NetworkRequest, OwnerView};

/// A template to write.
#[derive(Debug, Clone)]
pub struct TemplateRequest {
    /// Name.
    pub name: PoolName,
    /// Version. Of a new template, `None` is 0.0.1; of an update, `None` is the next patch version, and a given one must be
    /// greater than the present one.
    pub version: Option<SemVer>,
    /// Content.
    pub spec: TemplateSpec,
    /// What its sandboxes may reach, in place of what `spec` says. `None`: the default.
    pub network: Option<NetworkRequest>,
    /// Owned by the installation (admins only) or by the caller's tenant.
    pub global: bool,
    /// Optimistic locking: refuse unless this is the present generation.
    pub expected_generation: Option<u64>,
}

/// Where a pool's template comes from.
#[derive(Debug, Clone)]
pub enum TemplateSource {
    /// A template by name, as the caller sees it; the tenant's own before the installation's.
    Named(PoolName),
    /// The request's own.
    Inline(Box<TemplateSpec>),
}

/// A pool to make.
#[derive(Debug, Clone)]
pub struct PoolRequest {
    /// Name.
    pub name: PoolName,
    /// What its sandboxes are made of.
    pub template: TemplateSource,
    /// What it changes in it.
    pub overrides: Overrides,
    /// What its sandboxes may reach, in place of what the template says.
    pub network: Option<NetworkRequest>,
    /// Size.
    pub sizing: Sizing,
    /// Growth.
    pub autoscaling: Autoscaling,
    /// Lease defaults; what is `None` comes from the template.
    pub policies: PoolPolicies,
    /// Driver; `None`: the default.
    pub driver: Option<String>,
    /// Labels.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Refuse a caller whose tenant has no valid API key (native.md §8, `API_KEY_REQUIRED`).
    pub require_api_key: bool,
}

/// A change of a pool. `None` leaves as it is; a change of nothing is refused.
#[derive(Debug, Clone, Default)]
pub struct PoolChange {
    /// Replicas.
    pub replicas: Option<u32>,
    /// Least: `Some(None)` removes the bound.
    pub min: Option<Option<u32>>,
    /// Most: `Some(None)` removes the bound.
    pub max: Option<Option<u32>>,
    /// Image override: `Some(None)` removes it.
    pub image: Option<Option<ImageName>>,
    /// Growth. Turning it off clears `min` and `max` (native.md §8).
    pub autoscaling: Option<Autoscaling>,
    /// Annotations to set.
    pub annotations: StringMap,
    /// Replace the lease defaults.
    pub policies: Option<PoolPolicies>,
    /// What its sandboxes may reach: `Some(None)` as the template says. Warm sandboxes are replaced; claimed ones keep what they have.
    pub network: Option<Option<NetworkRequest>>,
}

/// A pool with what is counted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// The record.
    pub pool: Pool,
    /// Its tenant's name, team and user.
    pub owner: OwnerView,
    /// What is there now.
    pub counts: PoolCounts,
    /// The phase that follows.
    pub phase: PoolPhase,
    /// Why the pool does not grow, as its reconciler last saw it; `None` while nothing is wrong.
    pub last_error: Option<String>,
}

/// Counts over all pools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolStatistics {
    /// Pools.
    pub total: u64,
    /// Sum of `replicas`.
    pub replicas: u64,
    /// Warm.
    pub idle: u64,
    /// Claimed.
    pub running: u64,
    /// Failed.
    pub failed: u64,
    /// Pools by tenant name.
    pub by_tenant: BTreeMap<String, u64>,
}

/// A template as a pool would get it: for previews.
#[derive(Debug, Clone)]
pub struct SyncPreview {
    /// The pool as it would be.
    pub pool: Pool,
    /// The template version it would take.
    pub version: SemVer,
}

/// A template with its owner's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateView {
    /// The record.
    pub template: Template,
    /// Owned by the installation.
    pub global: bool,
}
