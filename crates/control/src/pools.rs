//! Pools as objects.

use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{
    Actor, EventKind, ImageName, Overrides, Pool, PoolCounts, PoolId, PoolName, PoolPolicies, PoolState, Role, TemplateRef,
    TemplateSpec, phase_of,
};
use sandbank_store::{Insert, PageRequest, PoolSummary, Write};

use crate::control::{Control, Inner};
use crate::error::PoolBrief;
use crate::limits::{check_annotations, check_duration, check_spec, check_string_map, check_template};
use crate::sandboxes::PAGE_MAX;
use crate::templates::{pool_event, synced};
use crate::types::{Caller, Listing, OwnerView, PoolChange, PoolRequest, PoolStatistics, PoolView, SyncPreview, TemplateSource};
use crate::{Detail, Error, ErrorKind, Result};

/// Failed sandboxes of this long ago still count in a pool's status.
const FAILED_WINDOW: Duration = Duration::from_secs(600);
/// Pools that an error's detail names.
const BRIEFS_MAX: u32 = 50;
/// Tries against concurrent changes.
const TRIES: usize = 8;

fn not_found(name: &PoolName) -> Error {
    Error::not_found(format!("pool {:?} not found", name.as_str()))
}

impl Control {
    /// Makes a pool. Its reconciler fills it.
    pub async fn pool_create(&self, caller: &Caller, request: PoolRequest) -> Result<PoolView> {
        caller.require(Role::Member, "making pools")?;
        let inner = &self.inner;
        let principal = &caller.principal;
        let is_admin_itself = caller.is_admin() && principal.key.is_none();
        if request.require_api_key && !is_admin_itself && !inner.has_valid_key(principal.tenant).await? {
            let message = "no API key found for this user: make one first (POST /v1/api-keys)";
            return Err(Error::invalid(message).with(Detail::ApiKeyRequired));
        }
        let pool = inner.pool_from(caller, request).await?;
        inner.check_pool(&pool).await?;
        let event = pool_event(&pool, EventKind::PoolCreated, &caller.actor(), pool.created_at);
        match inner.store.pool_insert(pool, event).await? {
            Insert::Inserted(pool) => {
                inner.reconcile_pool(pool.id);
                inner.pool_view(pool).await
            }
            Insert::Taken(pool) => {
                let mut message = format!("pool {:?} already exists", pool.name.as_str());
                if pool.state == PoolState::Deleting {
                    message.push_str(": it is being deleted and goes when its last sandbox is released");
                }
                Err(Error::new(ErrorKind::Conflict, message))
            }
        }
    }

