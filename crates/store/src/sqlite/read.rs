//! Reading what is not in memory: ended sandboxes, events, older versions of templates.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Params, params_from_iter};
use sandbank_model::{Event, Sandbox, SandboxId, State, Template, TemplateId, Timestamp};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::error::{Doing, decode, int};
use super::memory::SandboxRow;
use super::sandboxes::sorted_at;
use super::schema::open_reader;
use crate::{EventFilter, Page, PageRequest, SandboxFilter, StoreError};

/// Reads that run at once; more wait.
const READERS: usize = 2;

/// A few connections that read, used on the blocking threads of the runtime.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    room: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let idle = (0..READERS).map(|_| open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { path: path.to_owned(), idle: Mutex::new(idle), room: Arc::new(Semaphore::new(READERS)) }))
    }

    /// Runs a read.
    pub(super) async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let run = move || {
            let idle = readers.lock().pop();
            let conn = idle.map_or_else(|| open_reader(&readers.path), Ok)?;
            let read = read(&conn);
            // After `close` the connection ends here. The permit goes last: whoever comes next finds the connection.
            if !readers.room.is_closed() {
                readers.lock().push(conn);
            }
            drop(permit);
            read
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| StoreError::Closed)?
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self) {
        self.room.close();
        self.lock().clear();
    }
}

const SANDBOXES: &str = "reading sandboxes";

