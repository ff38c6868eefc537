//! The sandbox's state machine. [`transition`] is the only way from one state to another.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Actor, DriverHandle, Event, EventKind, EventSeq, ExitInfo, ExpiryCause, Failure, Lease, LeaseChange, NetworkPolicy,
    PortAccessChange, Sandbox, StopCause, Timeout, Timestamp,
};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// The record exists, the driver is making it.
    Provisioning,
    /// Warm: made, unclaimed.
    Ready,
    /// Claimed and running.
    Running,
    /// Being paused.
    Pausing,
    /// Frozen, still claimed.
    Paused,
    /// Being resumed.
    Resuming,
    /// Being destroyed.
    Stopping,
    /// Gone.
    Terminated,
    /// Broken. What is left of it is cleaned away.
    Failed,
    /// Its lease ended and the policy is to keep it.
    Expired,
}

impl State {
    /// All states.
    pub const ALL: [Self; 10] = [
        Self::Provisioning,
        Self::Ready,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Terminated,
        Self::Failed,
        Self::Expired,
    ];

    /// The word that the store and the logs use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Terminated => "terminated",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }

    /// The inverse of [`State::as_str`].
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Something of it may exist on the machine: it counts against quotas and must be cleaned away in the end.
    #[must_use]
    pub const fn is_live(self) -> bool {
        match self {
            Self::Provisioning
            | Self::Ready
            | Self::Running
            | Self::Pausing
            | Self::Paused
            | Self::Resuming
            | Self::Stopping
            | Self::Expired => true,
            Self::Terminated | Self::Failed => false,
        }
    }

    /// A holder has it.
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        matches!(self, Self::Running | Self::Pausing | Self::Paused | Self::Resuming | Self::Expired)
    }

    /// Operations inside (exec, files, ports) are possible.
    #[must_use]
    pub const fn is_operable(self) -> bool {
        matches!(self, Self::Running)
    }

    /// The lease's clocks can end it.
    #[must_use]
    pub const fn lease_clock_runs(self) -> bool {
        matches!(self, Self::Running | Self::Pausing | Self::Paused | Self::Resuming)
    }
}

/// What may be asked of a sandbox's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The driver has made it: warm.
    MarkReady(DriverHandle),
    /// The driver has made it for a holder who was waiting: straight to `Running`.
    MarkReadyClaimed(DriverHandle, Box<Lease>),
    /// Hand it out.
    Claim(Box<Lease>),
    /// Pausing begins (drivers whose pause takes time).
    BeginPause,
    /// It is frozen.
    FinishPause,
    /// Resuming begins (drivers whose resume takes time).
    BeginResume,
    /// It runs again.
    FinishResume,
    /// Change the lease's clocks.
    Renew(LeaseChange),
    /// Let it reach this from now on; `None`: what its spec says, else the default.
    SetNetwork(Option<Arc<NetworkPolicy>>),
    /// Change who may reach its ports.
    ChangePortAccess(PortAccessChange),
    /// The lease has ended and the policy is to keep the sandbox.
    ExpireAndKeep(ExpiryCause),
    /// Destroy it.
    BeginStop(StopCause),
    /// It is gone.
    FinishStop,
    /// It is broken.
    Fail(Failure),
    /// Its command has ended.
    CommandExited(ExitInfo),
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The state does not allow it.
    #[error("a sandbox that is {state} cannot be {wanted}", state = .state.as_str())]
    State {
        /// State found.
        state: State,
        /// What was asked, as a participle: "paused", "claimed".
        wanted: &'static str,
    },
    /// The lease has ended.
    #[error("the sandbox's lease has ended ({})", match .cause { ExpiryCause::Deadline => "its time was up", ExpiryCause::Idle => "it was idle for too long" })]
    LeaseEnded {
        /// Which clock ended it.
        cause: ExpiryCause,
    },
    /// It is already so: asking again changes nothing.
    #[error("the sandbox is already {state}", state = .state.as_str())]
    Already {
        /// State found.
        state: State,
    },
}

