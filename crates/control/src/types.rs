//! What use cases take and give.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_model::{
    Actor, Autoscaling, EnvMap, ExpiryAction, ImageConfig, ImageName, KeyHash, LeaseChange, Overrides, Pool, PoolCounts,
    PoolName, PoolPhase, PoolPolicies, Principal, QuotaLimits, Role, Sandbox, SandboxId, SandboxSpec, SemVer, Sizing, State,
    StringMap, Template, TemplateSpec, Timeout, Timestamp, Usage,
};

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

/// A fresh API key: the only time that its secret is seen.
#[derive(Clone)]
pub struct NewKey {
    /// `<prefix>_<64 hex>`.
    pub secret: String,
    /// The record.
    pub key: sandbank_model::ApiKey,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A key to make.
#[derive(Debug, Clone, Default)]
pub struct KeyRequest {
    /// For people; at most 1,000 characters.
    pub description: Option<String>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// Attached, not interpreted.
    pub annotations: StringMap,
}

/// A key to make or import by an admin.
#[derive(Debug, Clone)]
pub struct AdminKeyRequest {
    /// Namespace (tenant name); `None`: `t-{team}-{user}`.
    pub namespace: Option<String>,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// Role.
    pub role: Role,
    /// The rest.
    pub key: KeyRequest,
    /// Import: the hash of a secret that somebody else made. Repeating it changes nothing.
    pub import: Option<ImportedKey>,
}

/// The known half of a key made elsewhere.
#[derive(Debug, Clone)]
pub struct ImportedKey {
    /// SHA-256 of the 64 hexadecimal characters.
    pub hash: KeyHash,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
}

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

/// A sandbox with the names of its owner.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// The record, its last activity as `control` knows it.
    pub sandbox: Arc<Sandbox>,
    /// Names of its owner.
    pub owner: OwnerView,
}

/// What a claim or a create personalises.
#[derive(Debug, Clone, Default)]
pub struct LeaseRequest {
    /// Absolute end, from now. `None`: the pool's default.
    pub timeout: Option<Timeout>,
    /// Idle life. `None`: the pool's default.
    pub idle_timeout: Option<Timeout>,
    /// At the end. `None`: the pool's default.
    pub on_expiry: Option<ExpiryAction>,
    /// The holder's own words; at most 64 KiB in all.
    pub metadata: StringMap,
    /// Labels.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// Environment added to the spec's; at most 256 KiB in all.
    pub env: EnvMap,
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// From the caller's pool of this name.
    pub pool: PoolName,
    /// Another image than the pool's: such a sandbox is made on demand from the pool's template, not taken warm.
    pub image: Option<ImageName>,
    /// What to do when none is warm.
    pub when_empty: WhenEmpty,
    /// What is personalised.
    pub lease: LeaseRequest,
}

/// What a claim does when no sandbox is warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    /// Refuse at once.
    Refuse,
    /// Wait for one, at most so long (`None`: the pool's startup timeout, else the setting), then refuse.
    Wait(Option<Duration>),
    /// Make one for this claim, within the pool's `max` and the quota.
    Create,
}

/// A sandbox without a pool.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// What it is made of.
    pub source: CreateSource,
    /// Environment, user and so on that replace the template's, where given.
    pub changes: SpecChange,
    /// What is personalised.
    pub lease: LeaseRequest,
    /// Driver; `None`: the default.
    pub driver: Option<String>,
}

/// What a sandbox without a pool is made of.
#[derive(Debug, Clone)]
pub enum CreateSource {
    /// An image (aliases apply).
    Image(ImageName),
    /// A template by name.
    Template(PoolName),
    /// Everything given.
    Spec(Box<SandboxSpec>),
}

/// What a create call changes in the spec.
#[derive(Debug, Clone, Default)]
pub struct SpecChange {
    /// CPU, thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Disk, bytes.
    pub disk_bytes: Option<u64>,
    /// Processes.
    pub pids: Option<u32>,
    /// User.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Command started once.
    pub command: Option<Vec<String>>,
}

