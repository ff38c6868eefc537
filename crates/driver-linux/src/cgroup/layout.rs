//! Where this process may make cgroups: found from `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7)).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sandbank_model::{Resources, SandboxId};

use super::place::{Place, writable};
use super::{SandboxCgroups, write_value};

/// The controllers that a sandbox needs, by their names in cgroup v1. `freezer` is part of the core of cgroup v2.
const V1_WANTED: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "freezer"];
/// The same for cgroup v2, where `cpu` counts too.
const V2_WANTED: [&str; 3] = ["memory", "pids", "cpu"];

/// The cgroup directories below which one driver instance makes those of its sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CgroupBase {
    /// What each v1 hierarchy's directory is, by controller.
    v1: Vec<(&'static str, PathBuf)>,
    /// What there is of cgroup v2.
    v2: Option<Unified>,
}

/// The cgroup v2 directory of one driver instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Unified {
    dir: PathBuf,
    /// The wanted controllers that it can give to sandboxes.
    controllers: Vec<&'static str>,
    /// What it lies below.
    place: Place,
}

/// One cgroup directory to make for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct CgroupOrder {
    /// Absolute path.
    pub(crate) dir: PathBuf,
    /// Files in it and what to write, in order. A file that is missing is skipped when its name ends with `?`.
    pub(crate) writes: Vec<(String, String)>,
    /// Whether it is a cgroup v2 directory, which the sandbox is born in; a v1 directory it enters by itself.
    pub(crate) v2: bool,
    /// Whether it exists already, with everything written.
    pub(crate) kept: bool,
}

impl CgroupOrder {
    /// Makes the directory again that this one is made in, after somebody tidied up.
    pub(crate) fn make_above(&self) -> std::io::Result<()> {
        let Some(instance) = self.dir.parent() else { return Ok(()) };
        make_all(instance)?;
        if self.v2 {
            let controllers = self.writes.iter().filter_map(|(file, _)| file.split_once('.')).map(|(controller, _)| controller);
            for controller in controllers {
                for dir in [instance.parent(), Some(instance)].into_iter().flatten() {
                    Place::hand_on(dir, controller)?;
                }
            }
        }
        Ok(())
    }
}

