//! Pools on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DocumentText, NetworkPolicy, OnExpiry, RuntimeWire, TextMap};

/// How a pool grows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub(crate) enum ScaleUpModeWire {
    /// One more.
    Conservative,
    /// Half as many more.
    Default,
    /// Twice as many.
    Aggressive,
}

/// When and how a pool grows.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScaleUpWire {
    /// Step. Default: `Default`.
    pub mode: Option<ScaleUpModeWire>,
    /// Least time between two steps. Default 30.
    #[schema(maximum = 31536000)]
    pub cooldown_seconds: Option<u32>,
    /// How long nothing was warm. Default 30.
    #[schema(maximum = 31536000)]
    pub idle_threshold_seconds: Option<u32>,
}

/// When a pool shrinks.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScaleDownWire {
    /// A warm sandbox that nobody claimed for so long may go. Default 300.
    #[schema(maximum = 31536000)]
    pub idle_timeout_seconds: Option<u32>,
    /// Least time between two steps. Default 60.
    #[schema(maximum = 31536000)]
    pub stabilization_seconds: Option<u32>,
    /// No step for so long after a claim. Default 10.
    #[schema(maximum = 31536000)]
    pub protection_window_seconds: Option<u32>,
}

/// Whether and how `replicas` moves by itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutoscalingWire {
    /// Default false. True needs `minReplicas` and `maxReplicas`.
    pub enabled: Option<bool>,
    /// Growing.
    pub scale_up_policy: Option<ScaleUpWire>,
    /// Shrinking.
    pub scale_down_policy: Option<ScaleDownWire>,
}

/// Which image an unclaimed sandbox runs. Sandbank warms the real image in any case, so that a claim swaps nothing.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub(crate) enum ImagePolicy {
    /// The idle image.
    #[default]
    IdleImage,
    /// The pool's own.
    PoolDefaultImage,
}

/// What `replicas` counts.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub(crate) enum ReplicaMode {
    /// All sandboxes, claimed ones included.
    #[default]
    Total,
    /// Warm ones only: a claimed one is replaced at once.
    Warm,
}

/// What a pool changes in its template.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverridesWire {
    /// Another image. In an update, an empty text removes the override.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub image: Option<String>,
    /// CPU and memory times this. Cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1024)]
    pub resource_multiplier: Option<u32>,
}

/// The specification in a request for a new pool. Fields of the same name beside `spec` win.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolSpecInput {
    /// Sandboxes wanted.
    #[schema(maximum = 100000)]
    pub replicas: Option<u32>,
    /// Least.
    #[schema(maximum = 100000)]
    pub min_replicas: Option<u32>,
    /// Most.
    #[schema(maximum = 100000)]
    pub max_replicas: Option<u32>,
    /// Template by name.
    #[schema(max_length = 63)]
    pub template_name: Option<String>,
    /// A template of the pool's own: a PodTemplateSpec.
    pub template: Option<DocumentText>,
    /// Image of unclaimed sandboxes of that template.
    #[schema(max_length = 255)]
    pub idle_image: Option<String>,
    /// Services of that template.
    #[schema(max_items = 64)]
    pub runtimes: Option<Vec<RuntimeWire>>,
    /// Growth.
    pub autoscaling: Option<AutoscalingWire>,
    /// Which image unclaimed sandboxes run.
    pub pod_creation_image_policy: Option<ImagePolicy>,
    /// Longest wait of a claim that names none, a Go duration.
    #[schema(max_length = 64)]
    pub default_startup_timeout: Option<String>,
    /// Idle life of a sandbox whose claim names none, a Go duration; "0" is unlimited.
    #[schema(max_length = 64)]
    pub default_idle_timeout: Option<String>,
}

/// Credentials of a registry.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the shape is checked although its use is refused")]
pub(crate) struct RegistryCredential {
    /// Host.
    pub registry: String,
    /// User.
    pub username: String,
    /// Password. Never shown again.
    #[schema(write_only)]
    pub password: String,
}

impl std::fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredential").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Credentials for pulling images.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ImagePullSecret {
    /// One for each registry.
    #[serde(default)]
    pub registries: Vec<RegistryCredential>,
}

/// A new pool: of a template, of a template of its own (`spec.template`), or of an image.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreatePoolRequest {
    /// Name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$", example = "my-pool")]
    pub name: String,
    /// Template by name.
    #[schema(max_length = 63)]
    pub template_name: Option<String>,
    /// Image, instead of a template.
    #[schema(max_length = 255, example = "host")]
    pub image: Option<String>,
    /// Sandboxes wanted. Default: `minReplicas`, else 1.
    #[schema(maximum = 100000)]
    pub replicas: Option<u32>,
    /// Least.
    #[schema(maximum = 100000)]
    pub min_replicas: Option<u32>,
    /// Most.
    #[schema(maximum = 100000)]
    pub max_replicas: Option<u32>,
    /// What `replicas` counts. Default: `Total`.
    pub replica_mode: Option<ReplicaMode>,
    /// Labels.
    pub labels: Option<TextMap>,
    /// Annotations.
    pub annotations: Option<TextMap>,
    /// Specification.
    pub spec: Option<PoolSpecInput>,
    /// Deprecated: kept as the label `quota.scitix.ai/url`.
    #[schema(max_length = 1000)]
    pub quota_url: Option<String>,
    /// What the pool changes in its template.
    pub overrides: Option<OverridesWire>,
    /// What its sandboxes may reach. Absent: the template's, else the default.
    pub network: Option<NetworkPolicy>,
    /// Not kept with pools: refused unless empty. Log in to the registry with `POST /v1/registries`.
    pub image_pull_secret: Option<ImagePullSecret>,
    /// Whole life of a sandbox whose claim names none, a Go duration; "0" is unlimited.
    #[schema(max_length = 64)]
    pub timeout: Option<String>,
    /// What happens when a timeout passes. Default: kill.
    pub on_expiry: Option<OnExpiry>,
    /// With `image`: CPU, a quantity.
    #[schema(max_length = 40)]
    pub cpu: Option<String>,
    /// With `image`: memory, a quantity.
    #[schema(max_length = 40)]
    pub memory: Option<String>,
    /// With `image`: disk, a quantity.
    #[schema(max_length = 40)]
    pub disk: Option<String>,
    /// With `image`: processes.
    #[schema(minimum = 8, maximum = 4194304)]
    pub pids: Option<u32>,
    /// With `image`: environment.
    pub env: Option<TextMap>,
    /// With `image`: user.
    #[schema(max_length = 64)]
    pub user: Option<String>,
    /// With `image`: working directory.
    #[schema(max_length = 4096)]
    pub workdir: Option<String>,
    /// With `image`: program started once.
    #[schema(max_items = 1000)]
    pub command: Option<Vec<String>>,
}

