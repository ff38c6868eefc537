//! Builds of images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sandbank_model::{BuildLine, ImageName};

/// What an installation may set of builds.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// Where uploads are kept; `None`: none are taken.
    pub contexts_dir: Option<PathBuf>,
    /// Builds that are executed at the same time.
    pub concurrency: usize,
    /// Builds of one tenant that may wait or run; one more is refused.
    pub per_tenant_max: usize,
    /// Longest time of a build that asks for none.
    pub time: Duration,
    /// Longest time that a build may ask for.
    pub time_max: Duration,
    /// Most bytes that a build's layers may have.
    pub layer_bytes_max: u64,
    /// Most bytes of an upload, unpacked.
    pub context_bytes_max: u64,
    /// How long an upload is kept.
    pub context_life: Duration,
    /// Bytes of a build's log that are kept.
    pub log_bytes_max: usize,
    /// Bytes of layers that are kept for later builds, over all tenants.
    pub cache_bytes_max: u64,
    /// How long layers are kept that no build used.
    pub cache_life: Duration,
}

impl Default for BuildSettings {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            contexts_dir: None,
            concurrency: 2,
            per_tenant_max: 20,
            time: Duration::from_secs(20 * 60),
            time_max: Duration::from_secs(3600),
            layer_bytes_max: 10 * GIB,
            context_bytes_max: 2 * GIB,
            context_life: Duration::from_secs(86_400),
            log_bytes_max: 1024 * 1024,
            cache_bytes_max: 20 * GIB,
            cache_life: Duration::from_secs(14 * 86_400),
        }
    }
}

/// A build that is asked for.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Name of the image to make.
    pub name: ImageName,
    /// What to do.
    pub source: BuildSource,
    /// Upload that files are copied from, by id.
    pub context: Option<String>,
    /// Longest time; `None`: the setting.
    pub timeout: Option<Duration>,
    /// Cores of the sandboxes that it runs in, thousandths; `None`: as any sandbox.
    pub cpu_millis: Option<u32>,
    /// Memory of them, bytes.
    pub memory_bytes: Option<u64>,
    /// Disk of them, bytes.
    pub disk_bytes: Option<u64>,
    /// Execute every step, whatever earlier builds left.
    pub no_cache: bool,
    /// Started after the last step; what it writes until the ready command succeeds is in the image.
    pub start_command: Option<String>,
    /// Tried until it succeeds.
    pub ready_command: Option<String>,
}

/// What a build does.
#[derive(Debug, Clone)]
pub enum BuildSource {
    /// A Dockerfile.
    Dockerfile {
        /// Its text.
        text: String,
        /// Build arguments.
        args: BTreeMap<String, String>,
        /// Stage to build; `None`: the last one.
        target: Option<String>,
    },
    /// Steps on an image.
    Steps {
        /// The image, or `scratch`.
        from: String,
        /// What to do.
        steps: Vec<sandbank_build::Step>,
    },
}

/// A piece of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLogPiece {
    /// Number of the first line, from 0 for the build's first one. More than asked where lines were dropped.
    pub offset: u64,
    /// Lines.
    pub lines: Vec<BuildLine>,
}

/// An upload that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildContext {
    /// What builds name it by: the SHA-256 digest of what was sent, or what the uploader called it (64 hexadecimal digits).
    pub id: String,
    /// Bytes, unpacked.
    pub size_bytes: u64,
}
