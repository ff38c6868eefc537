//! A command on its way to a transaction, and somebody who waits for its answer.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::unit::Unit;
use crate::StoreError;

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

/// Where the answer to a [`Task`] arrives.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

pub(super) struct Task<F, T> {
    durability: Durability,
    command: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    /// Its place among the waiting ones, free again when it is answered.
    _permit: OwnedSemaphorePermit,
}

impl<F, T> Task<F, T> {
    pub(super) fn new(durability: Durability, command: F, permit: OwnedSemaphorePermit) -> (Self, Answer<T>) {
        let (reply, answer) = oneshot::channel();
        (Self { durability, command: Some(command), outcome: None, reply, _permit: permit }, answer)
    }
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
