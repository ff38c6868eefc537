//! Credentials for registries from the command line, and where they are not found afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use support::{Ended, Server, can_run};

const SECRET: &str = "correct-horse-battery-staple";

/// Files below `directory` that hold `text`.
fn holding(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in support::names(directory) {
        let path = directory.join(name);
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).contains(text) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn credentials_are_kept_over_a_restart_and_readable_nowhere() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    let login = ["registry", "login", "GHCR.io", "-u", "me", "--password-stdin"];
    assert_eq!(server.feed(&login, format!("{SECRET}\n").as_bytes()).ok(), "ghcr.io\n");
    let by_variable =
        |words: &[&str]| -> Ended { server.command(words).env("SANDBANK_REGISTRY_PASSWORD", SECRET).output().unwrap().into() };
    let made = by_variable(&["registry", "login", "index.docker.io", "--token", "--global", "--json"]).ok();
    assert!(made.contains("\"docker.io\"") && !made.contains(SECRET), "{made}");
    assert_eq!(std::fs::metadata(server.data().join("secret.key")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(server.terminate(), 0);
    server.start_again();
    let listed = server.json("registry list");
    assert_eq!(listed["total"], 2);
    let (docker, ghcr) = (&listed["items"][0], &listed["items"][1]);
    assert_eq!((&docker["host"], &docker["kind"], &docker["global"]), (&"docker.io".into(), &"token".into(), &true.into()));
    assert_eq!((&ghcr["host"], &ghcr["username"], &ghcr["global"]), (&"ghcr.io".into(), &"me".into(), &false.into()));
    let table = server.cli("registry list").ok();
    assert!(table.starts_with("HOST") && table.contains("ghcr.io"), "{table}");
    let found = holding(&server.data(), SECRET);
    assert!(found.is_empty(), "{found:?}");
    assert!(!server.log().contains(SECRET));
    assert_eq!(server.cli("registry logout ghcr.io").ok(), "ghcr.io\n");
    server.cli("registry logout --global docker.io").ok();
    assert_eq!(server.cli("registry list").ok().lines().count(), 1);
    server.finish();
}

#[test]
fn a_login_that_cannot_be_is_told() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let refused = server.cli("registry login ghcr.io -u me").fails(2);
    assert!(refused.contains("--password-stdin") && refused.contains("SANDBANK_REGISTRY_PASSWORD"), "{refused}");
    let stdin = |host: &str, input: &[u8]| server.feed(&["registry", "login", host, "-u", "me", "--password-stdin"], input);
    stdin("ghcr.io", b"\n").fails(2);
    stdin("ghcr.io", &[b'x'; 70_000]).fails(2);
    let refused = stdin("https://ghcr.io", SECRET.as_bytes()).fails(1);
    assert!(refused.contains("no registry") && !refused.contains(SECRET), "{refused}");
    let refused = server.cli("registry logout ghcr.io").fails(1);
    assert!(refused.contains("no credentials for registry ghcr.io"), "{refused}");
    // Another tenant sees neither, and may not keep any for everybody.
    stdin("ghcr.io", SECRET.as_bytes()).ok();
    let key = server.cli("key create --team red --user eve").ok().trim().to_owned();
    let as_eve = |words: &[&str]| -> Ended {
        let mut command = server.command(words);
        command.env("SANDBANK_URL", server.url()).env("SANDBANK_KEY", &key).env("SANDBANK_REGISTRY_PASSWORD", "x");
        command.output().unwrap().into()
    };
    assert_eq!(as_eve(&["registry", "list"]).ok().lines().count(), 1);
    as_eve(&["registry", "logout", "ghcr.io"]).fails(1);
    as_eve(&["registry", "login", "ghcr.io", "-u", "eve", "--global"]).fails(1);
    as_eve(&["registry", "login", "ghcr.io", "-u", "eve"]).ok();
    server.finish();
}
