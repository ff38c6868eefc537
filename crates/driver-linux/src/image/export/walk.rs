//! Walking a layer's tree in a fixed order, with two descriptors open and bounded memory.

use std::ffi::{CStr, CString};
use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::error::shown;
use super::super::remove::is_dots;

/// Most bytes of names that wait, over all directories that the walk is in.
const NAMES_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most bytes of a path: what anybody who unpacks the archive can open (`PATH_MAX`, with its end).
const PATH_BYTES_MAX: usize = 4095;

/// Names in a directory, the next one last: one piece of memory for all of them.
struct Names {
    bytes: Vec<u8>,
    ends: Vec<(u32, u32)>,
}

impl Names {
    fn of(dir: &OwnedFd, room: usize) -> io::Result<Self> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let mut entries = Dir::read_from(dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let start = bytes.len();
            bytes.extend_from_slice(name.to_bytes());
            let span = (u32::try_from(start), u32::try_from(bytes.len()));
            match span {
                (Ok(start), Ok(end)) if Self::cost(bytes.len(), ends.len()) <= room => ends.push((start, end)),
                _ => return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a directory has too many names to be exported")),
            }
        }
        let name = |(start, end): &(u32, u32)| &bytes[*start as usize..*end as usize];
        ends.sort_unstable_by(|one, other| name(other).cmp(name(one)));
        Ok(Self { bytes, ends })
    }

    fn cost(bytes: usize, names: usize) -> usize {
        bytes + names * size_of::<(u32, u32)>()
    }

    fn memory(&self) -> usize {
        Self::cost(self.bytes.len(), self.ends.capacity())
    }

    fn next(&mut self) -> Option<CString> {
        let (start, end) = self.ends.pop()?;
        // A name that the kernel gave has no NUL in it.
        CString::new(&self.bytes[start as usize..end as usize]).ok()
    }
}

struct Level {
    device: u64,
    inode: u64,
    names: Names,
    /// Bytes of the path up to here.
    path_len: usize,
}

/// A tree on the way.
pub(super) struct Walk {
    /// The directory that the walk is in.
    pub(super) dir: OwnedFd,
    levels: Vec<Level>,
    names_bytes: usize,
    /// From the top, without a slash at its begin or end.
    pub(super) path: Vec<u8>,
}

/// What the walk came to, in [`Walk::dir`].
pub(super) struct Found {
    pub(super) name: CString,
    pub(super) stat: Stat,
    pub(super) kind: FileType,
}

impl Walk {
    /// The names in `top`, then all that is beneath.
    pub(super) fn new(top: OwnedFd) -> io::Result<Self> {
        let mut walk = Self { dir: top, levels: Vec::new(), names_bytes: 0, path: Vec::new() };
        walk.push_level()?;
        Ok(walk)
    }

    /// The next name, with [`Walk::path`] leading to it. A directory must be entered before the walk goes on.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path_len);
            let Some(name) = level.names.next() else {
                self.go_up()?;
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            if self.path.len() > PATH_BYTES_MAX {
                let message = format!("{} has a path of more than {PATH_BYTES_MAX} bytes", shown(&self.path));
                return Err(io::Error::new(io::ErrorKind::InvalidFilename, message));
            }
            let stat = rustix::fs::statat(&self.dir, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            return Ok(Some(Found { name, stat, kind }));
        }
        Ok(None)
    }

    /// Goes into a directory that [`Walk::next`] gave.
    pub(super) fn enter(&mut self, name: &CStr) -> io::Result<()> {
        self.dir = open_dir(&self.dir, name)?;
        self.push_level()
    }

    fn push_level(&mut self) -> io::Result<()> {
        let stat = rustix::fs::fstat(&self.dir)?;
        let names = Names::of(&self.dir, NAMES_BYTES_MAX.saturating_sub(self.names_bytes))?;
        self.names_bytes += names.memory();
        let (device, inode, path_len) = (stat.st_dev, stat.st_ino, self.path.len());
        self.levels.push(Level { device, inode, names, path_len });
        Ok(())
    }

    fn go_up(&mut self) -> io::Result<()> {
        if let Some(done) = self.levels.pop() {
            self.names_bytes -= done.names.memory();
        }
        let Some(above) = self.levels.last() else { return Ok(()) };
        let parent = open_dir(&self.dir, c"..")?;
        let stat = rustix::fs::fstat(&parent)?;
        if (stat.st_dev, stat.st_ino) != (above.device, above.inode) {
            return Err(io::Error::other("the layer was changed while it was read"));
        }
        self.dir = parent;
        Ok(())
    }
}

fn open_dir(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
