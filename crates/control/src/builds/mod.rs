//! Images made by steps: each step runs in a sandbox of the image so far, and what it changed becomes a layer.
//!
//! | module | what it does |
//! |---|---|
//! | `run` | one build from its first step to its image |
//! | `steps` | one step: from the cache, or in a sandbox |
//! | `copy`, `archive`, `contexts` | files that are copied, and the uploads that they come from |
//! | `finish` | start and ready commands, the image's record |
//! | `cache` | layers that later builds find, and how long |
//! | `log` | what followers read |

mod archive;
mod cache;
mod contexts;
mod copy;
mod finish;
mod log;
mod run;
mod steps;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sandbank_build::{Plan, from_dockerfile};
use sandbank_model::{
    Actor, Build, BuildFailure, BuildId, BuildLevel, BuildPart, BuildState, BuildSteps, Command, Layer, Role, SandboxSpec, State,
    StopCause, TenantId,
};
use sandbank_store::PageRequest;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use contexts::ContextWriter;

use crate::control::{Control, Inner};
use crate::limits::{check_argv, check_spec};
use crate::types::{BuildLogPiece, BuildRequest, BuildSource, Caller, Listing};
use crate::{Error, ErrorKind, Result};
use log::LogRing;

/// Metadata entry by which the sandboxes of a build are told from others; its value is the build's id.
const METADATA_KEY: &str = "sandbank.build";
/// Most steps of one build.
const STEPS_MAX: usize = 500;
/// Most bytes of all steps together.
const STEPS_BYTES_MAX: usize = 4 * 1024 * 1024;
const PAGE_MAX: u32 = 1000;
/// Longest wait for the end of a build that was cancelled.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// The builds of this server that have not ended.
pub(crate) struct Builds {
    running: Mutex<HashMap<BuildId, Arc<Running>>>,
    places: Arc<Semaphore>,
}

/// One build that has not ended.
pub(crate) struct Running {
    tenant: TenantId,
    build: Mutex<Build>,
    log: LogRing,
    cancel: CancellationToken,
    /// Layers that nothing else may name yet: they are not collected.
    layers: Mutex<BTreeSet<String>>,
}

impl Builds {
    pub(crate) fn new(concurrency: usize) -> Self {
        Self { running: Mutex::default(), places: Arc::new(Semaphore::new(concurrency.max(1))) }
    }

    fn get(&self, id: BuildId) -> Option<Arc<Running>> {
        self.running.lock().get(&id).cloned()
    }
}

impl Running {
    /// Keeps layers from being collected as long as the build runs.
    fn hold(&self, layers: &[Layer]) {
        self.layers.lock().extend(layers.iter().map(|layer| layer.id.clone()));
    }

    fn change(&self, change: impl FnOnce(&mut Build)) -> Build {
        let mut build = self.build.lock();
        change(&mut build);
        build.clone()
    }
}

/// The log of one build, from a line on.
#[derive(Debug)]
pub struct BuildLogs {
    source: Source,
    next: u64,
}

enum Source {
    Live { running: Arc<Running>, changed: watch::Receiver<bool> },
    Kept(Option<BuildLogPiece>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Live { .. } => "Live",
            Self::Kept(_) => "Kept",
        })
    }
}

impl BuildLogs {
    /// The next lines; waits for them while the build runs. `None` after the last one. Cancel-safe.
    pub async fn next(&mut self) -> Option<BuildLogPiece> {
        let piece = match &mut self.source {
            Source::Kept(kept) => kept.take(),
            Source::Live { running, changed } => loop {
                // Looked at before the lines: what comes in between is seen in the next round.
                let ended = *changed.borrow_and_update();
                let piece = running.log.from(self.next);
                if !piece.lines.is_empty() {
                    break Some(piece);
                }
                if ended || changed.changed().await.is_err() {
                    break None;
                }
            },
        };
        let piece = piece.filter(|piece| !piece.lines.is_empty())?;
        self.next = piece.offset + piece.lines.len() as u64;
        Some(piece)
    }

    /// The lines that are there now, perhaps none; does not wait.
    #[must_use]
    pub fn now(&mut self) -> BuildLogPiece {
        let piece = match &mut self.source {
            Source::Kept(kept) => kept.take().unwrap_or(BuildLogPiece { offset: self.next, lines: Vec::new() }),
            Source::Live { running, .. } => running.log.from(self.next),
        };
        self.next = piece.offset + piece.lines.len() as u64;
        piece
    }
}

