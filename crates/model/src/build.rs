//! Builds of images, and the layers that they left for the next ones.

use serde::{Deserialize, Serialize};

use crate::{BuildId, ImageName, Layer, TenantId, Timestamp};

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Others are before it.
    Waiting,
    /// Its steps are executed.
    Building,
    /// The image is there.
    Ready,
    /// It failed.
    Error,
    /// Somebody ended it.
    Cancelled,
}

impl BuildState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Ready | Self::Error | Self::Cancelled)
    }
}

/// The part of a build that something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildPart {
    /// The image that it begins with.
    Base,
    /// A step, from 1, counted over all stages that are executed.
    Step(u32),
    /// After the last step: start command, ready command, the image's record.
    Finalize,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// For people.
    pub message: String,
    /// Where.
    pub part: BuildPart,
}

/// How many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildSteps {
    /// In all.
    pub total: u32,
    /// Done.
    pub done: u32,
    /// Of them, taken from the cache.
    pub cached: u32,
}

/// One build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Id.
    pub id: BuildId,
    /// Owner.
    pub tenant: TenantId,
    /// The image that it makes.
    pub name: ImageName,
    /// Where it stands.
    pub state: BuildState,
    /// Why it failed or was ended.
    pub failure: Option<BuildFailure>,
    /// Its steps.
    pub steps: BuildSteps,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLine {
    /// When.
    pub at: Timestamp,
    /// Where it belongs.
    pub part: BuildPart,
    /// How much it matters.
    pub level: BuildLevel,
    /// Text without its end of line.
    pub text: String,
}

/// How much a line of a build's log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildLevel {
    /// What a program wrote to its standard output, and what the builder tells.
    Info,
    /// What a program wrote to its standard error.
    Warn,
    /// Why the build failed.
    Error,
}

/// The end of a build's log, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildLog {
    /// Lines before the first one kept.
    pub dropped: u64,
    /// Lines, oldest first.
    pub lines: Vec<BuildLine>,
}

/// Layers that a step made, for the next build that asks the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// Owner.
    pub tenant: TenantId,
    /// What it is found by.
    pub key: String,
    /// The whole image so far, lowest layer first.
    pub layers: Vec<Layer>,
    /// Whether the host lies beneath them.
    pub on_host: bool,
    /// When it was last used.
    pub used_at: Timestamp,
}
