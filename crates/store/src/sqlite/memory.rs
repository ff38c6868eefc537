//! What is kept in memory beside the file: everything that a claim or an authorised request looks at.
//!
//! Two of these exist with the same (shared) records: the writer's own, which runs ahead inside a transaction, and the one
//! that readers see, which changes after the commit. Every put returns what stood there before, so that it can be taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sandbank_model::{
    ApiKey, ApiKeyId, Image, ImageName, KeyHash, Pool, PoolCounts, PoolId, PoolName, Sandbox, SandboxId, State, Template, Tenant,
    TenantId, Timestamp, Usage,
};

use super::shelf::Shelf;
use crate::PoolSummary;

/// Failed sandboxes of one pool that are remembered for its summary; a count saturates here.
const FAILED_KEPT: usize = 4096;

/// A sandbox and the pool revision that it was made from.
#[derive(Debug, Clone)]
pub(super) struct SandboxRow {
    pub(super) sandbox: Sandbox,
    pub(super) revision: u64,
}

#[derive(Debug, Clone, Default)]
struct PoolStats {
    provisioning: u32,
    claimed: u32,
    stopping: u32,
    /// Warm sandboxes by revision, the longest warm first.
    warm: BTreeMap<u64, BTreeSet<(Timestamp, SandboxId)>>,
    failed: BTreeSet<(Timestamp, SandboxId)>,
    last_claim_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    sandboxes: HashMap<SandboxId, Arc<SandboxRow>>,
    stats: HashMap<PoolId, PoolStats>,
    usage: HashMap<TenantId, Usage>,
    pools: HashMap<PoolId, Arc<Pool>>,
    pool_names: HashMap<(TenantId, PoolName), PoolId>,
    tenants: HashMap<TenantId, Arc<Tenant>>,
    tenant_names: HashMap<String, TenantId>,
    keys: HashMap<KeyHash, Arc<ApiKey>>,
    key_ids: HashMap<ApiKeyId, KeyHash>,
    /// The newest version of each.
    pub(super) templates: Shelf<PoolName, Template>,
    pub(super) images: Shelf<ImageName, Image>,
}

impl Memory {
    // ---- sandboxes

    pub(super) fn sandbox(&self, id: SandboxId) -> Option<&Arc<SandboxRow>> {
        self.sandboxes.get(&id)
    }

    pub(super) fn sandboxes(&self) -> impl Iterator<Item = &Arc<SandboxRow>> {
        self.sandboxes.values()
    }

    /// Sets or forgets a sandbox; one in a state that is not live is forgotten. What is counted follows.
    pub(super) fn put_sandbox(&mut self, id: SandboxId, row: Option<Arc<SandboxRow>>) -> Option<Arc<SandboxRow>> {
        let row = row.filter(|row| row.sandbox.state.is_live());
        if let Some(row) = &row {
            self.count(row, true);
        }
        let old = match row {
            Some(row) => self.sandboxes.insert(id, row),
            None => self.sandboxes.remove(&id),
        };
        if let Some(old) = &old {
            self.count(old, false);
            self.drop_stats(old.sandbox.pool);
        }
        old
    }

    fn count(&mut self, row: &SandboxRow, add: bool) {
        let sandbox = &row.sandbox;
        let usage = self.usage.entry(sandbox.tenant).or_default();
        let resources = &sandbox.spec.resources;
        if add {
            usage.add(resources);
        } else {
            usage.sandboxes = usage.sandboxes.saturating_sub(1);
            usage.cpu_millis = usage.cpu_millis.saturating_sub(u64::from(resources.cpu_millis));
            usage.memory_bytes = usage.memory_bytes.saturating_sub(resources.memory_bytes);
        }
        let Some(pool) = sandbox.pool else { return };
        let stats = self.stats.entry(pool).or_default();
        let step = |count: &mut u32| *count = if add { count.saturating_add(1) } else { count.saturating_sub(1) };
        match sandbox.state {
            State::Provisioning => step(&mut stats.provisioning),
            State::Stopping => step(&mut stats.stopping),
            State::Running | State::Pausing | State::Paused | State::Resuming | State::Expired => step(&mut stats.claimed),
            State::Ready => {
                let place = (warm_since(sandbox), sandbox.id);
                if add {
                    stats.warm.entry(row.revision).or_default().insert(place);
                } else if let Some(set) = stats.warm.get_mut(&row.revision) {
                    set.remove(&place);
                    if set.is_empty() {
                        stats.warm.remove(&row.revision);
                    }
                }
            }
            State::Terminated | State::Failed => {}
        }
    }

    /// Forgets what was counted of a pool that is gone together with its last sandbox.
    fn drop_stats(&mut self, pool: Option<PoolId>) {
        if let Some(id) = pool
            && !self.pools.contains_key(&id)
            && let Some(stats) = self.stats.get(&id)
            && stats.provisioning + stats.claimed + stats.stopping == 0
            && stats.warm.is_empty()
        {
            self.stats.remove(&id);
        }
    }

    /// The sandbox that a claim gets: of the newest revision the longest warm.
    pub(super) fn next_warm(&self, pool: PoolId) -> Option<&Arc<SandboxRow>> {
        let (_, id) = self.stats.get(&pool)?.warm.values().next_back()?.first()?;
        self.sandboxes.get(id)
    }

