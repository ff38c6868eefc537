//! Trying things in a child process.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

use super::Machine;
use crate::image::remove_tree;
use crate::sys;

/// Runs `trial` in a forked child, which ends at once whatever comes of it.
///
/// `trial` must be fit for a child of a process with threads: system calls only, no allocation, no locks.
pub(super) fn try_in_child(mut trial: impl FnMut() -> Result<(), Errno> + Send + Sync + 'static) -> Result<(), Errno> {
    /// What the child reports when all went well: it never becomes another program.
    const WENT_WELL: Errno = Errno::CANCELED;
    let mut command = Command::new("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the callers' trials make system calls only; the error that comes back is made without allocating.
    unsafe { command.pre_exec(move || Err(trial().err().unwrap_or(WENT_WELL).into())) };
    let errno = command.spawn().err().as_ref().and_then(Errno::from_io_error).unwrap_or(Errno::IO);
    if errno == WENT_WELL { Ok(()) } else { Err(errno) }
}

/// New namespaces; without root they take a user namespace around them.
pub(super) fn namespaces(machine: &Machine, flags: libc::c_int) -> Result<(), Errno> {
    let flags = if machine.is_root { flags } else { flags | libc::CLONE_NEWUSER };
    try_in_child(move || sys::unshare_namespaces(flags))
}

/// A directory for a trial, removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(machine: &Machine) -> io::Result<Self> {
        let path = machine.dir.join(format!(".sandbank-doctor-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir(&path)?;
        let scratch = Self(path);
        for dir in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(scratch.0.join(dir))?;
        }
        Ok(scratch)
    }

    fn c_path(&self, dir: &str) -> io::Result<CString> {
        Ok(CString::new(self.0.join(dir).as_os_str().as_bytes())?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove_tree(&self.0);
    }
}

/// An overlay with its upper directory in `scratch`.
pub(super) fn overlay(machine: &Machine, scratch: &Scratch) -> io::Result<()> {
    let is_root = machine.is_root;
    let dir = |name: &str| scratch.c_path(name).map(|path| path.to_string_lossy().into_owned());
    let mut options = format!("lowerdir={},upperdir={},workdir={}", dir("lower")?, dir("upper")?, dir("work")?);
    if !is_root {
        options.push_str(",userxattr");
    }
    let (options, target) = (CString::new(options)?, scratch.c_path("merged")?);
    let maps = (!is_root).then(own_id_maps).transpose()?;
    try_in_child(move || {
        let user = if is_root { 0 } else { libc::CLONE_NEWUSER };
        sys::unshare_namespaces(libc::CLONE_NEWNS | user)?;
        for (file, content) in maps.iter().flatten() {
            write(file, content.as_bytes())?;
        }
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount(c"overlay", &*target, c"overlay", MountFlags::empty(), Some(&*options))?;
        let merged = open(&target)?;
        rustix::fs::mkdirat(&merged, c"made", Mode::RWXU)
    })
    .map_err(Into::into)
}

/// What makes the caller root of its new user namespace: files and what to write, in order (user_namespaces(7)).
fn own_id_maps() -> io::Result<[(&'static CStr, CString); 3]> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok([
        (c"/proc/self/setgroups", CString::new("deny")?),
        (c"/proc/self/uid_map", CString::new(format!("0 {uid} 1\n"))?),
        (c"/proc/self/gid_map", CString::new(format!("0 {gid} 1\n"))?),
    ])
}

fn write(file: &CStr, content: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, content).map(drop)
}

/// A mount of `scratch`'s file system that shows its files' owners through a user namespace.
pub(super) fn id_mapped_mount(scratch: &Scratch) -> io::Result<()> {
    let path = scratch.c_path("lower")?;
    try_in_child(move || {
        sys::unshare_namespaces(libc::CLONE_NEWNS)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &*path, flags)?;
        let namespace = mapped_user_namespace()?;
        sys::idmap_mount(tree.as_fd(), namespace.as_fd(), false)
    })
    .map_err(Into::into)
}

/// A user namespace in which 0 is somebody else: held by a grandchild until it is opened here.
fn mapped_user_namespace() -> Result<OwnedFd, Errno> {
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (wait, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the caller is a forked child with one thread, and the grandchild makes system calls only until it exits.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(Errno::AGAIN);
    }
    if pid == 0 {
        // With its own copy of `done` open it would wait for itself.
        drop((ready, done));
        if sys::unshare_namespaces(libc::CLONE_NEWUSER).is_ok() {
            let _ = rustix::io::write(&tell, b"x");
            let _ = rustix::io::read(&wait, &mut [0; 1]);
        }
        sys::exit_now(0);
    }
    drop((tell, wait));
    let result = match rustix::io::read(&ready, &mut [0; 1]) {
        Ok(1) => open_mapped(pid),
        Ok(_) => Err(Errno::PERM),
        Err(errno) => Err(errno),
    };
    drop(done);
    let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
    result
}

fn open_mapped(pid: libc::pid_t) -> Result<OwnedFd, Errno> {
    for file in ["uid_map", "gid_map"] {
        let mut path = [0; 64];
        let map = rustix::fs::open(proc_path(&mut path, pid, file)?, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&map, b"0 268435456 65536\n")?;
    }
    let mut path = [0; 64];
    rustix::fs::open(proc_path(&mut path, pid, "ns/user")?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// `/proc/<pid>/<file>`, written without allocating.
fn proc_path<'a>(buffer: &'a mut [u8; 64], pid: libc::pid_t, file: &str) -> Result<&'a CStr, Errno> {
    use std::io::Write as _;
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/{pid}/{file}\0").map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::NAMETOOLONG)
}

fn open(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The nearest mount point's file system type of a directory, from `/proc/self/mountinfo`.
pub(super) fn file_system_of(dir: &Path) -> Option<String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let dir = dir.canonicalize().ok()?;
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " "));
        dir.starts_with(&point).then(|| (point, right.split(' ').next().unwrap_or_default().to_owned()))
    };
    // The last of the longest: later mounts lie over earlier ones.
    mountinfo.lines().filter_map(parse).max_by_key(|(point, _)| point.as_os_str().len()).map(|(_, kind)| kind)
}
