//! Getting a finished layer onto the disk.

use rustix::fd::OwnedFd;
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::remove::is_dots;

/// Files and directories of a layer that is flushed one by one; each takes a descriptor meanwhile. `syncfs` waits for whatever
/// anybody wrote to the same file system, on a busy machine for minutes, and a sandbox stands still while its changes are
/// committed; but for more files than this it is the faster way.
const ONE_BY_ONE_MAX: usize = 256;

/// Flushes everything below `layer`, and itself.
pub(super) fn flush(layer: OwnedFd) -> Result<(), Errno> {
    let whole = layer.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    match everything_in(layer) {
        Ok(Some(open)) => open.iter().try_for_each(rustix::fs::fsync),
        // Without root, a file's mode may keep us from opening what we have just written.
        Ok(None) | Err(Errno::ACCESS | Errno::MFILE | Errno::NFILE) => rustix::fs::syncfs(whole),
        Err(error) => Err(error),
    }
}

/// All files and directories of a tree, opened: first what is in a directory, then itself. `None` when there are too many. What
/// has no content of its own (links, pipes, whiteouts) lasts with its directory.
fn everything_in(top: OwnedFd) -> Result<Option<Vec<OwnedFd>>, Errno> {
    let mut found = vec![top];
    let mut looked_at = 0;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    while let Some(open) = found.get(looked_at) {
        looked_at += 1;
        if FileType::from_raw_mode(rustix::fs::fstat(open)?.st_mode) != FileType::Directory {
            continue;
        }
        let mut inside = Vec::new();
        let mut entries = Dir::read_from(open)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    FileType::from_raw_mode(rustix::fs::statat(open, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                }
                known => known,
            };
            if is_dots(name) || !matches!(kind, FileType::RegularFile | FileType::Directory) {
                continue;
            }
            if looked_at + inside.len() >= ONE_BY_ONE_MAX {
                return Ok(None);
            }
            inside.push(rustix::fs::openat(open, name, flags, Mode::empty())?);
        }
        found.append(&mut inside);
        if found.len() > ONE_BY_ONE_MAX {
            return Ok(None);
        }
    }
    found.reverse();
    Ok(Some(found))
}
