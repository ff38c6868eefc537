//! Sandboxes on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ImagePullSecret, NetworkPolicy, PortAccess, TextMap};

/// Claim a sandbox of a pool, or (without `poolName`) make one of `image`, `templateName` or `snapshot`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateSandboxRequest {
    /// Pool to claim from: `pool` or `{clusterID}::{pool}`. Absent: a sandbox without a pool.
    #[schema(max_length = 200, example = "my-pool")]
    pub pool_name: Option<String>,
    /// Another image than the pool's, or the image of a sandbox without a pool.
    #[schema(max_length = 255, example = "host")]
    pub image: Option<String>,
    /// Image by container name; beats `image`. A sandbox has one container, so at most one entry.
    pub container_images: Option<TextMap>,
    /// For the image's registry, should the image have to be pulled: one entry. Not kept.
    pub image_pull_secret: Option<ImagePullSecret>,
    /// Template of a sandbox without a pool.
    #[schema(max_length = 63)]
    pub template_name: Option<String>,
    /// Snapshot, by id or name, of a sandbox without a pool: it is as the sandbox was that the snapshot was taken of.
    #[schema(max_length = 255)]
    pub snapshot: Option<String>,
    /// Labels.
    pub labels: Option<TextMap>,
    /// Annotations.
    pub annotations: Option<TextMap>,
    /// Your own words about it.
    pub metadata: Option<TextMap>,
    /// Longest wait for a warm sandbox, a Go duration above 0. Absent: the pool's, else two minutes.
    #[schema(max_length = 64, example = "2m")]
    pub startup_timeout: Option<String>,
    /// Released after so long without use, a Go duration; "0" is never. Absent: the pool's.
    #[schema(max_length = 64, example = "30m")]
    pub idle_timeout: Option<String>,
    /// Released after so long in any case, a Go duration; "0" is never. Absent: the pool's.
    #[schema(max_length = 64, example = "1h")]
    pub timeout: Option<String>,
    /// What happens when a timeout passes. Absent: the pool's.
    pub on_expiry: Option<OnExpiry>,
    /// What to do when the pool has no warm sandbox. Default: wait.
    pub when_empty: Option<WhenEmptyWire>,
    /// Environment of every process in it.
    pub env: Option<TextMap>,
    /// What it may reach. Absent: the template's or pool's, else the default.
    pub network: Option<NetworkPolicy>,
    /// CPU of a sandbox without a pool, a quantity.
    #[schema(max_length = 40, example = "500m")]
    pub cpu: Option<String>,
    /// Memory of a sandbox without a pool, a quantity.
    #[schema(max_length = 40, example = "512Mi")]
    pub memory: Option<String>,
    /// Disk of a sandbox without a pool, a quantity.
    #[schema(max_length = 40, example = "2Gi")]
    pub disk: Option<String>,
    /// Processes of a sandbox without a pool.
    #[schema(minimum = 8, maximum = 4194304)]
    pub pids: Option<u32>,
    /// User of its processes.
    #[schema(max_length = 64)]
    pub user: Option<String>,
    /// Working directory of its processes.
    #[schema(max_length = 4096)]
    pub workdir: Option<String>,
    /// Program started once when it is made; its output is the sandbox's log.
    #[schema(max_items = 1000)]
    pub command: Option<Vec<String>>,
}

/// What happens when a timeout passes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExpiry {
    /// It is destroyed.
    Kill,
    /// It is paused and can be renewed and resumed.
    Pause,
    /// It is kept, frozen, until it is deleted.
    Keep,
}

/// What to do when a pool has no warm sandbox.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenEmptyWire {
    /// Wait up to `startupTimeout`, then answer 429.
    Wait,
    /// Answer 429 at once.
    Refuse,
    /// Make one for this claim.
    Create,
}

/// A sandbox's status. `Paused` and `Idle` (warm, unclaimed) are additions to AgentBox's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub(crate) enum Status {
    /// Recorded, nothing done yet. AgentBox's word; a sandbox here is `Starting` at once.
    #[allow(dead_code, reason = "part of the contract's list")]
    Pending,
    /// Being made.
    Starting,
    /// Warm and unclaimed.
    Idle,
    /// Claimed.
    Running,
    /// Frozen.
    Paused,
    /// Being destroyed.
    Stopping,
    /// Broken.
    Failed,
    /// Ended by its holder.
    Completed,
    /// Given back before it had started.
    Canceled,
    /// Ended by a timeout.
    Released,
}

/// A sandbox.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sandbox {
    /// UUIDv7, with `{clusterID}.` in front when the request named a cluster. Opaque.
    pub sandbox_id: String,
    /// Owner.
    pub namespace: String,
    /// Pool; empty without one.
    pub pool_name: String,
    /// Unique name of this instance.
    pub pod_name: String,
    /// Status.
    pub status: Status,
    /// The state as Sandbank itself calls it.
    pub state: String,
    /// When it was claimed (or made, while unclaimed), RFC 3339.
    pub claimed_at: String,
    /// When it was ready for its holder, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Image by container.
    pub container_images: TextMap,
    /// Image.
    pub image: String,
    /// The holder's words.
    pub metadata: TextMap,
    /// Where its announced ports are reached, by name; only while it runs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Who may reach its ports, and where; only while it is claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_access: Option<PortAccess>,
    /// CPU limit, a quantity.
    pub cpu: String,
    /// Memory limit, a quantity.
    pub memory: String,
    /// When it will end by itself if nobody uses it, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Idle life, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// When it was paused, RFC 3339; only while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<String>,
    /// When it ended, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated_at: Option<String>,
    /// When what it held was given back, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recycled_at: Option<String>,
    /// Seconds from start to now, or to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<u64>,
    /// Why it failed or was released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// Exit code of its command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The failure in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// Owner's team.
    pub team: String,
    /// Owner's user.
    pub user: String,
    /// What its holder, template or pool says that it may reach; absent where a default says it, and in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
}

