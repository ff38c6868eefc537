//! Tells of changes below a directory.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, Reply, WatchEvent, WatchEventKind, WatchFiles};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use crate::errors::{Failure, Outcome, refused, refused_io};
use crate::files::Place;
use crate::host::{Host, HostWriter};
use crate::ready::register;
use crate::server::Agent;

/// Directories one request may watch; the kernel's own limit counts all requests of a user.
const WATCHES_MAX: usize = 8192;
/// Entries of a new directory that are told of; for more the host has to look itself.
const ENTRIES_MAX: usize = 65_536;
const READ_BUFFER: usize = 16 * 1024;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Serves a `Watch` request until the host closes.
pub(crate) async fn watch(agent: &Rc<Agent>, host: &mut Host, request: WatchFiles) -> Result<(), Failure> {
    let place = Place::resolve(agent, &request.path, request.user.as_deref())?;
    let mut watcher = Watcher::new(place, request.recursive)?;
    watcher.add_top()?;
    if request.recursive {
        watcher.add_below(PathBuf::new(), None).await?;
    }
    host.reply(&Reply::Done).await?;
    let hang_up = host.hang_up();
    tokio::select! {
        biased;
        outcome = watcher.run(&mut host.writer) => outcome,
        () = hang_up.wait_reading(&mut host.reader) => Err(Failure::HostGone),
    }
}

/// One event as the kernel said it.
#[derive(Debug)]
struct Raw {
    watch: i32,
    flags: ReadFlags,
    name: OsString,
}

/// What a directory holds.
#[derive(Debug, Default)]
struct Found {
    /// Names, and whether they are directories.
    entries: Vec<(OsString, bool)>,
    /// There are more.
    is_cut: bool,
}

struct Watcher {
    place: Place,
    recursive: bool,
    inotify: AsyncFd<OwnedFd>,
    /// Paths relative to the top, which is empty.
    directories: HashMap<i32, PathBuf>,
    top: i32,
    /// Told of because a scan of a new directory found them; the kernel's own event may still follow.
    told: HashSet<PathBuf>,
}

