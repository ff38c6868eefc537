//! Acting on leases that have ended. Requests never wait for this: they evaluate deadlines themselves.

use std::sync::Arc;
use std::time::Duration;

use sandbank_driver::Capability;
use sandbank_model::{Actor, Command, ExpiryAction, ExpiryCause, Sandbox, SandboxId, State, StopCause};

use crate::Result;
use crate::control::Inner;

/// Sandboxes that are taken from the queue at once.
const BATCH: usize = 64;
/// The wall clock may jump: the queue is looked at this often even when its first entry seems far away.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// What could not be ended is tried again after so long.
const RETRY: Duration = Duration::from_secs(2);

impl Inner {
    /// Ends leases as they come due, until the server closes.
    pub(crate) async fn run_expiry(self: Arc<Self>) {
        loop {
            let now = self.now();
            let due = self.deadlines.due(now, BATCH);
            let full = due.len() == BATCH;
            for id in due {
                // Each on its own: one whose driver hangs must not hold up the others.
                let inner = Arc::clone(&self);
                self.tasks.spawn(async move { inner.expire(id).await });
            }
            if full {
                tokio::task::yield_now().await;
                continue;
            }
            let wait = self.deadlines.next().map_or(LOOK_AT_LEAST, |at| at.since(self.now()).min(LOOK_AT_LEAST));
            tokio::select! {
                () = self.tasks.closing.cancelled() => return,
                () = self.deadlines.changed() => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// Ends one lease if it has ended; else looks again when it may have.
    async fn expire(self: &Arc<Self>, id: SandboxId) {
        if let Err(error) = self.expire_once(id).await {
            tracing::warn!(sandbox = %id, error = %error, "a lease that has ended could not be acted on; it is tried again");
            self.deadlines.arm(id, self.now().plus(RETRY));
        }
    }

    async fn expire_once(self: &Arc<Self>, id: SandboxId) -> Result<()> {
        let _exclusive = self.sandbox_locks.lock(id).await;
        let Some(sandbox) = self.record(id).await? else {
            return Ok(());
        };
        let Some(cause) = sandbox.expiry(self.now()) else {
            self.deadlines.arm_for(&sandbox);
            return Ok(());
        };
        match sandbox.lease.as_ref().map(|lease| lease.on_expiry).unwrap_or_default() {
            ExpiryAction::Kill => self.expire_and_kill(id).await,
            ExpiryAction::Pause => self.expire_into_pause(&sandbox).await,
            ExpiryAction::Keep => self.expire_and_keep(&sandbox, cause).await,
        }
    }

    async fn expire_and_kill(self: &Arc<Self>, id: SandboxId) -> Result<()> {
        let stopped = self
            .advance(id, &Actor::system(), |sandbox, now| {
                // A renewal that came first wins.
                Ok(sandbox.expiry(now).map(|cause| Command::BeginStop(StopCause::Expired(cause))))
            })
            .await?;
        if stopped.state == State::Stopping && matches!(stopped.stop_cause, Some(StopCause::Expired(_))) {
            self.destroy_stopping(&stopped);
        } else {
            self.deadlines.arm_for(&stopped);
        }
        Ok(())
    }

    async fn expire_into_pause(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        match sandbox.state {
            // A renewal during the freeze would find it paused: that is where an ended lease with this policy is.
            State::Running => self.freeze(sandbox, Command::FinishPause, &Actor::system()).await.map(|_| ()),
            State::Pausing | State::Resuming => {
                self.deadlines.arm(sandbox.id, self.now().plus(RETRY));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn expire_and_keep(self: &Arc<Self>, sandbox: &Sandbox, cause: ExpiryCause) -> Result<()> {
        let command = Command::ExpireAndKeep(cause);
        let freezes = self.driver(&sandbox.driver)?.capabilities().has(Capability::Pause);
        if sandbox.state == State::Running && freezes {
            return self.freeze(sandbox, command, &Actor::system()).await.map(|_| ());
        }
        self.advance(sandbox.id, &Actor::system(), |sandbox, now| Ok(sandbox.expiry(now).map(Command::ExpireAndKeep))).await?;
        Ok(())
    }
}