    /// Warm sandboxes, those below `revision` first, then the longest warm.
    pub(super) fn warm(&self, pool: PoolId, revision: u64, limit: usize) -> Vec<Arc<SandboxRow>> {
        let Some(stats) = self.stats.get(&pool) else { return Vec::new() };
        let mut places: Vec<_> = stats
            .warm
            .iter()
            .flat_map(|(made_from, set)| set.iter().map(move |(since, id)| (*made_from >= revision, *since, *id)))
            .collect();
        places.sort_unstable();
        places.into_iter().take(limit).filter_map(|(_, _, id)| self.sandboxes.get(&id).cloned()).collect()
    }

    pub(super) fn last_claim(&self, pool: PoolId) -> Option<Timestamp> {
        self.stats.get(&pool)?.last_claim_at
    }

    pub(super) fn set_last_claim(&mut self, pool: PoolId, at: Option<Timestamp>) -> Option<Timestamp> {
        std::mem::replace(&mut self.stats.entry(pool).or_default().last_claim_at, at)
    }

    /// Remembers or forgets that a sandbox of a pool failed; whether that changed anything.
    pub(super) fn put_failed(&mut self, pool: PoolId, at: Timestamp, id: SandboxId, add: bool) -> bool {
        let failed = &mut self.stats.entry(pool).or_default().failed;
        if !add {
            return failed.remove(&(at, id));
        }
        let added = failed.insert((at, id));
        if failed.len() > FAILED_KEPT {
            failed.pop_first();
        }
        added
    }

    pub(super) fn summary(&self, pool: PoolId, revision: u64, failed_since: Timestamp) -> PoolSummary {
        let Some(stats) = self.stats.get(&pool) else { return PoolSummary::default() };
        let size = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let first_failed = (failed_since, SandboxId::from_uuid(uuid::Uuid::nil()));
        PoolSummary {
            counts: PoolCounts {
                provisioning: stats.provisioning,
                ready: size(stats.warm.values().map(BTreeSet::len).sum()),
                outdated: size(stats.warm.range(..revision).map(|(_, set)| set.len()).sum()),
                claimed: stats.claimed,
                stopping: stats.stopping,
                failed: size(stats.failed.range(first_failed..).count()),
            },
            oldest_ready_since: stats.warm.values().filter_map(|set| set.first()).map(|(since, _)| *since).min(),
            last_claim_at: stats.last_claim_at,
        }
    }

    pub(super) fn usage(&self, tenant: TenantId) -> Usage {
        self.usage.get(&tenant).copied().unwrap_or_default()
    }

    // ---- pools

    pub(super) fn pool(&self, id: PoolId) -> Option<&Arc<Pool>> {
        self.pools.get(&id)
    }

    pub(super) fn pool_named(&self, tenant: TenantId, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.get(self.pool_names.get(&(tenant, name.clone()))?)
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }

    pub(super) fn put_pool(&mut self, id: PoolId, pool: Option<Arc<Pool>>) -> Option<Arc<Pool>> {
        let old = match pool {
            Some(pool) => {
                self.pool_names.insert((pool.tenant, pool.name.clone()), id);
                self.pools.insert(id, pool)
            }
            None => self.pools.remove(&id),
        };
        if let Some(old) = &old {
            let key = (old.tenant, old.name.clone());
            let still_named = self.pools.get(&id).is_some_and(|pool| (pool.tenant, &pool.name) == (key.0, &key.1));
            if !still_named && self.pool_names.get(&key) == Some(&id) {
                self.pool_names.remove(&key);
            }
            self.drop_stats(Some(id));
        }
        old
    }

    // ---- tenants and keys: never forgotten but by taking an insert back

    pub(super) fn tenant(&self, id: TenantId) -> Option<&Arc<Tenant>> {
        self.tenants.get(&id)
    }

    pub(super) fn tenant_named(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(self.tenant_names.get(name)?)
    }

    pub(super) fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    pub(super) fn put_tenant(&mut self, id: TenantId, tenant: Option<Arc<Tenant>>) -> Option<Arc<Tenant>> {
        match tenant {
            Some(tenant) => {
                self.tenant_names.insert(tenant.name.clone(), id);
                self.tenants.insert(id, tenant)
            }
            None => {
                let old = self.tenants.remove(&id);
                if let Some(old) = &old {
                    self.tenant_names.remove(&old.name);
                }
                old
            }
        }
    }

    pub(super) fn key(&self, hash: KeyHash) -> Option<&Arc<ApiKey>> {
        self.keys.get(&hash)
    }

    pub(super) fn key_by_id(&self, id: ApiKeyId) -> Option<&Arc<ApiKey>> {
        self.keys.get(self.key_ids.get(&id)?)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }

    pub(super) fn put_key(&mut self, hash: KeyHash, key: Option<Arc<ApiKey>>) -> Option<Arc<ApiKey>> {
        match key {
            Some(key) => {
                self.key_ids.insert(key.id, hash);
                self.keys.insert(hash, key)
            }
            None => {
                let old = self.keys.remove(&hash);
                if let Some(old) = &old {
                    self.key_ids.remove(&old.id);
                }
                old
            }
        }
    }
}

/// Since when a warm sandbox has been warm.
fn warm_since(sandbox: &Sandbox) -> Timestamp {
    sandbox.ready_at.unwrap_or(sandbox.created_at)
}
