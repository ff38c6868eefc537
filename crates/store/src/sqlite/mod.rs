//! The store in one SQLite file.
//!
//! One connection writes. Whoever has the turn (a caller when nobody else writes, else a thread, for all commands that wait)
//! executes in one transaction, commits (write-ahead log, `synchronous = FULL` as soon as one command was promised to
//! somebody), and only then answers. What claims and authorised requests look at is kept in memory as well and changes after
//! the commit. Everything else is read by a few connections of their own.

mod builds;
mod checkpoint;
mod commits;
mod credentials;
mod error;
mod job;
mod load;
mod memory;
mod objects;
mod queue;
mod read;
mod sandboxes;
mod schema;
mod shelf;
mod snapshots;
mod unit;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use async_trait::async_trait;
use sandbank_model::{
    ApiKey, ApiKeyId, Build, BuildId, BuildLog, CachedStep, Event, EventSeq, Image, ImageName, KeyHash, Pool, PoolId, PoolName,
    QuotaLimits, RegistryCredential, Sandbox, SandboxId, Snapshot, SnapshotId, SnapshotName, State, Template, TemplateId, Tenant,
    TenantId, Timestamp, Usage,
};

use crate::{ClaimRequest, EventFilter, Insert, Page, PageRequest, PoolSummary, SandboxFilter, Store, StoreError, Write};
use checkpoint::Checkpointer;
use commits::Commits;
use job::Durability;
use memory::{Memory, SandboxRow};
use queue::{Place, Queue};
use read::Readers;
use schema::DatabaseLock;
use unit::Unit;
use writer::Writer;

