//! What happens to sandboxes without being asked: their end, lack of memory, too much on disk.
//!
//! Whatever reads a file for each sandbox does so beside the runtime: with thousands of them it takes tenths of a second, in which
//! nobody would be answered.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sandbank_driver::DriverEvent;
use sandbank_model::SandboxId;

use super::Shared;
use super::live::Live;

/// How often every sandbox's out-of-memory counter is read.
const OOM_PERIOD: Duration = Duration::from_secs(2);
/// A walk over a sandbox's files stops after this long, to be fair to the others.
const DISK_WALK_MAX: Duration = Duration::from_secs(2);
/// Deepest directory that a walk enters.
const DISK_DEPTH_MAX: usize = 256;

/// Starts the periodic watchers. They end with the driver.
pub(super) fn start(shared: &Arc<Shared>) -> Vec<tokio::task::JoinHandle<()>> {
    let disks = watch_disks(Arc::downgrade(shared), shared.config.disk_watch_period);
    let denied = super::network::watch_denied(Arc::downgrade(shared));
    vec![tokio::spawn(watch_memory(Arc::downgrade(shared))), tokio::spawn(disks), tokio::spawn(denied)]
}

impl Shared {
    /// Watches for the end of one sandbox.
    pub(super) fn watch(self: &Arc<Self>, live: &Arc<Live>) {
        let (shared, watched) = (Arc::downgrade(self), Arc::clone(live));
        let task = tokio::spawn(async move {
            watched.ended().await;
            let Some(shared) = shared.upgrade().filter(|_| !watched.is_ending()) else { return };
            let out_of_memory = watched.new_oom_kills();
            let detail = if out_of_memory {
                "the kernel killed its first process for want of memory".to_owned()
            } else {
                "its first process ended".to_owned()
            };
            let _ = shared.events.send(DriverEvent::Ended { id: watched.id, out_of_memory, detail }).await;
        });
        live.watched_by(task.abort_handle());
    }

    pub(super) fn all_live(&self) -> Vec<Arc<Live>> {
        self.live().values().filter(|live| !live.is_ending()).cloned().collect()
    }
}

async fn watch_memory(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(OOM_PERIOD).await;
        let Some(shared) = shared.upgrade() else { return };
        let all = shared.all_live();
        // The first process's own end is told by its watcher, with the counter.
        let short =
            move || all.into_iter().filter(|live| !live.has_ended() && live.new_oom_kills()).map(|live| live.id).collect();
        let short: Vec<SandboxId> = match tokio::task::spawn_blocking(short).await {
            Ok(short) => short,
            Err(_) => return,
        };
        for id in short {
            let _ = shared.events.send(DriverEvent::OutOfMemory { id }).await;
        }
    }
}

type CpuUsed = HashMap<SandboxId, u64>;

/// Those that have run since their CPU time was `before`, and everybody's CPU time now. What has not run has not written; a little is
/// enough, since reserving a disk's worth of blocks takes no time.
fn busy_since(all: Vec<Arc<Live>>, before: &CpuUsed) -> (Vec<Arc<Live>>, CpuUsed) {
    let mut now = CpuUsed::with_capacity(all.len());
    let busy = all.into_iter().filter(|live| {
        let known = before.get(&live.id).copied();
        // A frozen one is looked at when it has thawed.
        if live.is_frozen() {
            now.extend(known.map(|known| (live.id, known)));
            return false;
        }
        let used = live.cgroups.cpu_used_us();
        now.insert(live.id, used);
        used == 0 || known != Some(used)
    });
    (busy.collect(), now)
}

async fn watch_disks(shared: Weak<Shared>, period: Duration) {
    let mut cpu_at_walk = CpuUsed::new();
    loop {
        tokio::time::sleep(period).await;
        let Some(shared) = shared.upgrade() else { return };
        let (all, before) = (shared.all_live(), std::mem::take(&mut cpu_at_walk));
        let looked = tokio::task::spawn_blocking(move || busy_since(all, &before)).await;
        let Ok((busy, now)) = looked else { return };
        cpu_at_walk = now;
        for live in busy {
            let dir = shared.sandboxes.join(live.id.to_string());
            let Ok(used_bytes) = tokio::task::spawn_blocking(move || disk_usage(&dir)).await else { return };
            if live.note_disk_used(used_bytes) {
                let limit_bytes = live.limits.disk_bytes;
                let _ = shared.events.send(DriverEvent::DiskLimit { id: live.id, used_bytes, limit_bytes }).await;
            }
        }
    }
}

/// Bytes on disk of what a sandbox has written.
pub(super) fn disk_usage(sandbox: &Path) -> u64 {
    let mut total = 0;
    let deadline = Instant::now() + DISK_WALK_MAX;
    for part in ["upper", "grafts"] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(dir) = rustix::fs::openat(CWD, sandbox.join(part), flags, Mode::empty()) {
            // What cannot be read (a directory that vanishes meanwhile) counts nothing.
            let _ = walk(&dir, 0, deadline, &mut total);
        }
    }
    total
}

fn walk(dir: &rustix::fd::OwnedFd, depth: usize, deadline: Instant, total: &mut u64) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if Instant::now() > deadline {
            return Err(Errno::TIMEDOUT);
        }
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        // A block is 512 bytes, whatever the file system's own (stat(2)).
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        // The type of the number of links differs between architectures.
        #[allow(clippy::useless_conversion)]
        let links = u64::from(stat.st_nlink).max(1);
        // A file with several names counts its share at each.
        *total = total.saturating_add(if is_dir { bytes } else { bytes / links });
        if is_dir
            && depth < DISK_DEPTH_MAX
            && let Ok(child) = rustix::fs::openat(dir, name, flags, Mode::empty())
        {
            walk(&child, depth + 1, deadline, total)?;
        }
    }
    Ok(())
}
