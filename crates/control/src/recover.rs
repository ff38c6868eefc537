//! Taking over what an earlier server left.
//!
//! Absolute deadlines went on while no server ran; the idle clocks did not: they begin again at the restart, so that nobody's
//! sandbox expires because the server was down.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use sandbank_driver::{Adopted, Driver, Target};
use sandbank_model::{Actor, Command, Failure, FailureReason, Sandbox, State};

use crate::Result;
use crate::control::{Control, Inner};
use crate::types::Recovery;

/// Sandboxes that are put in order at the same time: enough that the store commits many together.
const CONCURRENCY: usize = 256;

/// What became of one recorded sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Adopted,
    Lost,
    Cleaned,
}

impl Control {
    /// Takes over what an earlier server left. Must end before anything is served.
    pub async fn recover(&self) -> Result<Recovery> {
        let inner = &self.inner;
        inner.record_builtin_image().await?;
        let mut by_driver: BTreeMap<String, Vec<Sandbox>> = BTreeMap::new();
        for sandbox in inner.store.sandbox_live().await? {
            by_driver.entry(sandbox.driver.clone()).or_default().push(sandbox);
        }
        for name in by_driver.keys().filter(|name| !inner.drivers.contains_key(*name)) {
            tracing::warn!(driver = name, "sandboxes of a driver that is not configured any more are left as they are");
        }
        let mut recovery = Recovery::default();
        for (name, driver) in &inner.drivers {
            let sandboxes = by_driver.remove(name).unwrap_or_default();
            inner.recover_driver(driver, sandboxes, &mut recovery).await?;
        }
        inner.recover_builds().await?;
        inner.keep_collecting_layers();
        tracing::info!(
            adopted = recovery.adopted,
            lost = recovery.lost,
            cleaned = recovery.cleaned,
            orphans = recovery.orphans,
            "took over what the earlier server left"
        );
        Ok(recovery)
    }
}

impl Inner {
    async fn recover_driver(
        self: &Arc<Self>,
        driver: &Arc<dyn Driver>,
        sandboxes: Vec<Sandbox>,
        recovery: &mut Recovery,
    ) -> Result<()> {
        // Half-made ones are not claimed to be known: the driver destroys them with everything else that no record vouches for.
        let known = sandboxes.iter().filter(|sandbox| !matches!(sandbox.state, State::Provisioning | State::Stopping));
        let known = known.map(|sandbox| (sandbox.id, sandbox.handle.clone())).collect();
        let adopted = driver.adopt(known).await?;
        let unfinished: Vec<_> = sandboxes
            .iter()
            .filter(|sandbox| matches!(sandbox.state, State::Provisioning | State::Stopping))
            .map(|sandbox| sandbox.id)
            .collect();
        recovery.orphans += adopted.orphans.iter().filter(|id| !unfinished.contains(id)).count();
        let adopted = &adopted;
        let fates: Vec<Fate> = futures_util::stream::iter(sandboxes)
            .map(|sandbox| self.recover_one(driver, sandbox, adopted))
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        for fate in fates {
            match fate {
                Fate::Adopted => recovery.adopted += 1,
                Fate::Lost => recovery.lost += 1,
                Fate::Cleaned => recovery.cleaned += 1,
            }
        }
        Ok(())
    }

    async fn recover_one(self: &Arc<Self>, driver: &Arc<dyn Driver>, sandbox: Sandbox, adopted: &Adopted) -> Result<Fate> {
        match sandbox.state {
            State::Provisioning => {
                self.fail(sandbox.id, FailureReason::ProvisionFailed, "the server stopped while it was being made").await?;
                return Ok(Fate::Cleaned);
            }
            State::Stopping => {
                self.destroy_stopping(&sandbox);
                return Ok(Fate::Cleaned);
            }
            State::Terminated | State::Failed => return Ok(Fate::Cleaned),
            State::Ready | State::Running | State::Pausing | State::Paused | State::Resuming | State::Expired => {}
        }
        let Some(frozen) = adopted.alive.get(&sandbox.id).copied() else {
            let why = adopted.gone.get(&sandbox.id).map_or("the driver does not know it any more", String::as_str);
            self.lose(&sandbox, why).await?;
            return Ok(Fate::Lost);
        };
        if let Err(error) = self.bring_in_line(driver.as_ref(), &sandbox, frozen).await {
            self.lose(&sandbox, &format!("it could not be taken over: {error}")).await?;
            self.destroy_remains(&sandbox);
            return Ok(Fate::Lost);
        }
        Ok(Fate::Adopted)
    }

    async fn lose(&self, sandbox: &Sandbox, why: &str) -> Result<()> {
        let message: String = why.chars().take(1000).collect();
        let failure = Failure { reason: FailureReason::LostInRestart, message };
        self.write(sandbox, Command::Fail(failure), &Actor::system()).await?;
        Ok(())
    }

    /// Makes the sandbox what its record says, and finishes what was half done.
    async fn bring_in_line(self: &Arc<Self>, driver: &dyn Driver, sandbox: &Sandbox, frozen: bool) -> Result<()> {
        let (_, handle) = self.target_of(sandbox)?;
        let target = Target { id: sandbox.id, handle: &handle };
        let now = self.now();
        match sandbox.state {
            State::Paused | State::Pausing if !frozen => driver.pause(target).await?,
            State::Ready | State::Running | State::Resuming if frozen => driver.resume(target).await?,
            _ => {}
        }
        self.recover_network(sandbox).await?;
        let unfinished = match sandbox.state {
            State::Pausing => Some(Command::FinishPause),
            State::Resuming => Some(Command::FinishResume),
            _ => None,
        };
        if let Some(command) = unfinished {
            self.write(sandbox, command, &Actor::system()).await?;
        }
        if sandbox.state.lease_clock_runs() {
            self.activity.touch(sandbox.id, now);
            let mut fresh = sandbox.clone();
            self.activity.overlay(&mut fresh);
            self.deadlines.arm_for(&fresh);
        }
        if matches!(sandbox.state, State::Ready | State::Running) {
            self.follow_command(sandbox);
        }
        Ok(())
    }
}
