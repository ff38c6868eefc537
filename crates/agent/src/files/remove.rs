//! Removes files and trees.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, RemoveFile};
use tokio::task::yield_now;

use super::Place;
use super::place::{CAREFUL, identity, is_dir, join};
use crate::errors::{Failure, Outcome, invalid, refused};
use crate::host::Host;
use crate::server::Agent;

/// Entries removed before others get their turn.
const SLICE: usize = 128;
/// Directories inside each other.
const LEVELS_MAX: usize = 100_000;
/// How often directories may turn out to have been filled again by somebody else.
const REFILLS_MAX: usize = 1000;
const READ_BUFFER: usize = 8 * 1024;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(CAREFUL);

/// Serves a `Remove` request up to its reply.
pub(super) async fn remove(agent: &Agent, host: &mut Host, request: &RemoveFile) -> Result<(), Failure> {
    let place = Place::resolve(agent, &request.path, request.user.as_deref())?;
    let (stat, root) = place.act("remove", || {
        let stat = rustix::fs::lstat(&*place.path)?;
        Ok((stat, rustix::fs::stat("/")?))
    })?;
    if identity(&stat) == identity(&root) {
        return Err(invalid("the root directory cannot be removed").into());
    }
    if !is_dir(&stat) {
        return Ok(place.act("remove", || rustix::fs::unlink(&*place.path))?);
    }
    if !request.recursive {
        return Ok(place.act("remove the directory", || rustix::fs::rmdir(&*place.path))?);
    }
    let hang_up = host.hang_up();
    tokio::select! {
        biased;
        removed = tree(&place) => Ok(removed?),
        () = hang_up.wait_reading(&mut host.reader) => Err(Failure::HostGone),
    }
}

/// Removes a directory with all that is in it. Symbolic links are removed, never followed.
pub(super) async fn tree(place: &Place) -> Outcome<()> {
    let mut walk = place.act("remove", || {
        let directory = rustix::fs::openat(CWD, &*place.path, DIRECTORY, Mode::empty())?;
        Ok(Walk { directory, trail: Vec::new(), refills: 0 })
    })?;
    loop {
        let step = place.attempt(|| walk.slice())?;
        let done = step.map_err(|errno| refused(format_args!("cannot remove {}", walk.path(place)), errno))?;
        if done {
            match place.attempt(|| rustix::fs::rmdir(&*place.path))? {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY) if walk.may_try_again() => {}
                Err(errno) => return Err(refused(format_args!("cannot remove the directory {}", place.path), errno)),
            }
        }
        if walk.trail.len() > LEVELS_MAX {
            let message = format!("{} is more than {LEVELS_MAX} directories deep", place.path);
            return Err(AgentError::new(ErrorKind::Exhausted, message));
        }
        yield_now().await;
    }
}

/// A walk that holds one directory open, however deep the tree.
struct Walk {
    directory: OwnedFd,
    /// The way from the top: each directory's name, and which one its parent is.
    trail: Vec<(CString, (u64, u64))>,
    refills: usize,
}

enum Found {
    Nothing,
    Directory(CString),
    EndOfSlice,
}

impl Walk {
    /// Removes some entries. `true` when the top is empty.
    fn slice(&mut self) -> Result<bool, Errno> {
        rustix::fs::seek(&self.directory, SeekFrom::Start(0))?;
        match self.remove_entries()? {
            Found::EndOfSlice => Ok(false),
            Found::Directory(name) => self.descend(name).map(|()| false),
            Found::Nothing if self.trail.is_empty() => Ok(true),
            Found::Nothing => self.ascend().map(|()| false),
        }
    }

    fn remove_entries(&self) -> Result<Found, Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); READ_BUFFER];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        let mut removed = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                return Ok(Found::Directory(name.to_owned()));
            }
            match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => removed += 1,
                Err(Errno::ISDIR) => return Ok(Found::Directory(name.to_owned())),
                Err(errno) => return Err(errno),
            }
            if removed >= SLICE {
                return Ok(Found::EndOfSlice);
            }
        }
        Ok(Found::Nothing)
    }

    fn descend(&mut self, name: CString) -> Result<(), Errno> {
        let here = rustix::fs::fstat(&self.directory)?;
        match rustix::fs::openat(&self.directory, &name, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                self.trail.push((name, identity(&here)));
                self.directory = directory;
                Ok(())
            }
            // Replaced since it was read: the next slice sees what it is now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if self.may_try_again() => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Goes up, and removes the directory that is empty now.
    fn ascend(&mut self) -> Result<(), Errno> {
        let Some((name, parent_identity)) = self.trail.pop() else { return Ok(()) };
        let parent = rustix::fs::openat(&self.directory, c"..", DIRECTORY, Mode::empty())?;
        let stat: Stat = rustix::fs::fstat(&parent)?;
        if identity(&stat) != parent_identity {
            // Moved while it was emptied: going on would remove what was never asked for.
            return Err(Errno::STALE);
        }
        self.directory = parent;
        match rustix::fs::unlinkat(&self.directory, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::NOTDIR) if self.may_try_again() => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn may_try_again(&mut self) -> bool {
        self.refills += 1;
        self.refills <= REFILLS_MAX
    }

    /// Where it is, for people.
    fn path(&self, place: &Place) -> String {
        const TOLD: usize = 32;
        let told = self.trail.iter().take(TOLD);
        told.fold(place.path.clone(), |path, (name, _)| join(&path, name.as_bytes()))
    }
}
