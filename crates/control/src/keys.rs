//! API keys, tenants and quotas as objects.

use sandbank_model::{ApiKey, ApiKeyId, KeyHash, QuotaLimits, Role, Tenant, TenantId};
use sandbank_store::{Insert, Write};
use sha2::{Digest, Sha256};

use crate::control::{Control, Inner};
use crate::limits::check_string_map;
use crate::types::{AdminKeyRequest, Caller, KeyRequest, NewKey, OwnerView, QuotaView};
use crate::{Error, ErrorKind, Result};

/// Prefix of new keys (native.md §3).
const PREFIX: &str = "agbx";
/// Longest description, characters.
const DESCRIPTION_MAX: usize = 1000;

impl Control {
    /// A fresh key for the caller's tenant, with the caller's role; an admin's own keys are admin keys.
    pub async fn key_create(&self, caller: &Caller, request: KeyRequest) -> Result<NewKey> {
        caller.require(Role::Member, "making API keys")?;
        self.inner.issue_key(caller.principal.tenant, caller.principal.role, request).await
    }

    /// Keys of the caller's tenant that were not revoked, oldest first.
    pub async fn key_list(&self, caller: &Caller) -> Result<Vec<ApiKey>> {
        caller.require(Role::Member, "listing API keys")?;
        let keys = self.inner.store.key_list(Some(caller.principal.tenant)).await?;
        Ok(keys.into_iter().filter(|key| key.revoked_at.is_none()).collect())
    }

    /// By id. Another tenant's key: Forbidden (native.md §6). Admins may revoke any.
    pub async fn key_revoke(&self, caller: &Caller, id: ApiKeyId) -> Result<ApiKey> {
        caller.require(Role::Member, "revoking API keys")?;
        let missing = || Error::not_found(format!("API key {id} not found"));
        let keys = self.inner.store.key_list(None).await?;
        let key = keys.into_iter().find(|key| key.id == id && key.revoked_at.is_none()).ok_or_else(missing)?;
        if !caller.sees(key.tenant) {
            return Err(Error::new(ErrorKind::Forbidden, format!("API key {id} belongs to somebody else")));
        }
        match self.inner.store.key_revoke(id, self.inner.now()).await? {
            Write::Updated(key) | Write::Refused(key) => Ok(key),
            Write::Missing => Err(missing()),
        }
    }

    /// A fresh key for any team and user, whose tenant is made if there is none.
    pub async fn admin_key_create(&self, caller: &Caller, request: AdminKeyRequest) -> Result<NewKey> {
        caller.require_admin()?;
        let tenant = self.inner.ensure_tenant(request.namespace.as_deref(), &request.team, &request.user).await?;
        self.inner.issue_key(tenant.id, request.role, request.key).await
    }

    /// A key whose secret somebody else made; only its hash is known. `false`: this hash was known already.
    pub async fn admin_key_import(&self, caller: &Caller, request: AdminKeyRequest) -> Result<(ApiKey, bool)> {
        caller.require_admin()?;
        let import = request.import.ok_or_else(|| Error::invalid("an import needs the hash of the key"))?;
        check_key_request(&request.key)?;
        let tenant = self.inner.ensure_tenant(request.namespace.as_deref(), &request.team, &request.user).await?;
        let issued_at = import.issued_at.unwrap_or_else(|| self.inner.now());
        let key = ApiKey { issued_at, ..self.inner.key_record(import.hash, tenant.id, request.role, request.key) };
        match self.inner.store.key_insert(key).await? {
            Insert::Inserted(key) => Ok((key, true)),
            Insert::Taken(key) if key.tenant == tenant.id => Ok((key, false)),
            Insert::Taken(_) => Err(Error::new(ErrorKind::Conflict, "this key is known already, for another team and user")),
        }
    }

    /// All keys that were not revoked, with their owners.
    pub async fn admin_key_list(&self, caller: &Caller) -> Result<Vec<(ApiKey, OwnerView)>> {
        caller.require_admin()?;
        let mut listed = Vec::new();
        for key in self.inner.store.key_list(None).await?.into_iter().filter(|key| key.revoked_at.is_none()) {
            let owner = self.inner.owner(key.tenant).await?;
            listed.push((key, owner));
        }
        Ok(listed)
    }

    /// All tenants, by name.
    pub async fn admin_tenant_list(&self, caller: &Caller) -> Result<Vec<Tenant>> {
        caller.require_admin()?;
        Ok(self.inner.store.tenant_list().await?)
    }

    /// Replaces a tenant's quota. What it holds already stays.
    pub async fn admin_set_quota(&self, caller: &Caller, tenant: &str, limits: QuotaLimits) -> Result<Tenant> {
        caller.require_admin()?;
        let missing = || Error::not_found(format!("tenant {tenant:?} not found"));
        let found = self.inner.store.tenant_by_name(tenant).await?.ok_or_else(missing)?;
        let changed = match self.inner.store.tenant_set_quota(found.id, limits).await? {
            Write::Updated(tenant) | Write::Refused(tenant) => tenant,
            Write::Missing => return Err(missing()),
        };
        self.inner.pools.poke_all();
        Ok(changed)
    }

    /// The caller's quota and what is held of it.
    pub async fn quota(&self, caller: &Caller) -> Result<QuotaView> {
        let tenant = caller.principal.tenant;
        Ok(QuotaView {
            owner: OwnerView::from(&caller.principal),
            limits: self.inner.quota_limits(tenant).await?,
            used: self.inner.store.tenant_usage(tenant).await?,
        })
    }
}

impl Inner {
    async fn issue_key(&self, tenant: TenantId, role: Role, request: KeyRequest) -> Result<NewKey> {
        check_key_request(&request)?;
        if request.expires_at.is_some_and(|at| at <= self.now()) {
            return Err(Error::invalid("expiresAt lies in the past: give a time to come, or none for a key without end"));
        }
        let secret = KeyHash(self.random()).to_hex();
        let hash = KeyHash(Sha256::digest(secret.as_bytes()).into());
        match self.store.key_insert(self.key_record(hash, tenant, role, request)).await? {
            Insert::Inserted(key) => Ok(NewKey { secret: format!("{PREFIX}_{secret}"), key }),
            Insert::Taken(_) => Err(Error::new(ErrorKind::Unavailable, "the random source repeats itself: no key was made")),
        }
    }

    fn key_record(&self, hash: KeyHash, tenant: TenantId, role: Role, request: KeyRequest) -> ApiKey {
        let now = self.now();
        let KeyRequest { description, expires_at, annotations } = request;
        let id = ApiKeyId::new(now, self.random());
        ApiKey { id, hash, tenant, role, description, annotations, issued_at: now, expires_at, revoked_at: None }
    }

    /// Whether the tenant has a key that works.
    pub(crate) async fn has_valid_key(&self, tenant: TenantId) -> Result<bool> {
        let now = self.now();
        Ok(self.store.key_list(Some(tenant)).await?.iter().any(|key| key.is_valid(now)))
    }
}

fn check_key_request(request: &KeyRequest) -> Result<()> {
    if request.description.as_ref().is_some_and(|text| text.chars().count() > DESCRIPTION_MAX) {
        return Err(Error::invalid(format!("description is longer than {DESCRIPTION_MAX} characters")));
    }
    check_string_map("annotations", &request.annotations)
}
