//! Unpacking an archive's members into a layer.
//!
//! Every name is resolved inside the new tree by the kernel (`openat2` with `RESOLVE_IN_ROOT`): links that the archive itself made are
//! followed, since archives do write through `lib -> usr/lib`, but wherever they lead, it is inside. The last component is never followed.
//!
//! A layer of an image marks what it takes away from the layers beneath by names (`.wh.NAME`, `.wh..wh..opq`; OCI image specification,
//! "Whiteouts"); overlayfs does it with devices and attributes. They are translated here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sandbank_driver::DriverError;

use super::error::{failed, invalid, shown};
use super::file::{Meta, bytes_on_disk, is_plain_xattr, make_opaque, set_xattr, write_all_at};
use super::import::ImportLimits;
use super::members::{Kind, Member, Members};
use super::pax::Region;

/// Most bytes of memory for directories, whose modes and times wait for the end. Enough for a million of them.
const DIRS_BYTES_MAX: usize = 128 * 1024 * 1024;

/// An archive being unpacked.
pub(super) struct Unpacker<'a> {
    root: &'a OwnedFd,
    limits: &'a ImportLimits,
    entries: u64,
    /// Bytes that the files written so far take on disk.
    pub(super) bytes: u64,
    /// Devices left out.
    pub(super) skipped: u64,
    /// Directories with the mode and time that they get at the end: filling them changes the time, and without root a read-only one could
    /// not be filled.
    dirs: BTreeMap<PathBuf, Meta>,
    dirs_bytes: usize,
    buffer: Vec<u8>,
    unpack_as: UnpackAs,
}

/// What an archive is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnpackAs {
    /// A whole root filesystem: `.wh.` is the beginning of a name like any other.
    Rootfs,
    /// What one layer changes of those beneath it.
    Layer,
}

/// Beginning of a name that takes the rest of it away from the layers beneath.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Beginning of names that are marks of their own kind; all but the one below are notes of file systems long gone.
const MARK: &[u8] = b".wh..wh.";
/// Hides everything that the layers beneath have in the same directory.
pub(super) const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