impl CgroupBase {
    /// Reads the two files of the calling process. Finds nothing where no hierarchy is mounted.
    pub(crate) fn detect(instance: &str) -> Self {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mut base, top) = Self::parse(&mountinfo, &own, instance);
        let own = base.v2.take().zip(top);
        base.v2 = own.map(|(v2, top)| Unified::below(Place::find(&top, &v2.place.dir, &v2.controllers), instance));
        base
    }

    /// The pure part of [`CgroupBase::detect`]: the own cgroups, and where cgroup v2 is mounted.
    fn parse(mountinfo: &str, own: &str, instance: &str) -> (Self, Option<PathBuf>) {
        let mut base = Self::default();
        let mut top = None;
        for mount in mountinfo.lines().filter_map(CgroupMount::parse) {
            if mount.v2 {
                let line = own.lines().find_map(|line| line.strip_prefix("0::"));
                if let (Some(path), None) = (line, &base.v2) {
                    let place = Place { dir: mount.directory_of(path), controllers: V2_WANTED.to_vec(), ..Place::default() };
                    base.v2 = Some(Unified::below(place, instance));
                    top = Some(mount.point);
                }
                continue;
            }
            let below = |own_path: &str| mount.directory_of(own_path).join("sandbank").join(instance);
            for wanted in V1_WANTED {
                if mount.options.iter().any(|option| option == wanted)
                    && !base.v1.iter().any(|(name, _)| *name == wanted)
                    && let Some(path) = own_v1_path(own, wanted)
                {
                    base.v1.push((wanted, below(path)));
                }
            }
        }
        // A controller bound to a v1 hierarchy is not available in v2; the kernel's own list says so, but tests have none.
        if let Some(v2) = &mut base.v2 {
            v2.controllers.retain(|name| !base.v1.iter().any(|(v1, _)| v1 == name));
        }
        (base, top)
    }

    fn v1_dir(&self, controller: &str) -> Option<&PathBuf> {
        self.v1.iter().find(|(name, _)| *name == controller).map(|(_, dir)| dir)
    }

    /// The v2 directory, if sandboxes need one: for a controller that v1 does not have, or as the freezer.
    fn v2_dir(&self) -> Option<&PathBuf> {
        let needed = |controllers: &[&str]| !controllers.is_empty() || self.v1_dir("freezer").is_none();
        self.v2.as_ref().filter(|v2| needed(&v2.controllers)).map(|v2| &v2.dir)
    }

    /// All directories that sandboxes' directories are made in, each once.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let all: BTreeSet<PathBuf> = self.v1.iter().map(|(_, dir)| dir).chain(self.v2_dir()).cloned().collect();
        all.into_iter().collect()
    }

    /// Makes the directories and, in v2, enables the controllers for sandboxes. Directories that cannot be made (not root, not
    /// delegated) are dropped: their limits are then not enforced.
    pub(crate) fn prepare(&mut self) {
        self.v1.retain(|(_, dir)| make_all(dir).is_ok() && writable(dir));
        self.prepare_v2();
        self.give_way();
    }

    fn prepare_v2(&mut self) {
        if self.v2_dir().is_none() {
            self.v2 = None;
        }
        let Some(v2) = &mut self.v2 else { return };
        if !Place::may_be_used(&v2.place.dir) || make_all(&v2.dir).is_err() {
            self.v2 = None;
            return;
        }
        if !v2.controllers.is_empty() {
            v2.place.vacate();
        }
        let Unified { dir, controllers, place } = v2;
        controllers.retain(|name| {
            let path = [Some(place.dir.as_path()), dir.parent(), Some(dir)];
            path.into_iter().flatten().all(|dir| Place::hand_on(dir, name).is_ok())
        });
    }

    /// All sandboxes together weigh a quarter of an ordinary process group when the machine is short of CPU, so that neither hostile
    /// loops nor a refill slow the server. They still get whatever is free. A kernel without weights leaves it as it is.
    fn give_way(&self) {
        let all = |dir: &Path, file: &str| dir.parent().map(|all| all.join(file));
        for (_, dir) in &self.v1 {
            let _ = all(dir, "cpu.shares").filter(|file| file.exists()).map(|file| write_value(&file, "256"));
        }
        if let Some(Unified { dir, .. }) = &self.v2 {
            let _ = all(dir, "cpu.weight").filter(|file| file.exists()).map(|file| write_value(&file, "25"));
        }
    }

    /// Removes the directories again that hold no sandbox.
    pub(crate) fn remove_empty(&self) {
        for dir in self.directories() {
            // One that is not empty stays, and so do its parents.
            let _ = std::fs::remove_dir(&dir).and_then(|()| dir.parent().map_or(Ok(()), std::fs::remove_dir));
        }
    }

    /// Whether a limit can be enforced: "memory", "pids" or "cpu"; or whether "freezer" works.
    pub(crate) fn enforces(&self, controller: &str) -> bool {
        self.v1_dir(controller).is_some()
            || self.v2.as_ref().is_some_and(|v2| controller == "freezer" || v2.controllers.contains(&controller))
    }

    /// The directories of one sandbox.
    pub(crate) fn sandbox(&self, id: SandboxId) -> SandboxCgroups {
        let dir = |controller: &str| self.v1_dir(controller).map(|dir| dir.join(id.to_string()));
        SandboxCgroups {
            memory: dir("memory"),
            pids: dir("pids"),
            cpu: dir("cpu"),
            cpuacct: dir("cpuacct"),
            freezer: dir("freezer"),
            unified: self.v2_dir().map(|dir| dir.join(id.to_string())),
        }
    }

    /// What to make and write for a sandbox with these cgroups and limits. `kept`: they come from the stock.
    pub(crate) fn orders(&self, groups: &SandboxCgroups, limits: &Resources, kept: bool) -> Vec<CgroupOrder> {
        let has_v2 = |name: &str| self.v2.as_ref().is_some_and(|v2| v2.controllers.contains(&name));
        let entry = |file: &str, value: String| (file.to_owned(), value);
        let mut orders: Vec<CgroupOrder> = Vec::new();
        for dir in groups.directories() {
            let v2 = groups.unified.as_ref() == Some(dir);
            let is = |group: &Option<PathBuf>| group.as_ref() == Some(dir);
            let mut writes = Vec::new();
            if is(&groups.memory) {
                writes.push(entry("memory.limit_in_bytes", limits.memory_bytes.to_string()));
                writes.push(entry("memory.memsw.limit_in_bytes?", limits.memory_bytes.to_string()));
            }
            if is(&groups.pids) || (v2 && has_v2("pids")) {
                writes.push(entry("pids.max", limits.pids.to_string()));
            }
            if is(&groups.cpu) {
                writes.push(entry("cpu.cfs_quota_us", cpu_quota_us(limits)));
            }
            if v2 && has_v2("memory") {
                writes.push(entry("memory.max", limits.memory_bytes.to_string()));
                writes.push(entry("memory.swap.max?", "0".to_owned()));
            }
            if v2 && has_v2("cpu") {
                writes.push(entry("cpu.max", format!("{} 100000", cpu_quota_us(limits))));
            }
            orders.push(CgroupOrder { dir: dir.clone(), writes, v2, kept });
        }
        orders
    }
}

