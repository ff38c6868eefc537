//! The store: what was answered with success is remembered.
//!
//! [`Store`] speaks the domain's words. Every write of an object names the generation it read; the answer is updated, refused
//! or missing. A method that returned `Ok` has its effect on disk: a `kill -9` right after it loses nothing. Four kinds of step
//! that nobody is promised (a sandbox being made, being warm, being gone; activity) may be lost in a power cut, which ends the
//! sandboxes too, and only together with everything after them.

pub mod contract;
mod sqlite;

pub use sqlite::SqliteStore;

use std::sync::Arc;

use async_trait::async_trait;
use sandbank_model::{
    Actor, ApiKey, ApiKeyId, Build, BuildId, BuildLog, CachedStep, Event, EventSeq, Image, ImageName, KeyHash, Lease, Pool,
    PoolCounts, PoolId, PoolName, RegistryCredential, Sandbox, SandboxId, Snapshot, SnapshotId, SnapshotName, State, Template,
    TemplateId, Tenant, TenantId, Timestamp, Usage,
};

/// What can go wrong in a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is of a newer Sandbank.
    #[error(
        "the database {path} has schema version {found}, this sandbank knows up to {known}: start the newer sandbank that wrote it, \
         or restore a backup from before the upgrade"
    )]
    NewerSchema {
        /// File.
        path: String,
        /// Version found.
        found: i64,
        /// Newest version known.
        known: i64,
    },
    /// Another process has it open.
    #[error("the database {path} is in use by another process: stop that server, or give this one its own --data-dir")]
    InUse {
        /// File.
        path: String,
    },
    /// No space left.
    #[error("the disk that holds the database is full: free some space; nothing was changed")]
    DiskFull,
    /// A record that does not parse: the database was changed by something else, or is damaged.
    #[error("the {what} record {key} in the database cannot be read: {detail}")]
    Corrupt {
        /// Kind of record.
        what: &'static str,
        /// Which.
        key: String,
        /// How.
        detail: String,
    },
    /// The database refused.
    #[error("the database failed while {doing}: {detail}")]
    Backend {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        detail: String,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Outcome of a write that is conditional on a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write<T> {
    /// Done; this is the record now.
    Updated(T),
    /// Somebody else wrote in between; this is the record as it is.
    Refused(T),
    /// There is no such record.
    Missing,
}

/// Outcome of an insert under a unique name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Insert<T> {
    /// Done; this is the record.
    Inserted(T),
    /// The name is taken by this record.
    Taken(T),
}

/// A piece of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Entries to skip.
    pub offset: u64,
    /// Most entries to return.
    pub limit: u32,
}

/// A piece of a list and the length of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Entries.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: u64,
}

/// Which sandboxes. Empty or `None` fields do not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxFilter {
    /// Owner.
    pub tenant: Option<TenantId>,
    /// Pool.
    pub pool: Option<PoolId>,
    /// Pool by name (also one that is gone).
    pub pool_name: Option<PoolName>,
    /// One of these states.
    pub states: Vec<State>,
    /// Only such as were ever claimed (have a lease).
    pub claimed_only: bool,
    /// All these metadata entries of the lease.
    pub metadata: Vec<(String, String)>,
}

/// Which events. Ordered by position.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Owner.
    pub tenant: Option<TenantId>,
    /// Sandbox.
    pub sandbox: Option<SandboxId>,
    /// Pool.
    pub pool: Option<PoolId>,
    /// Only those after this position.
    pub after: Option<EventSeq>,
    /// The newest first.
    pub newest_first: bool,
}

/// What a claim wants.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// From this pool.
    pub pool: PoolId,
    /// The lease to attach.
    pub lease: Lease,
    /// By whom.
    pub actor: Actor,
    /// When.
    pub now: Timestamp,
}

/// What a store remembers of a pool's sandboxes, for the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolSummary {
    /// By state.
    pub counts: PoolCounts,
    /// Since when the longest-warm sandbox has been warm.
    pub oldest_ready_since: Option<Timestamp>,
    /// Last claim.
    pub last_claim_at: Option<Timestamp>,
}

