//! Names that exist only until an operation is complete.

use std::cell::Cell;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Place;
use super::place::{CAREFUL, join};
use crate::errors::Outcome;

/// Somebody else may have taken a name.
const ATTEMPTS_MAX: usize = 100;

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// A fresh path in the directory of `place`.
pub(super) fn sibling(place: &Place) -> Place {
    let number = NEXT.replace(NEXT.get().wrapping_add(1));
    let name = format!(".sandbank-{}-{number}.part", std::process::id());
    place.at(join(place.parent(), name.as_bytes()))
}

/// A file beside the one it is to become. Dropping it removes it.
pub(super) struct Temporary {
    /// Where it is.
    pub(super) place: Place,
    /// Open for writing and reading.
    pub(super) file: OwnedFd,
    armed: bool,
}

impl Temporary {
    /// Makes one; the inner error is for the caller to look at.
    pub(super) fn beside(target: &Place) -> Outcome<Result<Self, Errno>> {
        for _ in 0..ATTEMPTS_MAX {
            let place = sibling(target);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | CAREFUL;
            match place.attempt(|| rustix::fs::open(&*place.path, flags, Mode::RUSR | Mode::WUSR))? {
                Ok(file) => return Ok(Ok(Self { place, file, armed: true })),
                Err(Errno::EXIST) => {}
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Err(Errno::EXIST))
    }

    /// It has its final name now.
    pub(super) fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.armed {
            // A name that is gone already is what was wanted.
            let _ = self.place.attempt(|| rustix::fs::unlink(&*self.place.path));
        }
    }
}