/// Makes a directory and those above it, also while other servers remove theirs.
fn make_all(dir: &Path) -> std::io::Result<()> {
    /// Somebody who removes the empty directory above loses against somebody who makes one in it, sooner or later.
    const TRIES: u32 = 20;
    let mut made = std::fs::create_dir_all(dir);
    for _ in 1..TRIES {
        match &made {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => made = std::fs::create_dir_all(dir),
            _ => break,
        }
    }
    made
}

/// Processor time in each period of 100 ms, microseconds; the kernel takes no less than 1000.
pub(super) fn cpu_quota_us(limits: &Resources) -> String {
    (u64::from(limits.cpu_millis) * 100).max(1000).to_string()
}

impl Unified {
    fn below(place: Place, instance: &str) -> Self {
        Self { dir: place.dir.join("sandbank").join(instance), controllers: place.controllers.clone(), place }
    }
}

/// The own path in the v1 hierarchy of a controller: the third field of `4:memory:/path`.
fn own_v1_path<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// One cgroup mount of mountinfo.
struct CgroupMount {
    v2: bool,
    root: String,
    point: PathBuf,
    options: Vec<String>,
}

impl CgroupMount {
    /// Parses one line (proc_pid_mountinfo(5)); `None` for other file systems.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let v2 = match right.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = right.nth(1)?.split(',').map(str::to_owned).collect();
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?.to_owned(), PathBuf::from(left.next()?));
        Some(Self { v2, root, point, options })
    }

    /// The directory of a cgroup path. A mount may show only a part of the hierarchy, from `root` on (in a container).
    fn directory_of(&self, path: &str) -> PathBuf {
        let relative = path.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("");
        self.point.join(relative.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const HYBRID_OWN: &str = "8:pids:/\n6:freezer:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n";

    fn id() -> SandboxId {
        "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071".parse().unwrap()
    }

    #[test]
    fn a_hybrid_layout_uses_the_v1_hierarchies_and_leaves_v2_alone() {
        let base = CgroupBase::parse(HYBRID_MOUNTS, HYBRID_OWN, "x1").0;
        let groups = base.sandbox(id());
        assert_eq!(groups.memory.unwrap(), PathBuf::from(format!("/sys/fs/cgroup/memory/a/b/sandbank/x1/{}", id())));
        assert_eq!(groups.cpu, groups.cpuacct);
        assert_eq!(groups.unified, None);
        assert_eq!(base.directories().len(), 4, "cpu and cpuacct share one hierarchy");
        assert!(base.enforces("memory") && base.enforces("pids") && base.enforces("cpu") && base.enforces("freezer"));
    }

    #[test]
    fn a_pure_v2_layout_uses_one_directory_for_everything() {
        let mounts = "25 20 0:22 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let base = CgroupBase::parse(mounts, "0::/system.slice/sandbank.service\n", "x1").0;
        let orders = base.orders(&base.sandbox(id()), &Resources::DEFAULT, false);
        assert_eq!(orders.len(), 1);
        assert!(orders[0].v2);
        assert_eq!(orders[0].dir, PathBuf::from(format!("/sys/fs/cgroup/system.slice/sandbank.service/sandbank/x1/{}", id())));
        let written: Vec<&str> = orders[0].writes.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(written, ["pids.max", "memory.max", "memory.swap.max?", "cpu.max"]);
        assert_eq!(orders[0].writes[3].1, "100000 100000");
    }

    #[test]
    fn a_mount_that_shows_only_a_part_of_the_hierarchy_is_resolved_from_its_root() {
        let mounts = "25 20 0:22 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let base = CgroupBase::parse(mounts, "0::/docker/abc\n", "x1").0;
        assert_eq!(base.directories(), [PathBuf::from("/sys/fs/cgroup/sandbank/x1")]);
    }

    #[test]
    fn without_any_cgroup_mount_nothing_is_enforced_and_nothing_is_made() {
        let base = CgroupBase::parse("22 27 0:21 / /proc rw - proc proc rw\n", "0::/\n", "x1").0;
        assert!(base.directories().is_empty());
        assert!(!base.enforces("memory") && !base.enforces("freezer"));
    }
}
