//! Pause, resume, renew, release.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_driver::{Driver, DriverError, Target};
use sandbank_model::{
    Actor, Command, DriverHandle, Event, EventKind, EventSeq, FailureReason, LeaseChange, Refusal, Sandbox, SandboxId, State,
    StopCause, Timeout,
};

use crate::control::{Control, Inner};
use crate::limits::check_duration;
use crate::sandboxes::{live_lease, not_found};
use crate::types::{Caller, Id, SandboxView};
use crate::{Detail, Error, ErrorKind, Result, telemetry};

/// Longest time for freezing or thawing.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(30);

impl Control {
    /// Gives it back: answered when the record says `Stopping`; the destruction follows. Ended ones: NotFound.
    pub async fn release(&self, caller: &Caller, id: Id) -> Result<SandboxView> {
        let inner = &self.inner;
        let found = inner.sandbox_of(caller, id).await?;
        if found.state == State::Stopping {
            return inner.view(found).await;
        }
        let mut begun = false;
        let stopped = inner
            .advance(id, &caller.actor(), |sandbox, _| match sandbox.state {
                State::Stopping => Ok(None),
                State::Terminated | State::Failed => Err(not_found(caller, id)),
                _ => {
                    begun = true;
                    Ok(Some(Command::BeginStop(StopCause::Released)))
                }
            })
            .await?;
        if begun {
            inner.destroy_stopping(&stopped);
        }
        inner.view(stopped).await
    }

    /// Freezes it; at most one commit. A paused one is refused (`State`).
    pub async fn pause(&self, caller: &Caller, id: Id) -> Result<SandboxView> {
        let (inner, begun) = (&self.inner, Instant::now());
        let _exclusive = inner.sandbox_locks.lock(id).await;
        let sandbox = inner.sandbox_of(caller, id).await?;
        live_lease(&sandbox, inner.now())?;
        match sandbox.state {
            State::Running => {}
            State::Paused | State::Pausing => return Err(Refusal::Already { state: State::Paused }.into()),
            state => return Err(Refusal::State { state, wanted: "paused" }.into()),
        }
        let paused = inner.freeze(&sandbox, Command::FinishPause, &caller.actor()).await?;
        telemetry::stage("pause", begun.elapsed());
        inner.view(paused).await
    }

    /// Thaws it; at most one commit. A running one is refused (`State`).
    pub async fn resume(&self, caller: &Caller, id: Id) -> Result<SandboxView> {
        let (inner, begun) = (&self.inner, Instant::now());
        let _exclusive = inner.sandbox_locks.lock(id).await;
        let sandbox = inner.sandbox_of(caller, id).await?;
        live_lease(&sandbox, inner.now())?;
        match sandbox.state {
            State::Paused => {}
            State::Running | State::Resuming => return Err(Refusal::Already { state: State::Running }.into()),
            state => return Err(Refusal::State { state, wanted: "resumed" }.into()),
        }
        let (driver, handle) = inner.target_of(&sandbox)?;
        let target = Target { id, handle: &handle };
        inner.freezing(id, driver.resume(target)).await?;
        let resumed = inner
            .advance(id, &caller.actor(), |sandbox, now| {
                live_lease(sandbox, now)?;
                Ok(Some(Command::FinishResume))
            })
            .await;
        let resumed = match resumed {
            Ok(resumed) => resumed,
            Err(error) => {
                // The record says paused, so the sandbox must be: freezing again makes the failed resume have no effect.
                let again = inner.freezing(id, driver.pause(target)).await;
                tracing::debug!(sandbox = %id, again = again.is_ok(), "a resume was not recorded and was undone");
                return Err(error);
            }
        };
        inner.activity.touch(id, inner.now());
        inner.trust_again(&resumed).await;
        telemetry::stage("resume", begun.elapsed());
        inner.view(resumed).await
    }

    /// Changes the lease's clocks. Counts as activity.
    pub async fn renew(&self, caller: &Caller, id: Id, change: LeaseChange) -> Result<SandboxView> {
        check_duration("timeout", change.expires.and_then(Timeout::duration))?;
        check_duration("idleTimeout", change.idle.and_then(Timeout::duration))?;
        if change.expires.is_none() && change.idle.is_none() && change.on_expiry.is_none() {
            return Err(Error::invalid("nothing to change: give a timeout, an idle timeout or an action at expiry"));
        }
        let inner = &self.inner;
        let found = inner.sandbox_of(caller, id).await?;
        if let Some(action) = change.on_expiry {
            inner.check_expiry_action(&found.driver, action)?;
        }
        let renewed = inner
            .advance(id, &caller.actor(), |sandbox, _| match sandbox.state {
                State::Terminated | State::Failed => Err(not_found(caller, id)),
                _ => Ok(Some(Command::Renew(change))),
            })
            .await?;
        inner.activity.touch(id, inner.now());
        inner.view(renewed).await
    }
}

/// An event about a sandbox that belongs to no transition.
pub(crate) fn event_of(sandbox: &Sandbox, kind: EventKind, actor: Actor, at: sandbank_model::Timestamp) -> Event {
    let (tenant, pool) = (sandbox.tenant, sandbox.pool);
    Event { seq: EventSeq(0), at, tenant, sandbox: Some(sandbox.id), pool, kind, actor }
}

impl Inner {
    /// The driver of a sandbox that exists, and the driver's note on it.
    pub(crate) fn target_of(&self, sandbox: &Sandbox) -> Result<(Arc<dyn Driver>, DriverHandle)> {
        let handle = sandbox.handle.clone().ok_or_else(|| {
            let message = format!("sandbox {} is {}: there is nothing to operate on", sandbox.id, sandbox.state.as_str());
            Error::new(ErrorKind::State, message).with(Detail::State(sandbox.state))
        })?;
        Ok((Arc::clone(self.driver(&sandbox.driver)?), handle))
    }

    /// Freezes a running sandbox and records `command`; what is not recorded is undone. The caller holds its lock.
    pub(crate) async fn freeze(self: &Arc<Self>, sandbox: &Sandbox, command: Command, actor: &Actor) -> Result<Sandbox> {
        let (driver, handle) = self.target_of(sandbox)?;
        let id = sandbox.id;
        let target = Target { id, handle: &handle };
        self.freezing(id, driver.pause(target)).await?;
        let recorded = self
            .advance(id, actor, |sandbox, _| match sandbox.state {
                State::Running => Ok(Some(command.clone())),
                state => Err(Refusal::State { state, wanted: "paused" }.into()),
            })
            .await;
        if recorded.is_err() {
            let undone = self.freezing(id, driver.resume(target)).await;
            tracing::debug!(sandbox = %id, undone = undone.is_ok(), "a pause was not recorded and was undone");
        }
        recorded
    }

    /// Waits for a freeze or thaw, not for ever. A sandbox that the driver no longer has is recorded as failed.
    async fn freezing(
        self: &Arc<Self>,
        id: SandboxId,
        change: impl Future<Output = std::result::Result<(), DriverError>> + Send,
    ) -> Result<()> {
        let waited_ms = u64::try_from(FREEZE_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        let timed_out = DriverError::TimedOut { what: "the driver", waited_ms };
        let done = tokio::time::timeout(FREEZE_TIMEOUT, change).await.unwrap_or(Err(timed_out));
        if let Err(DriverError::Gone { .. }) = &done {
            self.fail(id, FailureReason::AgentDied, "the driver no longer has it").await?;
        }
        Ok(done?)
    }
}