pub(super) fn sandbox(conn: &Connection, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
    let found: Option<(String, i64)> = conn
        .prepare_cached("SELECT record, last_activity_at FROM sandbox WHERE id = ?1")
        .and_then(|mut select| select.query_row([id.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .doing(SANDBOXES)?;
    let Some((text, activity)) = found else { return Ok(None) };
    let mut sandbox: Sandbox = decode("sandbox", || id.to_string(), &text)?;
    let activity = Timestamp::from_millis(u64::try_from(activity).unwrap_or(0));
    sandbox.last_activity_at = sandbox.last_activity_at.max(activity);
    Ok(Some(sandbox))
}

/// Whether a live sandbox matches.
pub(super) fn matches(sandbox: &Sandbox, filter: &SandboxFilter) -> bool {
    let SandboxFilter { tenant, pool, pool_name, states, claimed_only, metadata } = filter;
    let has =
        |(key, value): &(String, String)| sandbox.lease.as_ref().is_some_and(|lease| lease.metadata.get(key) == Some(value));
    tenant.is_none_or(|tenant| sandbox.tenant == tenant)
        && pool.is_none_or(|pool| sandbox.pool == Some(pool))
        && pool_name.as_ref().is_none_or(|name| sandbox.pool_name.as_ref() == Some(name))
        && (states.is_empty() || states.contains(&sandbox.state))
        && (!claimed_only || sandbox.lease.is_some())
        && metadata.iter().all(has)
}

/// The same condition for ended sandboxes, in SQL.
fn ended_where(filter: &SandboxFilter) -> (String, Vec<Value>) {
    let SandboxFilter { tenant, pool, pool_name, states, claimed_only, metadata } = filter;
    let mut sql = "live = 0".to_owned();
    let mut values = Vec::new();
    let mut and = |condition: &str, of: Vec<Value>| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        values.extend(of);
    };
    if let Some(tenant) = tenant {
        and("tenant = ?", vec![Value::Blob(tenant.uuid().as_bytes().to_vec())]);
    }
    if let Some(pool) = pool {
        and("pool = ?", vec![Value::Blob(pool.uuid().as_bytes().to_vec())]);
    }
    if let Some(name) = pool_name {
        and("pool_name = ?", vec![Value::Text(name.to_string())]);
    }
    if !states.is_empty() {
        let marks = vec!["?"; states.len()].join(", ");
        and(&format!("state IN ({marks})"), states.iter().map(|state| Value::Text(state.as_str().to_owned())).collect());
    }
    if *claimed_only {
        and("claimed_at IS NOT NULL", Vec::new());
    }
    for (key, value) in metadata {
        and(
            "EXISTS (SELECT 1 FROM json_each(record, '$.lease.metadata') AS m WHERE m.key = ? AND m.value = ?)",
            vec![Value::Text(key.clone()), Value::Text(value.clone())],
        );
    }
    (sql, values)
}

/// Whether ended sandboxes can match at all.
pub(super) fn wants_ended(filter: &SandboxFilter) -> bool {
    filter.states.is_empty() || filter.states.iter().any(|state| !state.is_live())
}

type Place = (std::cmp::Reverse<Timestamp>, SandboxId);

fn place(sandbox: &Sandbox) -> Place {
    (std::cmp::Reverse(sorted_at(sandbox)), sandbox.id)
}

/// A page of the live ones that match alone.
pub(super) fn live_page(mut live: Vec<Arc<SandboxRow>>, page: PageRequest) -> Page<Sandbox> {
    live.sort_unstable_by_key(|row| place(&row.sandbox));
    let total = live.len() as u64;
    let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let items = live.into_iter().skip(skip).take(page.limit as usize).map(|row| row.sandbox.clone()).collect();
    Page { items, total }
}

/// A page of live ones (which match already) and ended ones together. `live` was seen before this reads: what has ended in
/// between is shown once, as it is now.
pub(super) fn mixed_page(
    conn: &Connection,
    live: Vec<Arc<SandboxRow>>,
    filter: &SandboxFilter,
    page: PageRequest,
) -> Result<Page<Sandbox>, StoreError> {
    let tx = conn.unchecked_transaction().doing(SANDBOXES)?;
    let (condition, values) = ended_where(filter);
    let count = format!("SELECT COUNT(*) FROM sandbox WHERE {condition}");
    let ended_total: i64 = tx
        .prepare_cached(&count)
        .and_then(|mut select| select.query_row(params_from_iter(&values), |row| row.get(0)))
        .doing(SANDBOXES)?;
    let reach = page.offset.saturating_add(u64::from(page.limit));
    let sql = format!("SELECT sorted_at, id FROM sandbox WHERE {condition} ORDER BY sorted_at DESC, id LIMIT {}", int(reach));
    let ended: Vec<(i64, [u8; 16])> = tx
        .prepare_cached(&sql)
        .and_then(|mut select| select.query_map(params_from_iter(&values), |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .doing(SANDBOXES)?;
    let ended: Vec<Place> = ended
        .into_iter()
        .map(|(at, id)| {
            let at = Timestamp::from_millis(u64::try_from(at).unwrap_or(0));
            (std::cmp::Reverse(at), SandboxId::from_uuid(Uuid::from_bytes(id)))
        })
        .collect();
    let ended_ids: HashSet<SandboxId> = ended.iter().map(|(_, id)| *id).collect();
    let mut all: Vec<(Place, Option<Arc<SandboxRow>>)> =
        live.into_iter().filter(|row| !ended_ids.contains(&row.sandbox.id)).map(|row| (place(&row.sandbox), Some(row))).collect();
    let total = (all.len() as u64).saturating_add(u64::try_from(ended_total).unwrap_or(0));
    all.extend(ended.into_iter().map(|place| (place, None)));
    all.sort_unstable_by_key(|(place, _)| *place);
    let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let mut items = Vec::new();
    for ((_, id), row) in all.into_iter().skip(skip).take(page.limit as usize) {
        match row {
            Some(row) => items.push(row.sandbox.clone()),
            None => items.extend(sandbox(&tx, id)?),
        }
    }
    Ok(Page { items, total })
}

/// How many ended ones match, by state.
pub(super) fn ended_count(conn: &Connection, filter: &SandboxFilter) -> Result<Vec<(State, u64)>, StoreError> {
    let (condition, values) = ended_where(filter);
    let sql = format!("SELECT state, COUNT(*) FROM sandbox WHERE {condition} GROUP BY state");
    let rows: Vec<(String, i64)> = conn
        .prepare_cached(&sql)
        .and_then(|mut select| select.query_map(params_from_iter(&values), |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .doing(SANDBOXES)?;
    let state = |word: String| {
        State::from_word(&word).ok_or_else(|| StoreError::Corrupt {
            what: "sandbox",
            key: format!("of state {word}"),
            detail: "there is no such state".to_owned(),
        })
    };
    rows.into_iter().map(|(word, count)| Ok((state(word)?, u64::try_from(count).unwrap_or(0)))).collect()
}

pub(super) fn events(conn: &Connection, filter: &EventFilter, limit: u32) -> Result<Vec<Event>, StoreError> {
    const DOING: &str = "reading events";
    let EventFilter { tenant, sandbox, pool, after, newest_first } = filter;
    let mut conditions = vec!["1 = 1"];
    let mut values: Vec<Value> = Vec::new();
    if let Some(after) = after {
        conditions.push("seq > ?");
        values.push(Value::Integer(int(after.0)));
    }
    // Only a sandbox's events have an index; the others are found by walking the log from the asked end.
    if let Some(sandbox) = sandbox {
        conditions.push("sandbox = ?");
        values.push(Value::Blob(sandbox.uuid().as_bytes().to_vec()));
    }
    if let Some(pool) = pool {
        conditions.push("pool = ?");
        values.push(Value::Blob(pool.uuid().as_bytes().to_vec()));
    }
    if let Some(tenant) = tenant {
        conditions.push("tenant = ?");
        values.push(Value::Blob(tenant.uuid().as_bytes().to_vec()));
    }
    let order = if *newest_first { "DESC" } else { "ASC" };
    let sql = format!("SELECT seq, record FROM event WHERE {} ORDER BY seq {order} LIMIT {limit}", conditions.join(" AND "));
    let rows: Vec<(i64, String)> = conn
        .prepare_cached(&sql)
        .and_then(|mut select| select.query_map(params_from_iter(&values), |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .doing(DOING)?;
    rows.into_iter().map(|(seq, text)| decode("event", || seq.to_string(), &text)).collect()
}

pub(super) fn template_by_id(conn: &Connection, id: TemplateId) -> Result<Option<Template>, StoreError> {
    let found: Option<(String, String)> = conn
        .prepare_cached("SELECT name, record FROM template WHERE id = ?1")
        .and_then(|mut select| select.query_row([id.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .doing("reading a template")?;
    found.map(|(name, text)| decode("template", || name, &text)).transpose()
}

/// The records of one kind that a statement finds, in its order. `doing` says in an error what they were read for.
pub(super) fn records<T: DeserializeOwned>(
    conn: &Connection,
    kind: &'static str,
    doing: &'static str,
    sql: &str,
    params: impl Params,
) -> Result<Vec<T>, StoreError> {
    let texts: Vec<String> =
        conn.prepare_cached(sql).and_then(|mut select| select.query_map(params, |row| row.get(0))?.collect()).doing(doing)?;
    texts.iter().map(|text| decode(kind, || "?".to_owned(), text)).collect()
}
