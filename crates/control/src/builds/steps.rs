//! One step: from the cache, or in a sandbox of the image so far.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandbank_agent_protocol::{FileKind, MakeDir, StatFile, Stream};
use sandbank_build::{Action, RunAction, Step, cache_key, file_system_identity};
use sandbank_driver::{Capability, Target};
use sandbank_model::{BuildLevel, ExpiryAction, Image, ImageConfig, ImageSource, PoolPolicies, StringMap, Timeout};
use tokio::time::Instant;

use super::log::Lines;
use super::run::{Job, Snapshot};
use super::{METADATA_KEY, working_name};
use crate::claim::Held;
use crate::make::{LeaseTerms, Order};
use crate::types::{Exec, LeaseRequest, ProcessEvent};
use crate::{Error, ErrorKind, Result};

/// Longest time for keeping what a step changed.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
/// A sandbox of a build outlives the build's deadline by so much, should nobody be left to destroy it.
const LEASE_SLACK: Duration = Duration::from_secs(120);
/// Lines of a failed command that its error repeats.
const LAST_LINES: usize = 5;

impl Job {
    /// Does a step on `made`; whether the cache had it.
    pub(super) async fn step(
        &self,
        step: &Step,
        action: &Action,
        stages: &BTreeMap<usize, Snapshot>,
        made: &mut Snapshot,
    ) -> Result<bool> {
        let files = match action {
            Action::Copy(copy) => Some(self.find_files(copy, stages).await?),
            _ => None,
        };
        let content = files.as_ref().map(super::copy::Files::identity).unwrap_or_default();
        let parent = file_system_identity(&made.layers, made.on_host);
        let key = cache_key(self.tenant(), &parent, action, &content);
        if let Some(found) = self.cached(&key).await? {
            (made.layers, made.on_host) = (found.layers, found.on_host);
            self.tell(BuildLevel::Info, "cached");
            return Ok(true);
        }
        let held = self.sandbox(made).await?;
        let changed = match (action, files) {
            (Action::Run(run), _) => self.run_program(&held, step, run).await.map(|()| true)?,
            (Action::MakeDir { path }, _) => self.make_dir(&held, path).await?,
            (Action::Copy(copy), Some(files)) => self.copy(&held, copy, &files).await.map(|()| true)?,
            _ => false,
        };
        if changed {
            self.keep(&held, made).await?;
        }
        drop(held);
        self.remember(key, made).await?;
        Ok(false)
    }

    fn image_of(&self, made: &Snapshot) -> Result<Image> {
        let id = self.running.build.lock().id;
        Ok(Image {
            name: working_name(id).parse()?,
            tenant: Some(self.tenant()),
            layers: made.layers.clone(),
            on_host: made.on_host,
            // What a step runs with is given with the step.
            config: ImageConfig::default(),
            source: ImageSource::Committed { sandbox: format!("build {id}") },
            created_at: self.inner().now(),
        })
    }

    /// A sandbox of the image so far. Dropping it releases it.
    pub(super) async fn sandbox(&self, made: &Snapshot) -> Result<Held> {
        let inner = self.inner();
        let layers = Arc::clone(&inner.layers_in_use).read_owned().await;
        let image = self.image_of(made)?;
        let mut spec = self.spec.clone();
        spec.image = image.name.clone();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let request = LeaseRequest {
            timeout: Some(Timeout::After(left + LEASE_SLACK)),
            idle_timeout: Some(Timeout::Off),
            on_expiry: Some(ExpiryAction::Kill),
            metadata: StringMap::from([(METADATA_KEY.to_owned(), self.running.build.lock().id.to_string())]),
            ..LeaseRequest::default()
        };
        let terms = LeaseTerms::new(&self.caller, request, &PoolPolicies::default());
        let order = Order {
            tenant: self.tenant(),
            spec,
            image,
            driver: inner.settings.default_driver.clone(),
            pool: None,
            template: None,
            actor: self.caller.actor(),
        };
        inner.make_for_holder(order, terms, None, layers).await
    }

    /// Makes a layer of what the sandbox changed.
    pub(super) async fn keep(&self, held: &Held, made: &mut Snapshot) -> Result<()> {
        let (inner, sandbox) = (self.inner(), held.sandbox());
        let _exclusive = inner.sandbox_locks.lock(sandbox.id).await;
        let (driver, handle) = inner.target_of(sandbox)?;
        driver.capabilities().require(Capability::Commit)?;
        let image = self.image_of(made)?;
        let _layers = inner.layers_in_use.read().await;
        let target = Target { id: sandbox.id, handle: &handle };
        let new = tokio::time::timeout(COMMIT_TIMEOUT, driver.commit(target, &image)).await;
        let new = new.map_err(|_| Error::new(ErrorKind::Unavailable, "the step's changes were not kept in time"))??;
        self.running.hold(&new.layers);
        (made.layers, made.on_host) = (new.layers, new.on_host);
        Ok(())
    }

    async fn run_program(&self, held: &Held, step: &Step, run: &RunAction) -> Result<()> {
        let exec = Exec {
            argv: run.argv.clone(),
            env: run.env.clone(),
            cwd: Some(run.workdir.clone()),
            user: run.user.clone(),
            kill_on_disconnect: true,
            ..Exec::default()
        };
        let code = self.program(held, exec, true).await?;
        if code == 0 {
            return Ok(());
        }
        let last = self.running.log.last(*self.part.lock(), LAST_LINES);
        // The first of them may be the step's own text.
        let last: Vec<String> = last.into_iter().filter(|line| *line != step.text).collect();
        let said = if last.is_empty() { String::new() } else { format!("; it said last: {}", last.join(" | ")) };
        Err(Error::invalid(format!("{} ended with code {code}{said}", step.text)))
    }

    /// Runs a program to its end, what it writes in the build's log; its exit code.
    pub(super) async fn program(&self, held: &Held, exec: Exec, tell: bool) -> Result<i32> {
        let mut stream = self.control.exec(&self.caller, held.sandbox().id, exec).await?;
        let (mut out, mut err) = (Lines::default(), Lines::default());
        while let Some(event) = stream.events.next().await? {
            match event {
                ProcessEvent::Output(from, data) if tell => {
                    let (lines, level) = match from {
                        Stream::Stderr => (&mut err, BuildLevel::Warn),
                        Stream::Stdout | Stream::Pty => (&mut out, BuildLevel::Info),
                    };
                    lines.push(&data).into_iter().for_each(|line| self.tell(level, line));
                }
                ProcessEvent::Exited(status) => {
                    out.rest(false).into_iter().for_each(|line| self.tell(BuildLevel::Info, line));
                    err.rest(false).into_iter().for_each(|line| self.tell(BuildLevel::Warn, line));
                    return Ok(status.shell_code());
                }
                ProcessEvent::Output(..) | ProcessEvent::Started { .. } | ProcessEvent::StillRunning => {}
            }
        }
        Err(self.inner().confused(held.sandbox().id))
    }

    /// Makes a directory where there is none; whether there was none.
    async fn make_dir(&self, held: &Held, path: &str) -> Result<bool> {
        let (control, id) = (&self.control, held.sandbox().id);
        let stat = StatFile { path: path.to_owned(), user: None, follow: true };
        match control.file_stat(&self.caller, id, stat).await {
            Ok(stat) if stat.kind == FileKind::Dir => return Ok(false),
            Ok(_) => return Err(Error::invalid(format!("{path} is no directory"))),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mkdir = MakeDir { path: path.to_owned(), user: None, mode: None, exclusive: false };
        control.file_mkdir(&self.caller, id, mkdir).await?;
        Ok(true)
    }
}