/// Where a port inside is reached.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    /// URL; requests need an API key.
    pub url: String,
}

/// One sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SandboxEnvelope {
    /// It.
    pub sandbox: Sandbox,
}

/// A piece of the list of sandboxes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SandboxList {
    /// Entries, the most recently claimed first.
    pub items: Vec<Sandbox>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for, after the cap of 100.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// Which sandboxes. Further parameters `metadata.KEY=VALUE` select by metadata.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct SandboxListQuery {
    /// Of this pool.
    #[param(max_length = 200)]
    pub pool_name: Option<String>,
    /// Statuses or states, separated by commas.
    #[param(max_length = 400)]
    pub status: Option<String>,
    /// Also warm ones that nobody has claimed.
    pub warm: Option<bool>,
    /// Most entries to return; more than 100 is 100.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    pub limit: Option<u32>,
    /// Entries to skip.
    #[param(minimum = 0, default = 0)]
    pub offset: Option<u64>,
}

/// A sandbox on its way out.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeleteSandboxResult {
    /// Id.
    pub sandbox_id: String,
    /// Owner.
    pub namespace: String,
    /// Pool; empty without one.
    pub pool_name: String,
    /// Instance.
    pub pod_name: String,
    /// `Stopping` or `Terminated`.
    pub status: String,
}

/// A new idle timeout.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SetTimeoutRequest {
    /// A Go duration; "0" disables it.
    #[schema(max_length = 64, example = "30m")]
    pub timeout: String,
}

/// A change of a lease. Absent fields stay as they are.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RenewRequest {
    /// New end, measured from now, a Go duration; "0" is never.
    #[schema(max_length = 64, example = "1h")]
    pub timeout: Option<String>,
    /// New idle life, a Go duration; "0" is unlimited.
    #[schema(max_length = 64, example = "30m")]
    pub idle_timeout: Option<String>,
    /// What happens at the end.
    pub on_expiry: Option<OnExpiry>,
    /// Only ever move the end later.
    pub only_extend: Option<bool>,
}

/// A name for a sandbox's file system.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CommitRequest {
    /// Image name, `repository[:tag]`.
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$", example = "team/tools:1")]
    pub image: String,
}

/// Readiness of a sandbox's services.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadyResult {
    /// Id.
    pub sandbox_id: String,
    /// Whether all are.
    pub ready: bool,
    /// By name.
    pub endpoints: BTreeMap<String, EndpointReady>,
}

/// Readiness of one service.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndpointReady {
    /// Whether it is.
    pub ready: bool,
    /// Why not, or how it was seen.
    pub message: String,
}

/// Which log lines.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogsQuery {
    /// Container; a sandbox has one, called `sandbox`.
    #[param(max_length = 63)]
    pub container: Option<String>,
    /// The last so many lines; 0 or absent is all.
    #[param(minimum = 0, maximum = 10000)]
    pub lines: Option<u32>,
    /// `stdout`, or the name of a runtime of the template.
    #[param(max_length = 63)]
    pub source: Option<String>,
}

/// Log lines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxLogsResult {
    /// Id.
    pub sandbox_id: String,
    /// Owner.
    pub namespace: String,
    /// Instance.
    pub pod_name: String,
    /// Lines, oldest first.
    pub entries: Vec<LogEntry>,
    /// Earlier lines were dropped.
    pub truncated: bool,
    /// `live`, `cached` (kept when it ended) or `runtime`.
    pub source: String,
    /// When this was read, RFC 3339.
    pub captured_at: String,
    /// Bytes that the log has in all.
    pub total_bytes: u64,
    /// Runtime, when the lines are one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_name: Option<String>,
}

/// A log line.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogEntry {
    /// When it was written, if known, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Container.
    pub container: String,
    /// Text, without its line end.
    pub log: String,
}

/// Counts of the caller's sandboxes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxStatistics {
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// All.
    pub total: u64,
    /// By status.
    pub by_status: BTreeMap<Status, u64>,
    /// By owner (admins only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_namespace: Option<BTreeMap<String, u64>>,
}

/// Counts of sandboxes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SandboxStatisticsEnvelope {
    /// They.
    pub statistics: SandboxStatistics,
}

/// What a sandbox uses.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxMetrics {
    /// CPU time used so far, seconds.
    pub cpu_used_seconds: f64,
    /// Cores that it may use.
    pub cpu_limit: f64,
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Memory limit; 0 is none.
    pub memory_limit_bytes: u64,
    /// Page cache, contained in the memory in use.
    pub memory_cache_bytes: u64,
    /// Disk in use.
    pub disk_used_bytes: u64,
    /// Disk limit; 0 is none.
    pub disk_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Limit of them; 0 is none.
    pub pids_limit: u32,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Bytes that came in over the network since it was made; absent where sandboxes have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_in_bytes: Option<u64>,
    /// Bytes that went out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_out_bytes: Option<u64>,
}

/// What a sandbox uses.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MetricsEnvelope {
    /// It.
    pub metrics: SandboxMetrics,
}

/// A 503 of `is_ready`: what is not ready, or why the server cannot tell.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "described in the API document only: the handler answers with the parts")]
pub(crate) enum ReadyOrError {
    /// What is not ready.
    Ready(ReadyResult),
    /// Why the server cannot tell.
    Error(super::ErrorBody),
}
