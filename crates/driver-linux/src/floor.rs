//! The floor under every number of the bench: what the kernel takes for a bare process.

use std::io;
use std::time::{Duration, Instant};

/// Forks, lets the child end at once, waits for it. How long that took.
pub fn fork_and_wait() -> io::Result<Duration> {
    let begun = Instant::now();
    // SAFETY: the child calls nothing but `_exit`, which is async-signal-safe, so that it does not matter what other threads
    // of this process held when it was forked.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: `_exit` never returns and runs no destructors of the parent's copy.
        0 => unsafe { libc::_exit(0) },
        child => {
            let mut status = 0;
            // SAFETY: `status` is a valid place for an int, `child` is our own child, waited for exactly once.
            if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
                Ok(begun.elapsed())
            } else {
                Err(io::Error::last_os_error())
            }
        }
    }
}
