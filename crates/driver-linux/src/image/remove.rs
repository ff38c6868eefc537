//! Removing trees that others made.

use std::ffi::CStr;
use std::io;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Removes a file or a directory with all that is in it; a missing one is no error. Symbolic links are removed, not followed.
///
/// Fit for hostile trees: directories are moved up to the top before they are emptied, so that neither stack, descriptors nor
/// path length grow with the depth.
///
/// # Errors
/// What the kernel said. What was removed until then is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_dir(CWD, path)?;
    empty(&top)?;
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Empties `top`: each round takes the contents of its subdirectories up one level.
fn empty(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved = 0u64;
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(top)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            found = true;
            if unlink(top, name, entry.file_type())? {
                flatten(top, name, &mut moved)?;
                rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Takes everything out of the directory `name`: files are removed, directories moved into `top` under unused names.
fn flatten(top: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    let dir = open_dir(top, name)?;
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(&dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            found = true;
            if unlink(&dir, name, entry.file_type())? {
                move_up(&dir, name, top, moved)?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Moves a directory into `top`, under the next name that nothing there has.
fn move_up(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    let mut opened_up = false;
    loop {
        *moved += 1;
        let free_name = format!(".removed-{moved}");
        match rustix::fs::renameat_with(dir, name, top, free_name.as_str(), rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            // Moving a directory writes its `..`, which without root takes the right to write into it.
            Err(Errno::ACCESS) if !opened_up => {
                opened_up = true;
                rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            }
            other => return other,
        }
    }
}

/// Unlinks what is not a directory. True: it is one, and still there.
fn unlink(dir: &OwnedFd, name: &CStr, kind: FileType) -> Result<bool, Errno> {
    if kind == FileType::Directory {
        return Ok(true);
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error),
    }
}

fn open_dir<P: rustix::path::Arg + Copy>(parent: impl AsFd, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = parent.as_fd();
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        // Without root, a directory of mode 0 (overlayfs makes such) must first be opened up. Emptying and moving also take
        // write permission, and the mode no longer matters.
        Err(Errno::ACCESS) => {}
        Ok(dir) if rustix::process::geteuid().is_root() => return Ok(dir),
        Ok(dir) => {
            rustix::fs::fchmod(&dir, Mode::RWXU)?;
            return Ok(dir);
        }
        Err(error) => return Err(error),
    }
    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// `.` and `..`.
pub(super) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
