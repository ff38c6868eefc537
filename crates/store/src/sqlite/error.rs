//! From SQLite's errors and the records' text to [`StoreError`] and the model's types.

use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// Adds what was being done to SQLite's errors.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| from_sqlite(&error, doing))
    }
}

fn from_sqlite(error: &rusqlite::Error, doing: &'static str) -> StoreError {
    if let rusqlite::Error::SqliteFailure(failure, _) = error
        && (failure.code == ErrorCode::DiskFull || failure.extended_code == SQLITE_IOERR_SHMSIZE)
    {
        return StoreError::DiskFull;
    }
    StoreError::Backend { doing, detail: error.to_string() }
}

/// The record as the text that is kept.
pub(super) fn encode<T: Serialize>(record: &T, doing: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Backend { doing, detail: error.to_string() })
}

/// The record that the text holds.
pub(super) fn decode<T: DeserializeOwned>(what: &'static str, key: impl FnOnce() -> String, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt { what, key: key(), detail: error.to_string() })
}

/// Times and counters as SQLite's signed integers. Timestamps end in the year 9999 and counters never come near the end.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
