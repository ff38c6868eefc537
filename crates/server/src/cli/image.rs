//! `image`: what sandboxes are made from, in and out.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Named;

/// `image …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Import an image from a file or directory on the server's machine
    #[command(
        after_help = "What it is shows from what is in it:\n  a root file system: a directory, or a tar archive (plain or \
        gzip); needs a NAME\n  an image: an OCI layout (a directory or an archive of one), or an archive of `docker save`\n\n\
        Examples:\n  docker save python:3.12-slim -o python.tar && sandbank image import python.tar\n  \
        sandbank image import debian:12 ./rootfs"
    )]
    Import(ImageImport),
    /// Write an image as an OCI archive that docker load, podman load and skopeo take
    #[command(after_help = "Examples:\n  sandbank image export tools:1 tools.tar\n  \
        sandbank image export tools:1 - | ssh other docker load")]
    Export(ImageExport),
    /// Pull an image from a registry
    #[command(
        after_help = "Examples:\n  sandbank image pull python:3.12-slim\n  sandbank image pull --missing ghcr.io/org/app:1"
    )]
    Pull(ImagePull),
    /// List images
    List,
    /// Show an image
    Show(Named),
    /// Delete an image that nothing uses
    #[command(visible_alias = "remove")]
    Delete(Named),
    /// Tell what images take on the server's disk
    Usage,
    /// Remove layers that nothing uses from the server's disk now
    Prune,
}

/// Options of `image import`.
#[derive(Debug, Args)]
pub(crate) struct ImageImport {
    /// [NAME] PATH: the image's name here (default: what the archive calls it), and the file or directory
    #[arg(value_name = "[NAME] PATH", num_args = 1..=2, required = true)]
    pub(crate) name_and_path: Vec<PathBuf>,
    /// Which image of an archive that has several
    #[arg(long = "ref", value_name = "NAME")]
    pub(crate) reference: Option<String>,
    /// Only for the caller's own tenant, not for everybody
    #[arg(long)]
    pub(crate) private: bool,
}

/// Options of `image export`.
#[derive(Debug, Args)]
pub(crate) struct ImageExport {
    /// Name of the image
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// File to write, - for standard output
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// How layers are compressed
    #[arg(long, value_enum, default_value_t = Compression::Gzip)]
    pub(crate) compression: Compression,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Compression {
    /// What everybody reads.
    Gzip,
    /// Smaller and faster; Docker reads it since version 23.
    Zstd,
    /// Not at all.
    None,
}

impl Compression {
    /// As the API says it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }
}

/// Options of `image pull`.
#[derive(Debug, Args)]
pub(crate) struct ImagePull {
    /// Name as registries have it, such as python:3.12-slim or ghcr.io/org/app:1
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Do nothing where it is here already
    #[arg(long)]
    pub(crate) missing: bool,
    /// User name for the registry, for this pull alone; the password comes from SANDBANK_REGISTRY_PASSWORD
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: Option<String>,
    /// For everybody, not only for the caller's own tenant
    #[arg(long)]
    pub(crate) global: bool,
}
