//! What is written down beside each sandbox, so that whoever comes later can find all of it.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use sandbank_model::{Resources, SandboxId};
use serde::{Deserialize, Serialize};

use crate::cgroup::SandboxCgroups;

/// Name of the file in a sandbox's directory.
pub(crate) const FILE: &str = "manifest.json";
/// Most bytes of it that are read.
const BYTES_MAX: u64 = 64 * 1024;

/// One sandbox, as its first process wrote it down before it gave up its rights. It is put in place with a rename, so it is
/// either absent (then nothing of the sandbox outlived its launcher) or whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Id.
    pub(crate) id: SandboxId,
    /// Pid of its first process as the host sees it.
    pub(crate) pid: u32,
    /// When that process began, in clock ticks since boot: tells it from a later process with the same pid.
    pub(crate) start_ticks: u64,
    /// The boot it belongs to: after another boot nothing of it runs.
    pub(crate) boot_id: String,
    /// Index of its range of user ids, if it has one of its own.
    pub(crate) range: Option<u32>,
    /// Its cgroups.
    pub(crate) cgroups: SandboxCgroups,
    /// Its limits.
    pub(crate) limits: Resources,
    /// Image layers that it is made of.
    pub(crate) layers: Vec<String>,
    /// Number of its addresses in the server's block. Absent: it has only loopback.
    #[serde(default)]
    pub(crate) network: Option<u16>,
}

impl Manifest {
    /// Writes it into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let body = serde_json::to_vec(self).map_err(io::Error::other)?;
        let fresh = dir.join("manifest.new");
        fs::File::create(&fresh)?.write_all(&body)?;
        fs::rename(fresh, dir.join(FILE))
    }

    /// Reads the one in `dir`; `None` when there is none or it is not ours to understand.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        use std::io::Read as _;
        let mut body = Vec::new();
        fs::File::open(dir.join(FILE)).ok()?.take(BYTES_MAX).read_to_end(&mut body).ok()?;
        serde_json::from_slice(&body).ok()
    }
}

/// This boot's id.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process began, in clock ticks since boot: field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). `None`: no such process.
pub(crate) fn start_ticks(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything, so count from its end; the state is field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
