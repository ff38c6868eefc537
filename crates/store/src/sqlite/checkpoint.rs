//! Copying the log into the database beside the writer, so that no command waits for it.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::schema::open_checkpointer;
use crate::StoreError;

/// Passes over the log in a row. The first copies what there is; while it does, more comes in, and the log begins anew only
/// when a pass has caught up with the writer. Each pass is shorter than the one before.
const PASSES: u32 = 4;

/// A thread with a connection of its own that copies the log when asked to.
#[derive(Debug)]
pub(super) struct Checkpointer {
    ask: Option<SyncSender<()>>,
    /// The length of the log in pages after each copy.
    done: Receiver<i64>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        let conn = open_checkpointer(path)?;
        let (ask, asked) = sync_channel::<()>(1);
        let (finished, done) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || {
                while asked.recv().is_ok() {
                    let left = (0..PASSES).map(|_| checkpoint(&conn, "PASSIVE")).last();
                    if finished.send(left.unwrap_or(0)).is_err() {
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

    /// Once after each copy: how many pages the log has all the same.
    pub(super) fn finished(&mut self) -> Option<i64> {
        let pages = self.done.try_recv().ok();
        if pages.is_some() {
            self.busy = false;
        }
        pages
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

/// Copies what it can without waiting for readers (`PASSIVE`) or everything, emptying the log (`TRUNCATE`). Returns the
/// length of the log in pages: it is written from its beginning again once all of it is copied and nobody reads it.
pub(super) fn checkpoint(conn: &Connection, how: &str) -> i64 {
    match conn.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| row.get(1)) {
        Ok(pages) => pages,
        Err(error) => {
            // The log only grows longer; the next time tries again.
            tracing::warn!(%error, "the database's log could not be copied into it");
            0
        }
    }
}
