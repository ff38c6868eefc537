//! The processes the agent knows, and how they end.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, Rlimit, WaitOptions, WaitStatus};
use sandbank_agent_protocol::{AgentError, ErrorKind, ProcessSelector, SendSignal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;

use super::Process;
use super::ring::Budget;
use crate::errors::Outcome;
use crate::server::Agent;

/// Processes of requests that run at once.
const RUNNING_MAX: usize = 1024;
/// Ended processes that can still be asked for.
const ENDED_MAX: usize = 256;
/// Output kept of ended processes, bytes.
const ENDED_RING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Output kept of all processes, bytes.
const RING_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// After a process has ended others may still write to its pipe; followers wait for them no longer than this.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// The processes that requests started.
pub(crate) struct ProcessTable {
    running: RefCell<HashMap<Pid, Rc<Process>>>,
    /// Oldest first.
    ended: RefCell<VecDeque<Rc<Process>>>,
    next_sequence: Cell<u64>,
    /// For the rings of all processes.
    pub(super) budget: Budget,
    /// Open-files limit of children, where it differs from the agent's.
    pub(super) children_files: Option<Rlimit>,
}

impl ProcessTable {
    /// Empty.
    pub(crate) fn new(children_files: Option<Rlimit>) -> Self {
        Self {
            running: RefCell::new(HashMap::new()),
            ended: RefCell::new(VecDeque::new()),
            next_sequence: Cell::new(0),
            budget: Budget::new(RING_BUDGET_BYTES),
            children_files,
        }
    }

    /// Refuses when there are too many to start another.
    pub(super) fn check_room(&self) -> Outcome<()> {
        if self.running.borrow().len() < RUNNING_MAX {
            return Ok(());
        }
        let message = format!("{RUNNING_MAX} processes are running in this sandbox already: end some first");
        Err(AgentError::new(ErrorKind::Exhausted, message))
    }

    /// The next sequence number.
    pub(super) fn number(&self) -> u64 {
        let number = self.next_sequence.get();
        self.next_sequence.set(number + 1);
        number
    }

    /// Remembers a process that was just started.
    pub(super) fn insert(&self, process: Rc<Process>) {
        self.running.borrow_mut().insert(process.pid, process);
    }

    /// All, oldest first.
    pub(super) fn all(&self) -> Vec<Rc<Process>> {
        let mut all: Vec<_> = self.ended.borrow().iter().cloned().collect();
        all.extend(self.running.borrow().values().cloned());
        all.sort_by_key(|process| process.sequence);
        all
    }

    /// The youngest process that the selector names.
    pub(crate) fn find(&self, selector: &ProcessSelector) -> Outcome<Rc<Process>> {
        let matches = |process: &&Rc<Process>| match selector {
            ProcessSelector::Pid(pid) => process.pid_number() == *pid,
            ProcessSelector::Tag(tag) => process.request.tag.as_deref() == Some(tag),
        };
        let running = self.running.borrow();
        let ended = self.ended.borrow();
        let found = running.values().chain(ended.iter()).filter(matches).max_by_key(|process| process.sequence);
        found.cloned().ok_or_else(|| {
            let what = match selector {
                ProcessSelector::Pid(pid) => format!("process {pid}"),
                ProcessSelector::Tag(tag) => format!("process with the tag {tag:?}"),
            };
            AgentError::new(ErrorKind::NotFound, format!("no {what} was started here, or it ended long ago"))
        })
    }

    /// Serves a `Signal` request.
    pub(crate) fn signal(&self, request: &SendSignal) -> Outcome<()> {
        self.find(&request.process)?.signal(request.signal, request.group)
    }

    /// Kills the groups of all running processes.
    pub(crate) fn kill_all(&self) {
        for process in self.running.borrow().values() {
            process.kill();
        }
    }

    /// Reaps every child that has ended, also those that were adopted.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(process) = self.running.borrow_mut().remove(&pid) else { continue };
            retire(&process, status);
            self.ended.borrow_mut().push_back(process);
            self.forget_oldest();
        }
    }

    fn forget_oldest(&self) {
        let mut ended = self.ended.borrow_mut();
        let mut bytes: usize = ended.iter().map(|process| process.ring_bytes()).sum();
        while ended.len() > ENDED_MAX || (bytes > ENDED_RING_BYTES_MAX && ended.len() > 1) {
            let Some(oldest) = ended.pop_front() else { break };
            bytes = bytes.saturating_sub(oldest.ring_bytes());
            for output in &oldest.outputs {
                output.forget();
            }
        }
    }
}

fn retire(process: &Rc<Process>, status: WaitStatus) {
    process.ended(status.exit_status(), status.terminating_signal());
    if process.has_open_output() {
        let process = Rc::clone(process);
        spawn_local(async move {
            tokio::time::sleep(OUTPUT_GRACE).await;
            for output in &process.outputs {
                output.end_grace();
            }
        });
    }
}

/// Reaps children as they end, for ever. The handler is installed before this returns, so no end is missed.
pub(crate) fn reaper(agent: Rc<Agent>) -> io::Result<impl Future<Output = ()>> {
    let mut children = signal(SignalKind::child())?;
    Ok(async move {
        loop {
            agent.processes.reap();
            if children.recv().await.is_none() {
                return;
            }
        }
    })
}
