//! Pools: how many sandboxes of which template are kept, and by which policies.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ExpiryAction, ImageName, NetworkPolicy, PoolCounts, PoolId, PoolName, StringMap, TemplateRef, TemplateSpec, TenantId,
    Timestamp,
};

/// What `replicas` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Counting {
    /// All sandboxes of the pool, claimed ones included: a pool of 2 with one claimed keeps one warm (native.md §8).
    #[default]
    Total,
    /// Warm ones only: a claim is replaced at once. `max`, where given, bounds all sandboxes together.
    Warm,
}

/// How many sandboxes a pool keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// Wanted now; the autoscaler moves it between `min` and `max`.
    pub replicas: u32,
    /// Least. `None`: no bound.
    pub min: Option<u32>,
    /// Most. `None`: no bound.
    pub max: Option<u32>,
    /// What `replicas` counts.
    pub counting: Counting,
}

/// Why a sizing was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSizing {
    /// `min` above `max`.
    #[error("minReplicas ({min}) must not be greater than maxReplicas ({max})")]
    MinAboveMax {
        /// Least asked.
        min: u32,
        /// Most asked.
        max: u32,
    },
    /// `replicas` out of `min..=max`.
    #[error("replicas ({replicas}) must lie between minReplicas ({min}) and maxReplicas ({max})")]
    OutOfBounds {
        /// Replicas asked.
        replicas: u32,
        /// Lower bound.
        min: u32,
        /// Upper bound.
        max: u32,
    },
    /// More than any pool may have.
    #[error("{what} is {value}; a pool has at most {max} sandboxes", max = Sizing::REPLICAS_MAX)]
    TooMany {
        /// Field.
        what: &'static str,
        /// Value asked.
        value: u32,
    },
    /// Autoscaling without bounds.
    #[error("autoscaling needs minReplicas and maxReplicas")]
    AutoscalingUnbounded,
}

impl Sizing {
    /// Most sandboxes that one pool may ask for.
    pub const REPLICAS_MAX: u32 = 100_000;

    /// Checks the numbers against each other.
    pub fn validate(&self, autoscaling: &Autoscaling) -> Result<(), InvalidSizing> {
        let given = [("replicas", Some(self.replicas)), ("minReplicas", self.min), ("maxReplicas", self.max)];
        for (what, value) in given {
            if let Some(value) = value.filter(|value| *value > Self::REPLICAS_MAX) {
                return Err(InvalidSizing::TooMany { what, value });
            }
        }
        if autoscaling.enabled && (self.min.is_none() || self.max.is_none()) {
            return Err(InvalidSizing::AutoscalingUnbounded);
        }
        let (min, max) = (self.min.unwrap_or(0), self.max.unwrap_or(Self::REPLICAS_MAX));
        if min > max {
            return Err(InvalidSizing::MinAboveMax { min, max });
        }
        if self.replicas < min || self.replicas > max {
            return Err(InvalidSizing::OutOfBounds { replicas: self.replicas, min, max });
        }
        Ok(())
    }
}

/// How fast a pool grows (native.md §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ScaleUpMode {
    /// One more.
    Conservative,
    /// Half as many more, at least one.
    #[default]
    Default,
    /// Twice as many.
    Aggressive,
}

/// When and how a pool grows: when a claim found no warm sandbox, or none has been warm for `idle_threshold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleUpPolicy {
    /// Step.
    pub mode: ScaleUpMode,
    /// Least time between two steps; 30 s.
    pub cooldown: Duration,
    /// How long the pool must have had no warm sandbox; 30 s.
    pub idle_threshold: Duration,
}

impl Default for ScaleUpPolicy {
    fn default() -> Self {
        Self { mode: ScaleUpMode::Default, cooldown: Duration::from_secs(30), idle_threshold: Duration::from_secs(30) }
    }
}

/// When a pool shrinks (native.md §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleDownPolicy {
    /// A warm sandbox that nobody claimed for so long may go; 300 s.
    pub idle_timeout: Duration,
    /// Least time between two steps down; 60 s.
    pub stabilization: Duration,
    /// No step down for so long after a claim; 10 s.
    pub protection_window: Duration,
}

impl Default for ScaleDownPolicy {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
            stabilization: Duration::from_secs(60),
            protection_window: Duration::from_secs(10),
        }
    }
}

