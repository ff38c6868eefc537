//! Writes a file.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Access, CWD, FileType, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FileStat, OpenMode, WriteFile};
use tokio::task::yield_now;

use super::Place;
use super::place::{CAREFUL, MODE_BITS, is_dir, is_file};
use super::temporary::Temporary;
use crate::errors::{Failure, Outcome, refused};
use crate::host::{Host, next_upload};
use crate::server::Agent;

const MODE_DEFAULT: u32 = 0o644;
/// As the kernel follows.
const SYMLINKS_MAX: usize = 40;
/// Copied in one slice.
const COPY_SLICE: usize = 1024 * 1024;
/// Where data waits for a file that cannot be replaced by renaming.
const SPOOL_DIRECTORY: &str = "/tmp";

/// Serves a `Write` request up to its reply.
pub(super) async fn write(agent: &Agent, host: &mut Host, request: &WriteFile) -> Result<FileStat, Failure> {
    let asked = Place::resolve(agent, &request.path, request.user.as_deref())?;
    asked.make_parents()?;
    let place = follow_links(&asked)?;
    match request.open {
        OpenMode::Append => append(&place, host, request).await?,
        OpenMode::Replace | OpenMode::CreateNew => replace(&place, host, request).await?,
    }
    Ok(asked.stat(true)?)
}

/// The file that a write through symbolic links is for; it need not exist.
fn follow_links(asked: &Place) -> Outcome<Place> {
    let mut place = asked.at(asked.path.clone());
    for _ in 0..SYMLINKS_MAX {
        let target = match place.attempt(|| rustix::fs::readlink(&*place.path, Vec::new()))? {
            Ok(target) => target,
            Err(_) => return Ok(place),
        };
        let Ok(target) = target.into_string() else {
            return Err(place.wrong_kind("is a symbolic link to a path that is not UTF-8"));
        };
        let joined = Path::new(place.parent()).join(target);
        place = asked.at(joined.to_string_lossy().into_owned());
    }
    Err(asked.wrong_kind("leads through too many symbolic links"))
}

/// The mode of the file there is, if there is one and it may be written.
fn existing_mode(place: &Place) -> Outcome<Option<u32>> {
    let looked = place.attempt(|| {
        let stat = rustix::fs::stat(&*place.path)?;
        if is_file(&stat) {
            // Renaming over it needs no right to the file itself; writing does.
            rustix::fs::access(&*place.path, Access::WRITE_OK)?;
        }
        Ok(stat)
    })?;
    match looked {
        Ok(stat) if is_file(&stat) => Ok(Some(stat.st_mode & MODE_BITS)),
        Ok(stat) if is_dir(&stat) => Err(place.wrong_kind("is a directory")),
        Ok(stat) => Err(place.wrong_kind(kind_name(FileType::from_raw_mode(stat.st_mode)))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(refused(format_args!("cannot write {}", place.path), errno)),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "is a named pipe, not a regular file",
        FileType::Socket => "is a socket, not a regular file",
        _ => "is not a regular file",
    }
}

async fn append(place: &Place, host: &mut Host, request: &WriteFile) -> Result<(), Failure> {
    let existing = existing_mode(place)?;
    let file = place.act("write", || {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | CAREFUL;
        let mode = Mode::from_raw_mode(request.mode.unwrap_or(MODE_DEFAULT) & MODE_BITS);
        let file = rustix::fs::open(&*place.path, flags, mode)?;
        if !is_file(&rustix::fs::fstat(&file)?) {
            return Err(Errno::ISDIR);
        }
        if existing.is_none() || request.mode.is_some() {
            rustix::fs::fchmod(&file, mode)?;
        }
        Ok(file)
    })?;
    receive(host, &file, place).await
}

async fn replace(place: &Place, host: &mut Host, request: &WriteFile) -> Result<(), Failure> {
    let existing = existing_mode(place)?;
    if existing.is_some() && request.open == OpenMode::CreateNew {
        return Err(exists(place).into());
    }
    let mode = Mode::from_raw_mode(request.mode.or(existing).unwrap_or(MODE_DEFAULT) & MODE_BITS);
    let temporary = match Temporary::beside(place)? {
        Ok(temporary) => temporary,
        // The directory may not be written, but the file in it may.
        Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) if existing.is_some() => {
            let spool = spool(place)?;
            receive(host, &spool, place).await?;
            return overwrite(place, &spool, request.mode).await;
        }
        Err(errno) => return Err(refused(format_args!("cannot write {}", place.path), errno).into()),
    };
    receive(host, &temporary.file, place).await?;
    place.act("set the permissions of", || rustix::fs::fchmod(&temporary.file, mode))?;
    let (from, to) = (&*temporary.place.path, &*place.path);
    let renamed = place.attempt(|| {
        let new = request.open == OpenMode::CreateNew;
        renameat_with(CWD, from, CWD, to, if new { RenameFlags::NOREPLACE } else { RenameFlags::empty() })
    })?;
    match renamed {
        Ok(()) => {
            temporary.keep();
            Ok(())
        }
        Err(Errno::EXIST) => Err(exists(place).into()),
        // Something is mounted on the file: its content can change, but not its name.
        Err(Errno::BUSY) => overwrite(place, &temporary.file, request.mode).await,
        Err(errno) => Err(refused(format_args!("cannot write {}", place.path), errno).into()),
    }
}

fn exists(place: &Place) -> AgentError {
    AgentError::new(ErrorKind::Exists, format!("{} exists already", place.path))
}

/// A file without a name.
fn spool(place: &Place) -> Outcome<OwnedFd> {
    let directory = place.at(SPOOL_DIRECTORY.to_owned());
    directory.act("make a temporary file in", || {
        rustix::fs::open(SPOOL_DIRECTORY, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    })
}

/// Copies the complete data over the file's content.
async fn overwrite(place: &Place, data: &OwnedFd, mode: Option<u32>) -> Result<(), Failure> {
    let file = place.act("write", || {
        let file = rustix::fs::open(&*place.path, OFlags::WRONLY | OFlags::TRUNC | CAREFUL, Mode::empty())?;
        if let Some(mode) = mode {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & MODE_BITS))?;
        }
        Ok(file)
    })?;
    Ok(copy_content(data, &file, place).await?)
}

/// Copies one regular file's content to another, from the beginning, in slices.
pub(super) async fn copy_content(from: &OwnedFd, to: &OwnedFd, place: &Place) -> Outcome<()> {
    let mut offset = 0;
    loop {
        match rustix::fs::sendfile(to, from, Some(&mut offset), COPY_SLICE) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => yield_now().await,
            Err(errno) => return Err(refused(format_args!("cannot write {}", place.path), errno)),
        }
    }
}

/// Writes what the host sends until its end.
async fn receive(host: &mut Host, file: &OwnedFd, place: &Place) -> Result<(), Failure> {
    while let Some(data) = next_upload(&mut host.reader).await? {
        let mut rest = &data[..];
        while !rest.is_empty() {
            match rustix::io::write(file, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(refused(format_args!("cannot write {}", place.path), errno).into()),
            }
        }
        yield_now().await;
    }
    Ok(())
}
