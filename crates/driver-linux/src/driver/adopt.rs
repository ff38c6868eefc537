//! Taking over after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbank_driver::{Adopted, DriverError};
use sandbank_model::{DriverHandle, SandboxId};
use tokio::task::JoinSet;

use super::live::Live;
use super::{Shared, blocking, failed, io_errno};
use crate::cgroup::{SandboxCgroups, is_kept_name};
use crate::manifest::Manifest;

/// Longest wait for a known sandbox's agent.
const ADOPT_WAIT: Duration = Duration::from_secs(2);
/// Sandboxes looked at, or destroyed, at the same time.
const PARALLEL: usize = 64;
/// The file in the data directory that tells where cgroups of this data directory may be: a server that is started elsewhere
/// (from another shell, by another supervisor) has another cgroup of its own.
const CGROUPS_FILE: &str = "cgroups.json";

/// Adds directories to that file.
pub(super) fn note_cgroup_directories(data_dir: &Path, directories: &[PathBuf]) -> Result<(), DriverError> {
    let mut all = noted_cgroup_directories(data_dir);
    let before = all.len();
    // What no longer exists holds nothing.
    all.retain(|dir| dir.is_dir());
    all.extend(directories.iter().cloned());
    if all.len() == before
        && directories.iter().all(|dir| all.contains(dir))
        && before > 0
        && data_dir.join(CGROUPS_FILE).exists()
    {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        let fresh = data_dir.join(format!("{CGROUPS_FILE}.new"));
        std::fs::write(&fresh, serde_json::to_vec(&all).map_err(std::io::Error::other)?)?;
        std::fs::rename(fresh, data_dir.join(CGROUPS_FILE))
    };
    write().map_err(|error| failed(format!("write {}", data_dir.join(CGROUPS_FILE).display()), io_errno(&error)))
}

