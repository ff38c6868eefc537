//! What the host looks like: for the report's head, the leak check and the memory rows. Everything is read from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cores: usize,
    memory_mib: u64,
}

impl Machine {
    pub(crate) fn read() -> Self {
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: meminfo("MemTotal") / 1024,
        }
    }

    pub(crate) fn line(&self) -> String {
        format!("kernel {}, {} cores, {} MiB", self.kernel, self.cores, self.memory_mib)
    }
}

/// A field of `/proc/meminfo`, KiB.
pub(crate) fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// What must be back where it was after everything is destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Census {
    /// Processes, kernel threads left out (their number moves by itself).
    pub(crate) processes: usize,
    /// Open descriptors of the server and its children.
    pub(crate) descriptors: usize,
    /// Lines of the mount table.
    pub(crate) mounts: usize,
    /// Directories below the cgroup mounts.
    pub(crate) cgroups: usize,
    /// Different namespaces of all processes.
    pub(crate) namespaces: usize,
    /// Directories and files below the data directory's `sandboxes`.
    pub(crate) entries: usize,
}

impl Census {
    /// Counts now. `server` is the server's pid.
    pub(crate) fn take(server: u32, data_dir: &Path) -> Self {
        let pids = user_processes();
        let family: Vec<u32> = pids.iter().copied().filter(|pid| *pid == server || parent(*pid) == Some(server)).collect();
        Self {
            processes: pids.len(),
            descriptors: family.iter().map(|pid| count_dir(Path::new(&format!("/proc/{pid}/fd")))).sum(),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().count(),
            cgroups: count_dirs_below(Path::new("/sys/fs/cgroup")),
            namespaces: namespaces(&pids),
            entries: count_dir(&data_dir.join("sandboxes")),
        }
    }

    /// What differs, in words; empty when all is the same.
    pub(crate) fn differences(&self, before: &Self) -> Vec<String> {
        let rows = [
            ("processes", before.processes, self.processes),
            ("descriptors", before.descriptors, self.descriptors),
            ("mounts", before.mounts, self.mounts),
            ("cgroups", before.cgroups, self.cgroups),
            ("namespaces", before.namespaces, self.namespaces),
            ("directories", before.entries, self.entries),
        ];
        rows.into_iter().filter(|(_, b, a)| b != a).map(|(what, b, a)| format!("{what} {b} -> {a}")).collect()
    }
}

fn user_processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses: fields begin after the last ')'.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn namespaces(pids: &[u32]) -> usize {
    let kinds = ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"];
    let links = pids.iter().flat_map(|pid| kinds.iter().map(move |kind| format!("/proc/{pid}/ns/{kind}")));
    links.filter_map(|link| fs::read_link(link).ok()).collect::<BTreeSet<_>>().len()
}

fn count_dir(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, |entries| entries.flatten().count())
}

/// Those that the server keeps, empty, for the next sandboxes are no sandbox's: of them there are sometimes more, sometimes fewer,
/// and never more than a few.
fn count_dirs_below(path: &Path) -> usize {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let kept = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("spare-");
    let dirs = entries.flatten().filter(|entry| !kept(entry) && entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|dir| 1 + count_dirs_below(&dir.path())).sum()
}