/// Which sandboxes a caller wants to see. Only those that were ever claimed are shown unless `warm` is set.
#[derive(Debug, Clone, Default)]
pub struct SandboxQuery {
    /// Of this pool.
    pub pool: Option<PoolName>,
    /// In one of these states; empty: all.
    pub states: Vec<State>,
    /// With all these metadata entries.
    pub metadata: Vec<(String, String)>,
    /// Also those that wait for a claim.
    pub warm: bool,
    /// Of every tenant (admins only).
    pub all_tenants: bool,
}

/// A piece of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// Entries.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: u64,
}

/// A program to run in a sandbox. What is `None` comes from the sandbox's lease, spec and image, in this order.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, over the sandbox's.
    pub env: EnvMap,
    /// Working directory.
    pub cwd: Option<String>,
    /// User.
    pub user: Option<String>,
    /// On a terminal of this size.
    pub pty: Option<agent::PtySize>,
    /// Keep stdin open.
    pub stdin: bool,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Kill it after so long.
    pub timeout: Option<Duration>,
    /// Kill it when the stream is dropped.
    pub kill_on_disconnect: bool,
}

/// A collected exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub status: agent::ExitStatus,
    /// Standard output, at most `Settings::exec_output_max` bytes.
    pub stdout: Bytes,
    /// Standard error, likewise.
    pub stderr: Bytes,
    /// Bytes were dropped.
    pub truncated: bool,
}

/// What a process stream tells, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It runs (or was found).
    Started {
        /// Pid inside the sandbox.
        pid: u32,
        /// Offset of the first byte of stdout (or terminal) that follows; 0 for a new process.
        stdout_offset: u64,
        /// Offset of the first byte of stderr that follows.
        stderr_offset: u64,
    },
    /// Output.
    Output(agent::Stream, Bytes),
    /// It ended. The last event.
    Exited(agent::ExitStatus),
    /// Attached without following, and it still runs. The last event.
    StillRunning,
}

/// Log lines of a sandbox: what its command wrote, or what a runtime wrote into its log directory.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// The last so many lines; `None`: all that is kept.
    pub lines: Option<u32>,
    /// A runtime's name; `None`: the command's output.
    pub runtime: Option<String>,
}

/// Logs as they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Lines, oldest first, without the line end.
    pub lines: Vec<LogLine>,
    /// Earlier lines were dropped.
    pub truncated: bool,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether the sandbox still runs (live) or this was kept when it ended.
    pub live: bool,
}

/// A line of log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was captured, if known.
    pub at: Option<Timestamp>,
    /// Text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Whether it came from standard error.
    pub stderr: bool,
}

/// A runtime's readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Runtime.
    pub name: String,
    /// Ready.
    pub ready: bool,
    /// Why not, or how it was seen.
    pub message: String,
}

/// Counts of sandboxes by state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxStatistics {
    /// Tenant name; `None` for the whole installation.
    pub tenant: Option<String>,
    /// By state.
    pub by_state: BTreeMap<State, u64>,
    /// Sandboxes by tenant name (admins' view).
    pub by_tenant: BTreeMap<String, u64>,
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

/// A template as a pool would get it: for previews.
#[derive(Debug, Clone)]
pub struct SyncPreview {
    /// The pool as it would be.
    pub pool: Pool,
    /// The template version it would take.
    pub version: SemVer,
}

/// Re-exported for dialects: a change of a lease's clocks.
pub type Renewal = LeaseChange;

/// A template with its owner's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateView {
    /// The record.
    pub template: Template,
    /// Owned by the installation.
    pub global: bool,
}

/// Names one sandbox in a use case.
pub type Id = SandboxId;

/// An image's defaults given at import or commit.
pub type NewImageConfig = ImageConfig;