impl Control {
    /// Begins to build an image and returns at once.
    pub async fn build_start(&self, caller: &Caller, request: BuildRequest) -> Result<Build> {
        caller.require(Role::Member, "building an image")?;
        let inner = &self.inner;
        let plan = plan_of(&request)?;
        let spec = inner.check_build(&request)?;
        let (now, tenant) = (inner.now(), caller.principal.tenant);
        let total = u32::try_from(plan.step_count()).unwrap_or(u32::MAX);
        let build = Build {
            id: BuildId::new(now, inner.random()),
            tenant,
            name: request.name.clone(),
            state: BuildState::Waiting,
            failure: None,
            steps: BuildSteps { total, ..BuildSteps::default() },
            created_at: now,
            started_at: None,
            ended_at: None,
        };
        let running = Arc::new(Running {
            tenant,
            build: Mutex::new(build.clone()),
            log: LogRing::new(inner.settings.builds.log_bytes_max),
            cancel: CancellationToken::new(),
            layers: Mutex::default(),
        });
        {
            let mut all = inner.builds.running.lock();
            let most = inner.settings.builds.per_tenant_max;
            if all.values().filter(|other| other.tenant == tenant).count() >= most {
                let message = format!("{most} builds of yours wait or run: try again when one of them has ended");
                return Err(Error::new(ErrorKind::NoCapacity, message));
            }
            all.insert(build.id, Arc::clone(&running));
        }
        if let Err(error) = inner.store.build_put(build.clone(), None).await {
            inner.builds.running.lock().remove(&build.id);
            return Err(error.into());
        }
        let job = run::Job::new(self.clone(), caller.clone(), running, plan, request, spec);
        inner.tasks.spawn(job.run());
        Ok(build)
    }

    /// One build.
    pub async fn build_get(&self, caller: &Caller, id: BuildId) -> Result<Build> {
        let found = match self.inner.builds.get(id) {
            Some(running) => Some(running.build.lock().clone()),
            None => self.inner.store.build_get(id).await?,
        };
        found.filter(|build| caller.sees(build.tenant)).ok_or_else(|| missing(id))
    }

    /// The caller's builds, the newest first.
    pub async fn build_list(&self, caller: &Caller, offset: u64, limit: u32) -> Result<Listing<Build>> {
        let page = PageRequest { offset, limit: limit.min(PAGE_MAX) };
        let mut page = self.inner.store.build_list(caller.principal.tenant, page).await?;
        for build in &mut page.items {
            if let Some(running) = self.inner.builds.get(build.id) {
                *build = running.build.lock().clone();
            }
        }
        Ok(Listing { items: page.items, total: page.total })
    }

    /// A build's log from line `offset` on.
    pub async fn build_logs(&self, caller: &Caller, id: BuildId, offset: u64) -> Result<BuildLogs> {
        self.build_get(caller, id).await?;
        let source = match self.inner.builds.get(id) {
            Some(running) => Source::Live { changed: running.log.subscribe(), running },
            None => {
                let kept = self.inner.store.build_log(id).await?.unwrap_or_default();
                Source::Kept(Some(log::piece(kept.dropped, kept.lines.iter(), offset)))
            }
        };
        Ok(BuildLogs { source, next: offset })
    }

    /// Ends a build; one that has ended stays as it is. Answered when its end is recorded: no step begins any more, and its
    /// sandboxes are being destroyed.
    pub async fn build_cancel(&self, caller: &Caller, id: BuildId) -> Result<Build> {
        caller.require(Role::Member, "cancelling a build")?;
        let build = self.build_get(caller, id).await?;
        let Some(running) = self.inner.builds.get(id) else { return Ok(build) };
        let mut changed = running.log.subscribe();
        running.cancel.cancel();
        // A store that refuses the record must not hold the caller for ever: the build is as good as ended then.
        let _ = tokio::time::timeout(CANCEL_WAIT, changed.wait_for(|ended| *ended)).await;
        let build = running.build.lock().clone();
        Ok(build)
    }
}