/// The port. All methods may be called concurrently.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The tenant of this name, made from `tenant` if there is none yet.
    async fn tenant_ensure(&self, tenant: Tenant) -> Result<Tenant, StoreError>;
    /// One tenant.
    async fn tenant_get(&self, id: TenantId) -> Result<Option<Tenant>, StoreError>;
    /// One tenant by name.
    async fn tenant_by_name(&self, name: &str) -> Result<Option<Tenant>, StoreError>;
    /// All tenants, by name.
    async fn tenant_list(&self) -> Result<Vec<Tenant>, StoreError>;
    /// Replaces a tenant's quota.
    async fn tenant_set_quota(&self, id: TenantId, quota: sandbank_model::QuotaLimits) -> Result<Write<Tenant>, StoreError>;
    /// Replaces what a tenant's sandboxes may reach that say nothing of it.
    async fn tenant_set_network(
        &self,
        id: TenantId,
        network: Option<Arc<sandbank_model::NetworkPolicy>>,
    ) -> Result<Write<Tenant>, StoreError>;
    /// What a tenant holds: the sum over its sandboxes in live states.
    async fn tenant_usage(&self, id: TenantId) -> Result<Usage, StoreError>;

    /// Adds a key. `Taken` when its hash is known.
    async fn key_insert(&self, key: ApiKey) -> Result<Insert<ApiKey>, StoreError>;
    /// Finds a key by hash, revoked and expired ones too.
    async fn key_by_hash(&self, hash: KeyHash) -> Result<Option<ApiKey>, StoreError>;
    /// Keys of a tenant, or all; oldest first.
    async fn key_list(&self, tenant: Option<TenantId>) -> Result<Vec<ApiKey>, StoreError>;
    /// Marks a key revoked; a revoked one stays as it is.
    async fn key_revoke(&self, id: ApiKeyId, now: Timestamp) -> Result<Write<ApiKey>, StoreError>;

    /// Adds the first version of a template. `Taken` when its owner has one of this name.
    async fn template_insert(&self, template: Template) -> Result<Insert<Template>, StoreError>;
    /// Adds a version that follows `expected`, the generation read; the older versions stay readable by id.
    async fn template_update(&self, template: Template, expected: u64) -> Result<Write<Template>, StoreError>;
    /// The newest version under a name. `tenant` `None`: the installation's own.
    async fn template_get(&self, tenant: Option<TenantId>, name: &PoolName) -> Result<Option<Template>, StoreError>;
    /// A version by id.
    async fn template_by_id(&self, id: TemplateId) -> Result<Option<Template>, StoreError>;
    /// The newest versions of all names of these owners, by name.
    async fn template_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<Template>, StoreError>;
    /// Forgets a name with all its versions. `Missing` when there is none.
    async fn template_delete(&self, tenant: Option<TenantId>, name: &PoolName) -> Result<Write<()>, StoreError>;

    /// Adds a pool. `Taken` when its tenant has one of this name that is not gone.
    async fn pool_insert(&self, pool: Pool, event: Event) -> Result<Insert<Pool>, StoreError>;
    /// A pool by name.
    async fn pool_get(&self, tenant: TenantId, name: &PoolName) -> Result<Option<Pool>, StoreError>;
    /// A pool by id.
    async fn pool_by_id(&self, id: PoolId) -> Result<Option<Pool>, StoreError>;
    /// Pools of a tenant, or all, by name.
    async fn pool_list(&self, tenant: Option<TenantId>, page: PageRequest) -> Result<Page<Pool>, StoreError>;
    /// Replaces a pool whose generation is `expected`. The record's own `generation` is set to `expected + 1`.
    async fn pool_update(&self, pool: Pool, expected: u64, event: Option<Event>) -> Result<Write<Pool>, StoreError>;
    /// Forgets a pool. Its sandboxes' records stay.
    async fn pool_remove(&self, id: PoolId) -> Result<(), StoreError>;
    /// Counts of a pool's sandboxes. `failed` counts those that failed at or after `failed_since`; `outdated` those in
    /// `Ready` whose record's pool revision is below `revision`.
    async fn pool_summary(&self, id: PoolId, revision: u64, failed_since: Timestamp) -> Result<PoolSummary, StoreError>;

    /// Adds a sandbox in state `Provisioning` with its pool revision (0 without a pool) and its event.
    async fn sandbox_insert(&self, sandbox: Sandbox, revision: u64, event: Event) -> Result<(), StoreError>;
    /// One sandbox.
    async fn sandbox_get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError>;
    /// Replaces a sandbox whose generation is `expected` (as made by `transition`) and appends its event.
    async fn sandbox_update(&self, sandbox: Sandbox, expected: u64, event: Event) -> Result<Write<Sandbox>, StoreError>;
    /// Claims the longest-warm sandbox of a pool, those of the newest revision first: one transaction, no other effect.
    /// `None` when none is warm. Two concurrent claims never get the same one.
    async fn sandbox_claim(&self, request: ClaimRequest) -> Result<Option<Sandbox>, StoreError>;
    /// Sandboxes that match, the most recently claimed or (never claimed) made first, then by id.
    async fn sandbox_list(&self, filter: SandboxFilter, page: PageRequest) -> Result<Page<Sandbox>, StoreError>;
    /// How many match, by state.
    async fn sandbox_count(&self, filter: SandboxFilter) -> Result<Vec<(State, u64)>, StoreError>;
    /// Warm sandboxes of a pool, those below `revision` first, then the longest warm, at most `limit`.
    async fn sandbox_warm(&self, pool: PoolId, revision: u64, limit: u32) -> Result<Vec<Sandbox>, StoreError>;
    /// Every sandbox in a live state: what recovery and the timers look at.
    async fn sandbox_live(&self) -> Result<Vec<Sandbox>, StoreError>;
    /// Moves `last_activity_at` forward where it is later; changes neither generation nor events. May be lost in a crash.
    async fn sandbox_touch(&self, activity: Vec<(SandboxId, Timestamp)>) -> Result<(), StoreError>;
    /// Forgets ended sandboxes and events from before `before`, at most `limit` of each; how many went.
    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// Appends an event that belongs to no write above.
    async fn event_append(&self, event: Event) -> Result<EventSeq, StoreError>;
    /// Events that match.
    async fn event_list(&self, filter: EventFilter, limit: u32) -> Result<Vec<Event>, StoreError>;

    /// Adds an image or replaces the one of the same name and owner, which is returned.
    async fn image_put(&self, image: Image) -> Result<Option<Image>, StoreError>;
    /// The image of this name that `tenant` sees: its own, else the installation's.
    async fn image_get(&self, tenant: TenantId, name: &ImageName) -> Result<Option<Image>, StoreError>;
    /// Images of these owners, by name.
    async fn image_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<Image>, StoreError>;
    /// Every image: what garbage collection looks at.
    async fn image_all(&self) -> Result<Vec<Image>, StoreError>;
    /// Forgets an image. `Missing` when there is none.
    async fn image_delete(&self, tenant: Option<TenantId>, name: &ImageName) -> Result<Write<()>, StoreError>;

    /// Adds a snapshot. Its name, if it has one, is taken from the tenant's snapshot that had it, which stays without one.
    async fn snapshot_put(&self, snapshot: Snapshot) -> Result<(), StoreError>;
    /// A tenant's snapshot.
    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Result<Option<Snapshot>, StoreError>;
    /// A tenant's snapshot that has this name now.
    async fn snapshot_named(&self, tenant: TenantId, name: &SnapshotName) -> Result<Option<Snapshot>, StoreError>;
    /// Snapshots of a tenant, the newest first; with `sandbox` only those of this one.
    async fn snapshot_list(
        &self,
        tenant: TenantId,
        sandbox: Option<SandboxId>,
        page: PageRequest,
    ) -> Result<Page<Snapshot>, StoreError>;
    /// Snapshots of all tenants: what garbage collection looks at.
    async fn snapshot_all(&self) -> Result<Vec<Snapshot>, StoreError>;
    /// Forgets a tenant's snapshot. `Missing` when there is none.
    async fn snapshot_delete(&self, tenant: TenantId, id: SnapshotId) -> Result<Write<()>, StoreError>;

    /// Keeps a registry's credentials, in place of those of the same host and owner, which are returned.
    async fn registry_credential_put(&self, credential: RegistryCredential) -> Result<Option<RegistryCredential>, StoreError>;
    /// This owner's credentials for a host, spelled as it was put. `tenant` `None`: the installation's own.
    async fn registry_credential_get(
        &self,
        tenant: Option<TenantId>,
        host: &str,
    ) -> Result<Option<RegistryCredential>, StoreError>;
    /// Credentials of these owners, by host, the installation's first.
    async fn registry_credential_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<RegistryCredential>, StoreError>;
    /// Forgets an owner's credentials for a host. `Missing` when there are none.
    async fn registry_credential_delete(&self, tenant: Option<TenantId>, host: &str) -> Result<Write<()>, StoreError>;
    /// Adds a build or replaces the one of the same id. Its log stays as it is where none is given.
    async fn build_put(&self, build: Build, log: Option<BuildLog>) -> Result<(), StoreError>;
    /// One build.
    async fn build_get(&self, id: BuildId) -> Result<Option<Build>, StoreError>;
    /// The end of a build's log, as it was last put.
    async fn build_log(&self, id: BuildId) -> Result<Option<BuildLog>, StoreError>;
    /// Builds of a tenant, the newest first.
    async fn build_list(&self, tenant: TenantId, page: PageRequest) -> Result<Page<Build>, StoreError>;
    /// Builds of all tenants that have not ended, the oldest first: what recovery looks at.
    async fn build_unfinished(&self) -> Result<Vec<Build>, StoreError>;
    /// Forgets a build. Nothing happens when there is none.
    async fn build_remove(&self, id: BuildId) -> Result<(), StoreError>;

    /// Adds a cached step or replaces the one of the same tenant and key.
    async fn cached_step_put(&self, step: CachedStep) -> Result<(), StoreError>;
    /// One cached step.
    async fn cached_step_get(&self, tenant: TenantId, key: &str) -> Result<Option<CachedStep>, StoreError>;
    /// All cached steps, the longest unused first.
    async fn cached_step_all(&self) -> Result<Vec<CachedStep>, StoreError>;
    /// Forgets cached steps, by tenant and key.
    async fn cached_step_remove(&self, steps: Vec<(TenantId, String)>) -> Result<(), StoreError>;

    /// Waits until everything written so far is on disk, and closes.
    async fn close(&self) -> Result<(), StoreError>;
}
