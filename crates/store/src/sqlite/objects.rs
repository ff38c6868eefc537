//! What the writer does with tenants, keys, templates, pools and images.

use std::sync::Arc;

use rusqlite::params;
use sandbank_model::{
    ApiKey, ApiKeyId, Event, Image, ImageName, NetworkPolicy, Pool, PoolId, PoolName, QuotaLimits, Template, Tenant, TenantId,
    Timestamp,
};

use super::error::{Doing, encode, int};
use super::unit::Unit;
use crate::{Insert, StoreError, Write};

impl Unit<'_> {
    pub(super) fn tenant_ensure(&mut self, tenant: Tenant) -> Result<Tenant, StoreError> {
        const DOING: &str = "adding a tenant";
        if let Some(known) = self.memory().tenant_named(&tenant.name) {
            return Ok(Tenant::clone(known));
        }
        let record = encode(&tenant, DOING)?;
        self.conn
            .execute(
                "INSERT INTO tenant (id, name, record) VALUES (?1, ?2, ?3)",
                params![tenant.id.uuid().as_bytes(), tenant.name, record],
            )
            .doing(DOING)?;
        self.put_tenant(tenant.clone());
        Ok(tenant)
    }

    pub(super) fn tenant_set_quota(&mut self, id: TenantId, quota: QuotaLimits) -> Result<Write<Tenant>, StoreError> {
        const DOING: &str = "changing a tenant";
        self.tenant_change(id, DOING, |tenant| tenant.quota = quota)
    }

    pub(super) fn tenant_set_network(
        &mut self,
        id: TenantId,
        network: Option<Arc<NetworkPolicy>>,
    ) -> Result<Write<Tenant>, StoreError> {
        const DOING: &str = "changing a tenant's network policy";
        self.tenant_change(id, DOING, |tenant| tenant.network = network)
    }

    fn tenant_change(
        &mut self,
        id: TenantId,
        doing: &'static str,
        change: impl FnOnce(&mut Tenant),
    ) -> Result<Write<Tenant>, StoreError> {
        let Some(tenant) = self.memory().tenant(id) else { return Ok(Write::Missing) };
        let mut tenant = Tenant::clone(tenant);
        change(&mut tenant);
        let record = encode(&tenant, doing)?;
        self.conn.execute("UPDATE tenant SET record = ?2 WHERE id = ?1", params![id.uuid().as_bytes(), record]).doing(doing)?;
        self.put_tenant(tenant.clone());
        Ok(Write::Updated(tenant))
    }

    pub(super) fn key_insert(&mut self, key: ApiKey) -> Result<Insert<ApiKey>, StoreError> {
        const DOING: &str = "adding a key";
        if let Some(known) = self.memory().key(key.hash) {
            return Ok(Insert::Taken(ApiKey::clone(known)));
        }
        let record = encode(&key, DOING)?;
        self.conn
            .execute(
                "INSERT INTO api_key (id, hash, record) VALUES (?1, ?2, ?3)",
                params![key.id.uuid().as_bytes(), key.hash.to_hex(), record],
            )
            .doing(DOING)?;
        self.put_key(key.clone());
        Ok(Insert::Inserted(key))
    }

    pub(super) fn key_revoke(&mut self, id: ApiKeyId, now: Timestamp) -> Result<Write<ApiKey>, StoreError> {
        const DOING: &str = "revoking a key";
        let Some(key) = self.memory().key_by_id(id).map(|key| ApiKey::clone(key)) else { return Ok(Write::Missing) };
        if key.revoked_at.is_some() {
            return Ok(Write::Updated(key));
        }
        let key = ApiKey { revoked_at: Some(now), ..key };
        let record = encode(&key, DOING)?;
        self.conn.execute("UPDATE api_key SET record = ?2 WHERE id = ?1", params![id.uuid().as_bytes(), record]).doing(DOING)?;
        self.put_key(key.clone());
        Ok(Write::Updated(key))
    }

    fn newest_template(&self, tenant: Option<TenantId>, name: &PoolName) -> Option<Template> {
        self.memory().templates.get(tenant, name).map(|template| Template::clone(template))
    }

    pub(super) fn template_insert(&mut self, template: Template) -> Result<Insert<Template>, StoreError> {
        if let Some(known) = self.newest_template(template.tenant, &template.name) {
            return Ok(Insert::Taken(known));
        }
        self.template_write(&template)?;
        Ok(Insert::Inserted(template))
    }

    pub(super) fn template_update(&mut self, template: Template, expected: u64) -> Result<Write<Template>, StoreError> {
        let Some(known) = self.newest_template(template.tenant, &template.name) else { return Ok(Write::Missing) };
        if known.generation != expected {
            return Ok(Write::Refused(known));
        }
        self.conn
            .execute(
                "UPDATE template SET newest = 0 WHERE owner = ?1 AND name = ?2 AND newest = 1",
                params![owner(template.tenant), template.name.as_str()],
            )
            .doing("changing a template")?;
        let template = Template { generation: expected.saturating_add(1), ..template };
        self.template_write(&template)?;
        Ok(Write::Updated(template))
    }

    fn template_write(&mut self, template: &Template) -> Result<(), StoreError> {
        const DOING: &str = "adding a template";
        let record = encode(template, DOING)?;
        // The same id again is the same version with other words: it replaces what stood under it.
        let written = self
            .conn
            .execute(
                "INSERT INTO template (id, owner, name, generation, newest, record) VALUES (?1, ?2, ?3, ?4, 1, ?5) \
                 ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, newest = 1, record = excluded.record \
                 WHERE template.owner = excluded.owner AND template.name = excluded.name",
                params![
                    template.id.uuid().as_bytes(),
                    owner(template.tenant),
                    template.name.as_str(),
                    int(template.generation),
                    record
                ],
            )
            .doing(DOING)?;
        if written != 1 {
            let detail = format!("the id {} belongs to another template", template.id);
            return Err(StoreError::Backend { doing: DOING, detail });
        }
        self.put_template(template.tenant, template.name.clone(), Some(template.clone()));
        Ok(())
    }

    pub(super) fn template_delete(&mut self, tenant: Option<TenantId>, name: &PoolName) -> Result<Write<()>, StoreError> {
        let gone = self
            .conn
            .execute("DELETE FROM template WHERE owner = ?1 AND name = ?2", params![owner(tenant), name.as_str()])
            .doing("forgetting a template")?;
        self.put_template(tenant, name.clone(), None);
        Ok(if gone == 0 { Write::Missing } else { Write::Updated(()) })
    }

    pub(super) fn pool_insert(&mut self, pool: Pool, event: Event) -> Result<Insert<Pool>, StoreError> {
        const DOING: &str = "adding a pool";
        if let Some(known) = self.memory().pool_named(pool.tenant, &pool.name) {
            return Ok(Insert::Taken(Pool::clone(known)));
        }
        let record = encode(&pool, DOING)?;
        self.conn
            .execute(
                "INSERT INTO pool (id, tenant, name, record) VALUES (?1, ?2, ?3, ?4)",
                params![pool.id.uuid().as_bytes(), pool.tenant.uuid().as_bytes(), pool.name.as_str(), record],
            )
            .doing(DOING)?;
        self.append(event)?;
        self.put_pool(pool.id, Some(pool.clone()));
        Ok(Insert::Inserted(pool))
    }

    pub(super) fn pool_update(&mut self, pool: Pool, expected: u64, event: Option<Event>) -> Result<Write<Pool>, StoreError> {
        const DOING: &str = "changing a pool";
        let Some(known) = self.memory().pool(pool.id) else { return Ok(Write::Missing) };
        if known.generation != expected {
            return Ok(Write::Refused(Pool::clone(known)));
        }
        let pool = Pool { generation: expected.saturating_add(1), ..pool };
        let record = encode(&pool, DOING)?;
        self.conn
            .prepare_cached("UPDATE pool SET tenant = ?2, name = ?3, record = ?4 WHERE id = ?1")
            .and_then(|mut update| {
                update.execute(params![pool.id.uuid().as_bytes(), pool.tenant.uuid().as_bytes(), pool.name.as_str(), record])
            })
            .doing(DOING)?;
        if let Some(event) = event {
            self.append(event)?;
        }
        self.put_pool(pool.id, Some(pool.clone()));
        Ok(Write::Updated(pool))
    }

    pub(super) fn pool_remove(&mut self, id: PoolId) -> Result<(), StoreError> {
        self.conn.execute("DELETE FROM pool WHERE id = ?1", [id.uuid().as_bytes()]).doing("forgetting a pool")?;
        self.put_pool(id, None);
        Ok(())
    }

    pub(super) fn image_put(&mut self, image: Image) -> Result<Option<Image>, StoreError> {
        const DOING: &str = "adding an image";
        let before = self.memory().images.get(image.tenant, &image.name).map(|image| Image::clone(image));
        let record = encode(&image, DOING)?;
        self.conn
            .execute(
                "INSERT INTO image (owner, name, record) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (owner, name) DO UPDATE SET record = excluded.record",
                params![owner(image.tenant), image.name.as_str(), record],
            )
            .doing(DOING)?;
        self.put_image(image.tenant, image.name.clone(), Some(image));
        Ok(before)
    }

    pub(super) fn image_delete(&mut self, tenant: Option<TenantId>, name: &ImageName) -> Result<Write<()>, StoreError> {
        let gone = self
            .conn
            .execute("DELETE FROM image WHERE owner = ?1 AND name = ?2", params![owner(tenant), name.as_str()])
            .doing("forgetting an image")?;
        self.put_image(tenant, name.clone(), None);
        Ok(if gone == 0 { Write::Missing } else { Write::Updated(()) })
    }
}

/// An owner as a key: the whole installation is the empty blob.
pub(super) fn owner(tenant: Option<TenantId>) -> Vec<u8> {
    tenant.map(|id| id.uuid().as_bytes().to_vec()).unwrap_or_default()
}