impl Command {
    const fn wanted(&self) -> &'static str {
        match self {
            Self::MarkReady(_) | Self::MarkReadyClaimed(..) => "marked ready",
            Self::Claim(_) => "claimed",
            Self::BeginPause | Self::FinishPause => "paused",
            Self::BeginResume | Self::FinishResume => "resumed",
            Self::Renew(_) => "renewed",
            Self::SetNetwork(_) => "given another network policy",
            Self::ChangePortAccess(_) => "opened to others",
            Self::ExpireAndKeep(_) => "expired",
            Self::BeginStop(_) => "stopped",
            Self::FinishStop => "terminated",
            Self::Fail(_) => "marked failed",
            Self::CommandExited(_) => "told that its command ended",
        }
    }
}

/// Applies `command` at `now`: the record as it is afterwards and the event that tells of it, or why not.
///
/// The generation of the result is one more than that of `sandbox`; the event's `seq` is 0 until the store appends it.
pub fn transition(sandbox: &Sandbox, command: Command, actor: &Actor, now: Timestamp) -> Result<(Sandbox, Event), Refusal> {
    let mut next = sandbox.clone();
    let kind = apply(&mut next, command, now)?;
    next.generation = sandbox.generation.saturating_add(1);
    let event = Event {
        seq: EventSeq(0),
        at: now,
        tenant: next.tenant,
        sandbox: Some(next.id),
        pool: next.pool,
        kind,
        actor: actor.clone(),
    };
    Ok((next, event))
}

fn apply(next: &mut Sandbox, command: Command, now: Timestamp) -> Result<EventKind, Refusal> {
    use State::{Expired, Failed, Paused, Pausing, Provisioning, Ready, Resuming, Running, Stopping, Terminated};
    let refused = |state: State, command: &Command| Err(Refusal::State { state, wanted: command.wanted() });
    match (next.state, command) {
        (Provisioning, Command::MarkReady(handle)) => {
            next.handle = Some(handle);
            next.ready_at = Some(now);
            next.state = Ready;
            Ok(EventKind::Ready)
        }
        (Provisioning, Command::MarkReadyClaimed(handle, lease)) => {
            next.handle = Some(handle);
            next.ready_at = Some(now);
            Ok(claim(next, *lease, now))
        }
        (Ready, Command::Claim(lease)) => Ok(claim(next, *lease, now)),
        (Running, Command::BeginPause) => {
            live_lease(next, now)?;
            next.state = Pausing;
            Ok(EventKind::Pausing)
        }
        // A driver that freezes at once skips `Pausing`; an expired lease whose policy is to pause ends here too.
        (Running | Pausing, Command::FinishPause) => {
            next.state = Paused;
            next.paused_at = Some(now);
            Ok(EventKind::Paused)
        }
        (Pausing | Paused, Command::BeginPause) | (Paused, Command::FinishPause) => Err(Refusal::Already { state: next.state }),
        (Paused, Command::BeginResume) => {
            live_lease(next, now)?;
            next.state = Resuming;
            Ok(EventKind::Resuming)
        }
        (Paused | Resuming, Command::FinishResume) => {
            if next.state == Paused {
                live_lease(next, now)?;
            }
            next.state = Running;
            next.last_activity_at = next.last_activity_at.max(now);
            Ok(EventKind::Resumed)
        }
        (Resuming | Running, Command::BeginResume) | (Running, Command::FinishResume) => {
            Err(Refusal::Already { state: next.state })
        }
        (Running | Pausing | Paused | Resuming, Command::Renew(change)) => {
            // A lease that ended into a pause can be renewed: that is what the pause was for.
            if next.state != Paused {
                live_lease(next, now)?;
            }
            renew(next, change, now);
            Ok(EventKind::Renewed)
        }
        (Running | Pausing | Paused | Resuming, Command::SetNetwork(policy)) => {
            live_lease(next, now)?;
            if let Some(lease) = next.lease.as_mut() {
                lease.network = policy;
            }
            Ok(EventKind::NetworkChanged)
        }
        (Running | Pausing | Paused | Resuming, Command::ChangePortAccess(change)) => {
            live_lease(next, now)?;
            Ok(change_port_access(next, change))
        }
        (Running | Pausing | Paused | Resuming, Command::ExpireAndKeep(cause)) => {
            next.state = Expired;
            next.ended_at = Some(now);
            Ok(EventKind::Expired(cause))
        }
        (Provisioning | Ready | Running | Pausing | Paused | Resuming | Expired, Command::BeginStop(cause)) => {
            next.state = Stopping;
            next.stopping_at = Some(now);
            next.stop_cause = Some(cause);
            Ok(EventKind::Stopping(cause))
        }
        (Stopping, Command::BeginStop(_)) => Err(Refusal::Already { state: Stopping }),
        (Stopping, Command::FinishStop) => {
            next.state = Terminated;
            next.ended_at = Some(now);
            next.handle = None;
            Ok(EventKind::Terminated)
        }
        (Terminated, Command::FinishStop) => Err(Refusal::Already { state: Terminated }),
        (Provisioning | Ready | Running | Pausing | Paused | Resuming | Expired, Command::Fail(failure)) => {
            let kind = EventKind::Failed(failure.reason);
            next.failure = Some(failure);
            next.state = Failed;
            next.ended_at = Some(now);
            Ok(kind)
        }
        (Failed, Command::Fail(_)) => Err(Refusal::Already { state: Failed }),
        (Ready | Running | Pausing | Paused | Resuming, Command::CommandExited(exit)) => {
            let kind = EventKind::CommandExited(exit.code);
            next.exit = Some(exit);
            Ok(kind)
        }
        (state, command) => refused(state, &command),
    }
}

