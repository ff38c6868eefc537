//! The file systems of a sandbox, mounted by its first process in its own mount namespace before it gives up its rights.
//!
//! Everything is mounted while the process still belongs to the initial user namespace: the mount namespace and the network
//! namespace are then owned by that one, and the sandbox's root has no power over them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::step::{At, Step};
use crate::image::{Graft, RootPlan};
use crate::sys;

const NOSUID_NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NOSUID_NODEV_NOEXEC: MountFlags = NOSUID_NODEV.union(MountFlags::NOEXEC);

/// Files of `/proc` that tell about, or act on, the whole machine. Most are closed to the sandbox's root anyway, who is nobody
/// outside; this closes the rest.
const MASKED_FILES: [&str; 5] = ["proc/kcore", "proc/keys", "proc/key-users", "proc/timer_list", "proc/sysrq-trigger"];
/// Directories of the same kind.
const MASKED_DIRS: [&str; 3] = ["proc/acpi", "proc/scsi", "sys/firmware"];
/// Device nodes of `/dev`: name and number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Symbolic links of `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];
/// Group of terminals, as everywhere.
const TTY_GID: u32 = 5;
/// Longest option string that mount(2) takes, with its end.
const OPTIONS_MAX: usize = 4095;

/// Whose ids the sandbox has.
#[derive(Clone, Copy)]
pub(super) enum Ids<'a> {
    /// A range of its own. What is mounted is mounted in the initial user namespace, by root.
    Range {
        /// The sandbox's user namespace: the mapping of its layers' owners.
        userns: BorrowedFd<'a>,
        /// The host's id of the sandbox's root.
        first: u32,
    },
    /// Those of whoever runs the server, who is not root: this process is in its user namespace already.
    Own,
}

impl Ids<'_> {
    /// A mount option that makes `inside` (an id as the sandbox sees it) the owner. Without a range only root exists inside, and
    /// it owns what it mounts.
    fn owner_option(&self, name: &str, inside: u32) -> String {
        match self {
            Self::Range { first, .. } => format!(",{name}={}", first + inside),
            Self::Own => String::new(),
        }
    }
}

/// Keeps mounts made here from showing elsewhere, and the other way round.
pub(super) fn isolate() -> Step<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at("isolate the mounts")
}

/// Mounts the root overlay and its grafts over the sandbox's directory and makes it the working directory.
pub(super) fn root(path: &Path, plan: &RootPlan, ids: &Ids<'_>) -> Step<()> {
    let sandbox = open_dir(path).at("open the sandbox's directory")?;
    let sandbox = sandbox.as_fd();
    make_overlay_dirs(sandbox, Path::new("")).at("make the upper directory")?;
    for graft in &plan.grafts {
        make_graft_dirs(sandbox, graft).at("make a graft's directories")?;
    }
    // From here on what is made belongs to the sandbox's root: through its mapping nobody else can own files. This holds for
    // overlayfs too, which works with the identity that mounts it.
    if let Ids::Range { first, .. } = ids {
        sys::own_new_files_as(*first).at("become the owner of new files")?;
    }
    let private = match ids {
        Ids::Range { userns, .. } => attach(sandbox, clone_tree(sandbox, *userns).at("map the upper directory")?)?,
        Ids::Own => open_dir(path).at("open the sandbox's directory")?,
    };
    let lowers = attach_layers(sandbox, &plan.lowers, ids)?;
    // Before the root is mounted: what is attached afterwards would lie on top of the new root, where whoever climbs out of a
    // chroot finds it.
    let mut graft_lowers = Vec::with_capacity(plan.grafts.len());
    for graft in &plan.grafts {
        graft_lowers.push(attach_layers(sandbox, &graft.lowers, ids)?);
    }
    overlay(&here(sandbox), &lowers, private.as_fd(), "", ids).at("mount the root file system")?;
    // The path, unlike the descriptor, now leads to what was mounted last.
    rustix::process::chdir(path).at("enter the root file system")?;
    for (graft, lowers) in plan.grafts.iter().zip(&graft_lowers) {
        self::graft(graft, lowers, private.as_fd(), ids)?;
    }
    Ok(())
}

