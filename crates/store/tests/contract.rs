//! The SQLite store keeps the contract of every store.
#![allow(clippy::unwrap_used, missing_docs)]

use sandbank_store::SqliteStore;
use tempfile::TempDir;

async fn make() -> (SqliteStore, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("state.db")).unwrap();
    (store, dir)
}

sandbank_store::store_contract!(make);
