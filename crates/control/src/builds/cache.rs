//! Layers that later builds find, and how long.

use std::collections::BTreeMap;

use sandbank_model::{CachedStep, Role, TenantId};

use super::run::{Job, Snapshot};
use crate::control::{Control, Inner};
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// A use is written down when the last one is this old: most hits cost no write.
const USED_AGAIN_MS: u64 = 3_600_000;

impl Control {
    /// Forgets all layers that the caller's builds left for later ones; how many.
    pub async fn build_cache_clear(&self, caller: &Caller) -> Result<u64> {
        caller.require(Role::Member, "clearing the build cache")?;
        let tenant = caller.principal.tenant;
        let steps = self.inner.store.cached_step_all().await?;
        let gone: Vec<_> = steps.into_iter().filter(|step| step.tenant == tenant).map(|step| (tenant, step.key)).collect();
        let count = gone.len() as u64;
        self.inner.store.cached_step_remove(gone).await?;
        self.inner.collect_layers_later();
        Ok(count)
    }
}

impl Inner {
    /// Forgets cached steps that no build used for long, then the longest unused until the rest is small enough; and old builds.
    pub(crate) async fn prune_builds(self: &std::sync::Arc<Self>) {
        match self.prune_cached_steps().await {
            Ok(0) => {}
            Ok(_) => self.collect_layers_later(),
            Err(error) => tracing::warn!(error = %error, "old build layers could not be forgotten"),
        }
    }

    async fn prune_cached_steps(&self) -> Result<usize> {
        let settings = &self.settings.builds;
        let steps = self.store.cached_step_all().await?;
        let life = u64::try_from(settings.cache_life.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.now().as_millis().saturating_sub(life);
        let mut sizes: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
        for layer in steps.iter().flat_map(|step| &step.layers) {
            sizes.entry(&layer.id).or_insert((layer.size_bytes, 0)).1 += 1;
        }
        let mut total: u64 = sizes.values().map(|(size, _)| size).sum();
        let mut gone: Vec<(TenantId, String)> = Vec::new();
        for step in &steps {
            if step.used_at.as_millis() >= oldest && total <= settings.cache_bytes_max {
                break;
            }
            for layer in &step.layers {
                if let Some((size, users)) = sizes.get_mut(layer.id.as_str()) {
                    *users -= 1;
                    total -= if *users == 0 { *size } else { 0 };
                }
            }
            gone.push((step.tenant, step.key.clone()));
        }
        let count = gone.len();
        if count > 0 {
            self.store.cached_step_remove(gone).await?;
        }
        Ok(count)
    }
}

impl Job {
    /// What an earlier build left under this key; its layers are kept from now on.
    pub(super) async fn cached(&self, key: &str) -> Result<Option<CachedStep>> {
        if self.request.no_cache {
            return Ok(None);
        }
        let inner = self.inner();
        let _layers = inner.layers_in_use.read().await;
        let Some(mut step) = inner.store.cached_step_get(self.tenant(), key).await? else { return Ok(None) };
        self.running.hold(&step.layers);
        let now = inner.now();
        if now.as_millis().saturating_sub(step.used_at.as_millis()) > USED_AGAIN_MS {
            step.used_at = now;
            inner.store.cached_step_put(step.clone()).await?;
        }
        self.taken.lock().insert(key.to_owned());
        Ok(Some(step))
    }

    /// Leaves a step's layers for later builds.
    pub(super) async fn remember(&self, key: String, made: &Snapshot) -> Result<()> {
        let step = CachedStep {
            tenant: self.tenant(),
            key,
            layers: made.layers.clone(),
            on_host: made.on_host,
            used_at: self.inner().now(),
        };
        Ok(self.inner().store.cached_step_put(step).await?)
    }

    /// After a failure that cached layers may explain (somebody removed them from the disk) they are not taken again.
    pub(super) async fn distrust(&self, error: &Error) {
        let taken = std::mem::take(&mut *self.taken.lock());
        if taken.is_empty() || error.kind != ErrorKind::Invalid || !error.message.contains("is not on this machine") {
            return;
        }
        let gone = taken.into_iter().map(|key| (self.tenant(), key)).collect();
        if let Err(error) = self.inner().store.cached_step_remove(gone).await {
            tracing::warn!(error = %error, "cached steps whose layers are gone could not be forgotten");
        }
    }
}