impl Watcher {
    fn new(place: Place, recursive: bool) -> Outcome<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|errno| refused("cannot watch", errno))?;
        let inotify = register(fd, Interest::READABLE).map_err(|error| refused_io("cannot watch", &error))?;
        Ok(Self { place, recursive, inotify, directories: HashMap::new(), top: -1, told: HashSet::new() })
    }

    fn add_top(&mut self) -> Outcome<()> {
        let path = self.place.path.clone();
        self.top = self.place.act("watch", || inotify::add_watch(&self.inotify, path, flags()))?;
        self.directories.insert(self.top, PathBuf::new());
        Ok(())
    }

    /// Watches one directory below the top. `false` when it is not there, or may not be read.
    fn add(&mut self, relative: &Path) -> Outcome<bool> {
        let path = self.absolute(relative);
        if self.directories.len() >= WATCHES_MAX {
            let message = format!("{} has more than {WATCHES_MAX} directories: watch a smaller one", self.place.path);
            return Err(AgentError::new(ErrorKind::Exhausted, message));
        }
        match self.place.attempt(|| inotify::add_watch(&self.inotify, path, flags() | WatchFlags::DONT_FOLLOW))? {
            Ok(watch) => {
                self.directories.insert(watch, relative.to_owned());
                Ok(true)
            }
            Err(Errno::NOSPC) => {
                let message = format!("cannot watch all of {}: the kernel's limit of watches is reached", self.place.path);
                Err(AgentError::new(ErrorKind::Exhausted, message))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => Ok(false),
            Err(errno) => Err(refused(format_args!("cannot watch {}", self.place.path), errno)),
        }
    }

    fn absolute(&self, relative: &Path) -> PathBuf {
        Path::new(&self.place.path).join(relative)
    }

    /// Watches all directories below `start`. With a writer, tells of everything found: it came before the watch did.
    async fn add_below(&mut self, start: PathBuf, mut writer: Option<&mut HostWriter>) -> Result<(), Failure> {
        let mut waiting = vec![start];
        while let Some(directory) = waiting.pop() {
            let found = self.entries(&directory, writer.is_none())?;
            if let Some(writer) = writer.as_deref_mut().filter(|_| found.is_cut) {
                tell(writer, &directory, WatchEventKind::Overflow, true).await?;
            }
            for (name, is_dir) in found.entries {
                let path = directory.join(name);
                if let Some(writer) = writer.as_deref_mut() {
                    tell(writer, &path, WatchEventKind::Create, is_dir).await?;
                    if self.told.len() < ENTRIES_MAX {
                        self.told.insert(path.clone());
                    }
                }
                if is_dir && self.add(&path)? {
                    waiting.push(path);
                }
            }
            yield_now().await;
        }
        Ok(())
    }

    /// A directory's entries, or only the directories among them; none when it is gone or may not be read.
    fn entries(&self, directory: &Path, only_directories: bool) -> Outcome<Found> {
        let path = self.absolute(directory);
        let read = self.place.attempt(|| {
            let top = directory.as_os_str().is_empty();
            let flags = if top { DIRECTORY } else { DIRECTORY | OFlags::NOFOLLOW };
            let mut found = Found::default();
            for entry in Dir::new(rustix::fs::open(path, flags, Mode::empty())?)? {
                let entry = entry?;
                let name = entry.file_name();
                let is_dir = entry.file_type() == FileType::Directory;
                if name == c"." || name == c".." || (only_directories && !is_dir) {
                    continue;
                }
                if found.entries.len() >= ENTRIES_MAX {
                    found.is_cut = true;
                    break;
                }
                found.entries.push((OsStr::from_bytes(name.to_bytes()).to_owned(), is_dir));
            }
            Ok(found)
        })?;
        Ok(read.unwrap_or_default())
    }

    async fn run(&mut self, writer: &mut HostWriter) -> Result<(), Failure> {
        loop {
            let batch = self.read().await.map_err(|error| refused_io("cannot read events", &error))?;
            if batch.is_empty() {
                self.told.clear();
            }
            for raw in batch {
                self.handle(raw, writer).await?;
            }
        }
    }

    /// The events there are now; waits when there are none, after saying so once with an empty batch.
    async fn read(&self) -> io::Result<Vec<Raw>> {
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.try_io(|fd| Ok(read_batch(fd.get_ref())?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(batch) => return batch,
                Err(_) if !self.told.is_empty() => return Ok(Vec::new()),
                Err(_) => {}
            }
        }
    }

    async fn handle(&mut self, raw: Raw, writer: &mut HostWriter) -> Result<(), Failure> {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            tell(writer, Path::new(""), WatchEventKind::Overflow, true).await?;
            if self.recursive {
                self.add_below(PathBuf::new(), None).await?;
            }
            return Ok(());
        }
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&raw.watch);
            return if raw.watch == self.top { self.top_gone(writer).await } else { Ok(()) };
        }
        if raw.flags.contains(ReadFlags::MOVE_SELF) && raw.watch == self.top {
            return self.top_gone(writer).await;
        }
        let Some(kind) = kind(raw.flags).filter(|_| !raw.name.is_empty()) else { return Ok(()) };
        let Some(directory) = self.directories.get(&raw.watch) else { return Ok(()) };
        let path = directory.join(&raw.name);
        let is_dir = raw.flags.contains(ReadFlags::ISDIR);
        if kind == WatchEventKind::Create && self.told.remove(&path) {
            return Ok(());
        }
        if matches!(kind, WatchEventKind::Remove | WatchEventKind::Rename) {
            self.told.remove(&path);
        }
        tell(writer, &path, kind, is_dir).await?;
        if !is_dir || !self.recursive {
            return Ok(());
        }
        match kind {
            WatchEventKind::Rename => self.forget_below(&path),
            WatchEventKind::Create if self.add(&path)? => self.add_below(path, Some(writer)).await?,
            _ => {}
        }
        Ok(())
    }

    /// A directory that was moved away has other paths now, or is none of ours any more.
    fn forget_below(&mut self, gone: &Path) {
        let inotify = &self.inotify;
        self.directories.retain(|watch, path| {
            let stays = !path.starts_with(gone);
            if !stays {
                // One that is gone already has no watch to remove.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            stays
        });
    }

    async fn top_gone(&self, writer: &mut HostWriter) -> Result<(), Failure> {
        tell(writer, Path::new(""), WatchEventKind::Remove, true).await?;
        let message = format!("the watched directory {} was removed or moved", self.place.path);
        Err(AgentError::new(ErrorKind::NotFound, message).into())
    }
}

fn flags() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

fn kind(flags: ReadFlags) -> Option<WatchEventKind> {
    let kinds = [
        (ReadFlags::CREATE, WatchEventKind::Create),
        (ReadFlags::MOVED_TO, WatchEventKind::Create),
        (ReadFlags::MODIFY, WatchEventKind::Write),
        (ReadFlags::DELETE, WatchEventKind::Remove),
        (ReadFlags::MOVED_FROM, WatchEventKind::Rename),
        (ReadFlags::ATTRIB, WatchEventKind::Chmod),
    ];
    kinds.into_iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, kind)| kind)
}

/// One read's worth of events.
fn read_batch(fd: &OwnedFd) -> Result<Vec<Raw>, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); READ_BUFFER];
    let mut reader = Reader::new(fd, &mut buffer);
    let mut batch = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map_or_else(OsString::new, |name| OsStr::from_bytes(name.to_bytes()).to_owned());
        batch.push(Raw { watch: event.wd(), flags: event.events(), name });
        if reader.is_buffer_empty() {
            return Ok(batch);
        }
    }
}

async fn tell(writer: &mut HostWriter, path: &Path, kind: WatchEventKind, is_dir: bool) -> Result<(), Failure> {
    let event = WatchEvent { path: path.to_string_lossy().into_owned(), kind, is_dir };
    writer.reply(&Reply::Watched(event)).await
}
