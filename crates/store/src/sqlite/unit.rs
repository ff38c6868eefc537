//! One transaction of the writer: the connection, the memory that runs ahead, and how to take it back.

use std::sync::Arc;

use rusqlite::{Connection, params};
use sandbank_model::{
    ApiKey, Event, EventSeq, Image, ImageName, KeyHash, Pool, PoolId, PoolName, SandboxId, State, Template, Tenant, TenantId,
    Timestamp,
};

use super::error::{Doing, encode, int};
use super::memory::{Memory, SandboxRow};
use crate::StoreError;

/// A value for one place in memory. Putting it there yields the change that takes it back.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Sandbox(SandboxId, Option<Arc<SandboxRow>>),
    LastClaim(PoolId, Option<Timestamp>),
    Failed { pool: PoolId, at: Timestamp, id: SandboxId, present: bool },
    Pool(PoolId, Option<Arc<Pool>>),
    Tenant(TenantId, Option<Arc<Tenant>>),
    Key(KeyHash, Option<Arc<ApiKey>>),
    Template(Option<TenantId>, PoolName, Option<Arc<Template>>),
    Image(Option<TenantId>, ImageName, Option<Arc<Image>>),
}

impl Change {
    /// Puts it into `memory` and returns what stood there.
    pub(super) fn put(self, memory: &mut Memory) -> Self {
        match self {
            Self::Sandbox(id, row) => Self::Sandbox(id, memory.put_sandbox(id, row)),
            Self::LastClaim(pool, at) => Self::LastClaim(pool, memory.set_last_claim(pool, at)),
            Self::Failed { pool, at, id, present } => {
                let changed = memory.put_failed(pool, at, id, present);
                Self::Failed { pool, at, id, present: present ^ changed }
            }
            Self::Pool(id, pool) => Self::Pool(id, memory.put_pool(id, pool)),
            Self::Tenant(id, tenant) => Self::Tenant(id, memory.put_tenant(id, tenant)),
            Self::Key(hash, key) => Self::Key(hash, memory.put_key(hash, key)),
            Self::Template(owner, name, template) => {
                let old = memory.templates.put(owner, name.clone(), template);
                Self::Template(owner, name, old)
            }
            Self::Image(owner, name, image) => {
                let old = memory.images.put(owner, name.clone(), image);
                Self::Image(owner, name, old)
            }
        }
    }
}

/// A change that was made, and what takes it back.
struct Done {
    change: Change,
    undo: Change,
}

/// A transaction under way. Commands are methods of it; see `sandboxes.rs` and `objects.rs`.
pub(super) struct Unit<'a> {
    pub(super) conn: &'a Connection,
    memory: &'a mut Memory,
    /// To be published after the commit, or taken back.
    changes: Vec<Done>,
    last_seq: &'a mut u64,
}

impl<'a> Unit<'a> {
    pub(super) fn new(conn: &'a Connection, memory: &'a mut Memory, last_seq: &'a mut u64) -> Self {
        Self { conn, memory, changes: Vec::new(), last_seq }
    }

    pub(super) fn memory(&self) -> &Memory {
        self.memory
    }

    /// How many changes were made so far: what [`Unit::take_back`] goes back to.
    pub(super) fn mark(&self) -> usize {
        self.changes.len()
    }

    /// Takes all changes since `mark` back.
    pub(super) fn take_back(&mut self, mark: usize) {
        for done in self.changes.drain(mark..).rev() {
            done.undo.put(self.memory);
        }
    }

    /// The changes, in order, for the memory that readers see.
    pub(super) fn into_changes(self) -> impl Iterator<Item = Change> {
        self.changes.into_iter().map(|done| done.change)
    }

    fn change(&mut self, change: Change) {
        let copy = change.clone();
        let undo = change.put(self.memory);
        self.changes.push(Done { change: copy, undo });
    }

    pub(super) fn put_sandbox(&mut self, row: SandboxRow) {
        let row = Arc::new(row);
        let sandbox = &row.sandbox;
        let (id, pool, state, ended_at) = (sandbox.id, sandbox.pool, sandbox.state, sandbox.ended_at);
        if let (Some(pool), Some(lease)) = (pool, &sandbox.lease)
            && self.memory.last_claim(pool).is_none_or(|last| last < lease.claimed_at)
        {
            let claimed_at = lease.claimed_at;
            self.change(Change::LastClaim(pool, Some(claimed_at)));
        }
        if let (Some(pool), State::Failed) = (pool, state) {
            self.change(Change::Failed { pool, at: ended_at.unwrap_or_default(), id, present: true });
        }
        self.change(Change::Sandbox(id, Some(row)));
    }

    pub(super) fn forget_failed(&mut self, pool: PoolId, at: Timestamp, id: SandboxId) {
        self.change(Change::Failed { pool, at, id, present: false });
    }

    pub(super) fn put_pool(&mut self, id: PoolId, pool: Option<Pool>) {
        self.change(Change::Pool(id, pool.map(Arc::new)));
    }

    pub(super) fn put_tenant(&mut self, tenant: Tenant) {
        self.change(Change::Tenant(tenant.id, Some(Arc::new(tenant))));
    }

    pub(super) fn put_key(&mut self, key: ApiKey) {
        self.change(Change::Key(key.hash, Some(Arc::new(key))));
    }

    pub(super) fn put_template(&mut self, owner: Option<TenantId>, name: PoolName, template: Option<Template>) {
        self.change(Change::Template(owner, name, template.map(Arc::new)));
    }

    pub(super) fn put_image(&mut self, owner: Option<TenantId>, name: ImageName, image: Option<Image>) {
        self.change(Change::Image(owner, name, image.map(Arc::new)));
    }

    /// Appends an event and gives it its position. Positions of commands that fail stay unused.
    pub(super) fn append(&mut self, mut event: Event) -> Result<EventSeq, StoreError> {
        const DOING: &str = "appending an event";
        *self.last_seq += 1;
        event.seq = EventSeq(*self.last_seq);
        let record = encode(&event, DOING)?;
        self.conn
            .prepare_cached("INSERT INTO event (seq, at, tenant, sandbox, pool, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
            .and_then(|mut insert| {
                insert.execute(params![
                    int(event.seq.0),
                    int(event.at.as_millis()),
                    event.tenant.uuid().as_bytes(),
                    event.sandbox.map(|id| *id.uuid().as_bytes()),
                    event.pool.map(|id| *id.uuid().as_bytes()),
                    record
                ])
            })
            .doing(DOING)?;
        Ok(event.seq)
    }
}
