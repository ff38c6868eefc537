//! Control groups of sandboxes: limits, freezing, counters, killing and removal, in cgroup v1, v2 and hybrid layouts.

mod layout;
mod place;
mod stock;

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use layout::{CgroupBase, CgroupOrder};
pub(crate) use stock::{CgroupStock, is_kept_name, remove_kept};

/// The cgroup directories of one sandbox, by what they are for. Written into its manifest, so that a later server finds them
/// even when it runs in another cgroup itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxCgroups {
    /// v1 memory controller.
    pub(crate) memory: Option<PathBuf>,
    /// v1 pids controller.
    pub(crate) pids: Option<PathBuf>,
    /// v1 cpu controller.
    pub(crate) cpu: Option<PathBuf>,
    /// v1 cpuacct controller.
    pub(crate) cpuacct: Option<PathBuf>,
    /// v1 freezer.
    pub(crate) freezer: Option<PathBuf>,
    /// cgroup v2, for whatever v1 does not have.
    pub(crate) unified: Option<PathBuf>,
}

/// Counters of a sandbox's cgroups. What no controller counts is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CgroupStats {
    /// CPU time used, microseconds.
    pub(crate) cpu_used_us: u64,
    /// Memory in use, page cache included, bytes.
    pub(crate) memory_used_bytes: u64,
    /// Of it, page cache.
    pub(crate) memory_cache_bytes: u64,
    /// Processes and threads.
    pub(crate) pids: u32,
    /// Processes killed for want of memory.
    pub(crate) oom_kills: u64,
}

impl SandboxCgroups {
    /// Every directory once.
    pub(crate) fn directories(&self) -> Vec<&PathBuf> {
        let mut all: Vec<&PathBuf> =
            [&self.memory, &self.pids, &self.cpu, &self.cpuacct, &self.freezer, &self.unified].into_iter().flatten().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The last parts of the directories' names: the sandbox's id, or one of its own.
    pub(crate) fn names(&self) -> impl Iterator<Item = &std::ffi::OsStr> {
        self.directories().into_iter().filter_map(|dir| dir.file_name())
    }

    /// Whether it can be frozen.
    pub(crate) fn can_freeze(&self) -> bool {
        self.freezer.is_some() || self.unified.is_some()
    }

    /// Asks the kernel to freeze (or thaw) all processes. [`SandboxCgroups::is_frozen`] says when it is done.
    pub(crate) fn set_frozen(&self, frozen: bool) -> Result<(), Errno> {
        if let Some(dir) = &self.freezer {
            return write_value(&dir.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" });
        }
        let dir = self.unified.as_ref().ok_or(Errno::OPNOTSUPP)?;
        write_value(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether all its processes stand still.
    pub(crate) fn is_frozen(&self) -> Result<bool, Errno> {
        if let Some(dir) = &self.freezer {
            return Ok(read_small(&dir.join("freezer.state"))?.trim() == "FROZEN");
        }
        let dir = self.unified.as_ref().ok_or(Errno::OPNOTSUPP)?;
        Ok(keyed(&read_small(&dir.join("cgroup.events"))?, "frozen") == Some(1))
    }

    /// Processes killed for want of memory so far.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match (&self.memory, &self.unified) {
            (Some(dir), _) => dir.join("memory.oom_control"),
            (None, Some(dir)) => dir.join("memory.events"),
            (None, None) => return 0,
        };
        read_small(&file).ok().and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
    }

    /// CPU time used so far, microseconds.
    pub(crate) fn cpu_used_us(&self) -> u64 {
        if let Some(dir) = &self.cpuacct {
            return number(&dir.join("cpuacct.usage")).unwrap_or(0) / 1000;
        }
        let text = self.unified.as_ref().and_then(|dir| read_small(&dir.join("cpu.stat")).ok());
        text.and_then(|text| keyed(&text, "usage_usec")).unwrap_or(0)
    }

    /// All counters.
    pub(crate) fn stats(&self) -> CgroupStats {
        let (used, stat, cache_key) = match (&self.memory, &self.unified) {
            (Some(dir), _) => (number(&dir.join("memory.usage_in_bytes")), read_small(&dir.join("memory.stat")), "total_cache"),
            (None, Some(dir)) => (number(&dir.join("memory.current")), read_small(&dir.join("memory.stat")), "file"),
            (None, None) => (None, Err(Errno::NOENT), ""),
        };
        let pids = self.pids.as_ref().or(self.unified.as_ref()).and_then(|dir| number(&dir.join("pids.current")));
        CgroupStats {
            cpu_used_us: self.cpu_used_us(),
            memory_used_bytes: used.unwrap_or(0),
            memory_cache_bytes: stat.ok().and_then(|text| keyed(&text, cache_key)).unwrap_or(0),
            pids: pids.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            oom_kills: self.oom_kills(),
        }
    }

    /// Kills every process in it, also frozen ones. Returns at once; the processes end by themselves then.
    pub(crate) fn kill_all(&self) {
        if let Some(dir) = &self.unified
            && write_value(&dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for dir in self.directories() {
            for pid in read_small(&dir.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    // A process that is gone already is what we want.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        // A v1 freezer holds even killed processes until it thaws.
        let _ = self.set_frozen(false);
    }

    /// Removes the directories, waiting until dying processes have left them. Repeats within a bound of about two seconds.
    pub(crate) fn remove(&self) -> Result<(), (PathBuf, Errno)> {
        for dir in self.directories() {
            remove_group(dir, 0).map_err(|errno| (dir.clone(), errno))?;
        }
        Ok(())
    }
}

/// Most levels of cgroups below a sandbox's own that are cleared away. Nothing inside can make any.
const DEPTH_MAX: u32 = 8;
/// Bytes of a control file after which reading ends.
const SMALL_MAX: usize = 16 * 1024;
/// Longest waits for dying processes, about two seconds together.
const REMOVE_TRIES: u32 = 60;

fn remove_group(dir: &Path, depth: u32) -> Result<(), Errno> {
    let mut wait = Duration::from_micros(100);
    let mut last = Errno::BUSY;
    for attempt in 0..REMOVE_TRIES {
        match rustix::fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => last = errno,
            Err(errno) => return Err(errno),
        }
        if attempt == 3 && depth < DEPTH_MAX {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_group(&entry.path(), depth + 1)?;
                }
            }
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(Duration::from_millis(40));
    }
    Err(last)
}

/// Writes a value to a control file that must exist.
pub(crate) fn write_value(path: &Path, value: &str) -> Result<(), Errno> {
    let file = rustix::fs::open(path.as_os_str().as_bytes(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// Reads a small control file, to about 16 KiB.
fn read_small(path: &Path) -> Result<String, Errno> {
    let file = rustix::fs::open(path.as_os_str().as_bytes(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(1024);
    let mut part = [0; 1024];
    loop {
        let read = rustix::io::read(&file, &mut part)?;
        text.extend_from_slice(&part[..read]);
        if read == 0 || text.len() >= SMALL_MAX {
            return Ok(String::from_utf8(text).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()));
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    read_small(path).ok()?.trim().parse().ok()
}

/// The value of `key` in lines of `key value`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}
