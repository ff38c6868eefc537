//! Images: names, aliases, and the collection of layers that nothing uses.

mod archives;
pub(crate) mod layers;
mod usage;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{Image, ImageName, ImageSource, Role, TenantId};
use sandbank_oci::Credentials;
use sandbank_store::{PageRequest, Write};
use tokio::sync::RwLockReadGuard;

use crate::control::{Control, Inner};
use crate::pulls::{Pull, PullPolicy, PullSettings, not_here};
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

pub use archives::{ImageArchive, ImageImport};
pub use layers::{LayerProgress, LayerState, LayersProgress};
pub use usage::{ImageUsage, ImagesUsage, Pruned};

/// Name of the image that needs no import.
const HOST_IMAGE: &str = "host";
/// Pools that are read at once.
const PAGE: u32 = 500;
/// Layers are collected so often in any case: a fork's go with the last sandbox that was made of them.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Layers are collected again after so long when something held them.
const COLLECT_RETRY: Duration = Duration::from_secs(10);

impl Control {
    /// Images that the caller may use, by name.
    pub async fn image_list(&self, caller: &Caller) -> Result<Vec<Image>> {
        Ok(self.inner.store.image_list(&[Some(caller.principal.tenant), None]).await?)
    }

    /// The image that this name means to the caller; aliases apply.
    pub async fn image_get(&self, caller: &Caller, name: &ImageName) -> Result<Image> {
        self.inner
            .find_image(name, caller.principal.tenant)
            .await?
            .ok_or_else(|| Error::not_found(format!("image {name} not found")))
    }

    /// Refused while a template, pool or live sandbox uses it. The installation's own images are the admins'.
    pub async fn image_delete(&self, caller: &Caller, name: &ImageName) -> Result<()> {
        caller.require(Role::Member, "deleting images")?;
        let inner = &self.inner;
        let tenant = caller.principal.tenant;
        let missing = || Error::not_found(format!("image {name} not found"));
        let image = inner.store.image_get(tenant, name).await?.ok_or_else(missing)?;
        if image.tenant.is_none() {
            caller.require_admin()?;
        }
        if image.source == ImageSource::Host {
            return Err(Error::invalid(format!("image {name} is built in and cannot be deleted")));
        }
        if let Some(user) = inner.image_user(&image, |name| *name == image.name || inner.alias(name) == image.name).await? {
            return Err(Error::new(ErrorKind::Conflict, format!("image {name} is in use by {user}: delete that first")));
        }
        match inner.store.image_delete(image.tenant, name).await? {
            Write::Updated(()) | Write::Refused(()) => {}
            Write::Missing => return Err(missing()),
        }
        inner.release_layers(&image).await?;
        inner.collect_layers_later();
        Ok(())
    }
}

impl Inner {
    /// An image's record is gone: its layers are no longer spared for being new. Those of an image that is deleted soon after it was
    /// pulled, committed or built would stay for an hour.
    pub(crate) async fn release_layers(&self, image: &Image) -> Result<()> {
        let ids: Vec<String> = image.layers.iter().map(|layer| layer.id.clone()).collect();
        for driver in self.drivers.values() {
            driver.release_layers(ids.clone()).await?;
        }
        Ok(())
    }

    /// The name that is meant. Aliases are followed once.
    pub(crate) fn alias(&self, name: &ImageName) -> ImageName {
        let meant = self.settings.image_aliases.get(name.as_str());
        meant.and_then(|meant| meant.parse().ok()).unwrap_or_else(|| name.clone())
    }

    /// A tenant's own image of this very name comes before an alias: an alias is only a default. Then come snapshots, by id or name.
    /// What was pulled is found by every spelling of its name.
    pub(crate) async fn find_image(&self, name: &ImageName, tenant: TenantId) -> Result<Option<Image>> {
        if let Some(image) = self.store.image_get(tenant, name).await? {
            return Ok(Some(image));
        }
        let meant = self.alias(name);
        if meant != *name {
            return Ok(self.store.image_get(tenant, &meant).await?);
        }
        if let Some(snapshot) = self.find_snapshot(tenant, name.as_str()).await? {
            return Ok(Some(snapshot.image));
        }
        match self.pulled_name(name).filter(|pulled| pulled != name) {
            Some(pulled) => Ok(self.store.image_get(tenant, &pulled).await?),
            None => Ok(None),
        }
    }

    /// The image that a spec's name means to this tenant, if it is here.
    pub(crate) async fn resolve_image(&self, name: &ImageName, tenant: TenantId) -> Result<Image> {
        self.find_image(name, tenant).await?.ok_or_else(|| not_here(name))
    }

    /// As [`Inner::resolve_image`], pulled where it is not here and the settings say so. `credentials` are for this pull alone.
    pub(crate) async fn obtain_image(
        self: &Arc<Self>,
        name: &ImageName,
        tenant: TenantId,
        credentials: Option<Credentials>,
    ) -> Result<Image> {
        let PullSettings { policy, registries, .. } = &self.settings.pulls;
        match self.find_image(name, tenant).await? {
            // What was never in a registry is not asked for there, whatever the policy.
            Some(image) if *policy != PullPolicy::Always || !matches!(image.source, ImageSource::Pulled { .. }) => {
                return Ok(image);
            }
            None if *policy == PullPolicy::Never || registries.is_none() => return Err(not_here(name)),
            _ => {}
        }
        let pull =
            Pull { name: self.alias(name), policy: *policy, credentials, global: false, progress: LayersProgress::default() };
        self.pull(tenant, pull).await
    }

