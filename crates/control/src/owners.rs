//! Names of tenants. They never change, so they are remembered.

use std::collections::HashMap;

use parking_lot::RwLock;
use sandbank_model::{Principal, Tenant, TenantId};

use crate::control::{Control, Inner};
use crate::types::OwnerView;
use crate::{Error, Result};

/// Names by tenant.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    known: RwLock<HashMap<TenantId, OwnerView>>,
}

impl From<&Tenant> for OwnerView {
    fn from(tenant: &Tenant) -> Self {
        Self { name: tenant.name.clone(), team: tenant.team.clone(), user: tenant.user.clone() }
    }
}

impl From<&Principal> for OwnerView {
    fn from(principal: &Principal) -> Self {
        Self { name: principal.tenant_name.clone(), team: principal.team.clone(), user: principal.user.clone() }
    }
}

impl Inner {
    pub(crate) async fn owner(&self, id: TenantId) -> Result<OwnerView> {
        if let Some(owner) = self.owners.known.read().get(&id) {
            return Ok(owner.clone());
        }
        let tenant = self.store.tenant_get(id).await?.ok_or_else(|| Error::not_found(format!("tenant {id} not found")))?;
        let owner = OwnerView::from(&tenant);
        self.owners.known.write().insert(id, owner.clone());
        Ok(owner)
    }
}

impl Control {
    /// The names of a tenant.
    pub async fn owner(&self, tenant: TenantId) -> Result<OwnerView> {
        self.inner.owner(tenant).await
    }
}
