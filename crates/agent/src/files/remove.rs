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

/// Names of directories held for later, of all levels.
const NAMES_HELD_MAX: usize = 10_000;
/// Directories inside each other.
const LEVELS_MAX: usize = 100_000;
/// How often directories may turn out to have been filled again by somebody else.
const REFILLS_MAX: usize = 1000;
/// A few hundred entries are removed before others get their turn.
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
        Ok(Walk::new(directory))
    })?;
    loop {
        let step = place.attempt(|| walk.slice())?;
        let done = step.map_err(|errno| refused(format_args!("cannot remove {}", walk.path(place)), errno))?;
        if done {
            match place.attempt(|| rustix::fs::rmdir(&*place.path))? {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY) if walk.may_try_again() => {
                    place.act("remove", || walk.rewind())?;
                }
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
    /// Names of directories that were read in the open one and are yet to be gone into.
    pending: Vec<CString>,
    /// The way from the top.
    trail: Vec<Above>,
    /// Names held in `pending` of all levels.
    names_held: usize,
    refills: usize,
}

/// A directory that the walk has gone into, as its parent sees it.
struct Above {
    name: CString,
    parent: (u64, u64),
    /// The parent's `pending`.
    pending: Vec<CString>,
}

impl Walk {
    fn new(directory: OwnedFd) -> Self {
        Self { directory, pending: Vec::new(), trail: Vec::new(), names_held: 0, refills: 0 }
    }

    /// Does one step: goes down, removes some entries, or goes up. `true` when the top is empty.
    fn slice(&mut self) -> Result<bool, Errno> {
        if let Some(name) = self.pending.pop() {
            self.names_held -= 1;
            return self.descend(name).map(|()| false);
        }
        if self.remove_entries()? {
            return Ok(false);
        }
        if self.trail.is_empty() { Ok(true) } else { self.ascend().map(|()| false) }
    }

    /// Removes what one read tells of, but for directories, which are noted. `false` at the directory's end.
    fn remove_entries(&mut self) -> Result<bool, Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); READ_BUFFER];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        let mut found = false;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                found = true;
                let is_dir = entry.file_type() == FileType::Directory;
                let unlinked =
                    if is_dir { Err(Errno::ISDIR) } else { rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) };
                match unlinked {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // One that is not noted is met again when the directory is read again.
                    Err(Errno::ISDIR) if self.pending.is_empty() || self.names_held < NAMES_HELD_MAX => {
                        self.pending.push(name.to_owned());
                        self.names_held += 1;
                    }
                    Err(Errno::ISDIR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if entries.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(found)
    }

    fn descend(&mut self, name: CString) -> Result<(), Errno> {
        let here = rustix::fs::fstat(&self.directory)?;
        match rustix::fs::openat(&self.directory, &name, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                self.trail.push(Above { name, parent: identity(&here), pending: std::mem::take(&mut self.pending) });
                self.directory = directory;
                Ok(())
            }
            // Replaced since it was read: the directory is read again, and what it is now is seen.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if self.may_try_again() => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Goes up, and removes the directory that is empty now.
    fn ascend(&mut self) -> Result<(), Errno> {
        let Some(above) = self.trail.pop() else { return Ok(()) };
        let parent = rustix::fs::openat(&self.directory, c"..", DIRECTORY, Mode::empty())?;
        let stat: Stat = rustix::fs::fstat(&parent)?;
        if identity(&stat) != above.parent {
            // Moved while it was emptied: going on would remove what was never asked for.
            return Err(Errno::STALE);
        }
        self.directory = parent;
        self.pending = above.pending;
        match rustix::fs::unlinkat(&self.directory, &above.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::NOTDIR) if self.may_try_again() => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// A directory turned out not to be empty at its end: from the beginning again.
    fn rewind(&mut self) -> Result<(), Errno> {
        rustix::fs::seek(&self.directory, SeekFrom::Start(0)).map(drop)
    }

    fn may_try_again(&mut self) -> bool {
        self.refills += 1;
        self.refills <= REFILLS_MAX
    }

    /// Where it is, for people.
    fn path(&self, place: &Place) -> String {
        const TOLD: usize = 32;
        let told = self.trail.iter().take(TOLD);
        told.fold(place.path.clone(), |path, above| join(&path, above.name.as_bytes()))
    }
}
