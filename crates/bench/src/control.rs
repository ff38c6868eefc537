//! The control rows: what the same machine takes, in the same run, for things that are not ours.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::report::{Report, Row, Samples};
use crate::rows::Settings;
use crate::{BenchError, Result};

/// Bare fork + wait.
pub(crate) fn fork_wait(report: &mut Report, repeat: u32) {
    let mut samples = Samples::new();
    for _ in 0..repeat {
        match sandbank_driver_linux::floor::fork_and_wait() {
            Ok(duration) => samples.add(duration),
            Err(error) => return report.skip("control: fork + wait", &error.to_string()),
        }
    }
    report.push(Row::durations("control: fork + wait", &samples));
}

/// `posix_spawn` of `/bin/true` + wait: what one program costs without any sandbox.
pub(crate) fn spawn_true(report: &mut Report, repeat: u32) {
    let mut samples = Samples::new();
    for _ in 0..repeat {
        let begun = Instant::now();
        match Command::new("/bin/true").status() {
            Ok(_) => samples.add(begun.elapsed()),
            Err(error) => return report.skip("control: spawn /bin/true + wait", &error.to_string()),
        }
    }
    report.push(Row::durations("control: spawn /bin/true + wait", &samples));
}

/// Writing to memory for the first time, a page each. Some microseconds; on a virtual machine whose memory its host first has to
/// find, tens of them, and every new sandbox takes some 300 pages.
pub(crate) fn first_touch(report: &mut Report) {
    const PAGE_BYTES: usize = 4096;
    const PAGES: usize = 64 * 1024;
    // Zeroed memory of this size is not there before it is written to.
    let mut memory = vec![0u8; PAGE_BYTES * PAGES];
    let begun = Instant::now();
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    let each_us = begun.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
    std::hint::black_box(memory);
    report.push(Row::number("control: first touch of a page of memory", each_us, "us", PAGES as u64));
}

/// `runc` and `crun`, where installed: create + start `true` + delete on the same root filesystem as our `host` image.
pub(crate) fn other_runtimes(report: &mut Report, settings: &Settings) {
    for runtime in ["runc", "crun"] {
        let name = format!("control: {runtime} create + start true + delete");
        match oci_runtime(runtime, settings.repeat.min(20)) {
            Ok(samples) => report.push(Row::durations(name, &samples)),
            Err(error) => report.skip(&name, &error.to_string()),
        }
    }
}

fn oci_runtime(runtime: &str, repeat: u32) -> Result<Samples> {
    if Command::new(runtime).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return Err(BenchError::new(format!("{runtime} is not installed")));
    }
    let bundle = tempfile::Builder::new().prefix("sandbank-bench-oci-").tempdir()?;
    write_bundle(bundle.path())?;
    let mut samples = Samples::new();
    for round in 0..repeat {
        let id = format!("sandbank-bench-{}-{round}", std::process::id());
        let begun = Instant::now();
        let outcome = one_round(runtime, bundle.path(), &id);
        if outcome.is_err() {
            // Whatever half exists goes; the first error is what counts.
            let _ = step(runtime, bundle.path(), &["delete", "--force", &id]);
        }
        outcome?;
        samples.add(begun.elapsed());
    }
    Ok(samples)
}

fn one_round(runtime: &str, bundle: &Path, id: &str) -> Result<()> {
    step(runtime, bundle, &["create", "--bundle", ".", id])?;
    step(runtime, bundle, &["start", id])?;
    // `true` may need a moment to end; `delete --force` does not wait for it.
    step(runtime, bundle, &["delete", "--force", id])
}

fn step(runtime: &str, bundle: &Path, arguments: &[&str]) -> Result<()> {
    // `create` hands its standard streams to the container: a pipe would stay open as long as the container lives.
    let errors = tempfile::tempfile()?;
    let status = Command::new(runtime)
        .args(["--root", "state"])
        .args(arguments)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone()?)
        .status()?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let mut errors = errors;
    std::io::Seek::rewind(&mut errors)?;
    std::io::Read::read_to_string(&mut errors, &mut text)?;
    Err(BenchError::new(format!("{runtime} {}: {}", arguments[0], text.lines().last().unwrap_or("failed"))))
}

/// A bundle of the host's own system directories, as the `host` image is.
fn write_bundle(bundle: &Path) -> Result<()> {
    let root = bundle.join("rootfs");
    for dir in ["usr", "proc", "dev", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        if let Ok(target) = std::fs::read_link(Path::new("/").join(link)) {
            std::os::unix::fs::symlink(target, root.join(link))?;
        }
    }
    let namespaces: Vec<_> = ["pid", "network", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/usr/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin"] },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "bench",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
        ],
        "linux": { "namespaces": namespaces, "resources": { "memory": { "limit": 512 << 20 }, "pids": { "limit": 512 } } },
    });
    std::fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(())
}
