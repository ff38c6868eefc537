//! Moves files and trees; across file systems, copies and removes them.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, Stat, Timespec, Timestamps, Uid, renameat_with,
};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FileKind, FileStat, MoveFile};
use tokio::task::yield_now;

use super::Place;
use super::place::{CAREFUL, MODE_BITS, is_dir, join, kind};
use super::{remove, temporary, write};
use crate::errors::{Failure, Outcome, refused};
use crate::host::Host;
use crate::server::Agent;

/// Directories inside each other that are copied; each is two open files.
const LEVELS_MAX: usize = 128;
const SET_ID_BITS: u32 = 0o6000;
const READ_BUFFER: usize = 8 * 1024;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(CAREFUL);

/// Serves a `Move` request up to its reply.
pub(super) async fn rename(agent: &Agent, host: &mut Host, request: &MoveFile) -> Result<FileStat, Failure> {
    let from = Place::resolve(agent, &request.from, request.user.as_deref())?;
    let to = Place::resolve(agent, &request.to, request.user.as_deref())?;
    from.act("move", || rustix::fs::lstat(&*from.path))?;
    to.make_parents()?;
    match rename_to(&from, &to, request.overwrite)? {
        Ok(()) => {}
        Err(Errno::XDEV) => {
            let hang_up = host.hang_up();
            tokio::select! {
                biased;
                moved = copy_and_remove(&from, &to, request.overwrite) => moved?,
                () = hang_up.wait_reading(&mut host.reader) => return Err(Failure::HostGone),
            }
        }
        Err(errno) => return Err(move_error(&from, &to, errno).into()),
    }
    Ok(to.stat(false)?)
}

fn rename_to(from: &Place, to: &Place, overwrite: bool) -> Outcome<Result<(), Errno>> {
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    from.attempt(|| renameat_with(CWD, &*from.path, CWD, &*to.path, flags))
}

fn move_error(from: &Place, to: &Place, errno: Errno) -> AgentError {
    refused(format_args!("cannot move {} to {}", from.path, to.path), errno)
}

/// The copy gets its name when it is complete, and only then the original goes.
async fn copy_and_remove(from: &Place, to: &Place, overwrite: bool) -> Outcome<()> {
    let exists = from.attempt(|| rustix::fs::lstat(&*to.path))?.is_ok();
    if exists && !overwrite {
        return Err(move_error(from, to, Errno::EXIST));
    }
    let copy = Copy { place: temporary::sibling(to), armed: true };
    copy_all(from, &copy.place).await?;
    rename_to(&copy.place, to, overwrite)?.map_err(|errno| move_error(from, to, errno))?;
    copy.keep();
    let stat = from.act("look at", || rustix::fs::lstat(&*from.path))?;
    if is_dir(&stat) { remove::tree(from).await } else { from.act("remove", || rustix::fs::unlink(&*from.path)) }
}

/// An incomplete copy. Dropping it removes it.
struct Copy {
    place: Place,
    armed: bool,
}

impl Copy {
    fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.armed {
            let place = self.place.at(self.place.path.clone());
            // A tree takes its time: it is removed beside the agent's other work.
            tokio::task::spawn_local(async move {
                let unlinked = place.attempt(|| rustix::fs::unlink(&*place.path));
                if matches!(unlinked, Ok(Err(Errno::ISDIR))) {
                    let _ = remove::tree(&place).await;
                }
            });
        }
    }
}

/// One directory being copied.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
    path: String,
    names: Vec<CString>,
}

/// Copies a file, symbolic link or tree with modes, owners and times.
async fn copy_all(from: &Place, to: &Place) -> Outcome<()> {
    let mut levels: Vec<Level> = Vec::new();
    let first = Entry { directories: None, from: c_path(&from.path)?, to: c_path(&to.path)?, path: from.path.clone() };
    levels.extend(copy_entry(from, first).await?);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            let done = levels.pop();
            if let Some(level) = done {
                from.act("copy", || dress(&level.to, &level.stat))?;
            }
            continue;
        };
        let path = join(&level.path, name.as_bytes());
        let entry = Entry { directories: Some((&level.from, &level.to)), from: name.clone(), to: name, path };
        let deeper = copy_entry(from, entry).await?;
        levels.extend(deeper);
        if levels.len() > LEVELS_MAX {
            let message = format!("{} has more than {LEVELS_MAX} directories inside each other", from.path);
            return Err(AgentError::new(ErrorKind::Exhausted, message));
        }
        yield_now().await;
    }
    Ok(())
}

fn c_path(path: &str) -> Outcome<CString> {
    CString::new(path).map_err(|_| crate::errors::invalid("the path contains a NUL byte"))
}