/// A member's place.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(root: &'a OwnedFd, limits: &'a ImportLimits, unpack_as: UnpackAs) -> Self {
        let buffer = vec![0; 256 * 1024];
        Self { root, limits, entries: 0, bytes: 0, skipped: 0, dirs: BTreeMap::new(), dirs_bytes: 0, buffer, unpack_as }
    }

    /// Unpacks all members.
    pub(super) fn unpack(&mut self, members: &mut Members<impl std::io::Read>) -> Result<(), DriverError> {
        while let Some(member) = members.next()? {
            self.entries += 1;
            self.limits.check_entries(self.entries)?;
            // What is declared is checked before anything is made, what is real as it comes.
            self.limits.check_bytes(self.bytes.saturating_add(stored_size(&member)))?;
            self.limits.check_file_size(&member.name, member.size)?;
            self.member(&member, members)?;
            self.limits.check_bytes(self.bytes)?;
        }
        self.finish_dirs()
    }

    fn member(&mut self, member: &Member, members: &mut Members<impl std::io::Read>) -> Result<(), DriverError> {
        let path = inside_path(&member.name, "name")?;
        let step = || format!("unpack {}", shown(&member.name));
        let Some(file_name) = path.file_name() else {
            return self.root_dir(member);
        };
        if member.kind == Kind::Device {
            self.skipped += 1;
            return Ok(());
        }
        let parent = self.parent_of(&path, &member.name)?;
        if self.unpack_as == UnpackAs::Layer && file_name.as_bytes().starts_with(WHITEOUT) {
            return self.take_away(member, &parent, file_name.as_bytes());
        }
        let place = Place { parent, name: file_name.to_owned() };
        match &member.kind {
            Kind::Dir => self.dir(member, &path, &place),
            Kind::HardLink { target } => self.hard_link(member, target, &place),
            Kind::File { regions } => {
                self.make_room(member, &place)?;
                self.file(member, regions.as_deref(), &place, members)
            }
            Kind::Symlink { target } => {
                self.make_room(member, &place)?;
                let target = OsStr::from_bytes(target);
                rustix::fs::symlinkat(target, &place.parent, &place.name).map_err(failed(step))?;
                apply_at(member, &place, true).map_err(failed(step))
            }
            Kind::Fifo => {
                self.make_room(member, &place)?;
                rustix::fs::mknodat(&place.parent, &place.name, FileType::Fifo, Mode::RUSR, 0).map_err(failed(step))?;
                apply_at(member, &place, false).map_err(failed(step))
            }
            Kind::Device => Ok(()),
        }
    }

    /// The archive's own top directory.
    fn root_dir(&mut self, member: &Member) -> Result<(), DriverError> {
        if member.kind != Kind::Dir {
            return Ok(());
        }
        let step = || format!("unpack {}", shown(&member.name));
        meta(member).apply_owner(self.root).map_err(failed(step))?;
        set_xattrs(member, self.root).map_err(failed(step))?;
        self.remember_dir(Path::new("."), member)
    }

    /// A directory gets its mode and time when everything is unpacked, by the last member that is about it.
    fn remember_dir(&mut self, path: &Path, member: &Member) -> Result<(), DriverError> {
        if self.dirs.insert(path.to_owned(), meta(member)).is_none() {
            // An allocation takes more than the name.
            self.dirs_bytes += size_of::<(PathBuf, Meta)>() + path.as_os_str().len().max(32);
        }
        if self.dirs_bytes > DIRS_BYTES_MAX {
            return Err(invalid("the archive has too many directories to be unpacked"));
        }
        Ok(())
    }

    fn dir(&mut self, member: &Member, path: &Path, place: &Place) -> Result<(), DriverError> {
        let step = || format!("unpack {}", shown(&member.name));
        let mut hides_lower = false;
        let found = rustix::fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW);
        match found.map(|found| FileType::from_raw_mode(found.st_mode)) {
            Ok(FileType::Directory) => {}
            // A link to a directory stays and is filled, as `lib -> usr/lib` wants.
            Ok(FileType::Symlink) if self.open_dir(path).is_ok() => return Ok(()),
            Ok(there) => {
                self.make_room(member, place)?;
                rustix::fs::mkdirat(&place.parent, &place.name, Mode::RWXU).map_err(failed(step))?;
                // A device can only be this layer's own whiteout: the old directory went, a new one came.
                hides_lower = there == FileType::CharacterDevice;
            }
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&place.parent, &place.name, Mode::RWXU).map_err(failed(step))?;
            }
            Err(error) => return Err(failed(step)(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty()).map_err(failed(step))?;
        meta(member).apply_owner(&dir).map_err(failed(step))?;
        set_xattrs(member, &dir).map_err(failed(step))?;
        if hides_lower {
            make_opaque(dir.as_fd()).map_err(failed(step))?;
        }
        self.remember_dir(path, member)
    }

    /// A mark: what it names is not to be seen in the layers beneath. What this layer itself has stays, whichever came first.
    fn take_away(&mut self, member: &Member, parent: &OwnedFd, mark: &[u8]) -> Result<(), DriverError> {
        let step = || format!("unpack {}", shown(&member.name));
        if mark == OPAQUE_MARK {
            return make_opaque(parent.as_fd()).map_err(failed(step));
        }
        if mark.starts_with(MARK) {
            return Ok(());
        }
        let name = &mark[WHITEOUT.len()..];
        if matches!(name, b"" | b"." | b"..") {
            return Err(invalid(format!("the layer is broken: {} takes nothing away that could be there", shown(&member.name))));
        }
        let name = OsStr::from_bytes(name);
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| FileType::from_raw_mode(found.st_mode)) {
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed(step))
            }
            Ok(FileType::Directory) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed(step))?;
                make_opaque(dir.as_fd()).map_err(failed(step))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(failed(step)(error)),
        }
    }

    fn file(
        &mut self,
        member: &Member,
        regions: Option<&[Region]>,
        place: &Place,
        members: &mut Members<impl std::io::Read>,
    ) -> Result<(), DriverError> {
        let step = || format!("unpack {}", shown(&member.name));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR).map_err(failed(step))?;
        let whole = [Region { offset: 0, length: member.size }];
        for region in regions.unwrap_or(&whole) {
            let mut position = region.offset;
            let end = region.offset + region.length;
            while position < end {
                let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(self.buffer.len());
                let got = members.read_data(&mut self.buffer[..want])?;
                if got == 0 {
                    return Err(invalid(format!("the archive is broken: {} has less data than it says", shown(&member.name))));
                }
                write_all_at(&file, &self.buffer[..got], position).map_err(failed(step))?;
                position += got as u64;
            }
        }
        if regions.is_some() {
            rustix::fs::ftruncate(&file, member.size).map_err(failed(step))?;
        }
        meta(member).apply_owner(&file).map_err(failed(step))?;
        set_xattrs(member, &file).map_err(failed(step))?;
        meta(member).apply_mode_and_time(&file).map_err(failed(step))?;
        self.bytes += bytes_on_disk(&rustix::fs::fstat(&file).map_err(failed(step))?).max(stored_size(member));
        Ok(())
    }

    fn hard_link(&mut self, member: &Member, target: &[u8], place: &Place) -> Result<(), DriverError> {
        let target_path = inside_path(target, "link target")?;
        let no_target = || {
            let (name, target) = (shown(&member.name), shown(target));
            invalid(format!("{name} is a hard link to {target}, which is not a file before it in the archive"))
        };
        let target_name = target_path.file_name().ok_or_else(no_target)?;
        let target_parent = self.open_dir(target_path.parent().unwrap_or(Path::new(""))).map_err(|_| no_target())?;
        let found = rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| no_target())?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(no_target());
        }
        // A file linked to its own name stays as it is.
        if let Ok(there) = rustix::fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW)
            && there.st_ino == found.st_ino
        {
            return Ok(());
        }
        self.make_room(member, place)?;
        rustix::fs::linkat(&target_parent, target_name, &place.parent, &place.name, AtFlags::empty())
            .map_err(failed(|| format!("unpack {}", shown(&member.name))))
    }

    /// Removes what is there under a member's name: the later one counts. A directory must be empty for that.
    fn make_room(&self, member: &Member, place: &Place) -> Result<(), DriverError> {
        let step = || format!("replace {}", shown(&member.name));
        match rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => match rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => {
                    Err(invalid(format!("{} would replace a directory that is not empty", shown(&member.name))))
                }
                other => other.map_err(failed(step)),
            },
            Err(Errno::NAMETOOLONG) => Err(invalid(format!("{} has a part of more than 255 bytes", shown(&member.name)))),
            Err(error) => Err(failed(step)(error)),
        }
    }

    /// Opens the directory that a member lies in; missing ones are made, owned by root.
    fn parent_of(&self, path: &Path, name: &[u8]) -> Result<OwnedFd, DriverError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let refused = |what: &str| invalid(format!("{} cannot be unpacked: {what}", shown(name)));
        match self.open_dir(parent) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) if self.replace_whiteouts(parent).map_err(failed(|| format!("unpack {}", shown(name))))? => {}
            Err(Errno::NOTDIR) => return Err(refused("a part of its path is a file")),
            Err(Errno::LOOP) => return Err(refused("a part of its path is a link that leads in a circle")),
            Err(Errno::NAMETOOLONG) => return Err(refused("its path is too long")),
            Err(error) => return Err(failed(|| format!("unpack {}", shown(name)))(error)),
        }
        let mut above = PathBuf::new();
        for part in parent.components() {
            let dir = self.open_dir(&above).map_err(|_| refused("a part of its path is a link that leads nowhere"))?;
            match rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                // Whatever the umask.
                Ok(()) => rustix::fs::chmodat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755), AtFlags::empty())
                    .map_err(failed(|| format!("make the parents of {}", shown(name))))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(|| format!("make the parents of {}", shown(name)))(error)),
            }
            above.push(part);
        }
        self.open_dir(parent).map_err(|_| refused("a part of its path is a link that leads nowhere"))
    }

    /// Where this layer took a directory away and now fills it without naming it, a new one comes in its place that hides the old one.
    /// False: there is no such whiteout on the path.
    fn replace_whiteouts(&self, path: &Path) -> Result<bool, Errno> {
        for whiteout in path.ancestors().filter(|path| path.file_name().is_some()) {
            let Ok(above) = self.open_dir(whiteout.parent().unwrap_or(Path::new(""))) else { continue };
            let name = whiteout.file_name().unwrap_or_default();
            let found = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice {
                return Ok(false);
            }
            rustix::fs::unlinkat(&above, name, AtFlags::empty())?;
            rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
            rustix::fs::chmodat(&above, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
            make_opaque(self.open_dir(whiteout)?.as_fd())?;
            return Ok(true);
        }
        Ok(false)
    }

    fn open_dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve)
    }

    /// Gives directories their modes and times, what is in a parent before that: its own could keep us out.
    fn finish_dirs(&mut self) -> Result<(), DriverError> {
        while let Some((path, meta)) = self.dirs.pop_last() {
            let step = || format!("finish {}", shown(path.as_os_str().as_bytes()));
            // One that a later member replaced has its mode from there.
            let Ok(dir) = self.open_dir(&path) else { continue };
            meta.apply_mode_and_time(&dir).map_err(failed(step))?;
            self.bytes += bytes_on_disk(&rustix::fs::fstat(&dir).map_err(failed(step))?);
        }
        Ok(())
    }
}

