//! Images as others keep them: in registries, in OCI layouts and archives, in `docker save` archives.
//!
//! A [`Source`] finds one image's variant for a platform and gives its configuration and its layers, each checked against its
//! digest while it is read. Nothing here knows where layers are unpacked to or what an image is used for. What comes from
//! outside is bounded ([`Limits`]) and never trusted: a name is only made a path when it is a digest, nothing is followed out of
//! a directory or an archive, and credentials are only shown to the registry that they are for.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod config;
mod decompress;
mod digest;
mod error;
mod export;
mod local;
mod manifest;
mod platform;
mod reference;
mod registry;
mod source;
mod wire;

pub use config::{ImageDetails, parse_config, write_config};
pub use decompress::{Compression, Decompressor, decompress};
pub use digest::{Digest, Hashing};
pub use error::{Error, InvalidDigest, InvalidReference, Result};
pub use export::{ExportImage, Exported, LayerTar, spool_archive, stream_archive, write_archive};
pub use local::{Form, LocalSource, Scratch, detect};
pub use platform::Platform;
pub use reference::{DOCKER_REGISTRY, Reference};
pub use registry::{Credentials, RegistryClient, RegistrySettings, RegistrySource};
pub use source::{LayerBlob, LayerReader, Limits, Progress, Resolved, Source};
