//! Filling the memory when the database is opened.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};
use sandbank_model::{ApiKey, Image, Pool, PoolId, Sandbox, SandboxId, Template, Tenant, TenantId, Timestamp};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::error::{Doing, decode};
use super::memory::{Memory, SandboxRow};
use crate::StoreError;

const DOING: &str = "loading the database";
/// Failed sandboxes of a pool that are loaded for its summary, newest first.
const FAILED_LOADED: u32 = 4096;

/// Everything that is kept in memory, and the position of the last event.
pub(super) fn load(conn: &Connection) -> Result<(Memory, u64), StoreError> {
    let mut memory = Memory::default();
    for tenant in records::<Tenant>(conn, "tenant", "SELECT id, record FROM tenant")? {
        memory.put_tenant(tenant.id, Some(Arc::new(tenant)));
    }
    for key in records::<ApiKey>(conn, "key", "SELECT id, record FROM api_key")? {
        memory.put_key(key.hash, Some(Arc::new(key)));
    }
    for pool in records::<Pool>(conn, "pool", "SELECT id, record FROM pool")? {
        let (id, tenant) = (pool.id, pool.tenant);
        memory.put_pool(id, Some(Arc::new(pool)));
        load_history(conn, &mut memory, id, tenant)?;
    }
    for template in records::<Template>(conn, "template", "SELECT name, record FROM template WHERE newest = 1")? {
        memory.templates.put(template.tenant, template.name.clone(), Some(Arc::new(template)));
    }
    for image in records::<Image>(conn, "image", "SELECT name, record FROM image")? {
        memory.images.put(image.tenant, image.name.clone(), Some(Arc::new(image)));
    }
    load_sandboxes(conn, &mut memory)?;
    let last: Option<i64> = conn.query_row("SELECT MAX(seq) FROM event", [], |row| row.get(0)).doing(DOING)?;
    Ok((memory, last.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0)))
}

fn load_sandboxes(conn: &Connection, memory: &mut Memory) -> Result<(), StoreError> {
    let mut select = conn
        .prepare("SELECT id, record, revision, last_activity_at FROM sandbox INDEXED BY sandbox_live WHERE live = 1")
        .doing(DOING)?;
    let mut rows = select.query([]).doing(DOING)?;
    while let Some(row) = rows.next().doing(DOING)? {
        let mut sandbox: Sandbox = record(row, "sandbox")?;
        let revision = number(row, 2)?;
        // Activity is noted beside the record, which is not rewritten for it.
        sandbox.last_activity_at = sandbox.last_activity_at.max(Timestamp::from_millis(number(row, 3)?));
        if let (Some(pool), Some(lease)) = (sandbox.pool, &sandbox.lease)
            && memory.last_claim(pool).is_none_or(|last| last < lease.claimed_at)
        {
            memory.set_last_claim(pool, Some(lease.claimed_at));
        }
        memory.put_sandbox(sandbox.id, Some(Arc::new(SandboxRow { sandbox, revision })));
    }
    Ok(())
}

/// What a pool remembers of sandboxes that have ended.
fn load_history(conn: &Connection, memory: &mut Memory, pool: PoolId, tenant: TenantId) -> Result<(), StoreError> {
    let last_claim: Option<i64> = conn
        .prepare_cached(
            // Among the tenant's last ones only: an index of its own would cost two pages in every end of a sandbox, and what
            // asks for this looks back over seconds.
            "SELECT MAX(claimed_at) FROM (SELECT claimed_at, pool FROM sandbox WHERE live = 0 AND tenant = ?1 \
             ORDER BY sorted_at DESC LIMIT 1000) WHERE pool = ?2",
        )
        .and_then(|mut select| select.query_row([tenant.uuid().as_bytes(), pool.uuid().as_bytes()], |row| row.get(0)))
        .doing(DOING)?;
    memory.set_last_claim(pool, last_claim.map(millis));
    let failed: Vec<(i64, [u8; 16])> = conn
        .prepare_cached(
            "SELECT ended_at, id FROM sandbox WHERE live = 0 AND state = 'failed' AND pool = ?1 ORDER BY ended_at DESC LIMIT ?2",
        )
        .and_then(|mut select| {
            select.query_map(params![pool.uuid().as_bytes(), FAILED_LOADED], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .doing(DOING)?;
    for (at, id) in failed {
        memory.put_failed(pool, millis(at), SandboxId::from_uuid(Uuid::from_bytes(id)), true);
    }
    Ok(())
}

fn records<T: DeserializeOwned>(conn: &Connection, what: &'static str, sql: &str) -> Result<Vec<T>, StoreError> {
    let mut select = conn.prepare(sql).doing(DOING)?;
    let mut rows = select.query([]).doing(DOING)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().doing(DOING)? {
        found.push(record(row, what)?);
    }
    Ok(found)
}

/// The record in column 1, called by the id or name in column 0 when it cannot be read.
fn record<T: DeserializeOwned>(row: &Row<'_>, what: &'static str) -> Result<T, StoreError> {
    let text: String = row.get(1).doing(DOING)?;
    let name = || row.get::<_, String>(0).unwrap_or_else(|_| "?".to_owned());
    let key = || row.get::<_, [u8; 16]>(0).map_or_else(|_| name(), |id| Uuid::from_bytes(id).to_string());
    decode(what, key, &text)
}

fn number(row: &Row<'_>, column: usize) -> Result<u64, StoreError> {
    let value: i64 = row.get(column).doing(DOING)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

fn millis(value: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(value).unwrap_or(0))
}