/// What is copied, by names in two directories.
struct Entry<'a> {
    directories: Option<(&'a OwnedFd, &'a OwnedFd)>,
    from: CString,
    to: CString,
    path: String,
}

impl Entry<'_> {
    fn at<T>(&self, step: impl FnOnce(rustix::fd::BorrowedFd<'_>, rustix::fd::BorrowedFd<'_>) -> T) -> T {
        use std::os::fd::AsFd;
        match self.directories {
            Some((from, to)) => step(from.as_fd(), to.as_fd()),
            None => step(CWD, CWD),
        }
    }
}

/// Copies one entry; a directory is only begun.
async fn copy_entry(user: &Place, entry: Entry<'_>) -> Outcome<Option<Level>> {
    let place = user.at(entry.path.clone());
    let look = |from: rustix::fd::BorrowedFd<'_>| rustix::fs::statat(from, &entry.from, AtFlags::SYMLINK_NOFOLLOW);
    let stat = place.act("copy", || entry.at(|from, _| look(from)))?;
    match kind(&stat) {
        FileKind::File => copy_file(&place, &entry, &stat).await.map(|()| None),
        FileKind::Dir => begin_directory(&place, &entry, stat).await.map(Some),
        FileKind::Symlink => {
            place.act("copy", || {
                entry.at(|from, to| {
                    let target = rustix::fs::readlinkat(from, &entry.from, Vec::new())?;
                    rustix::fs::symlinkat(&target, to, &entry.to)?;
                    own(to, &entry.to, &stat, AtFlags::SYMLINK_NOFOLLOW).map(drop)
                })
            })?;
            Ok(None)
        }
        FileKind::Other => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => {
                let made = |to: rustix::fd::BorrowedFd<'_>| {
                    rustix::fs::mkfifoat(to, &entry.to, Mode::from_raw_mode(stat.st_mode & MODE_BITS))
                };
                place.act("copy", || entry.at(|_, to| made(to)))?;
                Ok(None)
            }
            _ => Err(place.wrong_kind("is a socket or device, which cannot be copied to another file system")),
        },
    }
}

async fn copy_file(place: &Place, entry: &Entry<'_>, stat: &Stat) -> Outcome<()> {
    let (from, to) = place.act("copy", || {
        entry.at(|from, to| {
            let source = rustix::fs::openat(from, &entry.from, OFlags::RDONLY | OFlags::NOFOLLOW | CAREFUL, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | CAREFUL;
            let copy = rustix::fs::openat(to, &entry.to, flags, Mode::RUSR | Mode::WUSR)?;
            Ok((source, copy))
        })
    })?;
    write::copy_content(&from, &to, place).await?;
    place.act("copy", || dress(&to, stat))
}

async fn begin_directory(place: &Place, entry: &Entry<'_>, stat: Stat) -> Outcome<Level> {
    let (from, to) = place.act("copy", || {
        entry.at(|from, to| {
            let source = rustix::fs::openat(from, &entry.from, DIRECTORY, Mode::empty())?;
            rustix::fs::mkdirat(to, &entry.to, Mode::RWXU)?;
            Ok((source, rustix::fs::openat(to, &entry.to, DIRECTORY, Mode::empty())?))
        })
    })?;
    let mut names = Vec::new();
    while place.act("copy", || read_names(&from, &mut names))? {
        yield_now().await;
    }
    Ok(Level { from, to, stat, path: entry.path.clone(), names })
}

fn read_names(directory: &OwnedFd, names: &mut Vec<CString>) -> Result<bool, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); READ_BUFFER];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
        if entries.is_buffer_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Owner where the user may set it, as `mv` does. Says whether it was set.
fn own(directory: rustix::fd::BorrowedFd<'_>, name: &CString, stat: &Stat, flags: AtFlags) -> Result<bool, Errno> {
    let (uid, gid) = (Uid::from_raw_unchecked(stat.st_uid), Gid::from_raw_unchecked(stat.st_gid));
    match rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Gives a copy its original's owner, mode and times.
fn dress(file: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let is_owned = own(std::os::fd::AsFd::as_fd(file), &CString::default(), stat, AtFlags::EMPTY_PATH)?;
    // Set-id bits were given for another owner.
    let bits = if is_owned { MODE_BITS } else { MODE_BITS & !SET_ID_BITS };
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & bits))?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let nanoseconds = |value: u64| i64::try_from(value).unwrap_or(0);
    rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: time(stat.st_atime, nanoseconds(stat.st_atime_nsec)),
            last_modification: time(stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
        },
    )
}
