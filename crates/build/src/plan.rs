//! A plan as it is written: stages, and steps whose variables are not yet replaced.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a plan is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The Dockerfile cannot be read, or asks for something that is not supported.
    #[error("Dockerfile line {line}: {what}")]
    Line {
        /// Line, from 1.
        line: usize,
        /// For people: what was wrong and what to do.
        what: String,
    },
    /// A step given without a Dockerfile, or the plan as a whole.
    #[error("{0}")]
    Plan(String),
}

/// What a build does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Stages in order; only those that the target needs are executed.
    pub stages: Vec<Stage>,
    /// Index of the stage that becomes the image.
    pub target: usize,
    /// Values of the build arguments, as the caller gave them.
    pub build_args: BTreeMap<String, String>,
    /// Build arguments declared before the first stage, with their values: a stage that declares one again gets its value.
    pub global_args: BTreeMap<String, String>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What it begins with.
    pub base: Base,
    /// Its name, if it has one; in lower case.
    pub name: Option<String>,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An image by name.
    Image(String),
    /// An earlier stage.
    Stage(usize),
    /// Nothing at all.
    Scratch,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Line in the Dockerfile, from 1; `None` for a step that was given as such.
    pub line: Option<usize>,
    /// The step as people know it, in one line.
    pub text: String,
    /// What it does.
    pub kind: StepKind,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandLine {
    /// For a shell.
    Shell(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

/// What a step does. Texts may hold variables, which are replaced where the step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// Runs a program.
    Run {
        /// What.
        command: CommandLine,
        /// As this user, whatever the image says.
        user: Option<String>,
    },
    /// Copies files.
    Copy(CopySpec),
    /// Sets environment variables: names and raw values, in order.
    Env(Vec<(String, String)>),
    /// Declares a build argument, with its default.
    Arg(String, Option<String>),
    /// Changes the working directory, and makes it.
    Workdir(String),
    /// Changes the user.
    User(String),
    /// Announces ports.
    Expose(Vec<String>),
    /// Sets labels.
    Label(Vec<(String, String)>),
    /// Sets the entrypoint.
    Entrypoint(CommandLine),
    /// Sets the command.
    Command(CommandLine),
    /// Changes the shell of the steps that follow.
    Shell(Vec<String>),
    /// Sets the signal that asks the main process to end.
    StopSignal(String),
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySpec {
    /// From where.
    pub from: CopyFrom,
    /// Files, directories and patterns.
    pub sources: Vec<String>,
    /// To where.
    pub dest: String,
    /// Owner, `user[:group]`; `None`: root.
    pub chown: Option<String>,
    /// Permission bits; `None`: as they are.
    pub chmod: Option<u32>,
}

/// Where files are copied from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFrom {
    /// The build's own upload.
    Context,
    /// Another upload, by id.
    Upload(String),
    /// An earlier stage.
    Stage(usize),
    /// An image by name.
    Image(String),
}

impl Plan {
    /// A plan of one stage.
    #[must_use]
    pub fn of_steps(from: &str, steps: Vec<Step>) -> Self {
        let base = if from == "scratch" { Base::Scratch } else { Base::Image(from.to_owned()) };
        let stage = Stage { base, name: None, steps };
        Self { stages: vec![stage], target: 0, build_args: BTreeMap::new(), global_args: BTreeMap::new() }
    }

    /// The stages that the target needs, in order, itself the last.
    #[must_use]
    pub fn needed(&self) -> Vec<usize> {
        let mut needed = vec![false; self.stages.len()];
        let mut open = vec![self.target];
        while let Some(index) = open.pop() {
            let Some(stage) = self.stages.get(index) else { continue };
            if std::mem::replace(&mut needed[index], true) {
                continue;
            }
            if let Base::Stage(base) = stage.base {
                open.push(base);
            }
            open.extend(stage.steps.iter().filter_map(|step| match &step.kind {
                StepKind::Copy(CopySpec { from: CopyFrom::Stage(from), .. }) => Some(*from),
                _ => None,
            }));
        }
        (0..self.stages.len()).filter(|index| needed[*index]).collect()
    }

    /// How many steps are executed.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.needed().iter().map(|index| self.stages[*index].steps.len()).sum()
    }
}