/// The store in one SQLite file.
pub struct SqliteStore {
    commits: Arc<Commits>,
    published: Arc<RwLock<Memory>>,
    readers: Arc<Readers>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the database at `path`, making or migrating it where needed. Blocks while it reads what is kept in memory.
    ///
    /// Refuses a database of a newer schema, and one that another process (or another store of this one) has open: the lock
    /// is `flock` on `<path>.lock`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let lock = DatabaseLock::take(path)?;
        let conn = schema::open_writer(path)?;
        let (memory, last_seq) = load::load(&conn)?;
        let published = Arc::new(RwLock::new(memory.clone()));
        let readers = Readers::open(path)?;
        let queue = Arc::new(Queue::new());
        let writer = Writer {
            conn,
            memory,
            published: Arc::clone(&published),
            last_seq,
            checkpointer: Checkpointer::start(path, Arc::clone(&queue))?,
            durability: Durability::Synced,
            unlooked: 0,
            lock,
        };
        let commits = Arc::new(Commits::new(queue, writer));
        let ours = Arc::clone(&commits);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || ours.run())
            .map_err(|error| StoreError::Backend { doing: "starting the writer", detail: error.to_string() })?;
        Ok(Self { commits, published, readers, thread: Mutex::new(Some(thread)) })
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write<T, F>(&self, command: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        self.commits.submit(Durability::Synced, Place::Anywhere, command).await
    }

    /// For steps that nobody was promised: see [`Durability::Written`].
    async fn note<T, F>(&self, command: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        self.commits.submit(Durability::Written, Place::Anywhere, command).await
    }

    fn live(&self, filter: &SandboxFilter) -> Vec<Arc<SandboxRow>> {
        self.memory().sandboxes().filter(|row| read::matches(&row.sandbox, filter)).cloned().collect()
    }

    /// Lets the writer finish what waits, and waits for it.
    fn finish(&self) {
        self.commits.close();
        self.readers.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.finish();
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn tenant_ensure(&self, tenant: Tenant) -> Result<Tenant, StoreError> {
        if let Some(known) = self.memory().tenant_named(&tenant.name) {
            return Ok(Tenant::clone(known));
        }
        self.write(move |unit| unit.tenant_ensure(tenant)).await
    }

    async fn tenant_get(&self, id: TenantId) -> Result<Option<Tenant>, StoreError> {
        Ok(self.memory().tenant(id).map(|tenant| Tenant::clone(tenant)))
    }

    async fn tenant_by_name(&self, name: &str) -> Result<Option<Tenant>, StoreError> {
        Ok(self.memory().tenant_named(name).map(|tenant| Tenant::clone(tenant)))
    }

    async fn tenant_list(&self) -> Result<Vec<Tenant>, StoreError> {
        let mut tenants: Vec<Tenant> = self.memory().tenants().map(|tenant| Tenant::clone(tenant)).collect();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tenants)
    }

    async fn tenant_set_quota(&self, id: TenantId, quota: QuotaLimits) -> Result<Write<Tenant>, StoreError> {
        self.write(move |unit| unit.tenant_set_quota(id, quota)).await
    }

    async fn tenant_set_network(
        &self,
        id: TenantId,
        network: Option<Arc<sandbank_model::NetworkPolicy>>,
    ) -> Result<Write<Tenant>, StoreError> {
        self.write(move |unit| unit.tenant_set_network(id, network)).await
    }

    async fn tenant_usage(&self, id: TenantId) -> Result<Usage, StoreError> {
        Ok(self.memory().usage(id))
    }

    async fn key_insert(&self, key: ApiKey) -> Result<Insert<ApiKey>, StoreError> {
        self.write(move |unit| unit.key_insert(key)).await
    }

    async fn key_by_hash(&self, hash: KeyHash) -> Result<Option<ApiKey>, StoreError> {
        Ok(self.memory().key(hash).map(|key| ApiKey::clone(key)))
    }

    async fn key_list(&self, tenant: Option<TenantId>) -> Result<Vec<ApiKey>, StoreError> {
        let wanted = |key: &&Arc<ApiKey>| tenant.is_none_or(|tenant| key.tenant == tenant);
        let mut keys: Vec<ApiKey> = self.memory().keys().filter(wanted).map(|key| ApiKey::clone(key)).collect();
        keys.sort_by_key(|key| (key.issued_at, key.id));
        Ok(keys)
    }

    async fn key_revoke(&self, id: ApiKeyId, now: Timestamp) -> Result<Write<ApiKey>, StoreError> {
        self.write(move |unit| unit.key_revoke(id, now)).await
    }

    async fn template_insert(&self, template: Template) -> Result<Insert<Template>, StoreError> {
        self.write(move |unit| unit.template_insert(template)).await
    }

    async fn template_update(&self, template: Template, expected: u64) -> Result<Write<Template>, StoreError> {
        self.write(move |unit| unit.template_update(template, expected)).await
    }

    async fn template_get(&self, tenant: Option<TenantId>, name: &PoolName) -> Result<Option<Template>, StoreError> {
        Ok(self.memory().templates.get(tenant, name).map(|template| Template::clone(template)))
    }

    async fn template_by_id(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        self.readers.read(move |conn| read::template_by_id(conn, id)).await
    }

    async fn template_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<Template>, StoreError> {
        let found = self.memory().templates.of(owners);
        Ok(found.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn template_delete(&self, tenant: Option<TenantId>, name: &PoolName) -> Result<Write<()>, StoreError> {
        let name = name.clone();
        self.write(move |unit| unit.template_delete(tenant, &name)).await
    }

    async fn pool_insert(&self, pool: Pool, event: Event) -> Result<Insert<Pool>, StoreError> {
        self.write(move |unit| unit.pool_insert(pool, event)).await
    }

    async fn pool_get(&self, tenant: TenantId, name: &PoolName) -> Result<Option<Pool>, StoreError> {
        Ok(self.memory().pool_named(tenant, name).map(|pool| Pool::clone(pool)))
    }

    async fn pool_by_id(&self, id: PoolId) -> Result<Option<Pool>, StoreError> {
        Ok(self.memory().pool(id).map(|pool| Pool::clone(pool)))
    }

    async fn pool_list(&self, tenant: Option<TenantId>, page: PageRequest) -> Result<Page<Pool>, StoreError> {
        let wanted = |pool: &&Arc<Pool>| tenant.is_none_or(|tenant| pool.tenant == tenant);
        let mut pools: Vec<Arc<Pool>> = self.memory().pools().filter(wanted).cloned().collect();
        pools.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        let total = pools.len() as u64;
        let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let items = pools.into_iter().skip(skip).take(page.limit as usize).map(Arc::unwrap_or_clone).collect();
        Ok(Page { items, total })
    }

    async fn pool_update(&self, pool: Pool, expected: u64, event: Option<Event>) -> Result<Write<Pool>, StoreError> {
        self.write(move |unit| unit.pool_update(pool, expected, event)).await
    }

    async fn pool_remove(&self, id: PoolId) -> Result<(), StoreError> {
        self.write(move |unit| unit.pool_remove(id)).await
    }

    async fn pool_summary(&self, id: PoolId, revision: u64, failed_since: Timestamp) -> Result<PoolSummary, StoreError> {
        Ok(self.memory().summary(id, revision, failed_since))
    }

    async fn sandbox_insert(&self, sandbox: Sandbox, revision: u64, event: Event) -> Result<(), StoreError> {
        self.note(move |unit| unit.sandbox_insert(sandbox, revision, event)).await
    }

    async fn sandbox_get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let live = self.memory().sandbox(id).cloned();
        match live {
            Some(row) => Ok(Some(row.sandbox.clone())),
            None => self.readers.read(move |conn| read::sandbox(conn, id)).await,
        }
    }

    async fn sandbox_update(&self, sandbox: Sandbox, expected: u64, event: Event) -> Result<Write<Sandbox>, StoreError> {
        let promised = !matches!(sandbox.state, State::Ready | State::Terminated);
        let update = move |unit: &mut Unit<'_>| unit.sandbox_update(sandbox, expected, event);
        if promised { self.write(update).await } else { self.note(update).await }
    }

    async fn sandbox_claim(&self, request: ClaimRequest) -> Result<Option<Sandbox>, StoreError> {
        self.write(move |unit| unit.sandbox_claim(request)).await
    }

    async fn sandbox_list(&self, filter: SandboxFilter, page: PageRequest) -> Result<Page<Sandbox>, StoreError> {
        let live = self.live(&filter);
        if read::wants_ended(&filter) {
            self.readers.read(move |conn| read::mixed_page(conn, live, &filter, page)).await
        } else {
            Ok(read::live_page(live, page))
        }
    }

    async fn sandbox_count(&self, filter: SandboxFilter) -> Result<Vec<(State, u64)>, StoreError> {
        let mut counts = std::collections::BTreeMap::<State, u64>::new();
        for row in self.live(&filter) {
            *counts.entry(row.sandbox.state).or_default() += 1;
        }
        if read::wants_ended(&filter) {
            counts.extend(self.readers.read(move |conn| read::ended_count(conn, &filter)).await?);
        }
        Ok(counts.into_iter().collect())
    }

    async fn sandbox_warm(&self, pool: PoolId, revision: u64, limit: u32) -> Result<Vec<Sandbox>, StoreError> {
        let warm = self.memory().warm(pool, revision, limit as usize);
        Ok(warm.into_iter().map(|row| row.sandbox.clone()).collect())
    }

    async fn sandbox_live(&self) -> Result<Vec<Sandbox>, StoreError> {
        let live: Vec<Arc<SandboxRow>> = self.memory().sandboxes().cloned().collect();
        Ok(live.into_iter().map(|row| row.sandbox.clone()).collect())
    }

    async fn sandbox_touch(&self, activity: Vec<(SandboxId, Timestamp)>) -> Result<(), StoreError> {
        self.note(move |unit| unit.sandbox_touch(activity)).await
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        // Many rows: longer than a caller's thread should be kept.
        self.commits.submit(Durability::Written, Place::Thread, move |unit| unit.prune(before, limit)).await
    }

    async fn event_append(&self, event: Event) -> Result<EventSeq, StoreError> {
        self.write(move |unit| unit.append(event)).await
    }

    async fn event_list(&self, filter: EventFilter, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.readers.read(move |conn| read::events(conn, &filter, limit)).await
    }

    async fn image_put(&self, image: Image) -> Result<Option<Image>, StoreError> {
        self.write(move |unit| unit.image_put(image)).await
    }

    async fn image_get(&self, tenant: TenantId, name: &ImageName) -> Result<Option<Image>, StoreError> {
        let memory = self.memory();
        let found = memory.images.get(Some(tenant), name).or_else(|| memory.images.get(None, name));
        Ok(found.map(|image| Image::clone(image)))
    }

    async fn image_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<Image>, StoreError> {
        let found = self.memory().images.of(owners);
        Ok(found.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn image_all(&self) -> Result<Vec<Image>, StoreError> {
        let found = self.memory().images.all();
        Ok(found.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn image_delete(&self, tenant: Option<TenantId>, name: &ImageName) -> Result<Write<()>, StoreError> {
        let name = name.clone();
        self.write(move |unit| unit.image_delete(tenant, &name)).await
    }

    async fn registry_credential_put(&self, credential: RegistryCredential) -> Result<Option<RegistryCredential>, StoreError> {
        self.write(move |unit| unit.registry_credential_put(&credential)).await
    }

    async fn registry_credential_get(
        &self,
        tenant: Option<TenantId>,
        host: &str,
    ) -> Result<Option<RegistryCredential>, StoreError> {
        let host = host.to_owned();
        self.readers.read(move |conn| credentials::get(conn, tenant, &host)).await
    }

    async fn registry_credential_list(&self, owners: &[Option<TenantId>]) -> Result<Vec<RegistryCredential>, StoreError> {
        let owners = owners.to_vec();
        self.readers.read(move |conn| credentials::list(conn, &owners)).await
    }

    async fn registry_credential_delete(&self, tenant: Option<TenantId>, host: &str) -> Result<Write<()>, StoreError> {
        let host = host.to_owned();
        self.write(move |unit| unit.registry_credential_delete(tenant, &host)).await
    }

    async fn snapshot_put(&self, snapshot: Snapshot) -> Result<(), StoreError> {
        self.write(move |unit| unit.snapshot_put(&snapshot)).await
    }

    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
        self.readers.read(move |conn| snapshots::one(conn, tenant, id)).await
    }

    async fn snapshot_named(&self, tenant: TenantId, name: &SnapshotName) -> Result<Option<Snapshot>, StoreError> {
        let name = name.clone();
        self.readers.read(move |conn| snapshots::named(conn, tenant, &name)).await
    }

    async fn snapshot_list(
        &self,
        tenant: TenantId,
        sandbox: Option<SandboxId>,
        page: PageRequest,
    ) -> Result<Page<Snapshot>, StoreError> {
        self.readers.read(move |conn| snapshots::list(conn, tenant, sandbox, page)).await
    }

    async fn snapshot_all(&self) -> Result<Vec<Snapshot>, StoreError> {
        self.readers.read(snapshots::all).await
    }

    async fn snapshot_delete(&self, tenant: TenantId, id: SnapshotId) -> Result<Write<()>, StoreError> {
        self.write(move |unit| unit.snapshot_delete(tenant, id)).await
    }

    async fn build_put(&self, build: Build, log: Option<BuildLog>) -> Result<(), StoreError> {
        self.write(move |unit| unit.build_put(&build, log.as_ref())).await
    }

    async fn build_get(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        self.readers.read(move |conn| builds::one(conn, id)).await
    }

    async fn build_log(&self, id: BuildId) -> Result<Option<BuildLog>, StoreError> {
        self.readers.read(move |conn| builds::log(conn, id)).await
    }

    async fn build_list(&self, tenant: TenantId, page: PageRequest) -> Result<Page<Build>, StoreError> {
        self.readers.read(move |conn| builds::list(conn, tenant, page)).await
    }

    async fn build_unfinished(&self) -> Result<Vec<Build>, StoreError> {
        self.readers.read(builds::unfinished).await
    }

    async fn build_remove(&self, id: BuildId) -> Result<(), StoreError> {
        self.write(move |unit| unit.build_remove(id)).await
    }

    async fn cached_step_put(&self, step: CachedStep) -> Result<(), StoreError> {
        self.write(move |unit| unit.cached_step_put(&step)).await
    }

    async fn cached_step_get(&self, tenant: TenantId, key: &str) -> Result<Option<CachedStep>, StoreError> {
        let key = key.to_owned();
        self.readers.read(move |conn| builds::cached_step(conn, tenant, &key)).await
    }

    async fn cached_step_all(&self) -> Result<Vec<CachedStep>, StoreError> {
        self.readers.read(builds::cached_steps).await
    }

    async fn cached_step_remove(&self, steps: Vec<(TenantId, String)>) -> Result<(), StoreError> {
        self.write(move |unit| unit.cached_step_remove(&steps)).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        // The writer may be in the middle of a commit: nothing else may wait on this thread meanwhile.
        let (commits, readers) = (Arc::clone(&self.commits), Arc::clone(&self.readers));
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = tokio::task::spawn_blocking(move || {
            commits.close();
            readers.close();
            thread.is_none_or(|thread| thread.join().is_ok())
        });
        match ended.await {
            Ok(true) => Ok(()),
            _ => Err(StoreError::Backend { doing: "closing the database", detail: "the writer panicked".to_owned() }),
        }
    }
}
