//! One file: its owner, mode, time, extended attributes and content.

use std::ffi::CStr;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Gid, Mode, SeekFrom, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

/// What a file has beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits with set-user-id, set-group-id and sticky: 07777.
    pub(super) mode: u32,
    pub(super) modified: Timespec,
}

impl Meta {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            modified: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
        }
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: self.modified }
    }

    /// Gives an open file or directory its owner. Without root everything is the caller's.
    pub(super) fn apply_owner(&self, fd: impl AsFd) -> Result<(), Errno> {
        if !can_give_away() {
            return Ok(());
        }
        rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// Gives an open file or directory its mode and time. After the owner, the content and the attributes: changing an owner
    /// clears set-user-id bits and file capabilities, writing changes the time.
    pub(super) fn apply_mode_and_time(&self, fd: impl AsFd) -> Result<(), Errno> {
        rustix::fs::fchmod(fd.as_fd(), Mode::from_raw_mode(self.mode))?;
        rustix::fs::futimens(fd, &self.times())
    }

    /// Gives a symbolic link, pipe or device its owner and time, and its mode where it can have one.
    pub(super) fn apply_at(&self, dir: impl AsFd, name: &CStr, is_symlink: bool) -> Result<(), Errno> {
        let dir = dir.as_fd();
        if can_give_away() {
            let (owner, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if !is_symlink {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn can_give_away() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that a file takes on disk.
pub(super) fn bytes_on_disk(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// Most bytes in one attribute's value, and in the list of names (the kernel's own limits, xattr(7)).
const XATTR_MAX: usize = 65_536;

const CAPABILITY: &[u8] = b"security.capability";
const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

/// Whether an attribute from outside may come into a layer: users' own and file capabilities. Overlayfs's would let an image
/// redirect directories and fake files, and access lists name users of the machine that they come from.
pub(super) fn is_plain_xattr(name: &[u8]) -> bool {
    name == CAPABILITY || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// As [`is_plain_xattr`], and the marks of directories that hide what lies beneath.
pub(super) fn is_layer_xattr(name: &[u8]) -> bool {
    is_plain_xattr(name) || OPAQUE.contains(&name)
}

/// Marks a directory as hiding what lies beneath. Without root, overlayfs reads the mark among the attributes that users may set,
/// see `userxattr` in its documentation.
pub(super) fn make_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let [trusted, user] = OPAQUE;
    let name = if can_give_away() { trusted } else { user };
    rustix::fs::fsetxattr(dir, name, b"y", XattrFlags::empty())
}

/// Whether a directory hides what lies beneath.
pub(super) fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    for name in OPAQUE {
        let mut value = [0; 8];
        match rustix::fs::fgetxattr(dir, name, &mut value[..]) {
            Ok(length) if value[..length].starts_with(b"y") => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Extended attributes: names and values.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes that may be shown outside, by name in order.
pub(super) fn read_xattrs(from: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let mut found = Xattrs::new();
    for_xattrs(from, is_plain_xattr, |name, value| {
        found.push((name.to_vec(), value.to_vec()));
        Ok(())
    })?;
    found.sort_unstable();
    Ok(found)
}

/// Copies the attributes that `wanted` takes. Those that the file system or missing privileges refuse are left out.
pub(super) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>, wanted: fn(&[u8]) -> bool) -> Result<(), Errno> {
    for_xattrs(from, wanted, |name, value| set_xattr(to, name, value))
}

fn for_xattrs(
    from: BorrowedFd<'_>,
    wanted: fn(&[u8]) -> bool,
    mut action: impl FnMut(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let size = match rustix::fs::flistxattr_query(from) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(size) => size,
        Err(error) => return Err(error),
    };
    let mut names = vec![0; size.min(XATTR_MAX)];
    let filled = rustix::fs::flistxattr(from, &mut names[..])?;
    let mut value = Vec::new();
    for name in names[..filled].split(|byte| *byte == 0).filter(|name| !name.is_empty() && wanted(name)) {
        value.resize(XATTR_MAX, 0);
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        action(name, &value[..length])?;
    }
    Ok(())
}

/// Sets an attribute; one that the file system or missing privileges refuse is left out, as tar does.
pub(super) fn set_xattr(to: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let normal;
    let value = if name == CAPABILITY {
        let Some(plain) = plain_capability(value) else { return Ok(()) };
        normal = plain;
        &normal[..]
    } else {
        value
    };
    match rustix::fs::fsetxattr(to, name, value, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(()),
        other => other,
    }
}

/// A file capability (`struct vfs_cap_data`, <linux/capability.h>) as version 2, which counts for root of whatever user namespace the
/// layer is mounted for. Version 3, which a sandbox's own `setcap` makes, names the root of one namespace on the host.
fn plain_capability(value: &[u8]) -> Option<[u8; 20]> {
    const VERSION_MASK: u32 = 0xff00_0000;
    const VERSION_2: u32 = 0x0200_0000;
    let (magic, sets) = value.split_first_chunk::<4>()?;
    let magic = u32::from_le_bytes(*magic);
    let right_length = matches!((magic & VERSION_MASK, value.len()), (VERSION_2, 20) | (0x0300_0000, 24));
    if !right_length {
        return None;
    }
    let mut plain = [0; 20];
    plain[..4].copy_from_slice(&(VERSION_2 | (magic & !VERSION_MASK)).to_le_bytes());
    plain[4..].copy_from_slice(&sets[..16]);
    Some(plain)
}

/// Copies a file's content with its holes: shares the blocks where the file system can, otherwise copies what is not a hole.
pub(super) fn copy_content(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    if size == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) if start < size => start,
            // A hole up to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        copy_range(from, to, start, end)?;
        position = end;
    }
    rustix::fs::ftruncate(to, size)
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, read_at, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; 256 * 1024];
    let mut position = start;
    while position < end {
        let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..want], position))?;
        if got == 0 {
            break;
        }
        write_all_at(to, &buffer[..got], position)?;
        position += got as u64;
    }
    Ok(())
}

/// Writes all of `data` at `position`.
pub(super) fn write_all_at(to: &OwnedFd, mut data: &[u8], mut position: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(to, data, position))?;
        data = &data[written..];
        position += written as u64;
    }
    Ok(())
}
