//! One build from its first step to its image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sandbank_build::{Action, Base, Plan, Stage, StageContext};
use sandbank_model::{
    Build, BuildFailure, BuildLevel, BuildPart, BuildState, Image, ImageConfig, ImageName, Layer, SandboxSpec, TenantId,
};
use tokio::time::Instant;

use super::archive::Upload;
use super::{Running, tell};
use crate::control::{Control, Inner};
use crate::types::{BuildRequest, Caller};
use crate::{Error, ErrorKind, Result};

/// Rest before the end of a build is written again when the store refused.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// An image on its way: what a stage has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) layers: Vec<Layer>,
    pub(super) on_host: bool,
    pub(super) config: ImageConfig,
}

/// One build and all that it needs.
pub(super) struct Job {
    pub(super) control: Control,
    pub(super) caller: Caller,
    pub(super) running: Arc<Running>,
    pub(super) plan: Plan,
    pub(super) request: BuildRequest,
    pub(super) spec: SandboxSpec,
    pub(super) deadline: Instant,
    /// Uploads that were opened, by id.
    pub(super) uploads: Mutex<BTreeMap<String, Arc<Upload>>>,
    /// Keys of cached steps that were taken: forgotten when their layers turn out to be gone.
    pub(super) taken: Mutex<BTreeSet<String>>,
    /// Where it is.
    pub(super) part: Mutex<BuildPart>,
}

impl Job {
    pub(super) fn new(
        control: Control,
        caller: Caller,
        running: Arc<Running>,
        plan: Plan,
        request: BuildRequest,
        spec: SandboxSpec,
    ) -> Self {
        Self {
            control,
            caller,
            running,
            plan,
            request,
            spec,
            deadline: Instant::now(),
            uploads: Mutex::default(),
            taken: Mutex::default(),
            part: Mutex::new(BuildPart::Base),
        }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.control.inner
    }

    pub(super) const fn tenant(&self) -> TenantId {
        self.caller.principal.tenant
    }

    pub(super) fn tell(&self, level: BuildLevel, text: impl Into<String>) {
        tell(self.inner(), &self.running, *self.part.lock(), level, text);
    }

    /// Waits for a place, builds within the time, and records how it ended.
    pub(super) async fn run(mut self) {
        let outcome = {
            let (cancel, closing) = (self.running.cancel.clone(), self.inner().tasks.closing.clone());
            let places = Arc::clone(&self.inner().builds.places);
            let place = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(cancelled()),
                () = closing.cancelled() => Err(shutting_down()),
                place = places.acquire_owned() => place.map_err(|_| shutting_down()),
            };
            match place {
                Err(error) => Err(error),
                Ok(_place) => {
                    let time = self.request.timeout.unwrap_or(self.inner().settings.builds.time);
                    self.deadline = Instant::now() + time;
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => Err(cancelled()),
                        () = closing.cancelled() => Err(shutting_down()),
                        () = tokio::time::sleep_until(self.deadline) => {
                            let message = format!("the build took longer than its {} seconds", time.as_secs());
                            Err(Error::new(ErrorKind::Unavailable, message))
                        }
                        built = self.build() => built,
                    }
                }
            }
        };
        self.end(outcome).await;
    }

    async fn build(&self) -> Result<()> {
        let now = self.inner().now();
        let build = self.running.change(|build| {
            build.state = BuildState::Building;
            build.started_at = Some(now);
        });
        self.inner().store.build_put(build, None).await?;
        let mut stages: BTreeMap<usize, Snapshot> = BTreeMap::new();
        let mut number = 0;
        for index in self.plan.needed() {
            let Some(stage) = self.plan.stages.get(index) else { continue };
            let made = self.stage(stage, &stages, &mut number).await?;
            stages.insert(index, made);
        }
        *self.part.lock() = BuildPart::Finalize;
        let made = stages.remove(&self.plan.target).unwrap_or_default();
        self.finish(made).await
    }

    async fn stage(&self, stage: &Stage, stages: &BTreeMap<usize, Snapshot>, number: &mut u32) -> Result<Snapshot> {
        *self.part.lock() = BuildPart::Base;
        let mut made = match &stage.base {
            Base::Scratch => Snapshot::default(),
            Base::Stage(index) => stages.get(index).cloned().unwrap_or_default(),
            Base::Image(name) => {
                self.tell(BuildLevel::Info, format!("FROM {name}"));
                self.image(name).await?
            }
        };
        let base_bytes = bytes_of(&made.layers);
        let mut context = StageContext::new(&self.plan, made.config.clone());
        for step in &stage.steps {
            *number += 1;
            *self.part.lock() = BuildPart::Step(*number);
            self.tell(BuildLevel::Info, step.text.clone());
            let action = context.next(step).map_err(|error| Error::invalid(error.to_string()))?;
            let cached = match &action {
                Action::Configured => false,
                action => self.step(step, action, stages, &mut made).await?,
            };
            made.config.clone_from(&context.config);
            self.check_size(bytes_of(&made.layers).saturating_sub(base_bytes))?;
            let build = self.running.change(|build| {
                build.steps.done = *number;
                build.steps.cached += u32::from(cached);
            });
            // Configuration alone is cheap to lose: the record follows with the next layer.
            if !cached && action != Action::Configured {
                self.inner().store.build_put(build, Some(self.running.log.snapshot())).await?;
            }
        }
        Ok(made)
    }

    /// An image by name, its layers kept as long as the build runs.
    pub(super) async fn image(&self, name: &str) -> Result<Snapshot> {
        let name: ImageName = name.parse()?;
        let _layers = self.inner().layers_in_use.read().await;
        let image = self.inner().obtain_image(&name, self.tenant(), None).await?;
        self.running.hold(&image.layers);
        let Image { layers, on_host, config, .. } = image;
        Ok(Snapshot { layers, on_host, config })
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        let most = self.inner().settings.builds.layer_bytes_max;
        if bytes <= most {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the layers of this build have {bytes} bytes; at most {most} are allowed: remove what is not needed in the step that made it"
        )))
    }

    async fn end(self, outcome: Result<()>) {
        let part = *self.part.lock();
        if let Err(error) = &outcome {
            self.tell(BuildLevel::Error, error.message.clone());
            self.distrust(error).await;
        }
        let now = self.inner().now();
        let build = self.running.change(|build| {
            build.ended_at = Some(now);
            build.state = match &outcome {
                Ok(()) => BuildState::Ready,
                Err(_) if self.running.cancel.is_cancelled() => BuildState::Cancelled,
                Err(_) => BuildState::Error,
            };
            build.failure = outcome.err().map(|error| BuildFailure { message: error.message, part });
        });
        tracing::info!(build = %build.id, state = build.state.as_str(), steps = build.steps.done, cached = build.steps.cached, "a build ended");
        self.record(&build).await;
        self.inner().builds.running.lock().remove(&build.id);
        self.running.log.end();
        self.inner().collect_layers_later();
    }

    async fn record(&self, build: &Build) {
        while let Err(error) = self.inner().store.build_put(build.clone(), Some(self.running.log.snapshot())).await {
            tracing::warn!(build = %build.id, error = %error, "the end of a build could not be recorded; it is tried again");
            // What is never recorded is found unfinished by the next start.
            if !self.inner().tasks.sleep(RECORD_RETRY).await {
                return;
            }
        }
    }
}

pub(super) fn bytes_of(layers: &[Layer]) -> u64 {
    layers.iter().map(|layer| layer.size_bytes).sum()
}

fn cancelled() -> Error {
    Error::new(ErrorKind::State, "the build was cancelled")
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::Unavailable, "the server was restarted: start the build again")
}
