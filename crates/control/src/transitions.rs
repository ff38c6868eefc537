//! Writing transitions: read, decide, write conditionally, and decide again when somebody was faster.

use std::sync::Arc;

use sandbank_model::{Actor, Command, Failure, FailureReason, Sandbox, SandboxId, State, Timestamp, transition};
use sandbank_store::Write;

use crate::control::Inner;
use crate::{Error, ErrorKind, Result};

/// How often a decision is made anew before the caller is told to try again.
const TRIES: usize = 16;
/// Longest message in a failure, characters.
const FAILURE_MESSAGE_MAX: usize = 1000;

impl Inner {
    /// One record with its last activity; `None` when there is none.
    pub(crate) async fn record(&self, id: SandboxId) -> Result<Option<Sandbox>> {
        let mut found = self.store.sandbox_get(id).await?;
        if let Some(sandbox) = &mut found {
            self.freshen(sandbox);
        }
        Ok(found)
    }

    /// Puts into a record what only `control` knows: its last activity, which is now while a stream into it is open.
    pub(crate) fn freshen(&self, sandbox: &mut Sandbox) {
        self.activity.overlay(sandbox);
        if sandbox.state.is_operable() && self.streams.any(sandbox.id) {
            sandbox.last_activity_at = sandbox.last_activity_at.max(self.now());
        }
    }

    /// Writes what `command` makes of `sandbox`, if its record is still that.
    pub(crate) async fn write(&self, sandbox: &Sandbox, command: Command, actor: &Actor) -> Result<Write<Sandbox>> {
        let (next, event) = transition(sandbox, command, actor, self.now())?;
        let outcome = self.store.sandbox_update(next, sandbox.generation, event).await?;
        if let Write::Updated(written) = &outcome {
            self.settle(written);
        }
        Ok(outcome)
    }

    /// Decides on the record as it is until the write is accepted. `decide` gives no command when nothing is left to do.
    pub(crate) async fn advance(
        &self,
        id: SandboxId,
        actor: &Actor,
        mut decide: impl FnMut(&Sandbox, Timestamp) -> Result<Option<Command>> + Send,
    ) -> Result<Sandbox> {
        let missing = || Error::not_found(format!("sandbox {id} not found"));
        let mut sandbox = self.record(id).await?.ok_or_else(missing)?;
        for _ in 0..TRIES {
            let Some(command) = decide(&sandbox, self.now())? else {
                return Ok(sandbox);
            };
            match self.write(&sandbox, command, actor).await? {
                Write::Updated(written) => return Ok(written),
                Write::Refused(current) => sandbox = current,
                Write::Missing => return Err(missing()),
            }
            self.freshen(&mut sandbox);
        }
        Err(Error::new(ErrorKind::Conflict, format!("sandbox {id} is being changed by others all the time: try again")))
    }

    /// What follows from every write: timers, streams, the pool.
    pub(crate) fn settle(&self, sandbox: &Sandbox) {
        match sandbox.state {
            State::Running | State::Pausing | State::Paused | State::Resuming => {
                if !sandbox.state.is_operable() {
                    self.port_closers.tell(sandbox.id);
                }
                self.deadlines.arm_for(sandbox);
            }
            State::Ready => {
                if let Some(pool) = sandbox.pool {
                    self.pools.get(pool).wake_first();
                }
            }
            State::Failed | State::Terminated => {
                self.port_closers.tell(sandbox.id);
                self.deadlines.disarm(sandbox.id);
                self.networks.remove(sandbox.id);
                self.activity.forget(sandbox.id);
                self.streams.end(sandbox.id);
                self.pools.poke(sandbox.pool);
                self.pools.poke_held_back();
            }
            State::Stopping | State::Expired => {
                self.port_closers.tell(sandbox.id);
                self.deadlines.disarm(sandbox.id);
                self.pools.poke(sandbox.pool);
            }
            State::Provisioning => {}
        }
    }

    /// Records that a sandbox is broken and cleans away what is left of it. Nothing happens when it is ending already.
    pub(crate) async fn fail(self: &Arc<Self>, id: SandboxId, reason: FailureReason, message: &str) -> Result<()> {
        let message: String = message.chars().take(FAILURE_MESSAGE_MAX).collect();
        let written = self
            .advance(id, &Actor::system(), |sandbox, _| {
                let endable = sandbox.state.is_live() && sandbox.state != State::Stopping;
                Ok(endable.then(|| Command::Fail(Failure { reason, message: message.clone() })))
            })
            .await?;
        if written.state == State::Failed {
            tracing::warn!(sandbox = %id, reason = reason.as_str(), message, "sandbox failed");
            self.destroy_remains(&written);
        }
        Ok(())
    }
}
