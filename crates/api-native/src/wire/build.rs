//! Builds on the wire.

use sandbank_model::StringMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A build to begin: of a Dockerfile, or of steps on an image.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BuildCreate {
    /// Name of the image to make, `repository[:tag]`.
    pub name: String,
    /// Text of a Dockerfile. Either this or `steps`.
    pub dockerfile: Option<String>,
    /// Build arguments of the Dockerfile.
    pub build_args: Option<StringMap>,
    /// Stage of the Dockerfile to build, by name or number. Absent: the last one.
    pub target: Option<String>,
    /// Image that the steps begin with, or `scratch`.
    pub from: Option<String>,
    /// Steps, in order.
    pub steps: Option<Vec<BuildStep>>,
    /// Upload that files are copied from, as `POST /v1/contexts` answered.
    pub context: Option<String>,
    /// Longest time, a Go duration. Absent: 20 minutes.
    pub timeout: Option<String>,
    /// CPU limit of the sandboxes that it runs in: cores (`2`) or thousandths (`500m`).
    pub cpu: Option<String>,
    /// Memory limit of them, such as `2Gi`.
    pub memory: Option<String>,
    /// Disk limit of them, such as `8Gi`.
    pub disk: Option<String>,
    /// Execute every step, whatever earlier builds left.
    pub no_cache: Option<bool>,
    /// Started after the last step, for a shell; becomes the image's command.
    pub start_command: Option<String>,
    /// Tried until it succeeds, for a shell; then the image is made.
    pub ready_command: Option<String>,
}

/// A step of a build. Values mean what they say: no variables are replaced in them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum BuildStep {
    /// Run a command.
    Run {
        /// For `/bin/sh -c`.
        command: String,
        /// As this user. Absent: as the last `user` step says.
        user: Option<String>,
    },
    /// Copy files of an upload.
    Copy {
        /// Files, directories and patterns, below the upload's top.
        sources: Vec<String>,
        /// Where to; a directory when it ends with a slash.
        dest: String,
        /// Owner, `user[:group]`. Absent: root.
        chown: Option<String>,
        /// Permission bits in octal. Absent: as in the upload.
        chmod: Option<String>,
        /// Another upload than the build's own.
        context: Option<String>,
    },
    /// Set environment variables.
    Env {
        /// Names and values.
        vars: StringMap,
    },
    /// Change the working directory, and make it.
    Workdir {
        /// Path.
        path: String,
    },
    /// Change the user.
    User {
        /// Name or number, perhaps with `:group`.
        name: String,
    },
}

/// A build.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Build {
    /// Id.
    pub id: String,
    /// Name of the image that it makes.
    pub name: String,
    /// Where it stands: `waiting`, `building`, `ready`, `error` or `cancelled`.
    pub state: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildReason>,
    /// Steps in all.
    pub steps_total: u32,
    /// Steps done.
    pub steps_done: u32,
    /// Of them, taken from the cache.
    pub steps_cached: u32,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// When its first step began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

/// Why a build failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuildReason {
    /// For people.
    pub message: String,
    /// Where: `base`, the number of the step from 1, or `finalize`.
    pub step: String,
}

/// One build.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuildEnvelope {
    /// It.
    pub build: Build,
}

/// Builds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuildList {
    /// Builds, the newest first.
    pub items: Vec<Build>,
    /// How many there are in all.
    pub total: u64,
}

/// A line of a build's log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BuildLogLine {
    /// Its number, from 0.
    pub offset: u64,
    /// When, RFC 3339.
    pub at: String,
    /// Where it belongs: `base`, the number of the step, or `finalize`.
    pub step: String,
    /// `info`, `warn` (what a program wrote to its standard error) or `error`.
    pub level: String,
    /// Text.
    pub text: String,
}

/// Which part of a build's log.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct BuildLogQuery {
    /// Number of the first line.
    #[param(minimum = 0, default = 0)]
    pub offset: Option<u64>,
    /// Wait for more until the build has ended.
    #[param(default = true)]
    pub follow: Option<bool>,
}

/// How an upload is named.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ContextQuery {
    /// Its id, 64 hexadecimal digits. Absent: the SHA-256 digest of what is sent.
    pub id: Option<String>,
}

/// An upload.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Context {
    /// What builds name it by.
    pub id: String,
    /// Bytes, unpacked.
    pub size_bytes: u64,
}

/// What was forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClearedCache {
    /// How many steps.
    pub steps: u64,
}
