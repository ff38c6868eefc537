//! The command line from end to end, with real sandboxes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Server, can_run, wait_for};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/app")
}

#[test]
fn a_real_program_of_several_files_runs_in_a_claimed_sandbox() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 2);
    let id = server.claim("base --metadata job=words --timeout 10m");
    server.words(&["cp", "--user", "user", fixture().to_str().unwrap(), &format!("{id}:/home/user/")]).ok();
    let ran = server.words(&["exec", "-u", "user", "-w", "/home/user/app", &id, "--", "python3", "main.py"]);
    assert_eq!(ran.stdout, "counted 10 words, 7 different\n", "{ran:?}");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "a line on standard error\n"));
    let out = tempfile::tempdir().unwrap();
    server.words(&["cp", &format!("{id}:/home/user/app/out"), out.path().to_str().unwrap()]).ok();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(out.path().join("out/report.json")).unwrap()).unwrap();
    assert_eq!(report["words"]["sand"], 3);
    assert_eq!(report["words"]["砂"], 1);
    assert_eq!((&report["child"], &report["separate"], &report["uid"]), (&"FROM THE PARENT".into(), &true.into(), &1000.into()));
    // The claimed one was replaced in the pool, and the holder's words are kept.
    server.wait_warm("base", 2);
    let shown = server.json("ps");
    assert_eq!(shown["items"][0]["sandboxId"], id.as_str());
    assert_eq!(shown["items"][0]["metadata"]["job"], "words");
    server.words(&["rm", &id]).ok();
    let refused = server.words(&["exec", &id, "--", "true"]).fails(125);
    assert!(refused.contains(&id), "{refused}");
    server.finish();
}

#[test]
fn run_ends_with_the_programs_own_code_and_gives_the_sandbox_back() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 2);
    assert_eq!(server.words(&["run", "base", "--", "sh", "-c", "printf out; printf err >&2; exit 7"]).code, 7);
    assert_eq!(server.words(&["run", "base", "--", "sh", "-c", "kill -9 $$"]).code, 128 + 9);
    let said = server.words(&["run", "-e", "GREETING=hallo welt", "-w", "/tmp", "base", "--", "sh", "-c", "echo $GREETING; pwd"]);
    assert_eq!(said.ok(), "hallo welt\n/tmp\n");
    assert_eq!(server.words(&["run", "--image", "base", "--", "echo", "an alias"]).ok(), "an alias\n");
    // Bytes go through as they are, both streams, also without a line end.
    let raw = server.words(&["run", "base", "--", "printf", "\\001\\377"]);
    assert_eq!(raw.code, 0);
    let fed = server.feed(&["run", "-i", "base", "--", "wc", "-c"], &vec![b'x'; 3_000_000]);
    assert_eq!(fed.ok().trim(), "3000000");
    let refused = server.words(&["run", "nowhere", "--", "true"]).fails(125);
    assert!(refused.contains("nowhere"), "{refused}");
    let missing = server.words(&["run", "base", "--", "no-such-program"]);
    assert!(missing.code >= 125 && missing.stderr.contains("no-such-program"), "{missing:?}");
    wait_for("all to be given back", || server.json("ps")["items"].as_array().unwrap().is_empty().then_some(()));
    server.finish();
}

