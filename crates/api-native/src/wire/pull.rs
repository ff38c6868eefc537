//! Pulling images on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ImageInfo;

/// An image to pull from a registry.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PullImageRequest {
    /// As registries' users write it: `python:3.12-slim`, `ghcr.io/org/app@sha256:…`.
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
    pub name: String,
    /// `always` (default: a tag may have moved), `missing` or `never`.
    pub policy: Option<PullPolicy>,
    /// For this pull alone. Goes with `password`.
    #[schema(max_length = 256)]
    pub username: Option<String>,
    /// For this pull alone; never shown.
    #[schema(max_length = 4096, write_only)]
    pub password: Option<String>,
    /// For everybody: admins only. Default false: the caller's namespace.
    pub global: Option<bool>,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PullPolicy {
    /// Every time.
    Always,
    /// Where it is not here.
    Missing,
    /// Not at all.
    Never,
}

/// How a pull is answered.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct PullQuery {
    /// Answer 200 at once with NDJSON: how far the layers are, again and again, and at the end the image or the error.
    pub progress: bool,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PulledLayer {
    /// Of the bytes as the registry keeps them.
    pub digest: String,
    /// `waiting`, `taking`, `present` (it was here) or `taken`.
    pub state: String,
    /// Read so far.
    pub read_bytes: u64,
    /// As the registry keeps it.
    pub size_bytes: u64,
}

/// A line of a pull's progress.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PullLine {
    /// How far it is.
    Layers(Vec<PulledLayer>),
    /// Done: the last line.
    Image(Box<ImageInfo>),
    /// It failed: the last line.
    Error(String),
}
