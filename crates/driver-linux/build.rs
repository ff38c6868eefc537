//! Builds the agent, a static program for the same machine, so that the driver can carry it inside.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set by the outer cargo for this build only; they would change the inner one.
const OUTER_VARIABLES: [&str; 10] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..");
    for input in ["crates/agent/src", "crates/agent/Cargo.toml", "crates/agent-protocol/src", "crates/agent-protocol/Cargo.toml"]
    {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SANDBANK_AGENT_PATH");
    let agent = match env::var_os("SANDBANK_AGENT_PATH") {
        Some(built) => PathBuf::from(built),
        None => build(&root)?,
    };
    println!("cargo::rustc-env=SANDBANK_AGENT={}", agent.display());
    Ok(())
}

fn build(root: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = env::var("TARGET")?;
    let target_dir = shared_target_dir()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    for name in OUTER_VARIABLES {
        cargo.env_remove(name);
    }
    // Clippy and its like set this to a driver that compiles nothing.
    cargo.env("RUSTC", env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    // At a fixed address: a position-independent program would rewrite its own pointers at every start, which costs each
    // sandbox a tenth of a millisecond and 100 KiB of memory of its own.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    // `--target` keeps build scripts and procedural macros dynamic, which they must be.
    cargo.args(["build", "--locked", "--package", "sandbank-agent", "--profile", "agent", "--target", &target]);
    cargo.arg("--target-dir").arg(&target_dir);
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building the agent failed ({status}); its messages are above").into());
    }
    Ok(target_dir.join(target).join("agent").join("sandbank-agent"))
}

/// `<target>/agent-build`, beside the profiles' directories: one for debug and release, and it survives changes of this crate.
fn shared_target_dir() -> Result<PathBuf, Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // <target>[/<triple>]/<profile>/build/<package>-<hash>/out
    let profile_dir = out.ancestors().nth(3).ok_or("OUT_DIR is not where cargo puts it")?;
    Ok(profile_dir.parent().ok_or("OUT_DIR is not where cargo puts it")?.join("agent-build"))
}
