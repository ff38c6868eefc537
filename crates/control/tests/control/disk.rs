//! A store whose disk can be full: writes are refused, reads go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use sandbank_model::*;
use sandbank_store::{
    ClaimRequest, EventFilter, Insert, Page, PageRequest, PoolSummary, SandboxFilter, SqliteStore, Store, StoreError, Write,
};

type Answer<T> = Result<T, StoreError>;

/// Wraps a store; while `full` is set, whatever would write is refused.
pub struct DiskOf {
    pub store: Arc<SqliteStore>,
    pub full: Arc<AtomicBool>,
    /// Writes that found it full.
    pub refused: Arc<AtomicU64>,
}

impl DiskOf {
    fn space(&self) -> Answer<()> {
        if !self.full.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(StoreError::DiskFull)
    }
}

#[async_trait]
impl Store for DiskOf {
    async fn tenant_ensure(&self, tenant: Tenant) -> Answer<Tenant> {
        self.space()?;
        self.store.tenant_ensure(tenant).await
    }
    async fn tenant_get(&self, id: TenantId) -> Answer<Option<Tenant>> {
        self.store.tenant_get(id).await
    }
    async fn tenant_by_name(&self, name: &str) -> Answer<Option<Tenant>> {
        self.store.tenant_by_name(name).await
    }
    async fn tenant_list(&self) -> Answer<Vec<Tenant>> {
        self.store.tenant_list().await
    }
    async fn tenant_set_quota(&self, id: TenantId, quota: QuotaLimits) -> Answer<Write<Tenant>> {
        self.space()?;
        self.store.tenant_set_quota(id, quota).await
    }
    async fn tenant_set_network(&self, id: TenantId, network: Option<Arc<NetworkPolicy>>) -> Answer<Write<Tenant>> {
        self.space()?;
        self.store.tenant_set_network(id, network).await
    }
    async fn tenant_usage(&self, id: TenantId) -> Answer<Usage> {
        self.store.tenant_usage(id).await
    }
    async fn key_insert(&self, key: ApiKey) -> Answer<Insert<ApiKey>> {
        self.space()?;
        self.store.key_insert(key).await
    }
    async fn key_by_hash(&self, hash: KeyHash) -> Answer<Option<ApiKey>> {
        self.store.key_by_hash(hash).await
    }
    async fn key_list(&self, tenant: Option<TenantId>) -> Answer<Vec<ApiKey>> {
        self.store.key_list(tenant).await
    }
    async fn key_revoke(&self, id: ApiKeyId, now: Timestamp) -> Answer<Write<ApiKey>> {
        self.space()?;
        self.store.key_revoke(id, now).await
    }
    async fn template_insert(&self, template: Template) -> Answer<Insert<Template>> {
        self.space()?;
        self.store.template_insert(template).await
    }
    async fn template_update(&self, template: Template, expected: u64) -> Answer<Write<Template>> {
        self.space()?;
        self.store.template_update(template, expected).await
    }
    async fn template_get(&self, tenant: Option<TenantId>, name: &PoolName) -> Answer<Option<Template>> {
        self.store.template_get(tenant, name).await
    }
    async fn template_by_id(&self, id: TemplateId) -> Answer<Option<Template>> {
        self.store.template_by_id(id).await
    }
    async fn template_list(&self, owners: &[Option<TenantId>]) -> Answer<Vec<Template>> {
        self.store.template_list(owners).await
    }
    async fn template_delete(&self, tenant: Option<TenantId>, name: &PoolName) -> Answer<Write<()>> {
        self.space()?;
        self.store.template_delete(tenant, name).await
    }
    async fn pool_insert(&self, pool: Pool, event: Event) -> Answer<Insert<Pool>> {
        self.space()?;
        self.store.pool_insert(pool, event).await
    }
    async fn pool_get(&self, tenant: TenantId, name: &PoolName) -> Answer<Option<Pool>> {
        self.store.pool_get(tenant, name).await
    }
    async fn pool_by_id(&self, id: PoolId) -> Answer<Option<Pool>> {
        self.store.pool_by_id(id).await
    }
    async fn pool_list(&self, tenant: Option<TenantId>, page: PageRequest) -> Answer<Page<Pool>> {
        self.store.pool_list(tenant, page).await
    }
    async fn pool_update(&self, pool: Pool, expected: u64, event: Option<Event>) -> Answer<Write<Pool>> {
        self.space()?;
        self.store.pool_update(pool, expected, event).await
    }
    async fn pool_remove(&self, id: PoolId) -> Answer<()> {
        self.space()?;
        self.store.pool_remove(id).await
    }
    async fn pool_summary(&self, id: PoolId, revision: u64, failed_since: Timestamp) -> Answer<PoolSummary> {
        self.store.pool_summary(id, revision, failed_since).await
    }
    async fn sandbox_insert(&self, sandbox: Sandbox, revision: u64, event: Event) -> Answer<()> {
        self.space()?;
        self.store.sandbox_insert(sandbox, revision, event).await
    }
    async fn sandbox_get(&self, id: SandboxId) -> Answer<Option<Sandbox>> {
        self.store.sandbox_get(id).await
    }
    async fn sandbox_update(&self, sandbox: Sandbox, expected: u64, event: Event) -> Answer<Write<Sandbox>> {
        self.space()?;
        self.store.sandbox_update(sandbox, expected, event).await
    }
    async fn sandbox_claim(&self, request: ClaimRequest) -> Answer<Option<Sandbox>> {
        self.space()?;
        self.store.sandbox_claim(request).await
    }
    async fn sandbox_list(&self, filter: SandboxFilter, page: PageRequest) -> Answer<Page<Sandbox>> {
        self.store.sandbox_list(filter, page).await
    }
    async fn sandbox_count(&self, filter: SandboxFilter) -> Answer<Vec<(State, u64)>> {
        self.store.sandbox_count(filter).await
    }
    async fn sandbox_warm(&self, pool: PoolId, revision: u64, limit: u32) -> Answer<Vec<Sandbox>> {
        self.store.sandbox_warm(pool, revision, limit).await
    }
    async fn sandbox_live(&self) -> Answer<Vec<Sandbox>> {
        self.store.sandbox_live().await
    }
    async fn prune(&self, before: Timestamp, limit: u32) -> Answer<u64> {
        self.space()?;
        self.store.prune(before, limit).await
    }
    async fn event_append(&self, event: Event) -> Answer<EventSeq> {
        self.space()?;
        self.store.event_append(event).await
    }
    async fn event_list(&self, filter: EventFilter, limit: u32) -> Answer<Vec<Event>> {
        self.store.event_list(filter, limit).await
    }
    async fn image_put(&self, image: Image) -> Answer<Option<Image>> {
        self.space()?;
        self.store.image_put(image).await
    }
    async fn image_get(&self, tenant: TenantId, name: &ImageName) -> Answer<Option<Image>> {
        self.store.image_get(tenant, name).await
    }
    async fn image_list(&self, owners: &[Option<TenantId>]) -> Answer<Vec<Image>> {
        self.store.image_list(owners).await
    }
    async fn image_all(&self) -> Answer<Vec<Image>> {
        self.store.image_all().await
    }
    async fn image_delete(&self, tenant: Option<TenantId>, name: &ImageName) -> Answer<Write<()>> {
        self.space()?;
        self.store.image_delete(tenant, name).await
    }
    async fn registry_credential_put(&self, credential: RegistryCredential) -> Answer<Option<RegistryCredential>> {
        self.space()?;
        self.store.registry_credential_put(credential).await
    }
    async fn registry_credential_get(&self, tenant: Option<TenantId>, host: &str) -> Answer<Option<RegistryCredential>> {
        self.store.registry_credential_get(tenant, host).await
    }
    async fn registry_credential_list(&self, owners: &[Option<TenantId>]) -> Answer<Vec<RegistryCredential>> {
        self.store.registry_credential_list(owners).await
    }
    async fn registry_credential_delete(&self, tenant: Option<TenantId>, host: &str) -> Answer<Write<()>> {
        self.space()?;
        self.store.registry_credential_delete(tenant, host).await
    }

