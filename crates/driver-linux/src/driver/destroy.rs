//! Destroying whatever exists of a sandbox.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sandbank_driver::DriverError;
use sandbank_model::SandboxId;

use super::live::Live;
use super::{Shared, blocking, failed, io_errno, millis};
use crate::cgroup::SandboxCgroups;
use crate::manifest::{Manifest, start_ticks};

/// Longest wait for killed processes to end. Memory and open files of a large sandbox take a while to give back.
const KILL_WAIT: Duration = Duration::from_secs(20);

impl Shared {
    /// Destroys by id. Whatever step is repeated finds less to do.
    pub(super) async fn destroy(self: &Arc<Self>, id: SandboxId) -> Result<(), DriverError> {
        let live = self.live().get(&id).cloned();
        let dir = self.sandboxes.join(id.to_string());
        let (live, manifest) = match live {
            Some(live) => (Some(live), None),
            None => {
                // A launcher that died may have left a child that is still being killed.
                self.launcher.settle().await?;
                let manifest = Manifest::read(&dir);
                (self.revive(manifest.as_ref())?.map(Arc::new), manifest)
            }
        };
        if let Some(live) = &live {
            self.end(live).await?;
        }
        let cgroups = match (&live, &manifest) {
            (Some(live), _) => live.cgroups.clone(),
            (None, Some(manifest)) => manifest.cgroups.clone(),
            (None, None) => self.cgroups.sandbox(id),
        };
        if let Some(live) = &live {
            self.forget_number(live);
        }
        let shared = Arc::clone(self);
        blocking("destroy the sandbox", move || {
            if let Some(live) = &live {
                live.filter.close();
            }
            let kept =
                live.filter(|live| live.is_complete()).is_some_and(|live| shared.cgroup_stock.keep(&cgroups, &live.limits));
            if !kept {
                clear_cgroups(&cgroups)?;
            }
            shared.remover.remove(&dir).map_err(|errno| failed(format!("remove {}", dir.display()), errno))
        })
        .await?;
        self.live().remove(&id);
        self.ranges().give_back(id);
        Ok(())
    }

    /// Kills all its processes, frozen or not, and waits until they have ended.
    async fn end(&self, live: &Live) -> Result<(), DriverError> {
        live.begin_ending();
        live.stop_watching();
        live.kill();
        if live.cgroups.can_freeze() {
            // The kill takes effect when it thaws. Whether it is frozen is not worth a read.
            let _ = live.cgroups.set_frozen(false);
        }
        tokio::time::timeout(KILL_WAIT, live.ended())
            .await
            .map_err(|_| DriverError::TimedOut { what: "the end of the sandbox's processes", waited_ms: millis(KILL_WAIT) })
    }

    /// A sandbox that is written down and whose first process still runs.
    pub(super) fn revive(&self, manifest: Option<&Manifest>) -> Result<Option<Live>, DriverError> {
        let Some(manifest) = manifest.filter(|manifest| manifest.boot_id == self.boot_id) else { return Ok(None) };
        let Some(pidfd) = open_process(manifest) else { return Ok(None) };
        let live = Live::new(manifest, manifest.pid, pidfd);
        live.map(Some).map_err(|error| failed("watch the first process", io_errno(&error)))
    }
}

/// Removes cgroups with all that is in them.
pub(super) fn clear_cgroups(cgroups: &SandboxCgroups) -> Result<(), DriverError> {
    cgroups.remove().or_else(|(path, errno)| {
        // Somebody that the pid namespace does not hold is in there.
        cgroups.kill_all();
        cgroups.remove().map_err(|_| failed(format!("remove the cgroup {}", path.display()), errno))
    })
}

/// A pidfd of the process that the manifest means; `None` when it has ended.
fn open_process(manifest: &Manifest) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(manifest.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Checked after opening: from here on the pid cannot come to mean another process unnoticed.
    (start_ticks(&manifest.pid.to_string()) == Some(manifest.start_ticks)).then_some(pidfd)
}
