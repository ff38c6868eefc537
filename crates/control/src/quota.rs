//! Quotas: checked where sandboxes are made, in one place a tenant.

use sandbank_model::{QuotaLimits, Resources, TenantId, Usage};

use crate::control::Inner;
use crate::locks::KeyGuard;
use crate::{Error, Result};

/// What a tenant may still make. Nobody else makes sandboxes for this tenant while it exists: it lives from the check until
/// the records are inserted.
pub(crate) struct Allowance {
    limits: QuotaLimits,
    used: Usage,
    _exclusive: Option<KeyGuard<TenantId>>,
}

impl Allowance {
    /// Takes one sandbox of these limits, or says why not.
    pub(crate) fn take(&mut self, resources: &Resources) -> Result<()> {
        self.limits.check(&self.used, resources, 1)?;
        self.used.add(resources);
        Ok(())
    }
}

impl Inner {
    /// The limits in force: the tenant's own, else the installation's.
    pub(crate) async fn quota_limits(&self, tenant: TenantId) -> Result<QuotaLimits> {
        let record =
            self.store.tenant_get(tenant).await?.ok_or_else(|| Error::not_found(format!("tenant {tenant} not found")))?;
        let (own, general) = (record.quota, self.settings.default_quota);
        Ok(QuotaLimits {
            sandboxes: own.sandboxes.or(general.sandboxes),
            cpu_millis: own.cpu_millis.or(general.cpu_millis),
            memory_bytes: own.memory_bytes.or(general.memory_bytes),
        })
    }

    /// Waits for the tenant's turn and reads what it holds. Tenants without any limit do not wait for each other.
    pub(crate) async fn allowance(&self, tenant: TenantId) -> Result<Allowance> {
        if self.quota_limits(tenant).await? == QuotaLimits::default() {
            return Ok(Allowance { limits: QuotaLimits::default(), used: Usage::default(), _exclusive: None });
        }
        let exclusive = self.quota_locks.lock(tenant).await;
        // Read again: the limits may have changed during the wait.
        let limits = self.quota_limits(tenant).await?;
        let used = self.store.tenant_usage(tenant).await?;
        Ok(Allowance { limits, used, _exclusive: Some(exclusive) })
    }
}
