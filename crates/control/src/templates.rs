//! Templates: written, versioned, seen, and followed by the pools made from them.

use sandbank_model::{
    Actor, Event, EventKind, EventSeq, NetworkPolicy, Pool, PoolName, PoolState, Role, SemVer, Template, TemplateId,
    TemplateSpec, TenantId, Timestamp,
};
use sandbank_store::{Insert, PageRequest, Write};

use crate::control::{Control, Inner};
use crate::error::TemplateBrief;
use crate::limits::check_template;
use crate::types::{Caller, NetworkRequest, TemplateRequest, TemplateView};
use crate::{Error, ErrorKind, Result};

/// Annotation that says where a template came from; pools do not inherit it (native.md §9).
const SYNC_SOURCE: &str = "agentbox.io/sync-source";
/// Pools that are read at once.
const PAGE: u32 = 500;

impl From<Template> for TemplateView {
    fn from(template: Template) -> Self {
        let global = template.tenant.is_none();
        Self { template, global }
    }
}

fn not_found(name: &PoolName) -> Error {
    Error::not_found(format!("sandbox template {:?} not found", name.as_str()))
}

impl Control {
    /// Writes the first version of a template.
    pub async fn template_create(&self, caller: &Caller, request: TemplateRequest) -> Result<TemplateView> {
        let owner = owner_of(caller, request.global)?;
        check_template(&request.spec)?;
        let spec = self.inner.with_network(owner, request.spec, request.network.as_ref(), None)?;
        let now = self.inner.now();
        let template = Template {
            id: TemplateId::new(now, self.inner.random()),
            tenant: owner,
            name: request.name,
            version: request.version.unwrap_or(SemVer::FIRST),
            spec,
            generation: 1,
            created_at: now,
            updated_at: now,
        };
        match self.inner.store.template_insert(template).await? {
            Insert::Inserted(template) => Ok(template.into()),
            Insert::Taken(template) => {
                let message = format!("sandbox template {:?} already exists: update it instead", template.name.as_str());
                Err(Error::new(ErrorKind::Conflict, message))
            }
        }
    }

    /// Writes a newer version. The pools made from it follow (native.md §6, §9): what they are made of is replaced and their
    /// warm sandboxes with it; running ones and the pools' sizes stay.
    pub async fn template_update(&self, caller: &Caller, request: TemplateRequest) -> Result<TemplateView> {
        let owner = owner_of(caller, request.global)?;
        check_template(&request.spec)?;
        let inner = &self.inner;
        let present = inner.store.template_get(owner, &request.name).await?.ok_or_else(|| not_found(&request.name))?;
        let changed = |current: u64| {
            let message = format!(
                "sandbox template {:?} was changed in between (it is at {current}): read it again and repeat the change",
                request.name.as_str()
            );
            Error::new(ErrorKind::Conflict, message)
        };
        if request.expected_generation.is_some_and(|expected| expected != present.generation) {
            return Err(changed(present.generation));
        }
        let version = request.version.unwrap_or_else(|| present.version.next_patch());
        if version <= present.version {
            let message = format!("version {version} must be greater than the present version {}", present.version);
            return Err(Error::invalid(message));
        }
        let spec = inner.with_network(owner, request.spec, request.network.as_ref(), present.spec.sandbox.network.as_deref())?;
        let now = inner.now();
        let next = Template {
            id: TemplateId::new(now, inner.random()),
            version,
            spec,
            generation: present.generation + 1,
            updated_at: now,
            ..present.clone()
        };
        match inner.store.template_update(next, present.generation).await? {
            Write::Updated(template) => {
                inner.propagate(&template, &caller.actor()).await?;
                Ok(template.into())
            }
            Write::Refused(current) => Err(changed(current.generation)),
            Write::Missing => Err(not_found(&request.name)),
        }
    }

    /// The template of this name, the tenant's own before the installation's. An invisible one looks missing.
    pub async fn template_get(&self, caller: &Caller, name: &PoolName) -> Result<TemplateView> {
        Ok(self.inner.visible_template(caller, name).await?.ok_or_else(|| not_found(name))?.into())
    }

    /// All templates that the caller sees, by name.
    pub async fn template_list(&self, caller: &Caller) -> Result<Vec<TemplateView>> {
        Ok(self.inner.visible_templates(caller).await?.into_iter().map(TemplateView::from).collect())
    }

    /// Forgets a template with all its versions. Pools made from it go on: they hold copies.
    pub async fn template_delete(&self, caller: &Caller, name: &PoolName, global: bool) -> Result<()> {
        let owner = owner_of(caller, global)?;
        match self.inner.store.template_delete(owner, name).await? {
            Write::Updated(()) | Write::Refused(()) => Ok(()),
            Write::Missing => Err(not_found(name)),
        }
    }
}

fn owner_of(caller: &Caller, global: bool) -> Result<Option<TenantId>> {
    if global {
        caller.require_admin()?;
        return Ok(None);
    }
    caller.require(Role::Member, "writing templates")?;
    Ok(Some(caller.principal.tenant))
}

fn visible(caller: &Caller, template: &Template) -> bool {
    template.tenant.is_some()
        || caller.is_admin()
        || template.spec.visibility.allows(&caller.principal.team, &caller.principal.user)
}

