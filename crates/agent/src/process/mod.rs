//! Processes that requests started. They belong to the agent, not to a connection.

mod follow;
mod output;
mod ring;
mod session;
mod spawn;
mod stdin;
mod table;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::{Pid, Signal};
use sandbank_agent_protocol::{AgentError, ErrorKind, ExitStatus, ProcessInfo, PtySize, StartProcess, Stream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub(crate) use follow::{attach, list, start, write_stdin};
use output::Output;
use stdin::Stdin;
pub(crate) use table::{ProcessTable, reaper};

use crate::errors::{Outcome, invalid, refused};
use crate::terminal;

/// Highest signal number that safe code can name; the real-time ones follow.
const SIGNAL_MAX: i32 = 64;

/// A process, running or ended.
pub(crate) struct Process {
    pid: Pid,
    /// Youngest has the highest.
    sequence: u64,
    request: StartProcess,
    started_at_ms: u64,
    /// Stdout and stderr, or the terminal alone.
    outputs: Vec<Rc<Output>>,
    stdin: Stdin,
    /// The agent's side of its terminal.
    terminal: RefCell<Option<OwnedFd>>,
    exit: Cell<Option<ExitStatus>>,
    timed_out: Cell<bool>,
    deadline: RefCell<Option<AbortHandle>>,
    changed: Rc<Notify>,
}

impl Process {
    fn pid_number(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    fn output(&self, stream: Stream) -> Option<&Rc<Output>> {
        self.outputs.iter().find(|output| output.stream == stream)
    }

    fn stderr_bytes(&self) -> u64 {
        self.output(Stream::Stderr).map_or(0, |output| output.end())
    }

    fn stdout_bytes(&self) -> u64 {
        self.outputs.first().map_or(0, |output| output.end())
    }

    fn ring_bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.allocated()).sum()
    }

    /// As a listing shows it.
    fn info(&self) -> ProcessInfo {
        ProcessInfo {
            pid: self.pid_number(),
            tag: self.request.tag.clone(),
            argv: self.request.argv.clone(),
            env: self.request.env.clone(),
            cwd: self.request.cwd.clone(),
            user: self.request.user.clone(),
            pty: self.request.pty.is_some(),
            started_at_ms: self.started_at_ms,
            exit: self.exit.get(),
            stdout_bytes: self.stdout_bytes(),
            stderr_bytes: self.stderr_bytes(),
        }
    }

    /// Sends a signal to the process or its group. One that has ended is not signalled: its number may be another's by now.
    pub(crate) fn signal(&self, number: i32, group: bool) -> Outcome<()> {
        let signal = named_signal(number)?;
        if self.exit.get().is_some() {
            return Err(self.ended_error());
        }
        if group && signal == Signal::KILL && self.request.pty.is_some() {
            session::kill(self.pid);
        }
        let sent = if group {
            // The stub of a terminal has no group of its own for its first instructions.
            rustix::process::kill_process_group(self.pid, signal).or_else(|_| rustix::process::kill_process(self.pid, signal))
        } else {
            rustix::process::kill_process(self.pid, signal)
        };
        sent.map_err(|errno| refused(format_args!("cannot signal process {}", self.pid_number()), errno))
    }

    fn ended_error(&self) -> AgentError {
        AgentError::new(ErrorKind::NotFound, format!("process {} has ended", self.pid_number()))
    }

    /// Kills the whole group, if it has not ended.
    fn kill(&self) {
        if self.exit.get().is_none() {
            // Already gone is what was wanted.
            let _ = self.signal(Signal::KILL.as_raw(), true);
        }
    }

    /// The deadline has come.
    fn time_out(&self) {
        if self.exit.get().is_none() {
            self.timed_out.set(true);
            self.kill();
        }
    }

    /// Resizes its terminal.
    pub(crate) fn resize(&self, size: PtySize) -> Outcome<()> {
        if self.request.pty.is_none() {
            return Err(AgentError::new(ErrorKind::WrongKind, format!("process {} has no terminal", self.pid_number())));
        }
        match &*self.terminal.borrow() {
            Some(master) => terminal::resize(master, size),
            None => Err(self.ended_error()),
        }
    }

    /// Ends its input.
    pub(crate) async fn close_stdin(&self) -> Outcome<()> {
        self.stdin.close().await
    }

    /// Notes how it ended; its output so far is read first.
    fn ended(&self, code: Option<i32>, signal: Option<i32>) {
        for output in &self.outputs {
            output.process_ended();
            output.shrink();
        }
        self.stdin.release();
        self.terminal.borrow_mut().take();
        if let Some(deadline) = self.deadline.borrow_mut().take() {
            deadline.abort();
        }
        self.exit.set(Some(ExitStatus { code, signal, timed_out: self.timed_out.get() }));
        self.changed.notify_waiters();
    }

    /// Whether somebody else still holds one of its streams open.
    fn has_open_output(&self) -> bool {
        self.outputs.iter().any(|output| output.last().is_none())
    }
}

fn named_signal(number: i32) -> Outcome<Signal> {
    if !(1..=SIGNAL_MAX).contains(&number) {
        return Err(invalid(format_args!("{number} is not a signal: expected 1 to {SIGNAL_MAX}")));
    }
    Signal::from_named_raw(number).ok_or_else(|| {
        AgentError::new(ErrorKind::Unsupported, format!("signal {number} cannot be sent: real-time signals are not supported"))
    })
}