    /// One pool with what is counted of it, also while it is going away.
    pub async fn pool_get(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> {
        let pool = self.inner.pool_of(caller, name).await?;
        self.inner.pool_view(pool).await
    }

    /// The caller's pools, by name.
    pub async fn pool_list(&self, caller: &Caller, offset: u64, limit: u32) -> Result<Listing<PoolView>> {
        let page = PageRequest { offset, limit: limit.min(PAGE_MAX) };
        let found = self.inner.store.pool_list(Some(caller.principal.tenant), page).await?;
        let mut items = Vec::with_capacity(found.items.len());
        for pool in found.items {
            items.push(self.inner.pool_view(pool).await?);
        }
        Ok(Listing { items, total: found.total })
    }

    /// Changes a pool's size, growth, image or lease defaults.
    pub async fn pool_update(&self, caller: &Caller, name: &PoolName, change: PoolChange) -> Result<PoolView> {
        caller.require(Role::Member, "changing pools")?;
        check_annotations(&change.annotations)?;
        if is_empty(&change) {
            return Err(Error::invalid(
                "nothing to change: give replicas, minReplicas, maxReplicas, an image, a network or autoscaling",
            ));
        }
        let inner = &self.inner;
        let pool = inner.pool_of(caller, name).await?;
        let change = &change;
        let next = |pool: Pool| async move {
            if pool.state == PoolState::Deleting {
                return Err(Error::new(ErrorKind::State, format!("pool {:?} is being deleted", name.as_str())));
            }
            let mut next = changed(&pool, change);
            if let Some(request) = &change.network {
                let present = pool.overrides.network.as_deref();
                let seal = |request| inner.seal_network(Some(pool.tenant), request, present);
                next.overrides.network = request.as_ref().map(seal).transpose()?;
                next.revision = pool.revision + u64::from(next.sandbox_spec() != pool.sandbox_spec());
            }
            inner.check_pool_change(&pool, &next).await?;
            Ok(Some(next))
        };
        let written = inner.rewrite_pool(pool, EventKind::PoolUpdated, &caller.actor(), next).await?;
        inner.pool_view(written).await
    }

    /// Begins to delete a pool: warm sandboxes go, claimed ones live until released. The record, and with it the name, stays
    /// until nothing of the pool is left. Repeating it changes nothing.
    pub async fn pool_delete(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> {
        caller.require(Role::Member, "deleting pools")?;
        let inner = &self.inner;
        let pool = inner.pool_of(caller, name).await?;
        let next = |pool: Pool| async move {
            let active = pool.state != PoolState::Deleting;
            Ok(active.then_some(Pool { state: PoolState::Deleting, ..pool }))
        };
        let written = inner.rewrite_pool(pool, EventKind::PoolDeleted, &caller.actor(), next).await?;
        inner.pool_view(written).await
    }

    /// Takes the present version of the pool's template over (native.md §9).
    pub async fn pool_sync_template(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> {
        caller.require(Role::Member, "changing pools")?;
        let (pool, template) = self.inner.pool_and_template(caller, name).await?;
        self.inner.check_pool(&synced(&pool, &template, self.inner.now())).await?;
        let written = self.inner.sync_pool(pool, &template, &caller.actor()).await?;
        self.inner.pool_view(written).await
    }

    /// What [`Control::pool_sync_template`] would make, without writing it.
    pub async fn pool_sync_preview(&self, caller: &Caller, name: &PoolName) -> Result<SyncPreview> {
        let (pool, template) = self.inner.pool_and_template(caller, name).await?;
        Ok(SyncPreview { pool: synced(&pool, &template, self.inner.now()), version: template.version })
    }

    /// Counts over all pools.
    pub async fn admin_pool_statistics(&self, caller: &Caller) -> Result<PoolStatistics> {
        caller.require_admin()?;
        let mut statistics = PoolStatistics::default();
        for pool in self.inner.all_pools().await? {
            let counts = self.inner.pool_counts(&pool).await?;
            statistics.total += 1;
            statistics.replicas += u64::from(pool.sizing.replicas);
            statistics.idle += u64::from(counts.ready);
            statistics.running += u64::from(counts.claimed);
            statistics.failed += u64::from(counts.failed);
            *statistics.by_tenant.entry(self.inner.owner(pool.tenant).await?.name).or_default() += 1;
        }
        Ok(statistics)
    }
}

fn is_empty(change: &PoolChange) -> bool {
    let PoolChange { replicas, min, max, image, autoscaling, annotations, policies, network } = change;
    replicas.is_none()
        && min.is_none()
        && max.is_none()
        && image.is_none()
        && autoscaling.is_none()
        && annotations.is_empty()
        && policies.is_none()
        && network.is_none()
}

fn changed(pool: &Pool, change: &PoolChange) -> Pool {
    let mut next = pool.clone();
    if let Some(autoscaling) = change.autoscaling {
        if pool.autoscaling.enabled && !autoscaling.enabled {
            (next.sizing.min, next.sizing.max) = (None, None);
        }
        next.autoscaling = autoscaling;
    }
    next.sizing.replicas = change.replicas.unwrap_or(next.sizing.replicas);
    next.sizing.min = change.min.unwrap_or(next.sizing.min);
    next.sizing.max = change.max.unwrap_or(next.sizing.max);
    if let Some(image) = &change.image {
        next.overrides.image.clone_from(image);
    }
    next.annotations.extend(change.annotations.clone());
    next.policies = change.policies.unwrap_or(next.policies);
    if next.sandbox_spec() != pool.sandbox_spec() {
        next.revision += 1;
    }
    next
}

impl Inner {
    /// The caller's pool of this name.
    pub(crate) async fn pool_of(&self, caller: &Caller, name: &PoolName) -> Result<Pool> {
        self.store.pool_get(caller.principal.tenant, name).await?.ok_or_else(|| not_found(name))
    }

    /// Writes what `next` makes of the pool and lets everybody see it; repeated while others change it. `None`: it is so already.
    pub(crate) async fn rewrite_pool<F>(
        &self,
        mut pool: Pool,
        kind: EventKind,
        actor: &Actor,
        next: impl Fn(Pool) -> F,
    ) -> Result<Pool>
    where
        F: Future<Output = Result<Option<Pool>>>,
    {
        for _ in 0..TRIES {
            let Some(next) = next(pool.clone()).await? else { return Ok(pool) };
            let next = Pool { updated_at: self.now(), ..next };
            let event = pool_event(&next, kind.clone(), actor, next.updated_at);
            match self.store.pool_update(next, pool.generation, Some(event)).await? {
                Write::Updated(written) => {
                    let runtime = self.pools.get(written.id);
                    runtime.poke.notify_one();
                    runtime.wake_all();
                    return Ok(written);
                }
                Write::Refused(current) => pool = current,
                Write::Missing => return Err(not_found(&pool.name)),
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("pool {} is being changed by others all the time: try again", pool.name)))
    }

    /// What a claim from a pool that is not there is told (native.md §7).
    pub(crate) async fn pool_not_found(&self, caller: &Caller, name: &PoolName) -> Error {
        let namespace = &caller.principal.tenant_name;
        let error = Error::not_found(format!("sandbox pool {namespace}/{name} not found"));
        match self.available_pools(caller).await {
            Ok(pools) => error.with(Detail::AvailablePools(pools)),
            Err(_) => error,
        }
    }

    async fn available_pools(&self, caller: &Caller) -> Result<Vec<PoolBrief>> {
        let page = PageRequest { offset: 0, limit: BRIEFS_MAX };
        let mut briefs = Vec::new();
        for pool in self.store.pool_list(Some(caller.principal.tenant), page).await?.items {
            if pool.state == PoolState::Active {
                let counts = self.pool_counts(&pool).await?;
                briefs.push(PoolBrief { name: pool.name, tenant: caller.principal.tenant_name.clone(), counts });
            }
        }
        Ok(briefs)
    }

    pub(crate) async fn pool_summary(&self, id: PoolId, revision: u64) -> Result<PoolSummary> {
        let window = u64::try_from(FAILED_WINDOW.as_millis()).unwrap_or(u64::MAX);
        let since = sandbank_model::Timestamp::from_millis(self.now().as_millis().saturating_sub(window));
        Ok(self.store.pool_summary(id, revision, since).await?)
    }

    pub(crate) async fn pool_counts(&self, pool: &Pool) -> Result<PoolCounts> {
        Ok(self.pool_summary(pool.id, pool.revision).await?.counts)
    }

    async fn pool_view(&self, pool: Pool) -> Result<PoolView> {
        let counts = self.pool_counts(&pool).await?;
        let phase = phase_of(pool.state, &pool.sizing, &counts);
        let owner: OwnerView = self.owner(pool.tenant).await?;
        let last_error = self.pools.get(pool.id).last_error();
        Ok(PoolView { pool, owner, counts, phase, last_error })
    }

    pub(crate) async fn all_pools(&self) -> Result<Vec<Pool>> {
        let (mut pools, mut offset) = (Vec::new(), 0);
        loop {
            let page = self.store.pool_list(None, PageRequest { offset, limit: PAGE_MAX }).await?;
            pools.extend(page.items);
            offset += u64::from(PAGE_MAX);
            if offset >= page.total {
                return Ok(pools);
            }
        }
    }

    async fn pool_from(&self, caller: &Caller, request: PoolRequest) -> Result<Pool> {
        let network = self.lease_network(caller.principal.tenant, request.network.as_ref())?;
        let (template, spec) = self.template_of(caller, request.template).await?;
        let now = self.now();
        let mut labels = spec.labels.clone();
        labels.extend(request.labels);
        let policies = PoolPolicies {
            startup_timeout: request.policies.startup_timeout.or(spec.startup_timeout),
            idle_timeout: request.policies.idle_timeout.or(spec.idle_timeout),
            ..request.policies
        };
        Ok(Pool {
            id: PoolId::new(now, self.random()),
            tenant: caller.principal.tenant,
            name: request.name,
            template,
            template_spec: spec,
            overrides: Overrides { network: network.or(request.overrides.network), ..request.overrides },
            sizing: request.sizing,
            autoscaling: request.autoscaling,
            policies,
            driver: request.driver.unwrap_or_else(|| self.settings.default_driver.clone()),
            labels,
            annotations: request.annotations,
            state: PoolState::Active,
            revision: 1,
            generation: 1,
            created_at: now,
            updated_at: now,
            scaled_at: None,
        })
    }

    async fn template_of(&self, caller: &Caller, source: TemplateSource) -> Result<(Option<TemplateRef>, TemplateSpec)> {
        let name = match source {
            TemplateSource::Inline(spec) => return Ok((None, *spec)),
            TemplateSource::Named(name) => name,
        };
        match self.visible_template(caller, &name).await? {
            Some(template) => Ok((Some(template.reference()), template.spec)),
            None => {
                let available = self.available_templates(caller).await?;
                let error = Error::invalid(format!("sandbox template {:?} not found", name.as_str()));
                Err(error.with(Detail::AvailableTemplates(available)))
            }
        }
    }

    async fn check_pool(self: &Arc<Self>, pool: &Pool) -> Result<()> {
        check_template(&pool.template_spec)?;
        check_string_map("labels", &pool.labels)?;
        check_annotations(&pool.annotations)?;
        self.check_pool_settings(pool)?;
        let spec = pool.sandbox_spec();
        check_spec(&spec)?;
        self.check_network(&pool.driver, pool.tenant, spec.network.as_ref()).await?;
        self.check_image(pool, &spec.image).await?;
        let (used, limits) = (self.store.tenant_usage(pool.tenant).await?, self.quota_limits(pool.tenant).await?);
        let fresh = u64::from(pool.sizing.replicas.saturating_sub(self.pool_size(pool).await?));
        Ok(limits.check(&used, &spec.resources, fresh)?)
    }

    async fn check_pool_change(self: &Arc<Self>, present: &Pool, next: &Pool) -> Result<()> {
        self.check_pool_settings(next)?;
        let spec = next.sandbox_spec();
        if spec != present.sandbox_spec() {
            check_spec(&spec)?;
            self.check_network(&next.driver, next.tenant, spec.network.as_ref()).await?;
            self.check_image(next, &spec.image).await?;
        }
        if next.sizing.replicas > present.sizing.replicas {
            let (used, limits) = (self.store.tenant_usage(next.tenant).await?, self.quota_limits(next.tenant).await?);
            let fresh = u64::from(next.sizing.replicas.saturating_sub(self.pool_size(next).await?));
            limits.check(&used, &spec.resources, fresh)?;
        }
        Ok(())
    }

    /// Sandboxes that the pool has: they are part of what the tenant holds.
    async fn pool_size(&self, pool: &Pool) -> Result<u32> {
        let counts = self.pool_counts(pool).await?;
        Ok(counts.provisioning + counts.ready + counts.claimed)
    }

    fn check_pool_settings(&self, pool: &Pool) -> Result<()> {
        self.driver(&pool.driver)?;
        pool.sizing.validate(&pool.autoscaling)?;
        if pool.overrides.resource_multiplier == Some(0) {
            return Err(Error::invalid("overrides.resourceMultiplier must be at least 1"));
        }
        check_duration("startupTimeout", pool.policies.startup_timeout)?;
        check_duration("idleTimeout", pool.policies.idle_timeout)?;
        check_duration("timeout", pool.policies.lease_life)?;
        self.check_expiry_action(&pool.driver, pool.policies.on_expiry)
    }

    async fn check_image(self: &Arc<Self>, pool: &Pool, image: &ImageName) -> Result<()> {
        self.obtain_image(image, pool.tenant, None).await.map(|_| ())
    }

    async fn pool_and_template(self: &Arc<Self>, caller: &Caller, name: &PoolName) -> Result<(Pool, sandbank_model::Template)> {
        let pool = self.pool_of(caller, name).await?;
        let reference = pool
            .template
            .as_ref()
            .ok_or_else(|| Error::invalid("pool has no associated template (templateName annotation missing)"))?;
        let template = self.visible_template(caller, &reference.name).await?;
        let missing = || Error::not_found(format!("source template {:?} not found", reference.name.as_str()));
        let template = template.ok_or_else(missing)?;
        Ok((pool, template))
    }
}
