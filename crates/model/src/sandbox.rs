//! One sandbox, from provisioning to termination.

use serde::{Deserialize, Serialize};

use crate::{ExpiryCause, Image, Lease, PoolId, PoolName, SandboxId, SandboxSpec, State, TemplateRef, TenantId, Timestamp};

/// What the driver needs to find its sandbox again. Opaque to everyone but the driver that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriverHandle(pub String);

/// Why a sandbox failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureReason {
    /// It could not be made.
    ProvisionFailed,
    /// The kernel killed its first process because the sandbox was out of memory.
    OutOfMemory,
    /// It wrote more than its disk limit.
    DiskLimit,
    /// Its first process ended although nobody asked.
    AgentDied,
    /// Its agent no longer answers, or answers nonsense.
    AgentUnresponsive,
    /// It was gone when the server came back.
    LostInRestart,
}

impl FailureReason {
    /// The word that logs and dialects show.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProvisionFailed => "ProvisionFailed",
            Self::OutOfMemory => "OOMKilled",
            Self::DiskLimit => "DiskLimitExceeded",
            Self::AgentDied => "AgentDied",
            Self::AgentUnresponsive => "AgentUnresponsive",
            Self::LostInRestart => "LostInRestart",
        }
    }
}

/// A failure and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind.
    pub reason: FailureReason,
    /// For people; at most 1,000 characters.
    pub message: String,
}

/// Why a sandbox was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StopCause {
    /// The holder gave it back.
    Released,
    /// The lease ended by itself.
    Expired(ExpiryCause),
    /// Its pool shrank or went away.
    ScaledDown,
    /// Its pool's template changed while it was warm.
    Outdated,
    /// It had failed and is cleaned away.
    Failed,
}

/// How the sandbox's own command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Id.
    pub id: SandboxId,
    /// Owner.
    pub tenant: TenantId,
    /// Pool it was made for; `None` when it was made without one.
    pub pool: Option<PoolId>,
    /// That pool's name: kept because a sandbox outlives its pool in the records.
    pub pool_name: Option<PoolName>,
    /// Template version it was made from, if any.
    pub template: Option<TemplateRef>,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// The image that `spec.image` meant when it was made: the name may mean another by now, or nothing.
    #[serde(default)]
    pub image: Option<Image>,
    /// Name of the driver that keeps it.
    pub driver: String,
    /// The driver's own note; present from `Ready` on.
    pub handle: Option<DriverHandle>,
    /// State.
    pub state: State,
    /// Counts the writes, from 1. Every write names the generation it read.
    pub generation: u64,
    /// The claim, from `Running` on; kept after the end for the records.
    pub lease: Option<Lease>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When it became `Ready` (or went straight to `Running`).
    pub ready_at: Option<Timestamp>,
    /// When it was last paused.
    pub paused_at: Option<Timestamp>,
    /// When it was asked to stop.
    pub stopping_at: Option<Timestamp>,
    /// When it was gone, failed or expired.
    pub ended_at: Option<Timestamp>,
    /// Last time that somebody used it. The store may know an older one than `control`.
    pub last_activity_at: Timestamp,
    /// Why it was stopped.
    pub stop_cause: Option<StopCause>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// How its command ended.
    pub exit: Option<ExitInfo>,
}

impl Sandbox {
    /// A new record in state `Provisioning`, generation 1.
    #[must_use]
    pub fn provisioning(id: SandboxId, tenant: TenantId, spec: SandboxSpec, driver: &str, now: Timestamp) -> Self {
        Self {
            id,
            tenant,
            pool: None,
            pool_name: None,
            template: None,
            spec,
            image: None,
            driver: driver.to_owned(),
            handle: None,
            state: State::Provisioning,
            generation: 1,
            lease: None,
            created_at: now,
            ready_at: None,
            paused_at: None,
            stopping_at: None,
            ended_at: None,
            last_activity_at: now,
            stop_cause: None,
            failure: None,
            exit: None,
        }
    }

    /// Which clock has ended the lease at `now`. `None` when there is no lease, it still runs, or the state is one that no
    /// clock ends.
    #[must_use]
    pub fn expiry(&self, now: Timestamp) -> Option<ExpiryCause> {
        self.deadline().filter(|(at, _)| *at <= now).map(|(_, cause)| cause)
    }

    /// When the lease will end by itself if nothing happens, and which clock will end it. `None` when there is no lease, it
    /// has no end, or the state is one that no clock ends.
    #[must_use]
    pub fn deadline(&self) -> Option<(Timestamp, ExpiryCause)> {
        if !self.state.lease_clock_runs() {
            return None;
        }
        let lease = self.lease.as_ref()?;
        if self.state == State::Paused {
            // A paused sandbox is idle by intent: only the absolute end counts.
            return lease.expires_at.map(|at| (at, ExpiryCause::Deadline));
        }
        lease.deadline(self.last_activity_at)
    }
}