fn noted_cgroup_directories(data_dir: &Path) -> BTreeSet<PathBuf> {
    std::fs::read(data_dir.join(CGROUPS_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// What one directory turned out to be.
enum Found {
    Alive(Arc<Live>),
    Dead(String),
}

impl Shared {
    /// Finds the living, destroys the rest.
    pub(super) async fn adopt(self: &Arc<Self>, known: Vec<(SandboxId, Option<DriverHandle>)>) -> Result<Adopted, DriverError> {
        self.launcher.settle().await?;
        let known: BTreeSet<SandboxId> = known.into_iter().map(|(id, _)| id).collect();
        let (ids, strangers) = self.list()?;
        let mut found = self.inspect(&ids, &known).await;
        let mut adopted = Adopted::default();
        for (id, found) in &mut found {
            match found {
                Found::Alive(live) if known.contains(id) => {
                    adopted.alive.insert(*id, live.is_frozen());
                    if let Some(range) = live.range {
                        self.ranges().adopt(*id, range);
                    }
                    if let Some(before) = self.live().insert(*id, Arc::clone(live)) {
                        // Adopted a second time; one watcher is enough.
                        before.stop_watching();
                    }
                    self.note_number(live);
                    self.watch(live);
                }
                Found::Alive(_) => adopted.orphans.push(*id),
                Found::Dead(reason) if known.contains(id) => {
                    adopted.gone.insert(*id, std::mem::take(reason));
                }
                Found::Dead(_) => adopted.orphans.push(*id),
            }
        }
        for id in known.iter().filter(|id| !found.contains_key(id)) {
            adopted.gone.insert(*id, "nothing of it is left on this machine".to_owned());
        }
        drop(found);
        let doomed: Vec<SandboxId> = adopted.orphans.iter().chain(adopted.gone.keys()).copied().collect();
        self.destroy_all(doomed).await;
        self.remove_strangers(strangers).await?;
        let names = |live: Arc<Live>| live.cgroups.names().map(OsStr::to_owned).collect::<Vec<_>>();
        let alive = adopted.alive.keys().filter_map(|id| self.get(*id).ok()).flat_map(names).collect();
        self.remove_stray_cgroups(alive).await?;
        Ok(adopted)
    }

    /// The sandboxes' directories, and what else lies among them.
    fn list(&self) -> Result<(Vec<SandboxId>, Vec<PathBuf>), DriverError> {
        let step = || format!("list {}", self.sandboxes.display());
        let (mut ids, mut strangers) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.sandboxes).map_err(|error| failed(step(), io_errno(&error)))? {
            let entry = entry.map_err(|error| failed(step(), io_errno(&error)))?;
            match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                Some(id) => ids.push(id),
                None => strangers.push(entry.path()),
            }
        }
        Ok((ids, strangers))
    }

    async fn inspect(self: &Arc<Self>, ids: &[SandboxId], known: &BTreeSet<SandboxId>) -> BTreeMap<SandboxId, Found> {
        let mut found = BTreeMap::new();
        let mut tasks = JoinSet::new();
        for id in ids {
            let (shared, id, wanted) = (Arc::clone(self), *id, known.contains(id));
            while tasks.len() >= PARALLEL {
                found.extend(tasks.join_next().await.into_iter().flatten());
            }
            tasks.spawn(async move { (id, shared.inspect_one(id, wanted).await) });
        }
        while let Some(done) = tasks.join_next().await {
            found.extend(done);
        }
        found
    }

    async fn inspect_one(&self, id: SandboxId, wanted: bool) -> Found {
        let Some(manifest) = Manifest::read(&self.sandboxes.join(id.to_string())).filter(|manifest| manifest.id == id) else {
            return Found::Dead("it was never finished".to_owned());
        };
        let live = match self.revive(Some(&manifest)) {
            Ok(Some(live)) => Arc::new(live),
            Ok(None) => return Found::Dead("its first process has ended".to_owned()),
            Err(error) => return Found::Dead(error.to_string()),
        };
        if live.cgroups.can_freeze() && live.cgroups.is_frozen().unwrap_or(false) {
            live.set_frozen(true);
            return Found::Alive(live);
        }
        if wanted && let Err(error) = self.ping(id, ADOPT_WAIT).await {
            return Found::Dead(format!("its agent does not answer: {error}"));
        }
        // What was killed for want of memory while nobody looked was told of, or is told with its end.
        let _ = live.new_oom_kills();
        Found::Alive(live)
    }

    async fn destroy_all(self: &Arc<Self>, ids: Vec<SandboxId>) {
        let mut tasks = JoinSet::new();
        for id in ids {
            while tasks.len() >= PARALLEL {
                tasks.join_next().await;
            }
            let shared = Arc::clone(self);
            tasks.spawn(async move {
                if let Err(error) = shared.destroy(id).await {
                    tracing::warn!(sandbox = %id, %error, "an orphan could not be destroyed; the next start tries again");
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn remove_strangers(self: &Arc<Self>, strangers: Vec<PathBuf>) -> Result<(), DriverError> {
        let shared = Arc::clone(self);
        blocking("remove what is no sandbox", move || {
            for path in strangers {
                shared.remover.remove(&path).map_err(|errno| failed(format!("remove {}", path.display()), errno))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes cgroups of this data directory that belong to no living sandbox.
    async fn remove_stray_cgroups(&self, alive: BTreeSet<OsString>) -> Result<(), DriverError> {
        let bases = noted_cgroup_directories(&self.config.data_dir);
        blocking("remove stray cgroups", move || {
            for base in bases {
                for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    let ours = name.to_str().is_some_and(|name| is_kept_name(name) || name.parse::<SandboxId>().is_ok());
                    if ours && !alive.contains(&name) {
                        let stray = SandboxCgroups { unified: Some(entry.path()), ..SandboxCgroups::default() };
                        stray.kill_all();
                        if let Err((path, errno)) = stray.remove() {
                            tracing::warn!(path = %path.display(), %errno, "a stray cgroup could not be removed");
                        }
                    }
                }
            }
            Ok(())
        })
        .await
    }
}