#[test]
fn an_interrupt_reaches_the_program_and_the_sandbox_is_given_back() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut child = server
        .command(["run", "base", "--", "sh", "-c", script])
        .stdout(out.reopen().unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(out.path()).unwrap();
    wait_for("the program to run", || said().contains("ready").then_some(()));
    support::send(child.id(), rustix::process::Signal::INT);
    let status = wait_for("run to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    assert!(said().contains("caught"));
    wait_for("it to be given back", || server.json("ps")["items"].as_array().unwrap().is_empty().then_some(()));
    server.finish();
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let mut child = server.command(["run", "base", "--", "yes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 4];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    drop(stdout);
    let status = wait_for("run to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(141));
    wait_for("it to be given back", || server.json("ps")["items"].as_array().unwrap().is_empty().then_some(()));
    server.finish();
}

#[test]
fn cp_keeps_content_modes_and_trees_both_ways() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base");
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("a tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    let content: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(tree.join("deep/er/big.bin"), &content).unwrap();
    std::fs::write(tree.join("empty"), b"").unwrap();
    std::fs::write(tree.join("run.sh"), b"#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(tree.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    let path = |inside: &str| format!("{id}:{inside}");
    let copied = server.words(&["cp", tree.to_str().unwrap(), &path("/srv/tree")]);
    assert!(copied.stderr.contains("1 symbolic links"), "{copied:?}");
    copied.ok();
    assert_eq!(server.words(&["exec", &id, "--", "/srv/tree/run.sh"]).ok(), "ran\n");
    server.words(&["cp", &path("/srv/tree"), here.path().join("back").to_str().unwrap()]).ok();
    assert_eq!(std::fs::read(here.path().join("back/deep/er/big.bin")).unwrap(), content);
    assert_eq!(std::fs::read(here.path().join("back/empty")).unwrap(), b"");
    let mode = std::fs::metadata(here.path().join("back/run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // Standard streams, and a name in an existing directory.
    server.feed(&["cp", "-", &path("/tmp/note")], "über\n".as_bytes()).ok();
    assert_eq!(server.words(&["cp", &path("/tmp/note"), "-"]).ok(), "über\n");
    server.words(&["cp", &path("/tmp/note"), here.path().to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(here.path().join("note")).unwrap(), "über\n");
    let refused = server.words(&["cp", &path("/nowhere"), "-"]).fails(1);
    assert!(refused.contains("/nowhere"), "{refused}");
    server.words(&["cp", "a", "b"]).fails(2);
    server.finish();
}

#[test]
fn pause_resume_renew_and_expiry_do_what_they_say() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base");
    server.words(&["exec", &id, "--", "sh", "-c", "echo kept > /tmp/state"]).ok();
    server.words(&["pause", &id]).ok();
    assert_eq!(server.json("ps")["items"][0]["state"], "paused");
    let refused = server.words(&["exec", &id, "--", "true"]).fails(125);
    assert!(refused.to_lowercase().contains("paused"), "{refused}");
    let refused = server.words(&["pause", &id]);
    assert!(refused.code == 0 || refused.stderr.to_lowercase().contains("paused"), "{refused:?}");
    server.words(&["resume", &id]).ok();
    assert_eq!(server.words(&["exec", &id, "--", "cat", "/tmp/state"]).ok(), "kept\n");
    assert!(server.words(&["renew", &id, "--timeout", "1h"]).ok().contains("in 59m"));
    server.words(&["renew", &id]).fails(2);
    server.words(&["renew", &id, "--timeout", "300ms"]).ok();
    wait_for("it to expire", || {
        let ended = server.json("ps --all");
        let item = ended["items"].as_array()?.iter().find(|item| item["sandboxId"] == id.as_str())?.clone();
        (item["status"] == "Released").then_some(())
    });
    server.words(&["exec", &id, "--", "true"]).fails(125);
    let kinds = server.json(&format!("events {id}"));
    assert!(kinds["items"].as_array().unwrap().len() >= 5, "{kinds}");
    server.finish();
}

#[test]
fn what_a_sandbox_may_reach_is_shown_and_changed() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 2);
    let id = server.claim("base");
    // A closed policy holds with every driver, whether it gives sandboxes a network or not.
    let closed = server.words(&["network", "set", &id, "--no-internet"]).ok();
    assert!(closed.contains("internet  no"), "{closed}");
    let shown = server.json(&format!("network show {id}"));
    assert_eq!(shown["network"]["internet"], false);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.json");
    std::fs::write(&file, shown.to_string()).unwrap();
    server.words(&["network", "set", &id, "--file", file.to_str().unwrap()]).ok();
    let events = server.json(&format!("events {id}"));
    let changed = events["items"].as_array().unwrap().iter().filter(|event| event["type"] == "network-changed").count();
    assert_eq!(changed, 2, "{events}");
    let refused = server.words(&["network", "set", &id, "--allow", "packages.example.com", "--allow", "10.0.0.0/33"]).fails(1);
    assert!(refused.contains("network.allow[1]") && refused.contains("10.0.0.0/33"), "{refused}");
    server.words(&["network", "show", "01890000-0000-7000-8000-000000000000"]).fails(1);
    server.words(&["run", "base", "--no-internet", "--", "true"]).ok();
    server.words(&["template", "create", "closed", "--image", "host", "--no-internet"]).ok();
    assert_eq!(server.json("template show closed")["template"]["spec"]["network"]["internet"], false);
    server.words(&["pool", "create", "shut", "--image", "host", "--replicas", "0", "--no-internet"]).ok();
    assert_eq!(server.json("pool show shut")["template"]["network"]["internet"], false);
    server.finish();
}

#[test]
fn what_a_sandbox_changed_becomes_an_image() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base");
    server.words(&["exec", &id, "--", "sh", "-c", "mkdir -p /srv/app && echo v1 > /srv/app/version"]).ok();
    assert_eq!(server.words(&["commit", &id, "team/app:1"]).ok().trim(), "team/app:1");
    assert_eq!(server.words(&["run", "--image", "team/app:1", "--", "cat", "/srv/app/version"]).ok(), "v1\n");
    assert!(server.cli("image list").ok().contains("team/app:1"));
    wait_for("nothing to use it", || (server.words(&["image", "delete", "team/app:1"]).code == 0).then_some(()));
    server.words(&["run", "--image", "team/app:1", "--", "true"]).fails(125);
    server.finish();
}

#[test]
fn a_snapshot_and_forks_carry_on_from_a_sandboxs_files() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base");
    let count = |of: &str| server.words(&["exec", of, "--", "sh", "-c", "echo x >> /srv/count; wc -l < /srv/count"]).ok();
    assert_eq!(count(&id).trim(), "1");
    let snapshot = server.words(&["snapshot", "create", &id, "work:one"]).ok();
    assert_eq!(count(&id).trim(), "2", "it goes on");
    let forks = server.words(&["fork", &id, "-n", "2", "--timeout", "5m"]).ok();
    let forks: Vec<&str> = forks.lines().collect();
    assert_eq!(forks.len(), 2, "{forks:?}");
    for fork in &forks {
        assert_eq!(count(fork).trim(), "3");
    }
    assert_eq!(count(&id).trim(), "3", "each counts for itself");
    for name in ["work:one", snapshot.trim()] {
        assert_eq!(server.words(&["run", "--image", name, "--", "wc", "-l", "/srv/count"]).ok().trim(), "1 /srv/count");
    }
    // A pool of it has it ready, and keeps it.
    server.words(&["pool", "create", "warm", "--image", "work:one", "--replicas", "1"]).ok();
    assert_eq!(server.words(&["run", "warm", "--", "wc", "-l", "/srv/count"]).ok().trim(), "1 /srv/count");
    assert!(server.cli("snapshot list").ok().contains("work:one"));
    let refused = server.cli("snapshot delete work:one").fails(1);
    assert!(refused.contains("work:one is in use by"), "{refused}");
    server.cli("pool delete warm").ok();
    wait_for("nothing to use it", || (server.cli("snapshot delete work:one").code == 0).then_some(()));
    server.words(&["run", "--image", snapshot.trim(), "--", "true"]).fails(125);
    server.finish();
}

#[test]
fn logs_and_events_are_followed_until_the_sandbox_or_the_person_ends_it() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    // It goes on only when told to, so what comes afterwards came as it happened.
    let script = "echo one; echo two; echo three; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo four; exec sleep 1000";
    let body = serde_json::json!({ "image": "host", "command": ["sh", "-c", script] }).to_string();
    let (status, made) = support::http(&server.address(), &server.key(), "POST", "/v1/sandboxes", &body).unwrap();
    let id = made["sandbox"]["sandboxId"].as_str().unwrap_or_else(|| panic!("{status}: {made}")).to_owned();
    let out = tempfile::NamedTempFile::new().unwrap();
    let said = || std::fs::read_to_string(out.path()).unwrap();
    let follow = |words: &[&str]| {
        out.as_file().set_len(0).unwrap();
        let to = std::fs::File::options().append(true).open(out.path()).unwrap();
        server.command(words).stdout(to).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut logs = follow(&["logs", "-f", &id]);
    wait_for("what was written before", || (said() == "one\ntwo\nthree\n").then_some(()));
    // What -n leaves out is not called lost.
    let last = server.words(&["logs", "-n", "2", &id]);
    assert_eq!((last.stdout.as_str(), last.stderr.as_str(), last.code), ("two\nthree\n", "", 0));
    server.words(&["exec", &id, "--", "touch", "/tmp/go"]).ok();
    wait_for("the next line", || said().ends_with("three\nfour\n").then_some(()));
    support::send(logs.id(), rustix::process::Signal::INT);
    let ended = end_of(&mut logs);
    assert_eq!((ended.code, ended.stderr.as_str()), (1000 + 2, ""), "SIGINT ends it, and nothing is said");
    let mut events = follow(&["events", "-f", &id]);
    wait_for("the events so far", || said().contains("claimed").then_some(()));
    server.words(&["pause", &id]).ok();
    wait_for("the next event", || said().contains("paused").then_some(()));
    server.words(&["resume", &id]).ok();
    support::send(events.id(), rustix::process::Signal::INT);
    assert_eq!(end_of(&mut events).code, 1000 + 2);
    let mut logs = follow(&["logs", "-f", &id]);
    wait_for("all lines", || said().ends_with("four\n").then_some(()));
    server.words(&["rm", &id]).ok();
    assert_eq!(end_of(&mut logs).code, 0, "the sandbox's end is the log's");
    server.finish();
}

/// Waits for a client command that was started before.
fn end_of(child: &mut std::process::Child) -> support::Ended {
    let status = wait_for("the command to end", || child.try_wait().unwrap());
    let mut stderr = Vec::new();
    std::io::Read::read_to_end(child.stderr.as_mut().unwrap(), &mut stderr).unwrap();
    std::process::Output { status, stdout: Vec::new(), stderr }.into()
}

#[test]
fn a_root_file_system_is_imported_from_a_directory_and_from_an_archive() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let here = tempfile::tempdir().unwrap();
    let root = here.path().join("root");
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/motd"), "imported\n").unwrap();
    server.words(&["image", "import", "bare:1", root.to_str().unwrap()]).ok();
    let archive = here.path().join("root.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&archive).unwrap());
    builder.append_dir_all(".", &root).unwrap();
    builder.finish().unwrap();
    server.words(&["image", "import", "bare:2", archive.to_str().unwrap()]).ok();
    let id = server.words(&["image", "list", "--json"]).ok();
    assert!(id.contains("bare:1") && id.contains("bare:2"), "{id}");
    let refused = server.words(&["image", "import", "bare:3", "/nowhere.tar"]).fails(1);
    assert!(refused.contains("/nowhere.tar"), "{refused}");
    server.finish();
}

#[test]
fn templates_pools_and_keys_are_managed_from_the_command_line() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.cli("template create trainer --image host --cpu 500m --memory 128Mi -e MODE=fast").ok();
    assert!(server.cli("template list").ok().contains("trainer"));
    server.cli("pool create jobs --template trainer --replicas 1 --max 4").ok();
    server.wait_warm("jobs", 1);
    assert_eq!(server.words(&["run", "jobs", "--", "sh", "-c", "echo $MODE"]).ok(), "fast\n");
    server.cli("pool scale jobs 2").ok();
    server.wait_warm("jobs", 2);
    let refused = server.cli("pool create jobs --template trainer --replicas 1").fails(1);
    assert!(refused.contains("jobs") && refused.contains("exists"), "{refused}");
    let refused = server.cli("pool create x --template nothing --replicas 1").fails(1);
    assert!(refused.contains("nothing"), "{refused}");
    server.cli("pool create y --image host --replicas 5 --max 2").fails(1);
    // A key of another tenant opens its own objects only.
    let key = server.cli("key create --team red --user eve").ok().trim().to_owned();
    let as_eve = |line: &str| -> support::Ended {
        server.command(line.split(' ')).env("SANDBANK_URL", server.url()).env("SANDBANK_KEY", &key).output().unwrap().into()
    };
    assert_eq!(as_eve("pool list").ok().lines().count(), 1);
    as_eve("pool show jobs").fails(1);
    as_eve("claim jobs").fails(1);
    let keys = server.json("key list --all");
    let eve = keys["items"].as_array().unwrap().iter().find(|key| key["user"] == "eve").unwrap().clone();
    assert!(eve.get("apiKey").is_none());
    server.words(&["key", "revoke", eve["keyId"].as_str().unwrap()]).ok();
    let refused = as_eve("pool list").fails(1);
    assert!(refused.contains("key"), "{refused}");
    server.cli("pool delete jobs").ok();
    wait_for("the pool to go", || (server.cli("pool show jobs").code == 1).then_some(()));
    server.cli("template delete trainer").ok();
    server.finish();
}

#[test]
fn env_prints_lines_that_a_shell_understands() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let lines = server.cli("env native").ok();
    let script = format!("{lines}\n{} ps --json", support::BINARY);
    let output = std::process::Command::new("sh").arg("-c").arg(script).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.finish();
}

#[test]
fn doctor_tells_about_this_machine() {
    let ended: support::Ended = support::sandbank().arg("doctor").output().unwrap().into();
    let text = ended.ok();
    assert!(text.lines().count() > 5 && text.contains("ok"), "{text}");
    let ended: support::Ended = support::sandbank().args(["doctor", "--json"]).output().unwrap().into();
    let checks: Value = serde_json::from_str(&ended.ok()).unwrap();
    assert!(checks["checks"].as_array().unwrap().iter().all(|check| check["status"].is_string()));
}
