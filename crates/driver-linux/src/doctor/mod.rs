//! What this machine can do, line by line, and what to do about what it cannot.
//!
//! What can be tried is tried, in child processes that end at once and in a directory that is removed again: a setting says what ought to
//! work, a security module or a container around us may say otherwise.

mod kernel;
mod limits;
mod network;
mod storage;
mod trial;

use std::path::{Path, PathBuf};

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Sandboxes work, but something is weaker, slower or scarcer than it could be.
    Degraded,
    /// Sandboxes cannot be made.
    Missing,
}

/// One line of the doctor's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: "kernel", "cgroup memory".
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, where it is not as it should be.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Ok, found: found.into(), advice: None }
    }

    fn degraded(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Degraded, found: found.into(), advice: Some(advice.into()) }
    }

    fn missing(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Missing, found: found.into(), advice: Some(advice.into()) }
    }
}

/// What the checks look at.
#[derive(Debug)]
struct Machine {
    is_root: bool,
    /// The data directory, or the nearest directory above it that exists.
    dir: PathBuf,
}

/// Checks the machine for sandboxes kept below `data_dir`, which need not exist. Takes well under a second, changes nothing,
/// and reports also where nothing can be read.
#[must_use]
pub fn checks(data_dir: &Path) -> Vec<Check> {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let dir = absolute.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let machine = Machine { is_root: rustix::process::geteuid().is_root(), dir };
    let mut checks = vec![
        kernel::version(),
        kernel::architecture(),
        kernel::privileges(&machine),
        kernel::user_namespaces(&machine),
        kernel::namespaces(&machine),
        kernel::network_namespace(&machine),
        network::network(&machine),
        kernel::seccomp(&machine),
        kernel::program_in_memory(),
    ];
    checks.extend(limits::cgroups());
    checks.extend(storage::checks(&machine));
    checks.extend([
        limits::open_files(),
        limits::processes(),
        limits::inotify(),
        limits::memory(),
        limits::out_of_memory_order(),
    ]);
    checks
}

/// A small file of `/proc` or `/sys`, trimmed; `None` where it cannot be read.
fn setting(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The same as a number.
fn number(path: &str) -> Option<u64> {
    setting(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn every_check_says_what_it_found_and_what_to_do_about_it() {
        let data = tempfile::tempdir().unwrap();
        let checks = checks(data.path());
        assert!(checks.len() >= 18, "{checks:#?}");
        for check in &checks {
            assert!(!check.name.is_empty() && !check.found.is_empty(), "{check:?}");
            assert_eq!(check.status != Status::Ok, check.advice.is_some(), "{check:?}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| &check.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "two checks have one name");
    }

    #[test]
    fn nothing_is_left_behind_and_a_missing_directory_is_not_made() {
        let data = tempfile::tempdir().unwrap();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let _ = checks(&data.path().join("not/yet"));
        assert_eq!(data.path().read_dir().unwrap().count(), 0);
        assert_eq!(mounts(), before);
        // Below a file, and of no sense at all.
        for odd in [Path::new("/etc/passwd/below"), Path::new(""), Path::new("/proc/self/fd/99/x")] {
            assert!(checks(odd).len() >= 18);
        }
    }

    #[test]
    fn a_machine_that_runs_the_other_tests_of_this_crate_lacks_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: without root some things are missing");
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let missing: Vec<_> = checks(data.path()).into_iter().filter(|check| check.status == Status::Missing).collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn a_check_is_json_with_a_lower_case_status() {
        let check = Check::degraded("disk", "little", "free some");
        let json = serde_json::to_value(&check).unwrap();
        assert_eq!(json["status"], "degraded");
        assert_eq!(json["advice"], "free some");
    }
}
