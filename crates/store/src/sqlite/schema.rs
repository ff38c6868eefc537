//! Opening the file: the lock, the settings, the migrations.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::checkpoint::make_room;
use super::error::Doing;
use crate::StoreError;

/// Migration `n` (from 1) brings the schema from version `n - 1` to `n`; `user_version` says where a database stands.
const MIGRATIONS: [&str; 4] = [
    include_str!("migrations/0001_initial.sql"),
    include_str!("migrations/0002_registry_credentials.sql"),
    include_str!("migrations/0003_builds.sql"),
    include_str!("migrations/0004_snapshots.sql"),
];
const STATEMENTS_KEPT: usize = 64;
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// An advisory lock (`flock`) on `<database>.lock`. It is free again when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct DatabaseLock {
    _file: File,
}

impl DatabaseLock {
    pub(super) fn take(database: &Path) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |detail: std::io::Error| match detail.kind() {
            std::io::ErrorKind::StorageFull => StoreError::DiskFull,
            _ => StoreError::Backend { doing: "opening the lock file", detail: format!("{}: {detail}", path.display()) },
        };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: database.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// The connection that writes, its schema up to date.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let mut conn = Connection::open(path).doing("opening the database")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    conn.busy_timeout(BUSY_WAIT).doing("opening the database")?;
    refuse_newer(&conn, path)?;
    // The journal size limit lets a log that a burst made long shrink again; it stays above the room that the log is given. Checkpoints are the writer's own business.
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; \
         PRAGMA cache_size = -16384; PRAGMA journal_size_limit = 67108864; PRAGMA wal_autocheckpoint = 0;",
    )
    .doing("setting up the database")?;
    migrate(&mut conn)?;
    make_room(path);
    Ok(conn)
}

/// A connection that reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).doing("opening the database for reading")?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    conn.busy_timeout(BUSY_WAIT).doing("opening the database for reading")?;
    Ok(conn)
}

/// A connection that copies the log into the database.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    let conn = Connection::open(path).doing("opening the database for checkpoints")?;
    conn.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;")
        .doing("opening the database for checkpoints")?;
    Ok(conn)
}

fn version(conn: &Connection) -> Result<i64, StoreError> {
    conn.query_row("PRAGMA user_version", [], |row| row.get(0)).doing("reading the schema version")
}

fn refuse_newer(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let (found, known) = (version(conn)?, i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX));
    if found > known { Err(StoreError::NewerSchema { path: path.display().to_string(), found, known }) } else { Ok(()) }
}

fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    let done = usize::try_from(version(conn)?).unwrap_or(0);
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let tx = conn.transaction().doing("migrating the database")?;
        tx.execute_batch(sql).doing("migrating the database")?;
        tx.pragma_update(None, "user_version", i64::try_from(index + 1).unwrap_or(i64::MAX)).doing("migrating the database")?;
        tx.commit().doing("migrating the database")?;
        tracing::info!(version = index + 1, "database migrated");
    }
    Ok(())
}