/// A change of a pool: at least one field. Absent fields stay as they are.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpdatePoolRequest {
    /// Sandboxes wanted.
    #[schema(maximum = 100000)]
    pub replicas: Option<u32>,
    /// Least.
    #[schema(maximum = 100000)]
    pub min_replicas: Option<u32>,
    /// Most.
    #[schema(maximum = 100000)]
    pub max_replicas: Option<u32>,
    /// Which image unclaimed sandboxes run.
    pub pod_creation_image_policy: Option<ImagePolicy>,
    /// Only `image` can be changed.
    pub overrides: Option<OverridesWire>,
    /// Growth. Turning it off clears `minReplicas` and `maxReplicas`.
    pub autoscaling: Option<AutoscalingWire>,
    /// What its sandboxes may reach, all of it. Warm ones are replaced; claimed ones keep what they have.
    pub network: Option<NetworkPolicy>,
}

/// A pool.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxPool {
    /// Name.
    pub name: String,
    /// Owner.
    pub namespace: String,
    /// Specification.
    pub spec: PoolSpec,
    /// Condition.
    pub status: PoolStatus,
    /// What the pool or its template says that its sandboxes may reach; only of a single pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
    /// CPU of a sandbox, a quantity.
    pub cpu: String,
    /// Memory of a sandbox, a quantity.
    pub memory: String,
    /// Image of a sandbox.
    pub image: String,
    /// Owner's team.
    pub team: String,
    /// Owner's user.
    pub user: String,
    /// Version of the template that it was copied from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_version: Option<String>,
    /// What it changes in its template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overrides: Option<OverridesWire>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: TextMap,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: TextMap,
    /// The whole specification as YAML; only of a single pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec_yaml: Option<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// The template's documentation with this pool's values; only of a single pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_docs: Option<String>,
}

/// A pool's specification.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolSpec {
    /// Sandboxes wanted now.
    pub replicas: u32,
    /// Least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    /// Most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u32>,
    /// What `replicas` counts.
    pub replica_mode: ReplicaMode,
    /// Template by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_name: Option<String>,
    /// Growth.
    pub autoscaling: AutoscalingWire,
    /// Which image unclaimed sandboxes run.
    pub pod_creation_image_policy: ImagePolicy,
    /// Longest wait of a claim that names none, a Go duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_startup_timeout: Option<String>,
    /// Idle life of a sandbox whose claim names none, a Go duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_idle_timeout: Option<String>,
    /// Whole life of a sandbox whose claim names none, a Go duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_timeout: Option<String>,
    /// What happens when a timeout passes.
    pub on_expiry: OnExpiry,
}

/// A pool's condition in one word.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) enum Phase {
    /// Nothing is there yet.
    Pending,
    /// At its size.
    Ready,
    /// Growing.
    ScalingUp,
    /// Shrinking.
    ScalingDown,
    /// Some sandboxes cannot be used.
    Degraded,
    /// Going away.
    Terminating,
}

/// A pool's condition.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolStatus {
    /// In one word.
    pub phase: Phase,
    /// Warm.
    pub idle_replicas: u32,
    /// Warm but not usable; contained in `idleReplicas`.
    pub unavailable_idle_replicas: u32,
    /// Claimed.
    pub running_replicas: u32,
    /// Being made.
    pub starting_replicas: u32,
    /// Being destroyed.
    pub stopping_replicas: u32,
    /// Failed not long ago.
    pub failed_replicas: u32,
    /// Why it does not grow, while something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// One pool. The key is AgentBox's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PoolEnvelope {
    /// It.
    pub template: SandboxPool,
}

/// A piece of the list of pools.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PoolList {
    /// Entries, by name.
    pub items: Vec<SandboxPool>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// A pool on its way out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletePoolResult {
    /// Name.
    pub name: String,
    /// Owner.
    pub namespace: String,
    /// `Terminating`.
    pub status: String,
}

/// A pool as it would be after a sync.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SyncPreview {
    /// Specification as YAML.
    pub spec_yaml: String,
    /// Template version that it would take.
    pub version: String,
}

/// Counts over all pools.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolStatistics {
    /// Pools.
    pub total: u64,
    /// Sandboxes wanted.
    pub total_replicas: u64,
    /// Warm.
    pub total_idle_replicas: u64,
    /// Claimed.
    pub total_running_replicas: u64,
    /// Failed.
    pub total_failed_replicas: u64,
    /// Pools by owner.
    pub by_namespace: BTreeMap<String, u64>,
}

/// Counts over all pools.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PoolStatisticsEnvelope {
    /// They.
    pub statistics: PoolStatistics,
}
