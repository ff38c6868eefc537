//! The narrow waist, checked (design.md §1): which crate may know which, read from `cargo metadata` and from the sources.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Arrows that may be drawn between workspace crates. A crate that is not listed here is refused: say what it may know first.
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("agent-protocol", &[]),
    ("agent", &["agent-protocol"]),
    ("oci", &["model"]),
    ("build", &["model"]),
    ("egress", &["model"]),
    ("store", &["model"]),
    ("driver", &["agent-protocol", "model"]),
    ("driver-linux", &["agent-protocol", "driver", "model"]),
    ("control", &["agent-protocol", "build", "driver", "model", "oci", "store"]),
    ("http", &["control", "model"]),
    ("server", &["build", "control", "driver", "driver-linux", "egress", "http", "model", "oci", "store"]),
    // A load generator speaks HTTP like any stranger; the driver lends it the kernel's floor to compare with.
    ("bench", &["driver-linux"]),
];
/// A dialect knows the use cases and the plumbing; no store, no driver, no other dialect. `agent-protocol` is there for its
/// words: the use cases take and give file metadata, exit statuses and the like in its types.
const DIALECT_ALLOWED: &[&str] = &["agent-protocol", "build", "control", "http", "model"];
/// Foreign crates that belong behind one door each.
const DOORS: &[(&str, &[&str])] = &[
    ("rusqlite", &["store"]),
    ("seccompiler", &["driver-linux"]),
    ("libc", &["driver-linux"]),
    ("clap", &["bench", "server"]),
    ("metrics-exporter-prometheus", &["server"]),
    ("reqwest", &["oci"]),
    ("rustls", &["egress", "oci"]),
    ("rcgen", &["egress"]),
    ("hickory-proto", &["egress"]),
    ("chacha20poly1305", &["control"]),
];
/// The model has no I/O, no clock, no runtime, no HTTP, no SQL.
const MODEL_FOREIGN: &[&str] = &["serde", "serde_json", "thiserror", "uuid"];

struct Package {
    /// Without the `sandbank-` prefix.
    name: String,
    directory: PathBuf,
    /// Names of what it depends on outside of tests.
    dependencies: BTreeSet<String>,
    /// Names of what only its tests use.
    test_dependencies: BTreeSet<String>,
}

impl Package {
    fn workspace(names: &BTreeSet<String>) -> BTreeSet<&str> {
        names.iter().filter_map(|name| name.strip_prefix("sandbank-")).collect()
    }
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

fn package(value: &Value) -> Package {
    let mut dependencies = BTreeSet::new();
    let mut test_dependencies = BTreeSet::new();
    for dependency in value["dependencies"].as_array().unwrap() {
        let name = dependency["name"].as_str().unwrap().to_owned();
        if dependency["kind"] == "dev" {
            test_dependencies.insert(name)
        } else {
            dependencies.insert(name)
        };
    }
    let name = value["name"].as_str().unwrap();
    Package {
        name: name.strip_prefix("sandbank-").unwrap_or_else(|| panic!("{name}: packages here are named sandbank-*")).to_owned(),
        directory: Path::new(value["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned(),
        dependencies,
        test_dependencies,
    }
}

fn is_dialect(name: &str) -> bool {
    name.starts_with("api-")
}

/// What `name` may depend on.
fn allowed(name: &str) -> BTreeSet<&'static str> {
    if is_dialect(name) {
        return DIALECT_ALLOWED.iter().copied().collect();
    }
    let rules: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    rules.get(name).unwrap_or_else(|| panic!("{name} has no rule: say in ALLOWED what it may know")).iter().copied().collect()
}

#[test]
fn arrows_between_crates_go_down_only() {
    let mut wrong = Vec::new();
    for package in packages() {
        let allowed = allowed(&package.name);
        for dependency in Package::workspace(&package.dependencies) {
            let wired = package.name == "server" && is_dialect(dependency);
            if !wired && !allowed.contains(dependency) {
                wrong.push(format!("{} must not depend on {dependency}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tests_reach_no_higher_than_their_crate() {
    let packages = packages();
    let below = |name: &str| -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut pending = vec![name.to_owned()];
        while let Some(next) = pending.pop() {
            for lower in allowed(&next) {
                if seen.insert(lower.to_owned()) {
                    pending.push(lower.to_owned());
                }
            }
        }
        seen
    };
    for package in &packages {
        let below = below(&package.name);
        for dependency in Package::workspace(&package.test_dependencies) {
            assert!(below.contains(dependency), "the tests of {} must not use {dependency}", package.name);
        }
    }
}

#[test]
fn foreign_crates_stay_behind_their_door() {
    for package in packages() {
        for (foreign, doors) in DOORS {
            let uses = package.dependencies.contains(*foreign);
            assert!(
                !uses || doors.contains(&package.name.as_str()),
                "{} must not depend on {foreign}: only {doors:?} may",
                package.name
            );
        }
        let serves = package.dependencies.contains("axum");
        let may_serve = is_dialect(&package.name) || ["http", "server"].contains(&package.name.as_str());
        assert!(!serves || may_serve, "{} must not know axum", package.name);
    }
}

#[test]
fn the_model_has_no_io_no_clock_and_no_runtime() {
    let model = packages().into_iter().find(|package| package.name == "model").unwrap();
    let foreign: BTreeSet<&str> = model.dependencies.iter().map(String::as_str).collect();
    assert!(foreign.is_subset(&MODEL_FOREIGN.iter().copied().collect()), "{foreign:?}");
    for (path, text) in sources(&model.directory.join("src")) {
        let clock_and_machine = ["SystemTime::now", "Instant::now", "std::fs", "std::process", "std::env", "std::thread"];
        // Addresses are values; sockets and look-ups are not.
        let sockets = ["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs", "std::os::unix::net"];
        for banned in clock_and_machine.into_iter().chain(sockets) {
            assert!(
                !code(&text).contains(banned),
                "{} uses {banned}: the model takes time and randomness as arguments",
                path.display()
            );
        }
    }
}

#[test]
fn only_the_linux_driver_is_unsafe() {
    for package in packages() {
        let manifest = std::fs::read_to_string(package.directory.join("Cargo.toml")).unwrap();
        let own_lints = package.name == "driver-linux";
        assert!(own_lints || manifest.contains("[lints]\nworkspace = true"), "{} must take the workspace's lints", package.name);
        for (path, text) in sources(&package.directory) {
            let uses = code(&text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            assert!(own_lints || !uses, "{} has unsafe code: only driver-linux may", path.display());
        }
    }
}

#[test]
fn what_decides_has_no_wall_clock() {
    let decides = |name: &str| is_dialect(name) || ["model", "store", "control", "http"].contains(&name);
    for package in packages().iter().filter(|package| decides(&package.name)) {
        for (path, text) in sources(&package.directory.join("src")) {
            let own_tests = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
            assert!(
                own_tests || !before_tests(&text).contains("SystemTime::now"),
                "{}: the time is an argument here",
                path.display()
            );
        }
    }
}

/// Every Rust file below `directory`, but what was built.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// A source without its comments and string literals, roughly: enough to tell a keyword from a word in a sentence.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let mut code = String::new();
    for line in lines {
        let outside: Vec<&str> = line.split('"').step_by(2).collect();
        code.push_str(&outside.join(" "));
        code.push('\n');
    }
    code
}

/// What stands before the first test module.
fn before_tests(text: &str) -> String {
    code(text.split("#[cfg(test)]").next().unwrap_or_default())
}
