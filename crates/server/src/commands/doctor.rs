//! `doctor`: what this machine can do.

use crate::cli::Global;
use crate::failure::Result;

/// `doctor`.
pub(crate) fn run(_global: &Global) -> Result<u8> {
    Ok(0)
}
