//! `doctor`: what this machine can do, line by line.

use sandbank_driver_linux::doctor::{Check, Status, checks};
use serde_json::json;

use crate::cli::Global;
use crate::config::{Config, Given};
use crate::failure::{Failure, Result};
use crate::output::{self, harmless};

/// `doctor`. Exit code 1 when something is missing that sandboxes need.
pub(crate) fn run(global: &Global) -> Result<u8> {
    let given = Given { config: global.config.clone(), data_dir: global.data_dir.clone(), ..Given::default() };
    let found = checks(&Config::data_dir_only(&given)?);
    let missing = found.iter().any(|check| check.status == Status::Missing);
    if global.json {
        output::document(&json!({ "ready": !missing, "checks": found }))?;
    } else {
        found.iter().try_for_each(tell)?;
        output::line(if missing {
            "\nSandboxes cannot be made here until what is missing is there."
        } else {
            "\nSandboxes can be made here."
        })?;
    }
    Ok(if missing { Failure::ERROR } else { 0 })
}

fn tell(check: &Check) -> Result<()> {
    let word = match check.status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    };
    output::line(&harmless(&format!("{word:<9} {:<24} {}", check.name, check.found)))?;
    match &check.advice {
        Some(advice) => output::line(&format!("{:<9} {:<24} → {}", "", "", harmless(advice))),
        None => Ok(()),
    }
}
