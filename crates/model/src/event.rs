//! Events: one for each transition. The log is append-only and is the audit trail.

use serde::{Deserialize, Serialize};

use crate::{EventSeq, ExpiryCause, FailureReason, PoolId, SandboxId, SnapshotId, StopCause, TenantId, Timestamp};

/// Who caused an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Name of the principal, or `system` for reconcilers and timers.
    pub name: String,
    /// The request that led to it, if one did.
    pub request_id: Option<String>,
}

impl Actor {
    /// A reconciler, a timer or the recovery.
    #[must_use]
    pub fn system() -> Self {
        Self { name: "system".to_owned(), request_id: None }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A sandbox record was made.
    Created,
    /// The driver made it; it waits for a claim.
    Ready,
    /// It was claimed.
    Claimed,
    /// Pausing began.
    Pausing,
    /// It is paused.
    Paused,
    /// Resuming began.
    Resuming,
    /// It runs again.
    Resumed,
    /// The lease's clocks were changed.
    Renewed,
    /// Other ports are public now.
    PortAccessChanged,
    /// All port tokens given out before were revoked.
    PortTokensRevoked,
    /// The lease ended by itself.
    Expired(ExpiryCause),
    /// It is being stopped.
    Stopping(StopCause),
    /// It is gone.
    Terminated,
    /// It failed.
    Failed(FailureReason),
    /// Its command ended with this code.
    CommandExited(i32),
    /// A process inside was killed because the sandbox was out of memory; the sandbox lives.
    OutOfMemory,
    /// Its file system was committed to an image of this name.
    Committed(String),
    /// A snapshot of this id was taken of its file system.
    Snapshotted(SnapshotId),
    /// So many others were made of its file system.
    Forked(u32),
    /// What it may reach was changed.
    NetworkChanged,
    /// Connections that it tried were refused, as its network policy says: some of where they went to, and how many they were in a
    /// while.
    NetworkDenied {
        /// `address:port` (port 0 for what has none) or `name:port`, each once; not all of them. Names are the sandbox's words.
        destinations: Vec<String>,
        /// All of them.
        count: u64,
    },
    /// A pool was made.
    PoolCreated,
    /// A pool's settings changed.
    PoolUpdated,
    /// A pool's replicas were changed by its autoscaler: from, to.
    PoolScaled(u32, u32),
    /// A pool is being deleted.
    PoolDeleted,
}

impl EventKind {
    /// The word that dialects and filters use.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Resumed => "resumed",
            Self::Renewed => "renewed",
            Self::PortAccessChanged => "port-access-changed",
            Self::PortTokensRevoked => "port-tokens-revoked",
            Self::Expired(_) => "expired",
            Self::Stopping(_) => "stopping",
            Self::Terminated => "terminated",
            Self::Failed(_) => "failed",
            Self::CommandExited(_) => "command-exited",
            Self::OutOfMemory => "out-of-memory",
            Self::Committed(_) => "committed",
            Self::Snapshotted(_) => "snapshotted",
            Self::Forked(_) => "forked",
            Self::NetworkChanged => "network-changed",
            Self::NetworkDenied { .. } => "network-denied",
            Self::PoolCreated => "pool-created",
            Self::PoolUpdated => "pool-updated",
            Self::PoolScaled(..) => "pool-scaled",
            Self::PoolDeleted => "pool-deleted",
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Position; given by the store when it is appended, 0 before.
    pub seq: EventSeq,
    /// When.
    pub at: Timestamp,
    /// Whose object.
    pub tenant: TenantId,
    /// Which sandbox, if it is about one.
    pub sandbox: Option<SandboxId>,
    /// Which pool, if it is about one or its sandbox belongs to one.
    pub pool: Option<PoolId>,
    /// What.
    pub kind: EventKind,
    /// By whom.
    pub actor: Actor,
}
