//! Control groups and the limits of processes.

use std::path::Path;

use rustix::process::Resource;

use super::{Check, number};
use crate::cgroup::CgroupBase;

/// Descriptors that the server holds for one sandbox (its pidfd, and a socket for each operation), with room.
const FILES_PER_SANDBOX: u64 = 4;
/// Processes that an idle sandbox has.
const PROCESSES_PER_SANDBOX: u64 = 1;
/// Sandboxes that a machine should be able to hold.
const SANDBOXES_WANTED: u64 = 2000;
/// What one idle sandbox takes.
const SANDBOX_BYTES: u64 = 2 << 20;

/// One line for each controller.
pub(super) fn cgroups() -> Vec<Check> {
    let base = CgroupBase::detect("doctor");
    let unwritable: Vec<String> = base
        .directories()
        .iter()
        // `<own>/sandbank/<instance>`
        .filter_map(|dir| dir.parent()?.parent())
        .filter(|own| !can_make_directory(own))
        .map(|own| own.display().to_string())
        .collect();
    let layout = Check {
        name: "cgroups".to_owned(),
        ..match (base.directories().is_empty(), unwritable.is_empty()) {
            (true, _) => {
                Check::degraded("", "none are mounted", "mount them at /sys/fs/cgroup: no limit can be enforced without")
            }
            (_, false) => Check::degraded(
                "",
                format!("{} may not be written to", unwritable.join(", ")),
                "run as root, or have the directory delegated (systemd: Delegate=yes); until then limits there are not enforced",
            ),
            (_, true) => Check::ok("", layout(&base.directories())),
        }
    };
    let effects = [
        ("memory", "memory limits are not enforced: one sandbox can take all memory of the machine"),
        ("pids", "limits of processes are not enforced: a fork bomb can fill the machine"),
        ("cpu", "shares of the processor are not enforced"),
        ("freezer", "sandboxes cannot be paused or committed"),
    ];
    let controllers = effects.into_iter().map(|(controller, effect)| {
        let name = format!("cgroup {controller}");
        let shut = unwritable.iter().any(|own| {
            let own = Path::new(own);
            own.components().any(|part| part.as_os_str() == controller) || own.join("cgroup.controllers").exists()
        });
        if base.enforces(controller) && shut {
            Check::degraded(&name, format!("is there but may not be used: {effect}"), "see the line `cgroups`")
        } else if base.enforces(controller) {
            Check::ok(&name, "is there")
        } else {
            Check::degraded(&name, format!("is not there: {effect}"), format!("enable the {controller} controller of the kernel"))
        }
    });
    std::iter::once(layout).chain(controllers).collect()
}

fn layout(directories: &[std::path::PathBuf]) -> String {
    let v2 = |dir: &&std::path::PathBuf| dir.ancestors().any(|dir| dir.join("cgroup.controllers").exists());
    let in_v2 = directories.iter().filter(v2).count();
    match (in_v2, directories.len()) {
        (0, _) => "version 1, writable".to_owned(),
        (v2, all) if v2 == all => "version 2, writable".to_owned(),
        _ => "versions 1 and 2 side by side, writable".to_owned(),
    }
}

fn can_make_directory(dir: &Path) -> bool {
    let trial = dir.join(format!("sandbank-doctor-{}", std::process::id()));
    let made = std::fs::create_dir(&trial).is_ok();
    if made {
        let _ = std::fs::remove_dir(&trial);
    }
    made
}

pub(super) fn open_files() -> Check {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let sandboxes = limit / FILES_PER_SANDBOX;
    let found = format!("at most {limit}, enough for about {sandboxes} sandboxes");
    if sandboxes >= SANDBOXES_WANTED {
        return Check::ok("open files", found);
    }
    Check::degraded("open files", found, "raise the hard limit: `LimitNOFILE=` of the systemd unit, or /etc/security/limits.conf")
}

pub(super) fn processes() -> Check {
    let pid_max = number("/proc/sys/kernel/pid_max").unwrap_or(32_768);
    let threads_max = number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX);
    let limit = pid_max.min(threads_max);
    let found = format!("at most {limit} on this machine (pid_max {pid_max})");
    // Idle ones, and as many again to work with.
    if limit >= 4 * SANDBOXES_WANTED * PROCESSES_PER_SANDBOX {
        return Check::ok("processes", found);
    }
    Check::degraded("processes", found, "`sysctl -w kernel.pid_max=4194304`")
}

pub(super) fn inotify() -> Check {
    let instances = number("/proc/sys/fs/inotify/max_user_instances");
    let watches = number("/proc/sys/fs/inotify/max_user_watches");
    let (Some(instances), Some(watches)) = (instances, watches) else {
        return Check::degraded(
            "inotify",
            "cannot be read",
            "watching files inside may not work: the kernel lacks CONFIG_INOTIFY_USER",
        );
    };
    let found = format!("{instances} instances and {watches} watches a user");
    if instances >= 128 && watches >= 8192 {
        return Check::ok("inotify", found);
    }
    Check::degraded(
        "inotify",
        found,
        "each file watch inside takes one: `sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288`",
    )
}

pub(super) fn memory() -> Check {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    let Some(kib) = available else {
        return Check::degraded("memory", "cannot be read", "mount /proc");
    };
    let sandboxes = (kib << 10) / SANDBOX_BYTES;
    let found = format!("{} MiB available, enough for about {sandboxes} idle sandboxes", kib >> 10);
    if kib >= 512 << 10 {
        return Check::ok("memory", found);
    }
    Check::degraded("memory", found, "stop something else, or keep pools small")
}

/// Whether the server can be spared when the machine runs out of memory.
pub(super) fn out_of_memory_order() -> Check {
    let own = super::setting("/proc/self/oom_score_adj").unwrap_or_default();
    match own.parse::<i32>() {
        Ok(adjustment) if adjustment <= 0 => Check::ok("out-of-memory order", format!("this process is at {adjustment}")),
        Ok(adjustment) => Check::degraded(
            "out-of-memory order",
            format!("this process is at {adjustment}: it dies before others when memory runs out"),
            "start it with `OOMScoreAdjust=-500` in the systemd unit",
        ),
        Err(_) => Check::degraded("out-of-memory order", "cannot be read", "mount /proc"),
    }
}