    async fn snapshot_put(&self, snapshot: Snapshot) -> Answer<()> {
        self.space()?;
        self.store.snapshot_put(snapshot).await
    }
    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Answer<Option<Snapshot>> {
        self.store.snapshot_get(tenant, id).await
    }
    async fn snapshot_named(&self, tenant: TenantId, name: &SnapshotName) -> Answer<Option<Snapshot>> {
        self.store.snapshot_named(tenant, name).await
    }
    async fn snapshot_list(&self, tenant: TenantId, of: Option<SandboxId>, page: PageRequest) -> Answer<Page<Snapshot>> {
        self.store.snapshot_list(tenant, of, page).await
    }
    async fn snapshot_all(&self) -> Answer<Vec<Snapshot>> {
        self.store.snapshot_all().await
    }
    async fn snapshot_delete(&self, tenant: TenantId, id: SnapshotId) -> Answer<Write<()>> {
        self.space()?;
        self.store.snapshot_delete(tenant, id).await
    }

    async fn build_put(&self, build: Build, log: Option<BuildLog>) -> Answer<()> {
        self.space()?;
        self.store.build_put(build, log).await
    }
    async fn build_get(&self, id: BuildId) -> Answer<Option<Build>> {
        self.store.build_get(id).await
    }
    async fn build_log(&self, id: BuildId) -> Answer<Option<BuildLog>> {
        self.store.build_log(id).await
    }
    async fn build_list(&self, tenant: TenantId, page: PageRequest) -> Answer<Page<Build>> {
        self.store.build_list(tenant, page).await
    }
    async fn build_unfinished(&self) -> Answer<Vec<Build>> {
        self.store.build_unfinished().await
    }
    async fn build_remove(&self, id: BuildId) -> Answer<()> {
        self.store.build_remove(id).await
    }
    async fn cached_step_put(&self, step: CachedStep) -> Answer<()> {
        self.space()?;
        self.store.cached_step_put(step).await
    }
    async fn cached_step_get(&self, tenant: TenantId, key: &str) -> Answer<Option<CachedStep>> {
        self.store.cached_step_get(tenant, key).await
    }
    async fn cached_step_all(&self) -> Answer<Vec<CachedStep>> {
        self.store.cached_step_all().await
    }
    async fn cached_step_remove(&self, steps: Vec<(TenantId, String)>) -> Answer<()> {
        self.store.cached_step_remove(steps).await
    }
    async fn close(&self) -> Answer<()> {
        self.store.close().await
    }
    async fn sandbox_touch(&self, activity: Vec<(SandboxId, Timestamp)>) -> Answer<()> {
        self.space()?;
        self.store.sandbox_touch(activity).await
    }
}
