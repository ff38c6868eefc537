//! Where in a cgroup v2 hierarchy sandboxes may live.
//!
//! In cgroup v2 a group either holds processes or hands controllers on to groups below it, never both (cgroups(7), "no internal
//! processes"; only the root of the machine may). So the server's own group is the last place to look at:
//!
//! - It could hold sandboxes only after the server has left it for a leaf, and then no supervisor could start the next server in
//!   it while a sandbox lives: systemd before version 254 fails with `219/CGROUP`.
//! - In a shell's group other processes sit, which are not ours to move.
//!
//! The groups above it are free of both. A supervisor that starts the server in a leaf named [`SERVER_LEAF`] (systemd's
//! `DelegateSubgroup=`) says with it that the group above is for sandboxes.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{read_small, write_value};

/// The leaf below a group of sandboxes that the server itself is in.
pub(super) const SERVER_LEAF: &str = "sandbank-server";
/// How often a group is looked through for processes to move: those that are there may fork meanwhile.
const VACATE_TRIES: u32 = 10;

/// Who has to leave a group before it can hand on controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Nobody is there, or it is the root of the machine.
    #[default]
    Nobody,
    /// This process.
    Server,
    /// All processes: the group is the root of a container, where nobody else would move them.
    Everybody,
}

/// A group below which sandboxes may live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// The wanted controllers that it can hand on.
    pub(super) controllers: Vec<&'static str>,
    pub(super) leaving: Leaving,
}

impl Place {
    /// The place that hands on the most controllers, nearest to `own`; when nowhere may be written, `own`. `top` is where the
    /// hierarchy is mounted. Changes nothing.
    pub(super) fn find(top: &Path, own: &Path, wanted: &[&'static str]) -> Self {
        let mut best: Option<Self> = None;
        for place in candidates(top, own).into_iter().filter_map(|dir| Self::look(dir, top, own, wanted)) {
            if best.as_ref().is_none_or(|best| place.controllers.len() > best.controllers.len()) {
                best = Some(place);
            }
        }
        best.unwrap_or_else(|| Self {
            dir: own.to_owned(),
            controllers: listed(&own.join("cgroup.controllers"), wanted),
            leaving: Leaving::Nobody,
        })
    }

    /// Whether groups can be made below `dir`, and processes moved from our group into them, for which the kernel wants both.
    pub(super) fn may_be_used(dir: &Path) -> bool {
        writable(dir) && writable(&dir.join("cgroup.procs"))
    }

    fn look(dir: &Path, top: &Path, own: &Path, wanted: &[&'static str]) -> Option<Self> {
        if !Self::may_be_used(dir) {
            return None;
        }
        let mut controllers = listed(&dir.join("cgroup.controllers"), wanted);
        let given = listed(&dir.join("cgroup.subtree_control"), wanted);
        let mut leaving = Leaving::Nobody;
        if given.len() < controllers.len() && !is_machine_root(dir) {
            let inhabitants = read_small(&dir.join("cgroup.procs")).unwrap_or_default();
            let only_us = inhabitants.lines().eq([std::process::id().to_string()]);
            match () {
                () if inhabitants.is_empty() => {}
                () if dir == own && only_us => leaving = Leaving::Server,
                () if dir == top && dir == own => leaving = Leaving::Everybody,
                () => controllers = given,
            }
        }
        Some(Self { dir: dir.to_owned(), controllers, leaving })
    }

    /// Has who must leave moved into the leaf. Whether it worked shows when controllers are handed on.
    pub(super) fn vacate(&self) {
        if self.leaving == Leaving::Nobody {
            return;
        }
        let leaf = self.dir.join(SERVER_LEAF);
        let _ = std::fs::create_dir_all(&leaf);
        let target = leaf.join("cgroup.procs");
        if self.leaving == Leaving::Server {
            let _ = write_value(&target, "0");
            return;
        }
        for _ in 0..VACATE_TRIES {
            let inhabitants = read_small(&self.dir.join("cgroup.procs")).unwrap_or_default();
            if inhabitants.is_empty() {
                return;
            }
            for pid in inhabitants.lines() {
                // One that has ended is gone as well.
                let _ = write_value(&target, pid);
            }
        }
    }

    /// Hands a controller on to the groups below `dir`.
    pub(super) fn hand_on(dir: &Path, controller: &str) -> Result<(), Errno> {
        write_value(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))
    }
}

/// Groups in the order in which they are looked at.
fn candidates<'a>(top: &Path, own: &'a Path) -> Vec<&'a Path> {
    let above = || own.ancestors().skip(1).take_while(|dir| dir.starts_with(top));
    let in_leaf = own != top && own.file_name().is_some_and(|name| name == SERVER_LEAF);
    // What the leaf is in comes first, as the nearest of those above.
    if in_leaf { above().collect() } else { above().chain([own]).collect() }
}

