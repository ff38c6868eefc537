//! cgroup v1 directories of sandboxes that ended, kept for the next ones.
//!
//! Making a directory in each hierarchy, and the kernel's workers taking it down again, costs a good part of a sandbox. One that is
//! kept has the same limits as the sandbox that gets it, nobody in it, and nothing that its predecessor could be known by: counters
//! that cannot be set back to zero are zero, or the directory is removed.
//!
//! Each time it is kept a directory gets a new name, which no sandbox before has had: a late second look at a sandbox that ended
//! finds nothing, and never the processes of the one that came after it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use sandbank_model::Resources;

use super::layout::cpu_quota_us;
use super::{SandboxCgroups, keyed, number, read_small, write_value};

/// What the names of kept directories begin with. No sandbox's id does.
pub(crate) const KEPT_PREFIX: &str = "spare-";
/// Sets of directories kept.
const KEPT_MAX: usize = 16;
/// Most memory, in bytes, that a predecessor's files and kernel objects may still be charged with: the successor's limit includes it.
const CHARGED_MAX: u64 = 1024 * 1024;
/// How often it is looked whether the last process has left, and the pause between.
const LEAVE_TRIES: u32 = 20;
const LEAVE_PAUSE: Duration = Duration::from_micros(50);

/// Directories that wait for a sandbox.
#[derive(Debug, Default)]
pub(crate) struct CgroupStock(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    sets: VecDeque<(SandboxCgroups, Resources)>,
    closed: bool,
}

impl CgroupStock {
    /// A set with exactly these limits. Whoever takes it enters it or removes it; it may have vanished.
    pub(crate) fn take(&self, limits: &Resources) -> Option<SandboxCgroups> {
        let mut kept = self.kept();
        let place = kept.sets.iter().position(|(_, theirs)| theirs == limits)?;
        kept.sets.remove(place).map(|(groups, _)| groups)
    }

    /// Keeps the directories of a sandbox that has ended and that had these limits. False: they, or some of them, are still to be
    /// removed. May sleep.
    pub(crate) fn keep(&self, groups: &SandboxCgroups, limits: &Resources) -> bool {
        if self.kept().closed || !is_clean(groups, limits) {
            return false;
        }
        let Some((renamed, complete)) = rename_all(groups) else { return false };
        let surplus = {
            let mut kept = self.kept();
            if complete && !kept.closed {
                kept.sets.push_back((renamed, *limits));
                // Sets with other limits than are asked for now give way to those that are.
                if kept.sets.len() > KEPT_MAX { kept.sets.pop_front().map(|(oldest, _)| oldest) } else { None }
            } else {
                Some(renamed)
            }
        };
        if let Some(surplus) = surplus {
            remove(&surplus);
        }
        complete
    }

    /// Removes all of them and keeps no more.
    pub(crate) fn close(&self) {
        let sets = {
            let mut kept = self.kept();
            kept.closed = true;
            std::mem::take(&mut kept.sets)
        };
        for (groups, _) in sets {
            remove(&groups);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what directories with kept names are in `bases`; those in use stay.
pub(crate) fn remove_kept(bases: &[PathBuf]) {
    for base in bases {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(is_kept_name) {
                let _ = rustix::fs::rmdir(entry.path());
            }
        }
    }
}

/// Whether a directory of this name is, or was, a kept one.
pub(crate) fn is_kept_name(name: &str) -> bool {
    name.starts_with(KEPT_PREFIX)
}

fn remove(groups: &SandboxCgroups) {
    if let Err((path, errno)) = groups.remove() {
        tracing::warn!(path = %path.display(), %errno, "a cgroup kept for the next sandbox could not be removed; the next start tries again");
    }
}

/// Whether the next sandbox would notice nothing of this one. Sets back what can be.
fn is_clean(groups: &SandboxCgroups, limits: &Resources) -> bool {
    // A cgroup v2 directory is one for all controllers; its counters cannot be set back.
    if groups.unified.is_some() {
        return false;
    }
    // Every process of a sandbox is in all of its cgroups, and counted here until nothing of it is left.
    let (Some(pids), Some(memory)) = (&groups.pids, &groups.memory) else { return false };
    has_emptied(&pids.join("pids.current"))
        && memory_is_clean(memory).is_ok_and(|clean| clean)
        && groups.freezer.as_ref().is_none_or(|dir| read_small(&dir.join("freezer.state")).is_ok_and(|state| state.trim() == "THAWED"))
        // Also gives back the time of the current period that the predecessor had used up.
        && groups.cpu.as_ref().is_none_or(|dir| write_value(&dir.join("cpu.cfs_quota_us"), &cpu_quota_us(limits)).is_ok())
        && groups.cpuacct.as_ref().is_none_or(|dir| write_value(&dir.join("cpuacct.usage"), "0").is_ok())
}

fn has_emptied(count: &Path) -> bool {
    for _ in 0..LEAVE_TRIES {
        match number(count) {
            Some(0) => return true,
            Some(_) => std::thread::sleep(LEAVE_PAUSE),
            None => return false,
        }
    }
    false
}

/// The counter of processes killed for want of memory cannot be set back, so whoever had any leaves none of it.
fn memory_is_clean(dir: &Path) -> Result<bool, Errno> {
    let control = read_small(&dir.join("memory.oom_control"))?;
    let calm = ["oom_kill_disable", "under_oom", "oom_kill"].iter().all(|key| keyed(&control, key) == Some(0));
    Ok(calm && number(&dir.join("memory.usage_in_bytes")).is_some_and(|bytes| bytes <= CHARGED_MAX))
}

/// Gives every directory a new name. `None`: not even one could be. False: not all, and those that could are told.
fn rename_all(groups: &SandboxCgroups) -> Option<(SandboxCgroups, bool)> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).ok()?;
    let name = format!("{KEPT_PREFIX}{:016x}", u64::from_le_bytes(random));
    let mut complete = true;
    let renamed: Vec<(PathBuf, PathBuf)> = groups
        .directories()
        .into_iter()
        .map(|dir| (dir.clone(), dir.with_file_name(&name)))
        .filter(|(old, new)| {
            let done = rustix::fs::rename(old, new).is_ok();
            complete &= done;
            done
        })
        .collect();
    let new_of = |old: &Option<PathBuf>| renamed.iter().find(|(from, _)| Some(from) == old.as_ref()).map(|(_, to)| to.clone());
    let result = SandboxCgroups {
        memory: new_of(&groups.memory),
        pids: new_of(&groups.pids),
        cpu: new_of(&groups.cpu),
        cpuacct: new_of(&groups.cpuacct),
        freezer: new_of(&groups.freezer),
        unified: None,
    };
    (!renamed.is_empty()).then_some((result, complete))
}