impl Inner {
    /// The template's content with what its sandboxes may reach; `present` is what its values to keep come from.
    fn with_network(
        &self,
        owner: Option<TenantId>,
        mut spec: TemplateSpec,
        network: Option<&NetworkRequest>,
        present: Option<&NetworkPolicy>,
    ) -> Result<TemplateSpec> {
        if let Some(request) = network {
            spec.sandbox.network = Some(self.seal_network(owner, request, present)?);
        }
        Ok(spec)
    }

    pub(crate) async fn visible_template(&self, caller: &Caller, name: &PoolName) -> Result<Option<Template>> {
        if let Some(own) = self.store.template_get(Some(caller.principal.tenant), name).await? {
            return Ok(Some(own));
        }
        Ok(self.store.template_get(None, name).await?.filter(|template| visible(caller, template)))
    }

    async fn visible_templates(&self, caller: &Caller) -> Result<Vec<Template>> {
        let mut found = self.store.template_list(&[Some(caller.principal.tenant), None]).await?;
        found.retain(|template| visible(caller, template));
        Ok(found)
    }

    /// What a caller who named a missing template could name instead.
    pub(crate) async fn available_templates(&self, caller: &Caller) -> Result<Vec<TemplateBrief>> {
        let found = self.visible_templates(caller).await?;
        Ok(found
            .into_iter()
            .map(|template| TemplateBrief {
                global: template.tenant.is_none(),
                name: template.name,
                description: template.spec.description,
            })
            .collect())
    }

    /// Moves every pool that follows this name to its newest version.
    async fn propagate(&self, template: &Template, actor: &Actor) -> Result<()> {
        let mut offset = 0;
        loop {
            let page = self.store.pool_list(template.tenant, PageRequest { offset, limit: PAGE }).await?;
            let named = |pool: &Pool| pool.template.as_ref().is_some_and(|reference| reference.name == template.name);
            self.follow_templates(page.items.into_iter().filter(named), actor).await;
            offset += u64::from(PAGE);
            if offset >= page.total {
                return Ok(());
            }
        }
    }

    /// Gives each of the pools its template's newest version. The supervisor does so too: a server may have ended before an
    /// update got to all pools, and a pool may have been made while one was under way.
    pub(crate) async fn follow_templates(&self, pools: impl Iterator<Item = Pool>, actor: &Actor) {
        for pool in pools {
            let id = pool.id;
            // Looked up with each try: another version may have come, or gone to the pool, in between.
            let next = |pool: Pool| async move {
                let newer = self.newer_template(&pool).await?;
                Ok(newer.map(|template| synced(&pool, &template, self.now())))
            };
            match self.rewrite_pool(pool, EventKind::PoolUpdated, actor, next).await {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(pool = %id, error = %error, "a pool could not take its template's newest version; it is tried again");
                }
            }
        }
    }

    /// The newest version of the template that the pool follows, if the pool is behind it.
    async fn newer_template(&self, pool: &Pool) -> Result<Option<Template>> {
        let Some(reference) = pool.template.as_ref().filter(|_| pool.state == PoolState::Active) else { return Ok(None) };
        if let Some(taken) = self.store.template_by_id(reference.id).await? {
            let newest = self.store.template_get(taken.tenant, &reference.name).await?;
            return Ok(newest.filter(|newest| newest.version > reference.version));
        }
        // The template was deleted with all its versions. One that was made anew under its name is followed from its first
        // update on: until then the pool lives on with its copy.
        let own = self.store.template_get(Some(pool.tenant), &reference.name).await?;
        let anew = match own {
            Some(own) => Some(own),
            None => self.store.template_get(None, &reference.name).await?,
        };
        Ok(anew.filter(|template| template.generation > 1))
    }

    /// Writes the pool as it is with `template`.
    pub(crate) async fn sync_pool(&self, pool: Pool, template: &Template, actor: &Actor) -> Result<Pool> {
        let next = |pool: Pool| std::future::ready(Ok(Some(synced(&pool, template, self.now()))));
        self.rewrite_pool(pool, EventKind::PoolUpdated, actor, next).await
    }
}

/// The pool with the template's present content: labels and annotations merged, its own overrides and its sizes kept.
pub(crate) fn synced(pool: &Pool, template: &Template, now: Timestamp) -> Pool {
    let mut next = pool.clone();
    next.template_spec = template.spec.clone();
    next.template = Some(template.reference());
    next.labels.extend(template.spec.labels.clone());
    let inherited = template.spec.annotations.iter().filter(|(key, _)| key.as_str() != SYNC_SOURCE);
    next.annotations.extend(inherited.map(|(key, value)| (key.clone(), value.clone())));
    if next.sandbox_spec() != pool.sandbox_spec() {
        next.revision += 1;
    }
    next.updated_at = now;
    next
}

/// An event about a pool.
pub(crate) fn pool_event(pool: &Pool, kind: EventKind, actor: &Actor, at: Timestamp) -> Event {
    Event { seq: EventSeq(0), at, tenant: pool.tenant, sandbox: None, pool: Some(pool.id), kind, actor: actor.clone() }
}
