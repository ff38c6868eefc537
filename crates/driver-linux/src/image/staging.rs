//! Layers in the making.

use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use sandbank_driver::DriverError;
use sandbank_model::Layer;

use super::error::failed;
use super::flush::flush;
use super::{ImageStore, LAYER_FORMAT, LayerNote, remove_tree};
use crate::manifest;

/// How long a published layer must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasting {
    /// For good: it is flushed to disk.
    OnDisk,
    /// Until the machine is started again: it can be made anew, and flushing takes long on a busy machine.
    ThisBoot,
}

/// A layer being written: `staging/<random>/fs`. Removed when dropped unpublished.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    pub(super) fn new(store: &ImageStore) -> Result<Self, DriverError> {
        let path = store.inner.root.join("staging").join(random_name()?);
        std::fs::create_dir(&path).map_err(failed(|| format!("make {}", path.display())))?;
        let staging = Self { path, published: false };
        for dir in ["fs", "links"] {
            rustix::fs::mkdirat(CWD, staging.path.join(dir), Mode::from_raw_mode(0o755))
                .map_err(failed(|| format!("make {}", staging.path.display())))?;
        }
        // Whatever the umask: this is `/` of a sandbox.
        rustix::fs::fchmod(staging.tree()?, Mode::from_raw_mode(0o755))
            .map_err(failed(|| format!("make {}", staging.path.display())))?;
        Ok(staging)
    }

    /// The layer's tree.
    pub(super) fn tree(&self) -> Result<OwnedFd, DriverError> {
        self.open("fs")
    }

    /// A flat directory beside the tree, where files with several names are kept under one more until the layer is whole.
    pub(super) fn links(&self) -> Result<OwnedFd, DriverError> {
        self.open("links")
    }

    fn open(&self, dir: &str) -> Result<OwnedFd, DriverError> {
        open_dir(&self.path.join(dir))
    }

    /// Flushes the layer and gives it its place. Where a layer of this id is there already, that one is taken and this one dropped.
    /// The id is safe from [`ImageStore::retain_layers`] from here on, until a caller has named it as used.
    pub(super) fn publish(
        mut self,
        store: &ImageStore,
        id: &str,
        size_bytes: u64,
        lasting: Lasting,
    ) -> Result<Layer, DriverError> {
        store.inner.guarded.add(id);
        if let Some(layer) = store.layer(id) {
            return Ok(layer);
        }
        let step = || format!("keep layer {id}");
        remove_tree(&self.path.join("links")).map_err(failed(step))?;
        let boot_id = (lasting == Lasting::ThisBoot).then(manifest::boot_id);
        let note = LayerNote { format: LAYER_FORMAT, size_bytes, boot_id };
        let note = serde_json::to_vec(&note).map_err(|error| DriverError::Failed { step: step(), detail: error.to_string() })?;
        std::fs::write(self.path.join("layer.json"), note).map_err(failed(step))?;
        if lasting == Lasting::OnDisk {
            flush(open_dir(&self.path)?).map_err(failed(step))?;
        }
        let target = store.layer_dir(id);
        match std::fs::rename(&self.path, &target) {
            Ok(()) => self.published = true,
            // Somebody else published the same content between the look and the rename.
            Err(_) if store.layer(id).is_some() => {}
            Err(error) => return Err(failed(step)(error)),
        }
        if lasting == Lasting::OnDisk {
            rustix::fs::fsync(open_dir(&store.inner.root.join("layers"))?).map_err(failed(step))?;
        }
        Ok(Layer { id: id.to_owned(), size_bytes })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished layer stays until the next start");
        }
    }
}

/// Opens a directory of the store itself, not of a tree from outside.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, DriverError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed(|| format!("open {}", path.display())))
}

/// Removes everything in staging: nobody is at work when the store is opened.
pub(super) fn clear(root: &Path) -> Result<(), DriverError> {
    let staging = root.join("staging");
    let step = || format!("clear {}", staging.display());
    for entry in std::fs::read_dir(&staging).map_err(failed(step))? {
        let path = entry.map_err(failed(step))?.path();
        remove_tree(&path).map_err(failed(step))?;
    }
    Ok(())
}

/// 32 hexadecimal digits.
pub(super) fn random_name() -> Result<String, DriverError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| DriverError::Failed { step: "get random bytes".to_owned(), detail: error.to_string() })?;
    Ok(hex(&bytes))
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
