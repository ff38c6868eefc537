//! Copying the log into the database beside the writer, so that no command waits for it.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::schema::open_checkpointer;
use crate::StoreError;

/// A thread with a connection of its own that copies the log when asked to.
#[derive(Debug)]
pub(super) struct Checkpointer {
    ask: Option<SyncSender<()>>,
    done: Receiver<()>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        let conn = open_checkpointer(path)?;
        let (ask, asked) = sync_channel::<()>(1);
        let (finished, done) = sync_channel::<()>(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || {
                while asked.recv().is_ok() {
                    checkpoint(&conn, "PASSIVE");
                    if finished.send(()).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| StoreError::Backend { doing: "starting the checkpointer", detail: error.to_string() })?;
        Ok(Self { ask: Some(ask), done, busy: false, thread: Some(thread) })
    }

    /// Begins to copy the log, unless it is being copied.
    pub(super) fn begin(&mut self) {
        if let (false, Some(ask)) = (self.busy, &self.ask) {
            self.busy = !matches!(ask.try_send(()), Err(TrySendError::Disconnected(())));
        }
    }

    /// True once after each copy.
    pub(super) fn finished(&mut self) -> bool {
        let finished = self.busy && self.done.try_recv().is_ok();
        if finished {
            self.busy = false;
        }
        finished
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook; the log is copied when the database is opened again.
            let _ = thread.join();
        }
    }
}

/// Copies what it can without waiting for readers (`PASSIVE`) or everything, emptying the log (`TRUNCATE`).
pub(super) fn checkpoint(conn: &Connection, how: &str) {
    // When it fails the log only grows longer; the next time tries again.
    if let Err(error) = conn.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(())) {
        tracing::warn!(%error, "the database's log could not be copied into it");
    }
}
