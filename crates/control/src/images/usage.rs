//! What images take on disk, and what nothing uses any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sandbank_model::{ImageName, Layer, TenantId};

use crate::control::Control;
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// How often, and how long apart, it is looked whether layers may be collected.
const COLLECT_TRIES: u32 = 20;
const COLLECT_WAIT: Duration = Duration::from_millis(250);

/// What all images take on disk. Layers that several use count once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesUsage {
    /// Layers on disk.
    pub layers: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Bytes of those that neither an image nor a live sandbox uses.
    pub unused_bytes: u64,
    /// Each image, by name.
    pub images: Vec<ImageUsage>,
}

/// What one image takes on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// Name.
    pub name: ImageName,
    /// Whose; `None`: everybody's.
    pub tenant: Option<TenantId>,
    /// Bytes of layers that no other image has: what deleting it frees, once no sandbox uses it.
    pub own_bytes: u64,
    /// Bytes of layers that other images have too.
    pub shared_bytes: u64,
}

/// Layers that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// How many.
    pub layers: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

impl Control {
    /// What images take on disk: admins only.
    pub async fn images_usage(&self, caller: &Caller) -> Result<ImagesUsage> {
        caller.require_admin()?;
        let inner = &self.inner;
        let on_disk = inner.layers_on_disk().await?;
        let used = inner.used_layers().await?;
        let images = inner.store.image_all().await?;
        let mut users: BTreeMap<&str, u32> = BTreeMap::new();
        for image in &images {
            let ids: BTreeSet<&str> = image.layers.iter().map(|layer| layer.id.as_str()).collect();
            ids.into_iter().for_each(|id| *users.entry(id).or_default() += 1);
        }
        let usage = images.iter().map(|image| {
            let mut usage = ImageUsage { name: image.name.clone(), tenant: image.tenant, own_bytes: 0, shared_bytes: 0 };
            let layers: BTreeMap<&str, &Layer> = image.layers.iter().map(|layer| (layer.id.as_str(), layer)).collect();
            for (id, layer) in layers {
                let shared = users.get(id).is_some_and(|users| *users > 1);
                *(if shared { &mut usage.shared_bytes } else { &mut usage.own_bytes }) += layer.size_bytes;
            }
            usage
        });
        let mut usage: Vec<ImageUsage> = usage.collect();
        usage.sort_by(|one, other| (&one.name, one.tenant).cmp(&(&other.name, other.tenant)));
        Ok(ImagesUsage {
            layers: on_disk.len() as u64,
            size_bytes: on_disk.values().sum(),
            unused_bytes: on_disk.iter().filter(|(id, _)| !used.contains(*id)).map(|(_, bytes)| bytes).sum(),
            images: usage,
        })
    }

    /// Removes the layers that nothing uses, now: admins only. Layers that came within the last hour and that no image has named
    /// yet stay: they may be of a pull that is tried again.
    pub async fn images_prune(&self, caller: &Caller) -> Result<Pruned> {
        caller.require_admin()?;
        let inner = &self.inner;
        let before = inner.layers_on_disk().await?;
        for _ in 0..COLLECT_TRIES {
            if inner.collect_layers().await? {
                let after = inner.layers_on_disk().await?;
                let gone = before.iter().filter(|(id, _)| !after.contains_key(*id));
                return Ok(gone.fold(Pruned::default(), |sum, (_, bytes)| Pruned {
                    layers: sum.layers + 1,
                    freed_bytes: sum.freed_bytes + bytes,
                }));
            }
            if !inner.tasks.sleep(COLLECT_WAIT).await {
                break;
            }
        }
        let message = "images or sandboxes are being made just now, and layers are only removed in between: try again";
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

impl crate::control::Inner {
    async fn layers_on_disk(&self) -> Result<BTreeMap<String, u64>> {
        let mut found = BTreeMap::new();
        for driver in self.drivers.values() {
            found.extend(driver.list_layers().await?.into_iter().map(|layer| (layer.id, layer.size_bytes)));
        }
        Ok(found)
    }
}
