//! Which layers may go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandbank_driver::DriverError;
use sandbank_model::Layer;

use super::error::failed;
use super::{ImageStore, remove_tree, staging};

/// How long a new layer that nobody has named as used is kept: the time from making it to recording its image.
const UNCLAIMED_KEPT: Duration = Duration::from_secs(3600);

/// Layers made by this process that no list of used layers has named yet.
#[derive(Debug, Default)]
pub(super) struct Guarded(Mutex<BTreeMap<String, Instant>>);

impl Guarded {
    pub(super) fn add(&self, id: &str) {
        self.lock().insert(id.to_owned(), Instant::now());
    }

    fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        // The map is whole after every single operation, so a panic elsewhere cannot have left it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `take` unless the layer must be kept, with nobody able to guard it in between; forgets those that were used or
    /// waited for too long.
    fn unless_kept<T>(&self, id: &str, used: bool, take: impl FnOnce() -> T) -> Option<T> {
        let mut guarded = self.lock();
        if let Some(since) = guarded.get(id) {
            if !used && since.elapsed() <= UNCLAIMED_KEPT {
                return None;
            }
            guarded.remove(id);
        }
        (!used).then(take)
    }
}

impl ImageStore {
    /// The layers that are there and whole, but for the bases. One that is broken is not told of, and goes when nobody uses it.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when the store cannot be listed.
    pub fn list_layers(&self) -> Result<Vec<Layer>, DriverError> {
        let layers = self.inner.root.join("layers");
        let step = || format!("list {}", layers.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&layers).map_err(failed(step))? {
            let name = entry.map_err(failed(step))?.file_name();
            let id = name.to_string_lossy();
            let is_base = id.starts_with("host-") || id.starts_with("bare-");
            found.extend((!is_base).then(|| self.layer(&id)).flatten());
        }
        Ok(found)
    }

    /// From now on these layers go as any others when nobody uses them: whoever had them made recorded or gave up their image.
    pub fn release_layers(&self, ids: &[String]) {
        ids.iter().for_each(|id| self.inner.guarded.remove(id));
    }

    /// Removes the layers that are neither in `used` (what image records name) nor in `in_use` (what living sandboxes were made
    /// of, see [`ImageStore::layer_of`]), nor made by this process within the last hour and not yet named by any `used`, nor a
    /// present base. Safe to repeat.
    ///
    /// # Errors
    /// [`DriverError::Failed`] with the layer that could not be removed; the others are gone.
    pub fn retain_layers(&self, used: &[String], in_use: &[String]) -> Result<(), DriverError> {
        let layers = self.inner.root.join("layers");
        let step = || format!("list {}", layers.display());
        let mut first_error = None;
        for entry in std::fs::read_dir(&layers).map_err(failed(step))? {
            let name = entry.map_err(failed(step))?.file_name();
            let id = name.to_string_lossy();
            if *id == self.inner.host_layer || *id == self.inner.bare_layer || in_use.iter().any(|in_use| *in_use == id) {
                continue;
            }
            let is_used = used.iter().any(|used| *used == id);
            let aside = self.inner.guarded.unless_kept(&id, is_used, || self.move_aside(&layers.join(&name)));
            if let Some(Err(error)) = aside.map(|aside| aside.and_then(|path| remove_aside(&path))) {
                tracing::warn!(layer = %id, %error, "a layer could not be removed");
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Out of sight in one step: a crash after it leaves only something in staging.
    fn move_aside(&self, path: &Path) -> Result<PathBuf, DriverError> {
        let aside = self.inner.root.join("staging").join(staging::random_name()?);
        std::fs::rename(path, &aside).map_err(failed(|| format!("remove {}", path.display())))?;
        Ok(aside)
    }
}

fn remove_aside(path: &Path) -> Result<(), DriverError> {
    remove_tree(path).map_err(failed(|| format!("remove {}", path.display())))
}