impl Inner {
    /// The limits of the sandboxes that a build runs in.
    fn check_build(&self, request: &BuildRequest) -> Result<SandboxSpec> {
        let driver = self.driver(&self.settings.default_driver)?;
        driver.capabilities().require(sandbank_driver::Capability::Commit)?;
        let most = self.settings.builds.time_max;
        if request.timeout.is_some_and(|time| time.is_zero() || time > most) {
            return Err(Error::invalid(format!(
                "timeout: a build may take up to {} seconds, and more than none",
                most.as_secs()
            )));
        }
        for command in [&request.start_command, &request.ready_command].into_iter().flatten() {
            check_argv(std::slice::from_ref(command))?;
            if command.trim().is_empty() {
                return Err(Error::invalid("the start and the ready command are commands for a shell: one of them is empty"));
            }
        }
        let mut spec = SandboxSpec::of_image(request.name.clone());
        let limits = &mut spec.resources;
        limits.cpu_millis = request.cpu_millis.unwrap_or(limits.cpu_millis);
        limits.memory_bytes = request.memory_bytes.unwrap_or(limits.memory_bytes);
        limits.disk_bytes = request.disk_bytes.unwrap_or(limits.disk_bytes);
        check_spec(&spec)?;
        Ok(spec)
    }

    /// Layers that only builds know of: those of builds that run, and those kept for later ones.
    pub(crate) async fn build_layers(&self) -> Result<BTreeSet<String>> {
        let mut used: BTreeSet<String> = BTreeSet::new();
        for running in self.builds.running.lock().values() {
            used.extend(running.layers.lock().iter().cloned());
        }
        for step in self.store.cached_step_all().await? {
            used.extend(step.layers.into_iter().map(|layer| layer.id));
        }
        Ok(used)
    }

    /// Ends what an earlier server was building: its sandboxes are destroyed, its records say so.
    pub(crate) async fn recover_builds(self: &Arc<Self>) -> Result<()> {
        self.drop_unfinished_contexts().await?;
        for sandbox in self.store.sandbox_live().await? {
            let build = sandbox.lease.as_ref().and_then(|lease| lease.metadata.get(METADATA_KEY));
            let image = sandbox.image.as_ref().map(|image| image.name.as_str());
            // Both: anybody may give a sandbox this metadata.
            if build.is_none_or(|build| image != Some(working_name(build).as_str())) {
                continue;
            }
            let stopped = self
                .advance(sandbox.id, &Actor::system(), |sandbox, _| {
                    Ok(sandbox.state.is_claimed().then_some(Command::BeginStop(StopCause::Released)))
                })
                .await?;
            if stopped.state == State::Stopping {
                self.destroy_stopping(&stopped);
            }
        }
        let unfinished = self.store.build_unfinished().await?;
        for mut build in unfinished {
            build.state = BuildState::Error;
            build.ended_at = Some(self.now());
            let part =
                if build.steps.done < build.steps.total { BuildPart::Step(build.steps.done + 1) } else { BuildPart::Finalize };
            build.failure = Some(BuildFailure { message: "the server was restarted: start the build again".to_owned(), part });
            self.store.build_put(build, None).await?;
        }
        Ok(())
    }
}

/// What is to be done, and whether it can be.
fn plan_of(request: &BuildRequest) -> Result<Plan> {
    let plan = match &request.source {
        BuildSource::Dockerfile { text, args, target } => {
            from_dockerfile(text, args.clone(), target.as_deref()).map_err(|error| Error::invalid(error.to_string()))?
        }
        BuildSource::Steps { from, steps } => {
            let bytes: usize = steps.iter().map(|step| step.text.len()).sum();
            if bytes > STEPS_BYTES_MAX {
                return Err(Error::invalid(format!("the steps have {bytes} bytes; at most {STEPS_BYTES_MAX} are read")));
            }
            Plan::of_steps(from, steps.clone())
        }
    };
    let steps = plan.step_count();
    if steps > STEPS_MAX {
        return Err(Error::invalid(format!("the build has {steps} steps; at most {STEPS_MAX} are executed")));
    }
    Ok(plan)
}

fn missing(id: BuildId) -> Error {
    Error::not_found(format!("build {id} not found"))
}

/// Name of the image that a build's sandboxes are of: one that no image has, so that nothing is kept from being deleted by it.
fn working_name(build: impl std::fmt::Display) -> String {
    format!("sandbank-build/{build}")
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Tells a line of the builder's own.
fn tell(inner: &Inner, running: &Running, part: BuildPart, level: BuildLevel, text: impl Into<String>) {
    running.log.push(inner.now(), part, level, text.into());
}