/// Whether and how `replicas` moves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Autoscaling {
    /// Off unless asked for.
    pub enabled: bool,
    /// Growing.
    pub scale_up: ScaleUpPolicy,
    /// Shrinking.
    pub scale_down: ScaleDownPolicy,
}

/// What becomes of a sandbox that its holder gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReleaseAction {
    /// It is destroyed. Nothing of one holder ever reaches the next.
    #[default]
    Destroy,
}

/// A pool's defaults for the leases on its sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolPolicies {
    /// Longest wait for a warm sandbox; `None`: 2 minutes (native.md §7).
    pub startup_timeout: Option<Duration>,
    /// Idle life of a lease; `None`: unlimited.
    pub idle_timeout: Option<Duration>,
    /// Whole life of a lease; `None`: unlimited.
    pub lease_life: Option<Duration>,
    /// What happens when a lease ends by itself.
    pub on_expiry: ExpiryAction,
    /// What happens at release.
    pub on_release: ReleaseAction,
}

/// What a pool changes in its template.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overrides {
    /// Another image.
    pub image: Option<ImageName>,
    /// CPU and memory times this, at least 1.
    pub resource_multiplier: Option<u32>,
    /// What its sandboxes may reach.
    #[serde(default, with = "crate::shared")]
    pub network: Option<Arc<NetworkPolicy>>,
}

/// Whether a pool is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolState {
    /// Kept at its size.
    Active,
    /// Going away: warm sandboxes are destroyed, claimed ones live until released.
    Deleting,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Id.
    pub id: PoolId,
    /// Owner.
    pub tenant: TenantId,
    /// Name, unique within the tenant.
    pub name: PoolName,
    /// Template version that `template_spec` was copied from; `None` when the pool brought its own.
    pub template: Option<TemplateRef>,
    /// The copy, before overrides.
    pub template_spec: TemplateSpec,
    /// What this pool changes in it.
    pub overrides: Overrides,
    /// Size.
    pub sizing: Sizing,
    /// Growth.
    pub autoscaling: Autoscaling,
    /// Lease defaults.
    pub policies: PoolPolicies,
    /// Driver that makes its sandboxes.
    pub driver: String,
    /// Labels.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Whether it is wanted.
    pub state: PoolState,
    /// Counts the changes of what sandboxes are made of. Warm sandboxes of an older revision are replaced.
    pub revision: u64,
    /// Counts the writes, from 1.
    pub generation: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When the autoscaler last moved `replicas`.
    pub scaled_at: Option<Timestamp>,
}

impl Pool {
    /// What its next sandbox is made of: the template's copy with the overrides applied.
    #[must_use]
    pub fn sandbox_spec(&self) -> crate::SandboxSpec {
        let mut spec = self.template_spec.sandbox.clone();
        if let Some(image) = &self.overrides.image {
            spec.image = image.clone();
        }
        if let Some(factor) = self.overrides.resource_multiplier {
            spec.resources = spec.resources.multiplied(factor);
        }
        if let Some(network) = &self.overrides.network {
            spec.network = Some(Arc::clone(network));
        }
        spec
    }
}

/// A pool's condition in one word (native.md §8). Derived from counts, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolPhase {
    /// Nothing is there yet.
    Pending,
    /// At its size.
    Ready,
    /// Growing.
    ScalingUp,
    /// Shrinking.
    ScalingDown,
    /// Some warm sandboxes cannot be used.
    Degraded,
    /// Going away.
    Terminating,
}

/// The phase of a pool with these counts.
#[must_use]
pub fn phase_of(state: PoolState, sizing: &Sizing, counts: &PoolCounts) -> PoolPhase {
    if state == PoolState::Deleting {
        return PoolPhase::Terminating;
    }
    let have = match sizing.counting {
        Counting::Total => counts.all(),
        Counting::Warm => counts.ready.saturating_add(counts.provisioning),
    };
    if counts.ready == 0 && counts.claimed == 0 && sizing.replicas > 0 {
        if counts.failed > 0 { PoolPhase::Degraded } else { PoolPhase::Pending }
    } else if have < sizing.replicas || counts.provisioning > 0 {
        PoolPhase::ScalingUp
    } else if have > sizing.replicas && counts.ready > 0 {
        PoolPhase::ScalingDown
    } else {
        PoolPhase::Ready
    }
}