    /// What keeps an image from being deleted: whatever names it (`means`), and live sandboxes that were made of it.
    pub(crate) async fn image_user(&self, image: &Image, means: impl Fn(&ImageName) -> bool) -> Result<Option<String>> {
        // A tenant's image can only be meant by that tenant's objects.
        let owned_by = |tenant: Option<TenantId>| image.tenant.is_none() || tenant == image.tenant;
        for sandbox in self.store.sandbox_live().await? {
            if sandbox.image.as_ref().is_some_and(|used| used.name == image.name && used.tenant == image.tenant) {
                return Ok(Some(format!("sandbox {}", sandbox.id)));
            }
        }
        let mut offset = 0;
        loop {
            let page = self.store.pool_list(image.tenant, PageRequest { offset, limit: PAGE }).await?;
            if let Some(pool) = page.items.iter().find(|pool| means(&pool.sandbox_spec().image)) {
                return Ok(Some(format!("pool {}", pool.name)));
            }
            offset += u64::from(PAGE);
            if offset >= page.total {
                break;
            }
        }
        let mut owners = vec![None, image.tenant];
        if image.tenant.is_none() {
            owners.extend(self.store.tenant_list().await?.into_iter().map(|tenant| Some(tenant.id)));
        }
        owners.dedup();
        let templates = self.store.template_list(&owners).await?;
        let user = templates.iter().find(|template| owned_by(template.tenant) && means(&template.spec.sandbox.image));
        Ok(user.map(|template| format!("template {}", template.name)))
    }

    /// Records an image whose layers are here, and lets go of `layers`, under which they came.
    pub(crate) async fn record_image(self: &Arc<Self>, image: Image, layers: RwLockReadGuard<'_, ()>) -> Result<Image> {
        let replaced = self.store.image_put(image.clone()).await?;
        drop(layers);
        if let Some(replaced) = replaced {
            self.release_layers(&replaced).await?;
        }
        // Also where nothing was replaced: from now on the driver knows that these layers are used.
        self.collect_layers_later();
        Ok(image)
    }

    /// Records the driver's own image under [`HOST_IMAGE`], if it changed.
    pub(crate) async fn record_builtin_image(&self) -> Result<()> {
        let driver = self.driver(&self.settings.default_driver)?;
        let Some(made) = driver.builtin_image() else {
            return Ok(());
        };
        let name: ImageName = HOST_IMAGE.parse()?;
        let known = self.store.image_all().await?.into_iter().find(|image| image.tenant.is_none() && image.name == name);
        let image = Image {
            name,
            tenant: None,
            layers: made.layers,
            on_host: made.on_host,
            config: made.config,
            source: ImageSource::Host,
            created_at: known.as_ref().map_or_else(|| self.now(), |image| image.created_at),
        };
        if known.as_ref() != Some(&image) {
            self.store.image_put(image).await?;
        }
        Ok(())
    }

    /// Removes layers that no image and no live sandbox uses, as soon as nobody is making any.
    pub(crate) fn collect_layers_later(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                match inner.collect_layers().await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => tracing::warn!(error = %error, "unused layers could not be removed; it is tried again"),
                }
                if !inner.tasks.sleep(COLLECT_RETRY).await {
                    return;
                }
            }
        });
    }

    /// Collects layers for as long as the server runs.
    pub(crate) fn keep_collecting_layers(self: &Arc<Self>) {
        self.collect_layers_later();
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            while inner.tasks.sleep(COLLECT_EVERY).await {
                inner.collect_layers_later();
            }
        });
    }

    /// `false`: somebody is making or resolving layers just now.
    async fn collect_layers(&self) -> Result<bool> {
        // Never waited for: a waiting writer would hold up every create behind a long import.
        let Ok(_exclusive) = self.layers_in_use.try_write() else {
            return Ok(false);
        };
        let used: Vec<String> = self.used_layers().await?.into_iter().collect();
        for driver in self.drivers.values() {
            driver.retain_layers(used.clone()).await?;
        }
        Ok(true)
    }

    /// Layers that images, snapshots, live sandboxes and cached steps are made of.
    async fn used_layers(&self) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        for image in self.store.image_all().await? {
            used.extend(image.layers.into_iter().map(|layer| layer.id));
        }
        for snapshot in self.store.snapshot_all().await? {
            used.extend(snapshot.image.layers.into_iter().map(|layer| layer.id));
        }
        for sandbox in self.store.sandbox_live().await? {
            used.extend(sandbox.image.into_iter().flat_map(|image| image.layers).map(|layer| layer.id));
        }
        used.extend(self.build_layers().await?);
        Ok(used)
    }
}
