//! Copying trees that others made, into a layer.
//!
//! Fit for hostile trees: nothing is followed out of the source, memory grows with neither depth nor breadth beyond a limit, and at most
//! four descriptors are open whatever the depth. The source must stand still meanwhile (the sandbox is frozen; an imported directory is
//! the operator's promise); one that does not is noticed at the latest on the way back up.

use std::ffi::{CStr, CString};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sandbank_driver::DriverError;

use super::error::{failed, invalid, shown};
use super::file::{Meta, bytes_on_disk, copy_content, copy_xattrs, is_layer_xattr, is_plain_xattr};
use super::import::ImportLimits;
use super::remove::is_dots;

/// What a tree is copied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyAs {
    /// A root filesystem: devices are left out.
    Rootfs,
    /// An overlay's upper directory: whiteouts and opaque marks are kept.
    Changes,
}

/// What copying has used up so far, over all trees of a layer.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Bytes on disk.
    pub(super) bytes: u64,
    entries: u64,
    /// Devices and sockets left out.
    pub(super) skipped: u64,
}

impl Copied {
    fn count(&mut self, limits: &ImportLimits, stat: &Stat) -> Result<(), DriverError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes_on_disk(stat));
        limits.check_entries(self.entries)?;
        limits.check_bytes(self.bytes)
    }
}

/// A copy in progress.
pub(super) struct Copier<'a> {
    /// Where files with several names get one more, named by device and inode.
    pub(super) links: &'a OwnedFd,
    pub(super) copy_as: CopyAs,
    pub(super) limits: &'a ImportLimits,
    pub(super) copied: &'a mut Copied,
}

/// A directory whose subdirectories are not all copied yet.
struct Level {
    from: Place,
    to: Place,
    meta: Meta,
    pending: Vec<CString>,
}

/// Which directory, to know it again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Most bytes of names of directories that wait to be copied.
const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Copier<'_> {
    /// Copies what is in `from` and `from`'s own owner, mode, time and attributes into the existing directory `to`, without the
    /// entries that `skip` names at the top.
    pub(super) fn copy(&mut self, from: OwnedFd, to: OwnedFd, skip: &[&[u8]]) -> Result<(), DriverError> {
        let (mut from, mut to) = (from, to);
        let top = self.enter(&from, &to, skip)?;
        let device = top.from.device;
        let mut pending_bytes = names_length(&top.pending);
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.pending.pop() else {
                let step = || "finish a directory of the new layer".to_owned();
                level.meta.apply_mode_and_time(&to).map_err(failed(step))?;
                levels.pop();
                if let Some(above) = levels.last() {
                    from = back_to(&from, above.from)?;
                    to = back_to(&to, above.to)?;
                }
                continue;
            };
            pending_bytes -= name.as_bytes().len();
            let step = || format!("copy directory {}", shown(name.as_bytes()));
            let source = open_dir(&from, &name).map_err(failed(step))?;
            rustix::fs::mkdirat(&to, &*name, Mode::RWXU).map_err(failed(step))?;
            let target = open_dir(&to, &name).map_err(failed(step))?;
            (from, to) = (source, target);
            // What is mounted into the source belongs to something else; its mount point stays, empty.
            let mounted = rustix::fs::fstat(&from).map_err(failed(step))?.st_dev != device;
            let next = if mounted { self.leaf(&from, &to)? } else { self.enter(&from, &to, &[])? };
            pending_bytes += names_length(&next.pending);
            if pending_bytes > PENDING_BYTES_MAX {
                return Err(invalid("the tree has too many directories side by side to be copied"));
            }
            levels.push(next);
        }
        Ok(())
    }

    /// Copies everything in a directory but its subdirectories, which come back as pending.
    fn enter(&mut self, from: &OwnedFd, to: &OwnedFd, skip: &[&[u8]]) -> Result<Level, DriverError> {
        let mut level = self.leaf(from, to)?;
        let step = || "list a directory".to_owned();
        let mut entries = Dir::read_from(from).map_err(failed(step))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed(step))?;
            let name = entry.file_name();
            if is_dots(name) || skip.contains(&name.to_bytes()) {
                continue;
            }
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed(|| format!("look at {}", shown(name.to_bytes()))))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                level.pending.push(name.to_owned());
            } else {
                self.copied.count(self.limits, &stat)?;
                self.copy_leaf(from, to, name, &stat)
                    .map_err(failed(|| format!("copy {} into the new layer", shown(name.to_bytes()))))?;
            }
        }
        Ok(level)
    }

    /// Takes over a directory's owner and attributes; its mode and time come when it is full.
    fn leaf(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<Level, DriverError> {
        let step = || "copy a directory's attributes".to_owned();
        let stat = rustix::fs::fstat(from).map_err(failed(step))?;
        self.copied.count(self.limits, &stat)?;
        let meta = Meta::of(&stat);
        meta.apply_owner(to).map_err(failed(step))?;
        copy_xattrs(from.as_fd(), to.as_fd(), self.wanted()).map_err(failed(step))?;
        let to = rustix::fs::fstat(to).map_err(failed(step))?;
        Ok(Level { from: Place::of(&stat), to: Place::of(&to), meta, pending: Vec::new() })
    }

    fn wanted(&self) -> fn(&[u8]) -> bool {
        match self.copy_as {
            CopyAs::Rootfs => is_plain_xattr,
            CopyAs::Changes => is_layer_xattr,
        }
    }

    fn copy_leaf(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let several_names = stat.st_nlink > 1;
        let link = format!("{:x}-{:x}", stat.st_dev, stat.st_ino);
        if several_names {
            match rustix::fs::linkat(self.links, link.as_str(), to, name, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
        }
        let meta = Meta::of(stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.copy_file(from, to, name, &meta)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&*target, to, name)?;
                meta.apply_at(to, name, true)?;
            }
            FileType::Fifo => {
                rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RUSR, 0)?;
                meta.apply_at(to, name, false)?;
            }
            // A whiteout: the name is gone from the layers beneath (overlayfs documentation, "whiteouts and opaque directories").
            FileType::CharacterDevice if stat.st_rdev == 0 && self.copy_as == CopyAs::Changes => {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            _ => {
                self.copied.skipped += 1;
                return Ok(());
            }
        }
        if several_names {
            rustix::fs::linkat(to, name, self.links, link.as_str(), AtFlags::empty())?;
        }
        Ok(())
    }

    fn copy_file(&self, from: &OwnedFd, to: &OwnedFd, name: &CStr, meta: &Meta) -> Result<(), Errno> {
        // Not blocking: what was a file a moment ago could be a pipe.
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, read, Mode::empty())?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(rustix::fs::fstat(&source)?.st_size).unwrap_or(0);
        copy_content(&source, &target, size)?;
        meta.apply_owner(&target)?;
        copy_xattrs(source.as_fd(), target.as_fd(), self.wanted())?;
        meta.apply_mode_and_time(&target)
    }
}

fn names_length(names: &[CString]) -> usize {
    names.iter().map(|name| name.as_bytes().len()).sum()
}

fn open_dir(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens the parent, which must be the one that it was on the way down.
fn back_to(dir: &OwnedFd, expected: Place) -> Result<OwnedFd, DriverError> {
    let step = || "go back up a directory".to_owned();
    let parent = open_dir(dir, c"..").map_err(failed(step))?;
    let found = Place::of(&rustix::fs::fstat(&parent).map_err(failed(step))?);
    if found == expected { Ok(parent) } else { Err(invalid("the tree was changed while it was copied; try again")) }
}

/// Opens the top of a tree to copy. The path is the operator's or the driver's own, so links in it are followed.
pub(super) fn open_source(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
