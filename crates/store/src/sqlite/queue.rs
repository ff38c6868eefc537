//! The way to the writer: a bounded queue of commands, each with somebody who waits for its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::unit::Unit;
use crate::StoreError;

/// Commands that may wait. Callers beyond that wait to be let in.
const WAITING_MAX: usize = 1024;
/// Steps that nobody was promised that one transaction takes at most: a claim that comes meanwhile waits no longer than that.
const NOTES_AT_ONCE: usize = 8;
/// Transactions of promised commands after which waiting notes get their turn all the same.
const TURNS_BEFORE_NOTES: u32 = 4;

/// What a commit promises its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// On disk before the answer: survives a power cut.
    Synced,
    /// Written before the answer: survives the end of the process however it comes, and a power cut once any later synced
    /// commit is answered. For steps that nobody was promised and that recovery finds out by itself.
    Written,
}

/// A command and its caller.
pub(super) trait Job: Send {
    /// What its commit must promise.
    fn durability(&self) -> Durability;
    /// Whether nobody waits for it any more: it need not be begun.
    fn abandoned(&self) -> bool;
    /// Executes it; false when it failed and its writes must be taken back.
    fn run(&mut self, unit: &mut Unit<'_>) -> bool;
    /// Answers the caller, after the commit or with why it failed.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Task<F, T> {
    durability: Durability,
    command: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    /// Its place among the waiting ones, free again when it is answered.
    _permit: OwnedSemaphorePermit,
}

impl<F, T> Job for Task<F, T>
where
    F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(&mut self, unit: &mut Unit<'_>) -> bool {
        if let Some(command) = self.command.take() {
            self.outcome = Some(command(unit));
        }
        matches!(self.outcome, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let outcome = match (committed, self.outcome) {
            // What the command itself says of its failure is nearer to the cause than what the transaction says.
            (_, Some(Err(error))) | (Err(error), _) => Err(error),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // A caller that is gone has nobody to tell; its command counts all the same.
        let _ = self.reply.send(outcome);
    }
}

#[derive(Default)]
struct Waiting {
    /// Commands that somebody was promised: claims first of all.
    promised: VecDeque<Box<dyn Job>>,
    /// The others.
    notes: VecDeque<Box<dyn Job>>,
    /// Transactions that notes have waited for.
    passed_over: u32,
    closed: bool,
    writer_sleeps: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.promised.is_empty() && self.notes.is_empty()
    }

    /// The next transaction's commands; `None` when nothing waits.
    fn take(&mut self) -> Option<VecDeque<Box<dyn Job>>> {
        if self.is_empty() {
            return None;
        }
        let notes_turn = self.promised.is_empty() || self.passed_over >= TURNS_BEFORE_NOTES;
        let mut jobs = std::mem::take(&mut self.promised);
        if notes_turn {
            let many = self.notes.len().min(NOTES_AT_ONCE);
            jobs.extend(self.notes.drain(..many));
            self.passed_over = 0;
        } else if !self.notes.is_empty() {
            self.passed_over += 1;
        }
        Some(jobs)
    }
}

/// What the writer finds when it looks.
pub(super) enum Next {
    /// These commands.
    Jobs(VecDeque<Box<dyn Job>>),
    /// Nothing for the whole wait.
    Idle,
    /// Nothing, and nothing will come.
    Closed,
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    room: Arc<Semaphore>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), came: Condvar::new(), room: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a command to the writer and waits for its answer.
    pub(super) async fn submit<T, F>(&self, durability: Durability, command: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let task = Task { durability, command: Some(command), outcome: None, reply, _permit: permit };
        let wake = {
            let mut waiting = self.lock();
            if waiting.closed {
                return Err(StoreError::Closed);
            }
            match durability {
                Durability::Synced => waiting.promised.push_back(Box::new(task)),
                Durability::Written => waiting.notes.push_back(Box::new(task)),
            }
            std::mem::take(&mut waiting.writer_sleeps)
        };
        if wake {
            self.came.notify_one();
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// What waits now, promised commands first; sleeps at most `patience` (`None`: as long as it takes) when that is nothing.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let mut waiting = self.lock();
        loop {
            if let Some(jobs) = waiting.take() {
                return Next::Jobs(jobs);
            }
            if waiting.closed {
                return Next::Closed;
            }
            waiting.writer_sleeps = true;
            match patience {
                None => waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    let (back, wait) = self.came.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner);
                    waiting = back;
                    if wait.timed_out() && waiting.is_empty() && !waiting.closed {
                        waiting.writer_sleeps = false;
                        return Next::Idle;
                    }
                }
            }
        }
    }

    /// Takes no more commands; those that wait are still executed.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.came.notify_one();
    }
}
