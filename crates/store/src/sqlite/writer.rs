//! The writer: one connection, and the memory that runs ahead of what readers see.

use std::sync::{Arc, PoisonError, RwLock};

use rusqlite::Connection;

use super::checkpoint::{Checkpointer, How, checkpoint};
use super::error::Doing;
use super::job::Durability;
use super::memory::Memory;
use super::queue::Batch;
use super::schema::DatabaseLock;
use super::unit::{Change, Unit};
use crate::StoreError;

/// Commands after which the writer looks how long the log is. A command writes some 5 to 8 pages when it is alone.
const COMMANDS_BETWEEN_LOOKS: usize = 16;

pub(super) struct Writer {
    pub(super) conn: Connection,
    /// Runs ahead of `published` inside a transaction.
    pub(super) memory: Memory,
    /// What readers see: changed after the commit only.
    pub(super) published: Arc<RwLock<Memory>>,
    pub(super) last_seq: u64,
    pub(super) checkpointer: Checkpointer,
    /// What the connection's next commit promises.
    pub(super) durability: Durability,
    /// Commands since the last look at the log.
    pub(super) unlooked: usize,
    /// Held as long as this writer lives.
    pub(super) lock: DatabaseLock,
}

impl Writer {
    /// Copies what the checkpointer could not catch up with.
    pub(super) fn copy_rest(&self) {
        checkpoint(&self.conn, How::Passive);
    }

    /// Leaves a database without a log.
    pub(super) fn end(self) {
        let Self { conn, lock, checkpointer, .. } = self;
        drop(checkpointer);
        checkpoint(&conn, How::Truncate);
        if let Err((_, error)) = conn.close() {
            tracing::warn!(%error, "closing the database failed; nothing is lost");
        }
        // Another process may open the database from here on.
        drop(lock);
    }

    /// One transaction: every command in it succeeds or fails alone, and none is answered before the commit. Returns what
    /// the commit promised.
    pub(super) fn batch(&mut self, mut jobs: Batch) -> Durability {
        jobs.retain(|job| !job.abandoned());
        if jobs.is_empty() {
            return Durability::Written;
        }
        self.unlooked += jobs.len();
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
        self.look_at_the_log();
        self.durability
    }

    fn look_at_the_log(&mut self) {
        self.checkpointer.count();
        if self.unlooked >= COMMANDS_BETWEEN_LOOKS {
            self.unlooked = 0;
            if let Some(log) = checkpoint(&self.conn, How::Noop) {
                self.checkpointer.look(log);
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

    fn execute(&mut self, jobs: &mut Batch) -> Result<Vec<Change>, StoreError> {
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

fn run_all(unit: &mut Unit<'_>, jobs: &mut Batch) -> Result<(), StoreError> {
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
