//! The writer: one thread, one connection, one transaction for all commands that wait.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rusqlite::Connection;

use super::checkpoint::{Checkpointer, checkpoint};
use super::error::Doing;
use super::memory::Memory;
use super::queue::{Durability, Job, Next, Queue};
use super::schema::DatabaseLock;
use super::unit::{Change, Unit};
use crate::StoreError;

/// The log is copied into the database after so many commands (a command alone writes some 5 to 8 pages of 4 KiB) ...
const COMMANDS_BETWEEN_CHECKPOINTS: usize = 1000;
/// ... or when nothing has come for so long after at least this many. The first commit into a log that begins anew waits for the
/// disk twice, so a lone claim after a pause should not have to begin one.
const IDLE_BEFORE_CHECKPOINT: Duration = Duration::from_millis(200);
/// See above.
const COMMANDS_WORTH_A_CHECKPOINT: usize = 500;
/// Pages of 4 KiB in the log from which on the writer itself copies the rest: 64 MiB.
const LOG_PAGES_MAX: i64 = 16 * 1024;

pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) queue: Arc<Queue>,
    /// Runs ahead of `published` inside a transaction.
    pub(super) memory: Memory,
    /// What readers see: changed after the commit only.
    pub(super) published: Arc<RwLock<Memory>>,
    pub(super) last_seq: u64,
    pub(super) checkpointer: Checkpointer,
    /// What the connection's next commit promises.
    pub(super) durability: Durability,
    /// Held as long as this writer lives.
    pub(super) lock: DatabaseLock,
}

impl Writer {
    /// Executes commands until the queue is closed and empty, then leaves a database without a log.
    pub(super) fn run(mut self) {
        let mut commands = 0;
        loop {
            let patience = (commands >= COMMANDS_WORTH_A_CHECKPOINT).then_some(IDLE_BEFORE_CHECKPOINT);
            match self.queue.next(patience) {
                Next::Jobs(jobs) => {
                    commands += jobs.len();
                    self.batch(jobs);
                    if commands >= COMMANDS_BETWEEN_CHECKPOINTS {
                        self.checkpointer.begin();
                        commands = 0;
                    }
                }
                Next::Idle => {
                    self.checkpointer.begin();
                    commands = 0;
                }
                Next::Closed => break,
            }
            // Under a load that never pauses the copier may never catch up. Then this thread does, while nothing comes in.
            if self.checkpointer.finished().is_some_and(|pages| pages > LOG_PAGES_MAX) {
                checkpoint(&self.conn, "PASSIVE");
            }
        }
        let Self { conn, lock, checkpointer, .. } = self;
        drop(checkpointer);
        checkpoint(&conn, "TRUNCATE");
        if let Err((_, error)) = conn.close() {
            tracing::warn!(%error, "closing the database failed; nothing is lost");
        }
        // Another process may open the database from here on.
        drop(lock);
    }

    /// One transaction: every command in it succeeds or fails alone, and none is answered before the commit.
    fn batch(&mut self, jobs: VecDeque<Box<dyn Job>>) {
        let mut jobs: VecDeque<_> = jobs.into_iter().filter(|job| !job.abandoned()).collect();
        let committed = self.execute(&mut jobs);
        match committed {
            Ok(changes) => {
                let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
                for change in changes {
                    change.put(&mut published);
                }
                drop(published);
                jobs.into_iter().for_each(|job| job.answer(Ok(())));
            }
            Err(error) => {
                tracing::error!(%error, commands = jobs.len(), "a transaction failed and was taken back");
                jobs.into_iter().for_each(|job| job.answer(Err(error.clone())));
            }
        }
    }

    /// Makes the next commit wait for the disk, or not: in a write-ahead log `NORMAL` leaves out nothing but that wait, and the
    /// next `FULL` commit's wait covers what was written before.
    fn promise(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.durability != durability {
            let pragma = match durability {
                Durability::Synced => "PRAGMA synchronous = FULL",
                Durability::Written => "PRAGMA synchronous = NORMAL",
            };
            // Not a cached statement: this pragma acts when it is prepared, not when it runs.
            self.conn.execute_batch(pragma).doing("setting what a commit promises")?;
            self.durability = durability;
        }
        Ok(())
    }

    fn execute(&mut self, jobs: &mut VecDeque<Box<dyn Job>>) -> Result<Vec<Change>, StoreError> {
        let promised = jobs.iter().any(|job| job.durability() == Durability::Synced);
        self.promise(if promised { Durability::Synced } else { Durability::Written })?;
        let mut unit = Unit::new(&self.conn, &mut self.memory, &mut self.last_seq);
        let done = run_all(&mut unit, jobs);
        match done {
            Ok(()) => Ok(unit.into_changes().collect()),
            Err(error) => {
                unit.take_back(0);
                if !self.conn.is_autocommit()
                    && let Err(error) = self.conn.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "a transaction could not be taken back");
                }
                Err(error)
            }
        }
    }
}

fn run_all(unit: &mut Unit<'_>, jobs: &mut VecDeque<Box<dyn Job>>) -> Result<(), StoreError> {
    simple(unit.conn, "BEGIN IMMEDIATE", "beginning a transaction")?;
    for (index, job) in jobs.iter_mut().enumerate() {
        let mark = unit.mark();
        if index > 0 {
            simple(unit.conn, "SAVEPOINT command", "beginning a command")?;
        }
        let succeeded = job.run(unit);
        if !succeeded {
            unit.take_back(mark);
        }
        match (index, succeeded) {
            (0, true) => {}
            // The first command needs no savepoint: there is nothing before it that a rollback could take along.
            (0, false) => {
                if !unit.conn.is_autocommit() {
                    simple(unit.conn, "ROLLBACK", "taking a command back")?;
                }
                simple(unit.conn, "BEGIN IMMEDIATE", "beginning a transaction")?;
            }
            (_, true) => simple(unit.conn, "RELEASE command", "ending a command")?,
            // When SQLite itself rolled everything back (a full disk), this fails and with it the whole transaction.
            (_, false) => {
                simple(unit.conn, "ROLLBACK TO command", "taking a command back")?;
                simple(unit.conn, "RELEASE command", "ending a command")?;
            }
        }
    }
    simple(unit.conn, "COMMIT", "committing")
}

fn simple(conn: &Connection, sql: &str, doing: &'static str) -> Result<(), StoreError> {
    conn.prepare_cached(sql).and_then(|mut statement| statement.execute([])).doing(doing)?;
    Ok(())
}
