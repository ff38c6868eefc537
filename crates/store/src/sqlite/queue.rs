//! The way to the writer: a bounded queue of commands, each with somebody who waits for its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::unit::Unit;
use crate::StoreError;

/// Commands that may wait. Callers beyond that wait to be let in.
const WAITING_MAX: usize = 1024;

/// A command and its caller.
pub(super) trait Job: Send {
    /// Whether nobody waits for it any more: it need not be begun.
    fn abandoned(&self) -> bool;
    /// Executes it; false when it failed and its writes must be taken back.
    fn run(&mut self, unit: &mut Unit<'_>) -> bool;
    /// Answers the caller, after the commit or with why it failed.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Task<F, T> {
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
    jobs: VecDeque<Box<dyn Job>>,
    closed: bool,
    writer_sleeps: bool,
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
    pub(super) async fn submit<T, F>(&self, command: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let task = Task { command: Some(command), outcome: None, reply, _permit: permit };
        let wake = {
            let mut waiting = self.lock();
            if waiting.closed {
                return Err(StoreError::Closed);
            }
            waiting.jobs.push_back(Box::new(task));
            std::mem::take(&mut waiting.writer_sleeps)
        };
        if wake {
            self.came.notify_one();
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Everything that waits now; sleeps at most `patience` (`None`: as long as it takes) when that is nothing.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let mut waiting = self.lock();
        loop {
            if !waiting.jobs.is_empty() {
                return Next::Jobs(std::mem::take(&mut waiting.jobs));
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
                    if wait.timed_out() && waiting.jobs.is_empty() && !waiting.closed {
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
