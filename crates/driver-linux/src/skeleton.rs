//! Directories of destroyed sandboxes, emptied for the next ones.
//!
//! What a sandbox's directory holds is known: two directories for each overlay, a socket and the manifest. Taken away by name, no
//! directory needs to be listed, and what is left is a skeleton that the next sandbox is made in.
//!
//! Nothing is kept that a sandbox could reach. An overlay's `upper` is the sandbox's own `/`, or a directory in it: whoever was
//! root inside gave it its mode, owner and attributes, so it is always made anew. A `work` directory belongs to overlayfs alone, and
//! those above it to the launcher: no path inside a sandbox leads to them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::image::remove_tree;
use crate::manifest;

/// Skeletons kept. More sandboxes than that seldom end between two that begin.
const KEPT_MAX: usize = 64;
/// What there is of an overlay, besides `work` itself, and how it is removed. All that is in `work` overlayfs made there; the first of
/// it says that the mount was volatile.
const OVERLAY: [(&str, AtFlags); 5] = [
    ("upper", AtFlags::REMOVEDIR),
    ("work/work/incompat/volatile/dirty", AtFlags::empty()),
    ("work/work/incompat/volatile", AtFlags::REMOVEDIR),
    ("work/work/incompat", AtFlags::REMOVEDIR),
    ("work/work", AtFlags::REMOVEDIR),
];

/// Skeletons that wait to be used again, the one that waits longest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Skeletons(Arc<Mutex<VecDeque<PathBuf>>>);

impl Skeletons {
    /// One for the next sandbox, which moves it to its own place.
    pub(crate) fn take(&self) -> Option<PathBuf> {
        self.kept().pop_front()
    }

    /// Keeps one; false when there are enough.
    pub(crate) fn keep(&self, path: &Path) -> bool {
        let mut kept = self.kept();
        let has_room = kept.len() < KEPT_MAX;
        if has_room {
            kept.push_back(path.to_owned());
        }
        has_room
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what one sandbox had from its directory. True: what is left is a skeleton. `grafts`: names of the host's directories that
/// sandboxes have overlays for.
///
/// # Errors
/// When something is there that should not be. Whoever called removes all of it then.
pub(crate) fn strip(path: &Path, grafts: &[PathBuf]) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let dir = dir.as_fd();
    for file in ["agent.sock", manifest::FILE] {
        unlink(dir, file, AtFlags::empty())?;
    }
    strip_overlay(dir, path)?;
    let mut grafted = 0;
    for graft in grafts {
        let below = Path::new("grafts").join(graft);
        match rustix::fs::openat(dir, &below, flags, Mode::empty()) {
            Ok(overlay) => strip_overlay(overlay.as_fd(), &path.join(below))?,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        }
        grafted += 1;
    }
    Ok(is_skeleton(dir, grafted)?)
}

/// Removes the upper directory and what overlayfs made in the other.
fn strip_overlay(dir: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    for (name, how) in OVERLAY {
        match unlink(dir, name, how) {
            // Something was written, or removed: overlayfs keeps the mark of removed files.
            Err(Errno::NOTEMPTY) => remove_tree(&path.join(name))?,
            result => result?,
        }
    }
    Ok(())
}

fn unlink(dir: BorrowedFd<'_>, name: &str, how: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, how) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Whether only `work` is left, and the same below as many grafts. A directory has a link for its name, for itself, and for each
/// directory in it; a file system that does not count them keeps no skeletons.
fn is_skeleton(dir: BorrowedFd<'_>, grafted: u32) -> Result<bool, Errno> {
    let has_directories = |dir: BorrowedFd<'_>, name: &str, count: u32| -> Result<bool, Errno> {
        let stat = rustix::fs::statat(dir, name, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        // The type of the number of links differs between architectures.
        #[allow(clippy::useless_conversion)]
        Ok(u64::from(stat.st_nlink) == 2 + u64::from(count))
    };
    let with_grafts = grafted > 0;
    Ok(has_directories(dir, "", 1 + u32::from(with_grafts))? && (!with_grafts || has_directories(dir, "grafts", grafted)?))
}
