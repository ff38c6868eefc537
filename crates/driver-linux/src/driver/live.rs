//! A sandbox that lives, as the driver remembers it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Signal, pidfd_send_signal};
use sandbank_model::{DriverHandle, Resources, SandboxId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::SandboxCgroups;
use crate::manifest::Manifest;
use crate::network::FilterSocket;
use crate::sys;

/// Everything about one living sandbox.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: SandboxId,
    pub(super) pid: u32,
    /// Readable when the first process has ended.
    pub(super) pidfd: Arc<AsyncFd<OwnedFd>>,
    pub(super) range: Option<u32>,
    pub(super) cgroups: SandboxCgroups,
    pub(super) limits: Resources,
    /// Image layers that it is made of.
    pub(super) layers: Vec<String>,
    /// Number of its addresses in the server's block, if it has any.
    pub(super) network: Option<u16>,
    pub(super) filter: FilterSocket,
    frozen: AtomicBool,
    /// Its agent has answered, so its cgroups have all their limits. Never set for what an earlier server made.
    complete: AtomicBool,
    /// Destroying has begun: its end is no news.
    ending: AtomicBool,
    /// Processes killed for want of memory that have been told of.
    oom_kills_told: AtomicU64,
    disk_used: AtomicU64,
    disk_limit_told: AtomicBool,
    watcher: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Live {
    /// From what is written down about it.
    pub(super) fn new(manifest: &Manifest, pid: u32, pidfd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            id: manifest.id,
            pid,
            pidfd: Arc::new(sys::watched(pidfd, Interest::READABLE)?),
            range: manifest.range,
            cgroups: manifest.cgroups.clone(),
            limits: manifest.limits,
            layers: manifest.layers.clone(),
            network: manifest.network,
            filter: FilterSocket::default(),
            frozen: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            oom_kills_told: AtomicU64::new(0),
            disk_used: AtomicU64::new(0),
            disk_limit_told: AtomicBool::new(false),
            watcher: Mutex::new(None),
        })
    }

    /// The driver's note on it: for people, since everything needed is in the manifest.
    pub(super) fn handle(&self) -> DriverHandle {
        DriverHandle(format!("pid {}", self.pid))
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    pub(super) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub(super) fn begin_ending(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Kills the first process, and with it all others of its pid namespace.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.get_ref().as_fd(), Signal::KILL);
    }

    /// Resolves when the first process, and so every other, has ended.
    pub(super) async fn ended(&self) {
        // An error means that the runtime is shutting down; then nobody waits for the answer either.
        let _ = self.pidfd.readable().await;
    }

    /// Whether the first process, and so every other, has ended.
    pub(super) fn has_ended(&self) -> bool {
        // An error is no reason to think of it as alive.
        sys::is_readable(self.pidfd.get_ref().as_fd()).unwrap_or(true)
    }

    /// Whether processes were killed for want of memory since this was last asked.
    pub(super) fn new_oom_kills(&self) -> bool {
        let now = self.cgroups.oom_kills();
        self.oom_kills_told.fetch_max(now, Ordering::AcqRel) < now
    }

    pub(super) fn disk_used(&self) -> u64 {
        self.disk_used.load(Ordering::Relaxed)
    }

    /// Notes what it has written; true the first time that this is more than its limit.
    pub(super) fn note_disk_used(&self, bytes: u64) -> bool {
        self.disk_used.store(bytes, Ordering::Relaxed);
        bytes > self.limits.disk_bytes && !self.disk_limit_told.swap(true, Ordering::AcqRel)
    }

    pub(super) fn watched_by(&self, watcher: tokio::task::AbortHandle) {
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    pub(super) fn stop_watching(&self) {
        if let Some(watcher) = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take() {
            watcher.abort();
        }
    }
}