fn listed(file: &Path, wanted: &[&'static str]) -> Vec<&'static str> {
    let text = read_small(file).unwrap_or_default();
    wanted.iter().copied().filter(|name| text.split_whitespace().any(|word| word == *name)).collect()
}

/// The root of the machine's hierarchy is the only group without a type, also when it is seen in a container.
fn is_machine_root(dir: &Path) -> bool {
    !dir.join("cgroup.type").exists()
}

pub(super) fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    const WANTED: [&str; 3] = ["memory", "pids", "cpu"];
    const ALL: &str = "cpuset cpu io memory pids\n";

    /// A hierarchy of plain files.
    struct Tree(tempfile::TempDir);

    impl Tree {
        /// The root of a machine, with processes in it.
        fn of_machine() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.group("", ALL, "", "1\n2\n");
            fs::remove_file(tree.dir("").join("cgroup.type")).unwrap();
            tree
        }

        fn dir(&self, path: &str) -> PathBuf {
            if path.is_empty() { self.0.path().to_owned() } else { self.0.path().join(path) }
        }

        fn group(&self, path: &str, has: &str, gives: &str, processes: &str) {
            let dir = self.dir(path);
            fs::create_dir_all(&dir).unwrap();
            let files = [
                ("cgroup.type", "domain\n"),
                ("cgroup.controllers", has),
                ("cgroup.subtree_control", gives),
                ("cgroup.procs", processes),
            ];
            for (name, content) in files {
                fs::write(dir.join(name), content).unwrap();
            }
        }

        fn find(&self, own: &str) -> Place {
            Place::find(self.0.path(), &self.dir(own), &WANTED)
        }

        fn place(&self, path: &str, leaving: Leaving) -> Place {
            Place { dir: self.dir(path), controllers: WANTED.to_vec(), leaving }
        }
    }

    fn us() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn the_root_of_a_machine_is_used_as_it_is() {
        let tree = Tree::of_machine();
        assert_eq!(tree.find(""), tree.place("", Leaving::Nobody));
    }

    #[test]
    fn a_services_own_group_stays_a_leaf_so_that_it_can_be_started_again() {
        let tree = Tree::of_machine();
        tree.group("system.slice", ALL, ALL, "");
        tree.group("system.slice/s.service", ALL, "", &us());
        assert_eq!(tree.find("system.slice/s.service"), tree.place("system.slice", Leaving::Nobody));
    }

    #[test]
    fn a_server_that_is_started_in_the_leaf_uses_the_group_that_the_leaf_is_in() {
        let tree = Tree::of_machine();
        tree.group("system.slice", ALL, ALL, "");
        tree.group("system.slice/s.service", ALL, "", "");
        tree.group("system.slice/s.service/sandbank-server", "", "", &us());
        let found = tree.find("system.slice/s.service/sandbank-server");
        assert_eq!(found, tree.place("system.slice/s.service", Leaving::Nobody));
    }

    #[test]
    fn a_shells_group_is_left_alone_and_the_nearest_that_has_every_controller_is_used() {
        let tree = Tree::of_machine();
        tree.group("user.slice", "memory pids\n", "memory pids\n", "");
        tree.group("user.slice/session", "memory pids\n", "", &format!("17\n{}", us()));
        assert_eq!(tree.find("user.slice/session"), tree.place("", Leaving::Nobody), "the slice has no processor to give");
    }

    #[test]
    fn the_root_of_a_container_is_vacated() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.group("", ALL, "", &us());
        assert_eq!(tree.find(""), tree.place("", Leaving::Server));
        tree.group("", ALL, "", &format!("1\n{}", us()));
        assert_eq!(tree.find(""), tree.place("", Leaving::Everybody));
        // A second server there, started by somebody who has been moved.
        tree.group("", ALL, ALL, "");
        tree.group("sandbank-server", "", "", &format!("1\n{}", us()));
        assert_eq!(tree.find("sandbank-server"), tree.place("", Leaving::Nobody));
    }

    #[test]
    fn an_own_group_where_nothing_above_may_be_written_is_left_for_a_leaf_of_it() {
        let tree = Tree::of_machine();
        tree.group("own", ALL, "", &us());
        // Stands for what may not be written, which root may.
        fs::remove_file(tree.dir("").join("cgroup.procs")).unwrap();
        assert_eq!(tree.find("own"), tree.place("own", Leaving::Server));
        // Where others sit it still serves to freeze.
        tree.group("own", ALL, "", &format!("17\n{}", us()));
        assert_eq!(tree.find("own"), Place { dir: tree.dir("own"), ..Place::default() });
        fs::remove_file(tree.dir("own").join("cgroup.procs")).unwrap();
        assert!(!Place::may_be_used(&tree.find("own").dir));
    }

    #[test]
    fn vacating_moves_who_has_to_leave() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.group("", ALL, "", &us());
        tree.group("sandbank-server", "", "", "");
        let moved = || fs::read_to_string(tree.dir("sandbank-server/cgroup.procs")).unwrap();
        tree.place("", Leaving::Nobody).vacate();
        assert_eq!(moved(), "");
        tree.place("", Leaving::Server).vacate();
        assert_eq!(moved(), "0");
    }
}
