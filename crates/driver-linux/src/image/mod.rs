//! Images: stacks of read-only layers in the data directory, and the host's own system directories as one.
//!
//! `<data>/images`, mode 0700 because layers hold set-user-id files that must not be run on the host:
//!
//! | path | what |
//! |---|---|
//! | `layers/<layer id>/fs` | a layer's tree, owners as inside a sandbox (0, 1000, …); never changed once it is there |
//! | `layers/<layer id>/layer.json` | its size |
//! | `staging/<random>` | layers being made and layers being removed; emptied when the store is opened |
//!
//! A layer is written in `staging`, flushed to disk, then renamed: a crash leaves it whole or not at all. Layer ids tell the origin:
//! `sha256-…` (an archive's digest, so that the same archive is kept once), `layer-…` (the digest of an image's layer, unpacked), `dir-…` and `commit-…` (random), `host-…` and
//! `bare-…` (the digest of the generated base directory of the `host` image, and of the one beneath all others).

mod archive;
mod base;
mod commit;
mod copy;
mod error;
mod export;
mod file;
mod flush;
mod import;
mod layer;
mod members;
mod pax;
mod remove;
mod retain;
mod staging;
mod unpack;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbank_driver::{DriverError, NewLayers};
use sandbank_model::{Image, ImageConfig, Layer};
use serde::{Deserialize, Serialize};

use crate::manifest;
use base::Base;
use error::failed;
pub use import::ImportLimits;
pub use remove::remove_tree;
use retain::Guarded;

/// What a sandbox's root file system is made of.
///
/// All trees come from untrusted people: whoever mounts into the assembled root resolves targets beneath it, without following
/// symbolic links. `dev`, `proc`, `sys`, `tmp` and `run` are real directories in every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Directories beneath the private upper directory of `/`, top first. Not empty.
    pub lowers: Vec<PathBuf>,
    /// File systems mounted into it, each writable with a private upper directory of its own.
    pub grafts: Vec<Graft>,
}

/// One overlay mounted below `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graft {
    /// Where, relative to `/`, one component: `usr`.
    pub target: PathBuf,
    /// Directories beneath its private upper directory, top first; the host's own directory last.
    pub lowers: Vec<PathBuf>,
}

/// Where layers are kept. Clones share what they know.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `<data>/images`.
    root: PathBuf,
    /// The base layer of the `host` image.
    host_layer: String,
    /// What lies beneath images from elsewhere.
    bare_layer: String,
    /// The host's directories that are grafted: (target, host directory).
    host_grafts: Vec<(PathBuf, PathBuf)>,
    guarded: Guarded,
}

/// What is noted beside a layer's tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LayerNote {
    /// Grows when the layout of a layer changes.
    format: u32,
    /// Bytes on disk.
    size_bytes: u64,
    /// The boot that it is good for, where it was not flushed to disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

const LAYER_FORMAT: u32 = 1;

impl ImageStore {
    /// Opens the store below `data_dir`, makes it where it is missing, removes what a crash left half done, and makes the base
    /// directory of the `host` image unless it is there and unchanged.
    ///
    /// The base copies some of the host's `/etc`: what the host changes there afterwards shows in new sandboxes from the next
    /// start on. `/usr` is the host's own and shows changes at once.
    ///
    /// # Errors
    /// [`DriverError::Failed`] and [`DriverError::Exhausted`] with the step that failed.
    pub fn open(data_dir: &Path) -> Result<Self, DriverError> {
        let root = data_dir.join("images");
        for dir in [root.clone(), root.join("layers"), root.join("staging")] {
            std::fs::create_dir_all(&dir).map_err(failed(|| format!("make {}", dir.display())))?;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&root, private).map_err(failed(|| format!("protect {}", root.display())))?;
        staging::clear(&root)?;
        let (host, bare) = (Base::of_this_machine(), Base::bare());
        let inner = Inner {
            root,
            host_layer: host.layer_id(),
            bare_layer: bare.layer_id(),
            host_grafts: host.grafts(),
            guarded: Guarded::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        host.ensure(&store)?;
        bare.ensure(&store)?;
        Ok(store)
    }

    /// The image that needs no import: the host's system directories over a generated base, no layers of its own.
    #[must_use]
    pub fn builtin_image(&self) -> NewLayers {
        let config = ImageConfig { workdir: Some("/home/user".to_owned()), ..ImageConfig::default() };
        NewLayers { layers: Vec::new(), on_host: true, config }
    }

    /// Where the host's directories are seen in sandboxes of [`Self::builtin_image`].
    pub(crate) fn graft_targets(&self) -> Vec<PathBuf> {
        self.inner.host_grafts.iter().map(|(target, _)| target.clone()).collect()
    }

    /// The layer that a directory of a [`RootPlan`] belongs to, `None` for the host's own: for telling
    /// [`Self::retain_layers`] what a living sandbox uses.
    #[must_use]
    pub fn layer_of(&self, lower: &Path) -> Option<String> {
        let rest = lower.strip_prefix(self.inner.root.join("layers")).ok()?;
        rest.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned())
    }

    fn layer_dir(&self, id: &str) -> PathBuf {
        self.inner.root.join("layers").join(id)
    }

    /// The layer of this id, if it is there and whole.
    fn layer(&self, id: &str) -> Option<Layer> {
        let note = std::fs::read(self.layer_dir(id).join("layer.json")).ok()?;
        let note: LayerNote = serde_json::from_slice(&note).ok()?;
        let whole = note.boot_id.is_none_or(|boot_id| boot_id == manifest::boot_id());
        (whole && note.format == LAYER_FORMAT).then(|| Layer { id: id.to_owned(), size_bytes: note.size_bytes })
    }
}

/// What the root of a sandbox of `image` is made of. Looks at the store only, no network, no copying: a few `stat`s.
///
/// A graft's layers lie over the host's directory exactly as the same layers lie over the base: where a layer has a `usr` of its own it
/// is a lower directory of the graft, with its whiteouts and opaque marks.
///
/// # Errors
/// [`DriverError::ImageMissing`] when a layer is not there.
pub fn root_plan(store: &ImageStore, image: &Image) -> Result<RootPlan, DriverError> {
    let missing = |detail: String| DriverError::ImageMissing { image: image.name.to_string(), detail };
    let mut lowers = Vec::with_capacity(image.layers.len() + 1);
    for layer in image.layers.iter().rev() {
        let tree = store.layer_dir(&layer.id).join("fs");
        if !is_layer_id(&layer.id) || !tree.is_dir() {
            return Err(missing(format!("its layer {} was removed; import the image again", layer.id)));
        }
        lowers.push(tree);
    }
    let mut grafts = Vec::new();
    if image.on_host {
        for (target, host_dir) in &store.inner.host_grafts {
            let has_one = |tree: &PathBuf| tree.join(target).symlink_metadata().is_ok_and(|found| found.is_dir());
            let mut graft_lowers: Vec<_> = lowers.iter().filter(|tree| has_one(tree)).map(|tree| tree.join(target)).collect();
            graft_lowers.push(host_dir.clone());
            grafts.push(Graft { target: target.clone(), lowers: graft_lowers });
        }
    }
    let base = if image.on_host { &store.inner.host_layer } else { &store.inner.bare_layer };
    lowers.push(store.layer_dir(base).join("fs"));
    Ok(RootPlan { lowers, grafts })
}

/// Whether this can be the name of a layer's directory.
fn is_layer_id(id: &str) -> bool {
    (1..=100).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
