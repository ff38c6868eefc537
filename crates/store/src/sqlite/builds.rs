//! Builds and cached steps: nothing of them is kept in memory.

use rusqlite::{Connection, OptionalExtension, params};
use sandbank_model::{Build, BuildId, BuildLog, CachedStep, TenantId, Timestamp};

use super::error::{Doing, decode, encode, int};
use super::read::records;
use super::unit::Unit;
use crate::{Page, PageRequest, StoreError};

const READING: &str = "reading builds";
const KIND: &str = "build";

impl Unit<'_> {
    pub(super) fn build_put(&mut self, build: &Build, log: Option<&BuildLog>) -> Result<(), StoreError> {
        const DOING: &str = "writing a build";
        let record = encode(build, DOING)?;
        // When it ended, 0 while it has not: what pruning and recovery look for.
        let ended = if build.state.has_ended() { int(build.ended_at.unwrap_or_default().as_millis()).max(1) } else { 0 };
        let log = log.map(|log| encode(log, DOING)).transpose()?;
        self.conn
            .execute(
                "INSERT INTO build (id, tenant, ended, record, log) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO UPDATE \
                 SET ended = excluded.ended, record = excluded.record, log = COALESCE(excluded.log, build.log)",
                params![build.id.uuid().as_bytes(), build.tenant.uuid().as_bytes(), ended, record, log],
            )
            .doing(DOING)?;
        Ok(())
    }

    pub(super) fn build_remove(&mut self, id: BuildId) -> Result<(), StoreError> {
        self.conn.execute("DELETE FROM build WHERE id = ?1", [id.uuid().as_bytes()]).doing("forgetting a build")?;
        Ok(())
    }

    /// Forgets builds that ended before `before`.
    pub(super) fn prune_builds(&mut self, before: Timestamp, limit: u32) -> Result<(), StoreError> {
        self.conn
            .execute(
                "DELETE FROM build WHERE id IN (SELECT id FROM build WHERE ended > 0 AND ended < ?1 LIMIT ?2)",
                params![int(before.as_millis()), limit],
            )
            .doing("forgetting builds")?;
        Ok(())
    }

    pub(super) fn cached_step_put(&mut self, step: &CachedStep) -> Result<(), StoreError> {
        const DOING: &str = "writing a cached step";
        let record = encode(step, DOING)?;
        self.conn
            .execute(
                "INSERT INTO build_step (tenant, key, used_at, record) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (tenant, key) DO UPDATE SET used_at = excluded.used_at, record = excluded.record",
                params![step.tenant.uuid().as_bytes(), step.key, int(step.used_at.as_millis()), record],
            )
            .doing(DOING)?;
        Ok(())
    }

    pub(super) fn cached_step_remove(&mut self, steps: &[(TenantId, String)]) -> Result<(), StoreError> {
        for (tenant, key) in steps {
            self.conn
                .execute("DELETE FROM build_step WHERE tenant = ?1 AND key = ?2", params![tenant.uuid().as_bytes(), key])
                .doing("forgetting a cached step")?;
        }
        Ok(())
    }
}

pub(super) fn one(conn: &Connection, id: BuildId) -> Result<Option<Build>, StoreError> {
    Ok(records(conn, KIND, READING, "SELECT record FROM build WHERE id = ?1", [id.uuid().as_bytes()])?.pop())
}

pub(super) fn log(conn: &Connection, id: BuildId) -> Result<Option<BuildLog>, StoreError> {
    let text: Option<Option<String>> = conn
        .prepare_cached("SELECT log FROM build WHERE id = ?1")
        .and_then(|mut select| select.query_row([id.uuid().as_bytes()], |row| row.get(0)).optional())
        .doing(READING)?;
    text.flatten().map(|text| decode(KIND, || id.to_string(), &text)).transpose()
}

pub(super) fn list(conn: &Connection, tenant: TenantId, page: PageRequest) -> Result<Page<Build>, StoreError> {
    let owner = tenant.uuid();
    let total: i64 =
        conn.query_row("SELECT COUNT(*) FROM build WHERE tenant = ?1", [owner.as_bytes()], |row| row.get(0)).doing(READING)?;
    let items = records(
        conn,
        KIND,
        READING,
        "SELECT record FROM build WHERE tenant = ?1 ORDER BY id DESC LIMIT ?2 OFFSET ?3",
        params![owner.as_bytes(), page.limit, int(page.offset)],
    )?;
    Ok(Page { items, total: u64::try_from(total).unwrap_or(0) })
}

pub(super) fn unfinished(conn: &Connection) -> Result<Vec<Build>, StoreError> {
    records(conn, KIND, READING, "SELECT record FROM build WHERE ended = 0 ORDER BY id", [])
}

pub(super) fn cached_step(conn: &Connection, tenant: TenantId, key: &str) -> Result<Option<CachedStep>, StoreError> {
    let sql = "SELECT record FROM build_step WHERE tenant = ?1 AND key = ?2";
    Ok(records(conn, KIND, READING, sql, params![tenant.uuid().as_bytes(), key])?.pop())
}

pub(super) fn cached_steps(conn: &Connection) -> Result<Vec<CachedStep>, StoreError> {
    records(conn, KIND, READING, "SELECT record FROM build_step ORDER BY used_at, key", [])
}
