//! Leases: what a claim gives, and for how long.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AssignmentId, EnvMap, NetworkPolicy, PortAccess, StringMap, Timestamp};

/// What happens when a lease ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ExpiryAction {
    /// The sandbox is destroyed.
    #[default]
    Kill,
    /// The sandbox is paused and stays claimed; renewing and resuming it brings it back.
    Pause,
    /// The sandbox is kept, frozen as it is, in state `Expired`, until somebody releases it.
    Keep,
}

/// Which clock ended a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExpiryCause {
    /// `expires_at` has passed.
    Deadline,
    /// Nothing was asked of it for `idle_timeout`.
    Idle,
}

/// A timeout as a request spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Never.
    Off,
    /// This long from now.
    After(Duration),
}

impl Timeout {
    /// The longest timeout that is accepted: ten years.
    pub const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

    /// The duration, `None` when off.
    #[must_use]
    pub const fn duration(self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::After(duration) => Some(duration),
        }
    }
}

/// What a claim personalises. The host applies it on every operation, so that a claim touches nothing inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who claimed it: the principal's name.
    pub holder: String,
    /// This claim.
    pub assignment: AssignmentId,
    /// When it was claimed.
    pub claimed_at: Timestamp,
    /// Absolute end; `None`: no end.
    pub expires_at: Option<Timestamp>,
    /// Longest time without activity; `None`: unlimited.
    pub idle_timeout: Option<Duration>,
    /// What happens at the end.
    pub on_expiry: ExpiryAction,
    /// The holder's own words.
    pub metadata: StringMap,
    /// Labels of this claim.
    pub labels: StringMap,
    /// Annotations of this claim.
    pub annotations: StringMap,
    /// Environment added to that of the spec.
    pub env: EnvMap,
    /// What the sandbox may reach, in place of what the spec says.
    #[serde(default, with = "crate::shared")]
    pub network: Option<Arc<NetworkPolicy>>,
    /// Who may reach its ports.
    #[serde(default, skip_serializing_if = "PortAccess::is_default")]
    pub ports: PortAccess,
}

impl Lease {
    /// Which clock has ended this lease at `now`, the last activity having been at `last_activity_at`.
    #[must_use]
    pub fn expiry(&self, last_activity_at: Timestamp, now: Timestamp) -> Option<ExpiryCause> {
        match self.deadline(last_activity_at) {
            Some((at, cause)) if at <= now => Some(cause),
            _ => None,
        }
    }

    /// When this lease will end by itself if nothing happens, and which clock will end it.
    #[must_use]
    pub fn deadline(&self, last_activity_at: Timestamp) -> Option<(Timestamp, ExpiryCause)> {
        let absolute = self.expires_at.map(|at| (at, ExpiryCause::Deadline));
        let idle = self.idle_timeout.map(|life| (last_activity_at.plus(life), ExpiryCause::Idle));
        match (absolute, idle) {
            (Some(a), Some(i)) => Some(if a.0 <= i.0 { a } else { i }),
            (a, i) => a.or(i),
        }
    }
}

/// A change of a running lease's clocks. `None` leaves a clock as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseChange {
    /// New absolute end, measured from now.
    pub expires: Option<Timeout>,
    /// New idle life.
    pub idle: Option<Timeout>,
    /// Only ever move the absolute end later, never earlier.
    pub only_extend: bool,
    /// New action at the end.
    pub on_expiry: Option<ExpiryAction>,
}