/// Bytes of data that a member brings.
fn stored_size(member: &Member) -> u64 {
    match &member.kind {
        Kind::File { regions: Some(regions) } => regions.iter().map(|region| region.length).sum(),
        _ => member.size,
    }
}

fn meta(member: &Member) -> Meta {
    Meta { uid: member.uid, gid: member.gid, mode: member.mode, modified: member.modified }
}

fn set_xattrs(member: &Member, fd: &OwnedFd) -> Result<(), Errno> {
    let wanted = member.xattrs.iter().filter(|(name, _)| is_plain_xattr(name));
    wanted.into_iter().try_for_each(|(name, value)| set_xattr(fd.as_fd(), name, value))
}

fn apply_at(member: &Member, place: &Place, is_symlink: bool) -> Result<(), Errno> {
    let name = std::ffi::CString::new(place.name.as_bytes()).map_err(|_| Errno::INVAL)?;
    meta(member).apply_at(&place.parent, &name, is_symlink)
}

/// A member's name as a path below the root: no absolute names, no `..`, no NUL. Empty for the root itself.
fn inside_path(name: &[u8], what: &str) -> Result<PathBuf, DriverError> {
    const PATH_BYTES_MAX: usize = 4095;
    let refused = |why: &str| invalid(format!("the archive was refused: the {what} {} {why}", shown(name)));
    if name.starts_with(b"/") {
        return Err(refused("is absolute; archives of root filesystems name files relative to the root (tar -C DIR -c .)"));
    }
    if name.contains(&0) {
        return Err(refused("has a NUL byte in it"));
    }
    if name.len() > PATH_BYTES_MAX {
        return Err(refused("is longer than 4095 bytes"));
    }
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        if part == b".." {
            return Err(refused("leads out of the archive with `..`"));
        }
        path.push(OsString::from_vec(part.to_vec()));
    }
    Ok(path)
}
