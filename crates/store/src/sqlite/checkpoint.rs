//! The log: its room on disk, and copying it into the database beside the writer, so that no command waits for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use super::queue::Queue;
use super::schema::open_checkpointer;
use crate::StoreError;

/// Room that the log has on disk from the beginning. A commit that writes over blocks of the log waits for the disk about a
/// third less than one that makes the file longer. 16 MiB hold 4071 pages, or some 700 commits.
const LOG_ROOM: usize = 16 << 20;
/// Pages in the log from which on it is copied at once. It begins anew when all of it is copied; the pages that come while it
/// is copied still fit into its room. The first commit into a log that begins anew waits for the disk twice, so this should not
/// be much less.
const PAGES_FULL: i64 = 2500;
/// Pages from which on it is copied when nothing is written for [`IDLE`]: later it might be in somebody's way.
const PAGES_WORTH_COPYING: i64 = 1500;
const IDLE: Duration = Duration::from_millis(200);
/// Passes over the log in a row. The first copies what there is, the next what came meanwhile. What comes during the last one is
/// the writer's to copy.
const PASSES: u32 = 2;

/// Gives the log its room, writing zeroes behind what it holds. Nobody else may write meanwhile.
///
/// Zeroes are no frames: SQLite ends the log at the first frame without the header's salt and a checksum (file format, 4.1), so
/// they stand for nothing, also after a crash. They are written, not only reserved, because the first write to a reserved
/// block changes the file's metadata. No lock is lost with this descriptor: SQLite's are on the database and the `-shm` file.
pub(super) fn make_room(database: &Path) {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let filled = OpenOptions::new().append(true).open(&log).and_then(fill);
    if let Err(error) = filled {
        // The log works without, only slower.
        tracing::debug!(%error, bytes = LOG_ROOM, "no room could be made for the database's log");
    }
}

fn fill(mut log: File) -> io::Result<()> {
    static PIECE: [u8; 1 << 16] = [0; 1 << 16];
    let held = log.metadata()?.len();
    let mut missing = LOG_ROOM.saturating_sub(usize::try_from(held).unwrap_or(usize::MAX));
    while missing > 0 {
        let many = missing.min(PIECE.len());
        if let Err(error) = log.write_all(&PIECE[..many]) {
            // On a full disk the last free blocks are better used for something else.
            log.set_len(held)?;
            return Err(error);
        }
        missing -= many;
    }
    log.sync_data()
}

/// How much there is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogLength {
    /// Pages.
    pub(super) pages: i64,
    /// So many of them are in the database too.
    copied: i64,
}

/// What to do with the log.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    /// Nothing: only say how long it is.
    Noop,
    /// Copy what can be copied without waiting for anybody.
    Passive,
    /// Copy everything, and empty it.
    Truncate,
}

/// Copies the log into the database. It is written from its beginning again once all of it is copied and nobody reads it.
pub(super) fn checkpoint(conn: &Connection, how: How) -> Option<LogLength> {
    let sql = match how {
        How::Noop => "PRAGMA wal_checkpoint(NOOP)",
        How::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        How::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let done = conn
        .prepare_cached(sql)
        .and_then(|mut pragma| pragma.query_row([], |row| Ok(LogLength { pages: row.get(1)?, copied: row.get(2)? })));
    // The log only grows longer; the next time tries again.
    done.inspect_err(|error| tracing::warn!(%error, "the database's log could not be copied into it")).ok()
}

/// What the checkpointer is to do. What is later in this list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Nothing,
    CopyWhenIdle,
    CopyNow,
    End,
}

#[derive(Debug)]
struct Wishes {
    wish: Wish,
    /// Transactions so far: none for a while is idle.
    transactions: u64,
}

#[derive(Debug)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, wish: Wish) {
        let mut wishes = self.lock();
        if wish > wishes.wish {
            wishes.wish = wish;
            drop(wishes);
            self.changed.notify_one();
        }
    }

    /// Sleeps until the log is to be copied; false at the end.
    fn wait(&self) -> bool {
        let mut wishes = self.lock();
        loop {
            match wishes.wish {
                Wish::Nothing => wishes = self.changed.wait(wishes).unwrap_or_else(PoisonError::into_inner),
                Wish::CopyWhenIdle => {
                    let before = wishes.transactions;
                    let (back, wait) = self.changed.wait_timeout(wishes, IDLE).unwrap_or_else(PoisonError::into_inner);
                    wishes = back;
                    if wait.timed_out() && wishes.transactions == before && wishes.wish == Wish::CopyWhenIdle {
                        return true;
                    }
                }
                Wish::CopyNow => return true,
                Wish::End => return false,
            }
        }
    }

    fn done(&self) {
        let mut wishes = self.lock();
        if wishes.wish != Wish::End {
            wishes.wish = Wish::Nothing;
        }
    }
}

/// A thread with a connection of its own that copies the log when it has become long.
#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path, queue: Arc<Queue>) -> Result<Self, StoreError> {
        let conn = open_checkpointer(path)?;
        let wishes = Mutex::new(Wishes { wish: Wish::Nothing, transactions: 0 });
        let shared = Arc::new(Shared { wishes, changed: Condvar::new() });
        let copier = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || {
                while copier.wait() {
                    copy(&conn, &queue);
                    copier.done();
                }
            })
            .map_err(|error| StoreError::Backend { doing: "starting the checkpointer", detail: error.to_string() })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// There was a transaction.
    pub(super) fn count(&self) {
        self.shared.lock().transactions += 1;
    }

    /// The log is so long now.
    pub(super) fn look(&self, log: LogLength) {
        match log.pages {
            PAGES_FULL.. => self.shared.wish(Wish::CopyNow),
            PAGES_WORTH_COPYING.. => self.shared.wish(Wish::CopyWhenIdle),
            _ => {}
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.wish(Wish::End);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook; the log is copied when the database is opened again.
            let _ = thread.join();
        }
    }
}

/// Copies the log beside the writer. Under a load that never pauses something comes during each pass; the writer's thread
/// copies that little itself while nobody writes, so that the log begins anew inside its room.
fn copy(conn: &Connection, queue: &Queue) {
    let all_copied = || checkpoint(conn, How::Noop).is_none_or(|log| log.copied == log.pages);
    for _ in 0..PASSES {
        checkpoint(conn, How::Passive);
        if all_copied() {
            return;
        }
    }
    queue.copy_rest();
}