fn claim(next: &mut Sandbox, lease: Lease, now: Timestamp) -> EventKind {
    next.lease = Some(lease);
    next.last_activity_at = next.last_activity_at.max(now);
    next.state = State::Running;
    EventKind::Claimed
}

fn change_port_access(next: &mut Sandbox, change: PortAccessChange) -> EventKind {
    // A claimed sandbox has a lease.
    let mut access = next.lease.as_mut().map(|lease| &mut lease.ports);
    match change {
        PortAccessChange::Public(public) => {
            if let Some(access) = &mut access {
                access.public = public;
            }
            EventKind::PortAccessChanged
        }
        PortAccessChange::RevokeTokens => {
            if let Some(access) = &mut access {
                access.token_generation = access.token_generation.wrapping_add(1);
            }
            EventKind::PortTokensRevoked
        }
    }
}

fn live_lease(sandbox: &Sandbox, now: Timestamp) -> Result<(), Refusal> {
    sandbox.expiry(now).map_or(Ok(()), |cause| Err(Refusal::LeaseEnded { cause }))
}

fn renew(next: &mut Sandbox, change: LeaseChange, now: Timestamp) {
    let LeaseChange { expires, idle, only_extend, on_expiry } = change;
    let Some(lease) = next.lease.as_mut() else {
        return;
    };
    if let Some(timeout) = expires {
        let wanted = timeout.duration().map(|life: Duration| now.plus(life));
        lease.expires_at = match (lease.expires_at, wanted) {
            (Some(old), Some(new)) if only_extend => Some(old.max(new)),
            (None, Some(_)) if only_extend => None,
            (_, wanted) => wanted,
        };
    }
    if let Some(timeout) = idle {
        lease.idle_timeout = Timeout::duration(timeout);
    }
    if let Some(action) = on_expiry {
        lease.on_expiry = action;
    }
    next.last_activity_at = next.last_activity_at.max(now);
}
