//! Terminals, and the stub that a terminal's program is started through.
//!
//! A controlling terminal can only be taken by the process itself between fork and exec. Safe code cannot run there, so the
//! agent starts itself again as a stub that does so and then becomes the program.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use sandbank_agent_protocol::PtySize;

use crate::errors::{Outcome, refused};
use crate::users::User;

/// First argument of the stub: then come the program's path, its argument 0 and the other arguments.
pub(crate) const STUB_ARGUMENT: &str = "--tty-exec";
/// The agent's own executable: the only path to it that exists in a sandbox.
pub(crate) const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// As a shell says it.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Owner reads and writes, `mesg y` for the group: as getty sets it.
const TERMINAL_MODE: u32 = 0o620;

/// Opens a terminal of the given size, owned by the user: the agent's side and the program's side.
pub(crate) fn open(user: &User, size: PtySize) -> Outcome<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let opened = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok((master, slave))
    };
    let (master, slave) = opened().map_err(|errno| refused("cannot open a terminal", errno))?;
    resize(&master, size)?;
    // Where the owner cannot be changed the program can still use the terminal that it has open.
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw_unchecked(user.uid)), Some(Gid::from_raw_unchecked(user.gid)));
    let _ = rustix::fs::fchmod(&slave, Mode::from_raw_mode(TERMINAL_MODE));
    Ok((master, slave))
}

/// Sets a terminal's size; its foreground group is told by SIGWINCH.
pub(crate) fn resize(master: &OwnedFd, size: PtySize) -> Outcome<()> {
    let window = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, window).map_err(|errno| refused("cannot resize the terminal", errno))
}

/// The stub: stdin, stdout and stderr are the terminal already.
pub(crate) fn run_stub(arguments: &[OsString]) -> ExitCode {
    let [program, name, rest @ ..] = arguments else {
        return ExitCode::from(EXIT_NOT_FOUND);
    };
    // Failing leaves a program without job control, which is better than no program.
    let _ = rustix::process::setsid();
    let _ = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin());
    let error = Command::new(program).arg0(name).args(rest).exec();
    eprintln!("cannot run {}: {error}", OsStr::new(name).display());
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE })
}
