//! A process's stdin: a pipe or its terminal, written by one connection at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};

use crate::errors::{Outcome, refused_io};
use crate::ready::register;

/// End of input, as a terminal's user types it.
const CONTROL_D: u8 = 4;
/// The first input of a terminal waits this often and long for the program to take the terminal.
const SESSION_POLLS_MAX: usize = 1000;
const SESSION_POLL: Duration = Duration::from_millis(1);

/// Where input goes.
#[derive(Debug)]
pub(crate) struct Stdin {
    pipe: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    is_terminal: bool,
    has_session: Cell<bool>,
    was_open: bool,
    /// One writer at a time, so that two do not mix within a frame.
    turn: Mutex<()>,
    closed: Cell<bool>,
    closing: Notify,
}

impl Stdin {
    /// Over the write end of a pipe or a terminal; `None`: it was never open.
    pub(crate) fn new(fd: Option<OwnedFd>, is_terminal: bool) -> io::Result<Self> {
        let was_open = fd.is_some();
        let pipe = fd.map(|fd| register(fd, Interest::WRITABLE)).transpose()?;
        Ok(Self {
            pipe: RefCell::new(pipe.map(Rc::new)),
            is_terminal,
            has_session: Cell::new(false),
            was_open,
            turn: Mutex::new(()),
            closed: Cell::new(false),
            closing: Notify::new(),
        })
    }

    /// Writes it all, waiting for the process to read.
    pub(crate) async fn write(&self, data: &[u8]) -> Outcome<()> {
        let _turn = self.turn.lock().await;
        self.write_in_turn(data).await
    }

    async fn write_in_turn(&self, mut data: &[u8]) -> Outcome<()> {
        let Some(pipe) = self.pipe.borrow().clone() else { return Err(self.closed_error()) };
        if self.is_terminal {
            self.wait_for_session(pipe.get_ref()).await;
        }
        while !data.is_empty() {
            let closing = self.closing.notified();
            if self.closed.get() {
                return Err(self.closed_error());
            }
            let mut guard = tokio::select! {
                guard = pipe.writable() => guard.map_err(|error| refused_io("cannot wait for stdin", &error))?,
                () = closing => return Err(self.closed_error()),
            };
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(Ok(written)) => data = &data[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(self.broken(&error)),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Until the program has taken its terminal, a ^C would interrupt nobody.
    async fn wait_for_session(&self, master: &OwnedFd) {
        if self.has_session.get() {
            return;
        }
        for _ in 0..SESSION_POLLS_MAX {
            if self.closed.get() || rustix::termios::tcgetpgrp(master).is_ok() {
                break;
            }
            tokio::time::sleep(SESSION_POLL).await;
        }
        self.has_session.set(true);
    }

    fn broken(&self, error: &io::Error) -> AgentError {
        if Errno::from_io_error(error) == Some(Errno::PIPE) {
            self.release();
            return AgentError::new(ErrorKind::NotFound, "the process has closed its stdin");
        }
        refused_io("cannot write to stdin", error)
    }

    fn closed_error(&self) -> AgentError {
        if self.was_open {
            AgentError::new(ErrorKind::NotFound, "stdin is closed")
        } else {
            AgentError::new(ErrorKind::Invalid, "the process was started without stdin")
        }
    }

    /// Ends the input: closes the pipe; types ^D on a terminal, where other data may follow.
    pub(crate) async fn close(&self) -> Outcome<()> {
        if self.is_terminal {
            return self.write(&[CONTROL_D]).await;
        }
        if !self.was_open {
            return Err(self.closed_error());
        }
        self.release();
        Ok(())
    }

    /// Lets go of the pipe or terminal, also under a writer that waits.
    pub(crate) fn release(&self) {
        self.closed.set(true);
        self.pipe.borrow_mut().take();
        self.closing.notify_waiters();
    }
}