fn attach_layers(sandbox: BorrowedFd<'_>, layers: &[PathBuf], ids: &Ids<'_>) -> Step<Vec<OwnedFd>> {
    layers.iter().map(|path| layer(sandbox, path, ids)).collect()
}

fn make_graft_dirs(sandbox: BorrowedFd<'_>, graft: &Graft) -> Result<(), Errno> {
    make_dir(sandbox, "grafts")?;
    let base = Path::new("grafts").join(&graft.target);
    make_dir(sandbox, &base)?;
    make_overlay_dirs(sandbox, &base)
}

/// `upper` must not be there: one that another sandbox had would bring its mode, its attributes and its files. `work` may be left in
/// a skeleton.
fn make_overlay_dirs(sandbox: BorrowedFd<'_>, base: &Path) -> Result<(), Errno> {
    rustix::fs::mkdirat(sandbox, base.join("upper"), Mode::from_raw_mode(0o755))?;
    make_dir(sandbox, base.join("work"))
}

fn graft(graft: &Graft, lowers: &[OwnedFd], private: BorrowedFd<'_>, ids: &Ids<'_>) -> Step<()> {
    let target = graft.target.to_str().ok_or(Errno::INVAL).at("mount a graft")?;
    require_dir(target).at("find a graft's mount point")?;
    overlay(target, lowers, private, &format!("/grafts/{target}"), ids).at("mount a graft")
}

/// A path that leads to what is mounted on an open directory.
fn here(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

fn make_dir(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<(), Errno> {
    match rustix::fs::mkdirat(at, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A detached copy of a directory's mount, seen through the sandbox's ids.
fn clone_tree(dir: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(dir, "", flags)?;
    sys::idmap_mount(tree.as_fd(), userns, false)?;
    Ok(tree)
}

/// A read-only layer, seen through the sandbox's ids where the file system can do that; else its files belong to nobody inside
/// but can be read.
fn layer(sandbox: BorrowedFd<'_>, path: &Path, ids: &Ids<'_>) -> Step<OwnedFd> {
    let Ids::Range { userns, .. } = ids else { return open_dir(path).at("open an image layer") };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags).at("open an image layer")?;
    // Read-only by itself too: whoever found a way around the overlay would still write neither to a layer nor to the host.
    match sys::idmap_mount(tree.as_fd(), *userns, true) {
        Ok(()) => {}
        Err(Errno::INVAL) => sys::read_only_mount(tree.as_fd()).at("make an image layer read-only")?,
        Err(errno) => return Err(errno).at("map an image layer"),
    }
    attach(sandbox, tree)
}

/// Attaches a detached mount somewhere: before Linux 6.15 overlayfs takes no layers from detached ones. They are stacked on the
/// sandbox's directory, each stays reachable through its descriptor, and all go away with the old root.
fn attach(sandbox: BorrowedFd<'_>, tree: OwnedFd) -> Step<OwnedFd> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", sandbox, "", flags).at("attach a layer")?;
    Ok(tree)
}

/// Mounts an overlay of `lowers` (top first) and `<private><prefix>/upper` on `target`.
///
/// `volatile`: the upper layer need not survive a crash of the machine, which ends the sandbox too; without it each fsync
/// inside and each unmount would wait for the disk.
///
/// `userxattr`: without root, overlayfs keeps its marks in attributes that whoever owns the files may set.
fn overlay(target: &str, lowers: &[OwnedFd], private: BorrowedFd<'_>, prefix: &str, ids: &Ids<'_>) -> Result<(), Errno> {
    let mut options = String::with_capacity(128);
    options.push_str("lowerdir=");
    for (index, lower) in lowers.iter().enumerate() {
        if index > 0 {
            options.push(':');
        }
        options.push_str(&here(lower.as_fd()));
    }
    let private = here(private);
    options.push_str(&format!(",upperdir={private}{prefix}/upper,workdir={private}{prefix}/work,volatile"));
    if matches!(ids, Ids::Own) {
        options.push_str(",userxattr");
    }
    if options.len() > OPTIONS_MAX {
        return Err(Errno::TOOBIG);
    }
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::NODEV, Some(options.as_c_str()))
}

/// Makes sure that `path` (relative, in the new root) is a directory and not a link that leads elsewhere. A missing one is
/// made, owned by the sandbox's root.
fn require_dir(path: &str) -> Result<(), Errno> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(_) => Err(Errno::NOTDIR),
        Err(Errno::NOENT) => rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)),
        Err(errno) => Err(errno),
    }
}

