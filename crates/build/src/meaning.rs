//! What a step does where it stands.

use std::collections::BTreeMap;

use sandbank_model::{EnvMap, ImageConfig};
use serde::Serialize;

use crate::paths::absolute_path;
use crate::plan::{CommandLine, CopyFrom, CopySpec, Plan, PlanError, Step, StepKind};
use crate::words::expand;

/// What has to be done for a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Run a program, then keep what it changed.
    Run(RunAction),
    /// Copy files, then keep them.
    Copy(CopyAction),
    /// Make a directory where there is none.
    MakeDir {
        /// Absolute path.
        path: String,
    },
    /// Nothing: the configuration has changed.
    Configured,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunAction {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment, build arguments in it.
    pub env: EnvMap,
    /// User; `None`: root.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: String,
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyAction {
    /// From where. Not part of a cache key: what is copied is.
    #[serde(skip)]
    pub from: Origin,
    /// Files, directories and patterns, without a slash at the beginning.
    pub sources: Vec<String>,
    /// Absolute path; with a slash at its end it is a directory.
    pub dest: String,
    /// Owner, `user[:group]`; `None`: root.
    pub chown: Option<String>,
    /// Permission bits; `None`: as they are.
    pub chmod: Option<u32>,
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The build's own upload.
    Context,
    /// Another upload.
    Upload(String),
    /// A stage, by index.
    Stage(usize),
    /// An image.
    Image(String),
}

/// A stage at work: the configuration and the arguments after the steps so far.
#[derive(Debug, Clone)]
pub struct StageContext<'a> {
    /// The image's configuration so far.
    pub config: ImageConfig,
    plan: &'a Plan,
    args: BTreeMap<String, String>,
    shell: Vec<String>,
    /// The entrypoint was set here: a command of the base image no longer belongs to it.
    command_set: bool,
}

impl<'a> StageContext<'a> {
    /// A stage that begins with this configuration.
    #[must_use]
    pub fn new(plan: &'a Plan, config: ImageConfig) -> Self {
        let shell = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        Self { config, plan, args: BTreeMap::new(), shell, command_set: false }
    }

    fn expand(&self, step: &Step, text: &str) -> Result<String, PlanError> {
        let lookup = |name: &str| self.config.env.get(name).or_else(|| self.args.get(name)).cloned();
        expand(text, &lookup).map_err(|what| refusal(step, what))
    }

    fn command_line(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Shell(text) => self.shell.iter().chain([text]).cloned().collect(),
            CommandLine::Exec(argv) => argv.clone(),
        }
    }

    fn workdir(&self) -> &str {
        self.config.workdir.as_deref().unwrap_or("/")
    }

    /// What the next step means; the configuration changes with it.
    pub fn next(&mut self, step: &Step) -> Result<Action, PlanError> {
        match &step.kind {
            StepKind::Run { command, user } => {
                let mut env: EnvMap = self.args.clone();
                env.extend(self.config.env.clone());
                let user = user.clone().or_else(|| self.config.user.clone());
                return Ok(Action::Run(RunAction {
                    argv: self.command_line(command),
                    env,
                    user,
                    workdir: self.workdir().to_owned(),
                }));
            }
            StepKind::Copy(copy) => return Ok(Action::Copy(self.copy(step, copy)?)),
            StepKind::Workdir(path) => {
                let path = self.expand(step, path)?;
                if path.is_empty() {
                    return Err(refusal(step, "WORKDIR needs a path".to_owned()));
                }
                let path = absolute_path(self.workdir(), &path);
                let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
                self.config.workdir = Some(path.clone());
                return Ok(Action::MakeDir { path });
            }
            StepKind::Arg(name, default) => self.declare(step, name, default.as_deref())?,
            _ => self.configure(step)?,
        }
        Ok(Action::Configured)
    }

    fn declare(&mut self, step: &Step, name: &str, default: Option<&str>) -> Result<(), PlanError> {
        let default = default.map(|text| self.expand(step, text)).transpose()?;
        let given = self.plan.build_args.get(name).cloned();
        let value = given.or(default).or_else(|| self.plan.global_args.get(name).cloned());
        match value {
            Some(value) => self.args.insert(name.to_owned(), value),
            None => self.args.remove(name),
        };
        Ok(())
    }

    fn configure(&mut self, step: &Step) -> Result<(), PlanError> {
        match &step.kind {
            StepKind::Env(pairs) => {
                // All values of one instruction see the environment as it was before it.
                let values: Result<Vec<_>, _> = pairs.iter().map(|(_, raw)| self.expand(step, raw)).collect();
                let names = pairs.iter().map(|(name, _)| name.clone());
                self.config.env.extend(names.zip(values?));
            }
            StepKind::Label(pairs) => {
                for (name, raw) in pairs {
                    let value = self.expand(step, raw)?;
                    self.config.labels.insert(name.clone(), value);
                }
            }
            StepKind::User(user) => {
                let user = self.expand(step, user)?;
                if user.is_empty() {
                    return Err(refusal(step, "USER needs a name or a number".to_owned()));
                }
                self.config.user = Some(user);
            }
            StepKind::Expose(ports) => {
                for port in ports {
                    let port = self.expand(step, port)?;
                    let port = port.parse().map_err(|error| refusal(step, format!("EXPOSE {error}")))?;
                    self.config.exposed_ports.insert(port);
                }
            }
            StepKind::Entrypoint(command) => {
                self.config.entrypoint = self.command_line(command);
                if !self.command_set {
                    self.config.command.clear();
                }
            }
            StepKind::Command(command) => {
                self.config.command = self.command_line(command);
                self.command_set = true;
            }
            StepKind::Shell(shell) => self.shell.clone_from(shell),
            StepKind::StopSignal(signal) => self.config.stop_signal = Some(self.expand(step, signal)?),
            StepKind::Run { .. } | StepKind::Copy(_) | StepKind::Workdir(_) | StepKind::Arg(..) => {}
        }
        Ok(())
    }

    fn copy(&self, step: &Step, copy: &CopySpec) -> Result<CopyAction, PlanError> {
        let from = match &copy.from {
            CopyFrom::Context => Origin::Context,
            CopyFrom::Upload(id) => Origin::Upload(id.clone()),
            CopyFrom::Stage(index) => Origin::Stage(*index),
            CopyFrom::Image(name) => Origin::Image(name.clone()),
        };
        let mut sources = Vec::with_capacity(copy.sources.len());
        for source in &copy.sources {
            let source = self.expand(step, source)?;
            let path = absolute_path("/", &source);
            if source.split('/').any(|part| part == "..") {
                return Err(refusal(
                    step,
                    format!("the source {source:?} has a part '..': copy from inside the build's directory"),
                ));
            }
            sources.push(path.trim_matches('/').to_owned());
        }
        let dest = self.expand(step, &copy.dest)?;
        if dest.is_empty() {
            return Err(refusal(step, "COPY needs a destination".to_owned()));
        }
        let dest = absolute_path(self.workdir(), &dest);
        if sources.len() > 1 && !dest.ends_with('/') {
            return Err(refusal(step, format!("several sources need a directory to go to: write {dest}/")));
        }
        let chown = copy.chown.as_ref().map(|owner| self.expand(step, owner)).transpose()?;
        Ok(CopyAction { from, sources, dest, chown, chmod: copy.chmod })
    }
}

fn refusal(step: &Step, what: String) -> PlanError {
    match step.line {
        Some(line) => PlanError::Line { line, what },
        None => PlanError::Plan(format!("{}: {what}", step.text)),
    }
}
