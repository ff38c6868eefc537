//! Snapshots: nothing of them is kept in memory.

use rusqlite::{Connection, params};
use sandbank_model::{SandboxId, Snapshot, SnapshotId, SnapshotName, TenantId};

use super::error::{Doing, encode, int};
use super::read::records;
use super::unit::Unit;
use crate::{Page, PageRequest, StoreError, Write};

const READING: &str = "reading snapshots";
const KIND: &str = "snapshot";

impl Unit<'_> {
    pub(super) fn snapshot_put(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        const DOING: &str = "writing a snapshot";
        if let Some(name) = &snapshot.name
            && let Some(older) = named(self.conn, snapshot.tenant, name)?
        {
            let older = Snapshot { name: None, ..older };
            self.conn
                .execute(
                    "UPDATE snapshot SET name = NULL, record = ?2 WHERE id = ?1",
                    params![older.id.uuid().as_bytes(), encode(&older, DOING)?],
                )
                .doing(DOING)?;
        }
        let (id, tenant, sandbox) = (snapshot.id.uuid(), snapshot.tenant.uuid(), snapshot.sandbox.uuid());
        let name = snapshot.name.as_ref().map(SnapshotName::as_str);
        self.conn
            .execute(
                "INSERT INTO snapshot (id, tenant, sandbox, name, record) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id.as_bytes(), tenant.as_bytes(), sandbox.as_bytes(), name, encode(snapshot, DOING)?],
            )
            .doing(DOING)?;
        Ok(())
    }

    pub(super) fn snapshot_delete(&mut self, tenant: TenantId, id: SnapshotId) -> Result<Write<()>, StoreError> {
        let gone = self
            .conn
            .execute(
                "DELETE FROM snapshot WHERE id = ?1 AND tenant = ?2",
                params![id.uuid().as_bytes(), tenant.uuid().as_bytes()],
            )
            .doing("forgetting a snapshot")?;
        Ok(if gone == 0 { Write::Missing } else { Write::Updated(()) })
    }
}

pub(super) fn one(conn: &Connection, tenant: TenantId, id: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
    let sql = "SELECT record FROM snapshot WHERE id = ?1 AND tenant = ?2";
    Ok(records(conn, KIND, READING, sql, params![id.uuid().as_bytes(), tenant.uuid().as_bytes()])?.pop())
}

pub(super) fn named(conn: &Connection, tenant: TenantId, name: &SnapshotName) -> Result<Option<Snapshot>, StoreError> {
    let sql = "SELECT record FROM snapshot WHERE tenant = ?1 AND name = ?2";
    Ok(records(conn, KIND, READING, sql, params![tenant.uuid().as_bytes(), name.as_str()])?.pop())
}

pub(super) fn list(
    conn: &Connection,
    tenant: TenantId,
    sandbox: Option<SandboxId>,
    page: PageRequest,
) -> Result<Page<Snapshot>, StoreError> {
    let (tenant, sandbox) = (tenant.uuid(), sandbox.map(|sandbox| sandbox.uuid()));
    let (tenant, sandbox) = (tenant.as_bytes(), sandbox.as_ref().map(|sandbox| sandbox.as_bytes()));
    let count = "SELECT COUNT(*) FROM snapshot WHERE tenant = ?1 AND (?2 IS NULL OR sandbox = ?2)";
    let total: i64 = conn.query_row(count, params![tenant, sandbox], |row| row.get(0)).doing(READING)?;
    let sql =
        "SELECT record FROM snapshot WHERE tenant = ?1 AND (?2 IS NULL OR sandbox = ?2) ORDER BY id DESC LIMIT ?3 OFFSET ?4";
    let items = records(conn, KIND, READING, sql, params![tenant, sandbox, page.limit, int(page.offset)])?;
    Ok(Page { items, total: u64::try_from(total).unwrap_or(0) })
}

pub(super) fn all(conn: &Connection) -> Result<Vec<Snapshot>, StoreError> {
    records(conn, KIND, READING, "SELECT record FROM snapshot", [])
}
