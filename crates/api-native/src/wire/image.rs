//! Images in and out, and what they take.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// An image to import from the server's own file system.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ImportImageRequest {
    /// Name. Needed for a root filesystem; of an archive or layout, default: what it calls the image.
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
    pub name: Option<String>,
    /// Absolute path on the server: a root filesystem as a directory or a tar archive (plain or gzip), an OCI image layout or an
    /// archive of one, or an archive of `docker save`.
    #[schema(min_length = 1, max_length = 4096)]
    pub path: String,
    /// Which of an archive's images. Default: its only one.
    #[schema(min_length = 1, max_length = 512)]
    pub reference: Option<String>,
    /// For everybody. Default false: the caller's namespace.
    pub global: Option<bool>,
}

/// How to export.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// How layers are compressed. Default gzip, which everybody reads.
    pub compression: Option<ExportCompression>,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExportCompression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Not at all.
    None,
}

/// What images take on the server's disk.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImagesUsage {
    /// Layers on disk.
    pub layers: u64,
    /// Their bytes. What several images use counts once.
    pub size_bytes: u64,
    /// Bytes of layers that neither an image nor a sandbox uses.
    pub unused_bytes: u64,
    /// Each image of each namespace, by name.
    pub images: Vec<ImageUsage>,
}

/// What one image takes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageUsage {
    /// Name.
    pub name: String,
    /// Whether everybody may use it.
    pub global: bool,
    /// Bytes of layers that no other image has.
    pub own_bytes: u64,
    /// Bytes of layers that other images have too.
    pub shared_bytes: u64,
}

/// Layers that were removed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PrunedImages {
    /// How many.
    pub layers: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}
