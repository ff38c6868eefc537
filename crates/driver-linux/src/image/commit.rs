//! From a sandbox's changes to a layer.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sandbank_driver::{DriverError, NewLayers};
use sandbank_model::Image;

use super::ImageStore;
use super::copy::{Copied, Copier, CopyAs, open_source};
use super::error::failed;
use super::import::ImportLimits;
use super::staging::{Lasting, Staging, random_name};

/// Directories that the launcher mounts over: what lies in them on disk is not part of any image.
const MOUNTED_OVER: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

impl ImageStore {
    /// Makes a layer of what a sandbox changed: `<sandbox_dir>/upper` for `/` and `<sandbox_dir>/grafts/<name>/upper` for each graft,
    /// which becomes the layer's own `<name>` directory. The sandbox must be frozen. Files are copied, sharing blocks where the file
    /// system can, since the sandbox goes on writing afterwards.
    ///
    /// # Errors
    /// [`DriverError::Invalid`] for a tree beyond the limits, otherwise as the other operations. Nothing is left of a failed commit.
    pub fn commit(&self, sandbox_dir: &Path, image: &Image) -> Result<NewLayers, DriverError> {
        let targets = if image.on_host { &self.inner.host_grafts[..] } else { &[] };
        let targets: Vec<_> = targets.iter().map(|(target, _)| target.as_path()).collect();
        self.commit_upper(sandbox_dir, &targets, image)
    }

    fn commit_upper(&self, sandbox_dir: &Path, grafts: &[&Path], image: &Image) -> Result<NewLayers, DriverError> {
        let staging = Staging::new(self)?;
        let links = staging.links()?;
        let limits = ImportLimits::default();
        let mut copied = Copied::default();
        let mut copier = Copier { links: &links, copy_as: CopyAs::Changes, limits: &limits, copied: &mut copied };

        let upper = sandbox_dir.join("upper");
        let mut skip = MOUNTED_OVER.to_vec();
        skip.extend(grafts.iter().map(|graft| graft.as_os_str().as_encoded_bytes()));
        let from = open_source(&upper).map_err(failed(|| format!("open {}", upper.display())))?;
        copier.copy(from, staging.tree()?, &skip)?;
        for graft in grafts {
            let upper = graft_upper(sandbox_dir, graft);
            let from = match open_source(&upper) {
                Ok(from) => from,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(|| format!("open {}", upper.display()))(error)),
            };
            if is_untouched(&upper)? {
                continue;
            }
            let tree = staging.tree()?;
            let step = || format!("make {} of the new layer", graft.display());
            rustix::fs::mkdirat(&tree, *graft, Mode::RWXU).map_err(failed(step))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = rustix::fs::openat(&tree, *graft, flags, Mode::empty()).map_err(failed(step))?;
            copier.copy(from, to, &[])?;
        }
        if copied.skipped > 0 {
            tracing::warn!(skipped = copied.skipped, "sockets and devices were left out of the committed layer");
        }
        let layer = staging.publish(self, &format!("commit-{}", random_name()?), copied.bytes, Lasting::OnDisk)?;
        let mut layers = image.layers.clone();
        layers.push(layer);
        Ok(NewLayers { layers, on_host: image.on_host, config: image.config.clone() })
    }
}

/// Where a graft's changes are in a sandbox's directory.
fn graft_upper(sandbox_dir: &Path, target: &Path) -> PathBuf {
    sandbox_dir.join("grafts").join(target).join("upper")
}

/// Nothing was ever changed below this graft, so the layer needs no directory for it.
fn is_untouched(upper: &Path) -> Result<bool, DriverError> {
    let mut entries = std::fs::read_dir(upper).map_err(failed(|| format!("list {}", upper.display())))?;
    Ok(entries.next().is_none())
}