fn mount(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), Errno> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(kind, target, kind, flags, Some(options.as_c_str()))
}

/// `/proc`, `/sys` and `/dev`, below the working directory.
pub(super) fn system(ids: &Ids<'_>, shm_bytes: u64) -> Step<()> {
    for dir in ["proc", "sys", "dev"] {
        require_dir(dir).at("find the mount points of /proc, /sys and /dev")?;
    }
    mount("proc", "proc", NOSUID_NODEV_NOEXEC, "").at("mount /proc")?;
    sysfs(ids).at("mount /sys")?;
    devices(ids).at("make /dev")?;
    let pts = format!("newinstance,ptmxmode=0666,mode=0620{}", ids.owner_option("gid", TTY_GID));
    mount("devpts", "dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, &pts).at("mount /dev/pts")?;
    let (uid, gid) = (ids.owner_option("uid", 0), ids.owner_option("gid", 0));
    let shm = format!("mode=1777,size={shm_bytes}{uid}{gid}");
    mount("tmpfs", "dev/shm", NOSUID_NODEV, &shm).at("mount /dev/shm")?;
    mask().at("mask parts of /proc and /sys")
}

/// Without root the kernel refuses a new `/sys` where the host's is partly hidden (in a container). Then there is none.
fn sysfs(ids: &Ids<'_>) -> Result<(), Errno> {
    match mount("sysfs", "sys", NOSUID_NODEV_NOEXEC | MountFlags::RDONLY, "") {
        Err(Errno::PERM) if matches!(ids, Ids::Own) => Ok(()),
        result => result,
    }
}

fn devices(ids: &Ids<'_>) -> Result<(), Errno> {
    let (uid, gid) = (ids.owner_option("uid", 0), ids.owner_option("gid", 0));
    mount("tmpfs", "dev", MountFlags::NOSUID | MountFlags::NOEXEC, &format!("mode=755,size=64k,nr_inodes=256{uid}{gid}"))?;
    let dev = rustix::fs::open("dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (name, major, minor) in DEVICES {
        match ids {
            Ids::Range { .. } => {
                let number = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number)?;
            }
            // Without root no device can be made, so the host's own nodes are shown.
            Ids::Own => {
                rustix::fs::mknodat(&dev, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
                rustix::mount::mount_bind(format!("/dev/{name}"), format!("dev/{name}"))?;
            }
        }
    }
    for (target, name) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name)?;
    }
    // Mounted over, so their owners do not show.
    rustix::fs::mkdirat(&dev, "pts", Mode::from_raw_mode(0o755))?;
    rustix::fs::mkdirat(&dev, "shm", Mode::from_raw_mode(0o1777))
}

fn mask() -> Result<(), Errno> {
    for file in MASKED_FILES {
        match rustix::mount::mount_bind("dev/null", file) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    // Removed while it is mounted: an empty directory in which nothing can ever be made, for the price of a bind mount.
    const EMPTY: &str = "dev/masked";
    rustix::fs::mkdir(EMPTY, Mode::from_raw_mode(0o555))?;
    for dir in MASKED_DIRS {
        match rustix::mount::mount_bind(EMPTY, dir) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::rmdir(EMPTY)
}

/// Makes the working directory the root and lets go of the host's.
pub(super) fn pivot() -> Step<()> {
    rustix::process::pivot_root(".", ".").at("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("let go of the host's root")?;
    rustix::process::chdir("/").at("change the root")
}
