//! The server goes and comes back; the sandboxes stay (design.md §7, invariants 2 and 3).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::{Server, can_run, launcher_of, wait_for};

fn survives(end: impl FnOnce(&mut Server)) {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    server.pool("base", 2);
    let kept = server.claim("base --metadata who=me");
    let paused = server.claim("base");
    server
        .words(&["exec", &kept, "--", "sh", "-c", "echo before > /tmp/state; (while :; do sleep 1; done) & echo $! > /tmp/pid"])
        .ok();
    server.words(&["pause", &paused]).ok();
    server.wait_warm("base", 2);
    let warm: Vec<String> = server.on_disk();
    end(&mut server);
    server.start_again();
    let shown = server.json("ps");
    let item = |id: &str| {
        shown["items"].as_array().unwrap().iter().find(|item| item["sandboxId"] == id).expect("it is still there").clone()
    };
    assert_eq!((&item(&kept)["status"], &item(&kept)["metadata"]["who"]), (&"Running".into(), &"me".into()));
    assert_eq!(item(&paused)["state"], "paused");
    // The same processes, not others in their place.
    let said = server.words(&["exec", &kept, "--", "sh", "-c", "cat /tmp/state; kill -0 $(cat /tmp/pid) && echo alive"]);
    assert_eq!(said.ok(), "before\nalive\n");
    server.words(&["resume", &paused]).ok();
    assert_eq!(server.words(&["exec", &paused, "--", "echo", "thawed"]).ok(), "thawed\n");
    server.wait_warm("base", 2);
    let mut after = server.on_disk();
    let mut before = warm;
    before.sort();
    after.sort();
    assert_eq!(after, before, "warm ones were taken over, not made again");
    assert_ne!(server.claim("base"), kept);
    server.finish();
}

#[test]
fn sandboxes_outlive_a_server_that_is_told_to_stop() {
    survives(|server| assert_eq!(server.terminate(), 0));
}

#[test]
fn sandboxes_outlive_a_server_that_is_killed() {
    survives(Server::kill);
}

#[test]
fn a_launcher_that_is_killed_is_replaced_and_nothing_is_lost() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    server.pool("base", 1);
    let kept = server.claim("base");
    server.wait_warm("base", 1);
    let launcher = launcher_of(server.pid()).expect("a launcher runs");
    support::send(launcher, rustix::process::Signal::KILL);
    assert_eq!(server.words(&["exec", &kept, "--", "echo", "here"]).ok(), "here\n");
    assert_eq!(server.words(&["run", "--image", "host", "--", "echo", "made anew"]).ok(), "made anew\n");
    server.wait_warm("base", 1);
    server.finish();
}

#[test]
fn what_expired_while_the_server_was_away_is_not_served() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base --timeout 2s");
    server.words(&["exec", &id, "--", "true"]).ok();
    server.kill();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    server.start_again();
    server.words(&["exec", &id, "--", "true"]).fails(125);
    wait_for("it to be gone", || (!server.on_disk().contains(&id)).then_some(()));
    server.finish();
}

#[test]
fn a_second_signal_ends_at_once() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    server.pool("base", 1);
    let id = server.claim("base");
    // A stream that would hold the server up for its whole grace.
    let mut stream = server.command(["exec", &id, "--", "sleep", "60"]).spawn().unwrap();
    wait_for("the program to run", || {
        let found = server.words(&["exec", &id, "--", "sh", "-c", "grep -l sleep /proc/[0-9]*/comm"]);
        found.stdout.lines().next().map(|_| ())
    });
    server.signal(rustix::process::Signal::TERM);
    server.signal(rustix::process::Signal::TERM);
    wait_for("the server to end", || (!std::path::Path::new(&format!("/proc/{}/exe", server.pid())).exists()).then_some(()));
    let _ = stream.wait();
    server.reap();
    server.start_again();
    server.finish();
}
