//! The grammar of `sandbank build`.

use std::path::PathBuf;

use clap::Args;

/// Options of `build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Name of the image to make
    #[arg(short = 't', long = "tag", value_name = "NAME[:TAG]")]
    pub(crate) name: String,
    /// Dockerfile [default: DIR/Dockerfile]
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Build argument; may be repeated
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    pub(crate) build_args: Vec<String>,
    /// Stage to build, by name or number [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Execute every step, whatever earlier builds left
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Give up after this long, such as 10m
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// Directory that COPY takes files from
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}
