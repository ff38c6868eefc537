//! Lists directories.

use std::collections::BinaryHeap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FileStat, ListFiles, Reply};
use tokio::task::yield_now;

use super::Place;
use super::place::{CAREFUL, is_dir, is_symlink, join, text};
use crate::errors::{Failure, Outcome, invalid};
use crate::host::Host;
use crate::server::Agent;

/// Names that are held at once to sort one directory.
const DIRECTORY_ENTRIES_MAX: usize = 200_000;
/// Directories inside each other that are descended into; each is an open file.
const LEVELS_MAX: usize = 128;
/// Entries looked at before others get their turn.
const SLICE: usize = 64;
/// A frame of entries is sent when it has grown to this estimate. JSON may need six bytes for one of a name.
const CHUNK_BYTES: usize = 96 * 1024;
const CHUNK_ENTRIES: usize = 256;
/// Estimate for what is not text in an entry.
const ENTRY_BYTES: usize = 40;
const READ_BUFFER: usize = 32 * 1024;

/// Serves a `List` request.
pub(super) async fn list(agent: &Agent, host: &mut Host, request: &ListFiles) -> Result<(), Failure> {
    if request.depth == 0 {
        return Err(invalid("a depth of 0 lists nothing: ask for 1 or more").into());
    }
    let place = Place::resolve(agent, &request.path, request.user.as_deref())?;
    let top = place.act("list", || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | CAREFUL;
        rustix::fs::openat(CWD, &*place.path, flags, Mode::empty())
    })?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let mut listing = Listing { place, left: limit, chunk: Vec::new(), chunk_bytes: 0 };
    let first = listing.open_level(top, listing.place.path.clone()).await?;
    let mut levels = vec![first];
    let depth_max = usize::try_from(request.depth).unwrap_or(usize::MAX);
    while let Some(level) = levels.last_mut() {
        if level.names.is_empty() || listing.left == 0 {
            levels.pop();
            continue;
        }
        let may_descend = levels.len() < depth_max;
        let found = listing.slice(levels.last_mut(), may_descend)?;
        listing.flush(host, CHUNK_BYTES).await?;
        if let Some((directory, path)) = found {
            if levels.len() >= LEVELS_MAX {
                let message = format!("{path} is more than {LEVELS_MAX} directories deep: list it by itself");
                return Err(AgentError::new(ErrorKind::Exhausted, message).into());
            }
            let next = listing.open_level(directory, path).await?;
            levels.push(next);
        }
        yield_now().await;
    }
    listing.flush(host, 0).await?;
    host.reply(&Reply::Done).await
}

/// A directory being listed.
struct Level {
    directory: OwnedFd,
    path: String,
    /// Last first.
    names: Vec<CString>,
}

struct Listing {
    place: Place,
    left: usize,
    chunk: Vec<FileStat>,
    chunk_bytes: usize,
}

impl Listing {
    /// Reads and sorts a directory's names. Only as many are kept as may still be told of.
    async fn open_level(&self, directory: OwnedFd, path: String) -> Outcome<Level> {
        let keep = self.left.min(DIRECTORY_ENTRIES_MAX);
        let mut names = BinaryHeap::new();
        let mut dropped = false;
        loop {
            let more = self.place.act("list", || read_names(&directory, keep, &mut names, &mut dropped))?;
            if !more {
                break;
            }
            yield_now().await;
        }
        if dropped && keep < self.left {
            let message = format!("{path} has more than {DIRECTORY_ENTRIES_MAX} entries: ask for fewer with a limit");
            return Err(AgentError::new(ErrorKind::Exhausted, message));
        }
        let mut names = names.into_sorted_vec();
        names.reverse();
        Ok(Level { directory, path, names })
    }

    /// Looks at some entries; ends early with a directory to go into.
    fn slice(&mut self, level: Option<&mut Level>, may_descend: bool) -> Outcome<Option<(OwnedFd, String)>> {
        let Some(level) = level else { return Ok(None) };
        let place = self.place.at(level.path.clone());
        place.act("list", || {
            for _ in 0..SLICE {
                if self.left == 0 || self.chunk.len() >= CHUNK_ENTRIES || self.chunk_bytes >= CHUNK_BYTES {
                    return Ok(None);
                }
                let Some(name) = level.names.pop() else { return Ok(None) };
                let stat = match rustix::fs::statat(&level.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    // Removed since its name was read.
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(errno),
                };
                let link = is_symlink(&stat).then(|| rustix::fs::readlinkat(&level.directory, &name, Vec::new()).ok());
                let path = join(&level.path, name.as_bytes());
                let entry = self.place.describe(path, &stat, link.flatten().map(|link| text(link.as_bytes())));
                let subdirectory = (may_descend && is_dir(&stat)).then(|| entry.path.clone());
                self.add(entry);
                if let Some(path) = subdirectory {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | CAREFUL;
                    // One that may not be read is listed without what is in it.
                    if let Ok(directory) = rustix::fs::openat(&level.directory, &name, flags, Mode::empty()) {
                        return Ok(Some((directory, path)));
                    }
                }
            }
            Ok(None)
        })
    }

    fn add(&mut self, entry: FileStat) {
        let target = entry.symlink_target.as_ref().map_or(0, String::len);
        self.chunk_bytes += ENTRY_BYTES + entry.path.len() + target + entry.owner.len() + entry.group.len();
        self.left -= 1;
        self.chunk.push(entry);
    }

    /// Sends what has gathered, if it is more than `threshold` or many.
    async fn flush(&mut self, host: &mut Host, threshold: usize) -> Result<(), Failure> {
        if self.chunk.is_empty() || (self.chunk_bytes < threshold && self.chunk.len() < CHUNK_ENTRIES) {
            return Ok(());
        }
        self.chunk_bytes = 0;
        let entries = std::mem::take(&mut self.chunk);
        host.reply(&Reply::Entries(entries)).await
    }
}

/// Reads one buffer of names; `false` at the end.
fn read_names(directory: &OwnedFd, keep: usize, names: &mut BinaryHeap<CString>, dropped: &mut bool) -> Result<bool, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); READ_BUFFER];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
            if names.len() > keep {
                names.pop();
                *dropped = true;
            }
        }
        if entries.is_buffer_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
