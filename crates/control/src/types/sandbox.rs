//! Sandboxes and their leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{EnvMap, ExpiryAction, ImageName, PoolName, PublicPorts, Sandbox, SandboxSpec, State, StringMap, Timeout};

use super::OwnerView;

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
    /// Ports that anybody may reach.
    pub public_ports: PublicPorts,
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// From the caller's pool of this name.
    pub pool: PoolName,
    /// Another image than the pool's: such a sandbox is made on demand from the pool's template, not taken warm.
    pub image: Option<ImageName>,
    /// For the image's registry, should one be made and its image have to be pulled. Not kept.
    pub image_credentials: Option<sandbank_oci::Credentials>,
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
    /// For its image's registry, should the image have to be pulled. Not kept.
    pub image_credentials: Option<sandbank_oci::Credentials>,
}

/// What a sandbox without a pool is made of.
#[derive(Debug, Clone)]
pub enum CreateSource {
    /// An image (aliases apply).
    Image(ImageName),
    /// A template by name.
    Template(PoolName),
    /// A snapshot, by id or name: as the sandbox was that it was taken of.
    Snapshot(String),
    /// Everything given.
    Spec(Box<SandboxSpec>),
}

/// Sandboxes to make of another's file system.
#[derive(Debug, Clone)]
pub struct Fork {
    /// How many, from 1 to 100.
    pub count: u32,
    /// What is personalised. Metadata, labels and annotations that are empty are the original's; environment is added to its.
    pub lease: LeaseRequest,
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
