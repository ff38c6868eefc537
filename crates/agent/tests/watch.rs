//! Watching directories.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use sandbank_agent_protocol::{Connection, ErrorKind, Reply, Request, WatchEvent, WatchEventKind, WatchFiles};
use support::*;

async fn watch(agent: &TestAgent, path: &str, recursive: bool) -> Connection {
    let request = WatchFiles { path: path.into(), user: None, recursive };
    let mut connection = agent.begin(&Request::Watch(request)).await;
    assert_eq!(reply(&mut connection).await, Ok(Reply::Done));
    connection
}

async fn event(connection: &mut Connection) -> WatchEvent {
    match reply(connection).await.unwrap() {
        Reply::Watched(event) => event,
        other => panic!("expected Watched, got {other:?}"),
    }
}

/// Reads events until the one expected comes.
async fn until(connection: &mut Connection, path: &str, kind: WatchEventKind) -> WatchEvent {
    loop {
        let event = event(connection).await;
        if event.path == path && event.kind == kind {
            return event;
        }
    }
}

#[tokio::test]
async fn every_kind_of_change_is_told() {
    let agent = TestAgent::start().await;
    let top = agent.path("top");
    std::fs::create_dir(&top).unwrap();
    let mut watch = watch(&agent, &top, false).await;
    std::fs::write(format!("{top}/a"), "x").unwrap();
    assert_eq!(event(&mut watch).await, WatchEvent { path: "a".into(), kind: WatchEventKind::Create, is_dir: false });
    until(&mut watch, "a", WatchEventKind::Write).await;
    std::fs::set_permissions(format!("{top}/a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    until(&mut watch, "a", WatchEventKind::Chmod).await;
    std::fs::rename(format!("{top}/a"), format!("{top}/b")).unwrap();
    until(&mut watch, "a", WatchEventKind::Rename).await;
    until(&mut watch, "b", WatchEventKind::Create).await;
    std::fs::remove_file(format!("{top}/b")).unwrap();
    until(&mut watch, "b", WatchEventKind::Remove).await;
    std::fs::create_dir(format!("{top}/dir")).unwrap();
    assert!(until(&mut watch, "dir", WatchEventKind::Create).await.is_dir);
    std::fs::write(format!("{top}/dir/unseen"), "").unwrap();
    std::fs::write(format!("{top}/last"), "").unwrap();
    loop {
        let event = event(&mut watch).await;
        assert_ne!(event.path, "dir/unseen", "it was not to look deeper");
        if event.path == "last" {
            break;
        }
    }
}

#[tokio::test]
async fn files_in_directories_made_later_are_not_lost() {
    let agent = TestAgent::start().await;
    let top = agent.path("top");
    std::fs::create_dir_all(format!("{top}/old/deep")).unwrap();
    let mut watch = watch(&agent, &top, true).await;
    std::fs::write(format!("{top}/old/deep/file"), "").unwrap();
    until(&mut watch, "old/deep/file", WatchEventKind::Create).await;
    for round in 0..50 {
        std::fs::create_dir_all(format!("{top}/new{round}/x/y")).unwrap();
        std::fs::write(format!("{top}/new{round}/x/y/file"), "").unwrap();
        until(&mut watch, &format!("new{round}/x/y/file"), WatchEventKind::Create).await;
    }
    std::fs::rename(format!("{top}/old"), format!("{top}/moved")).unwrap();
    until(&mut watch, "moved", WatchEventKind::Create).await;
    until(&mut watch, "moved/deep", WatchEventKind::Create).await;
    std::fs::write(format!("{top}/moved/deep/again"), "").unwrap();
    until(&mut watch, "moved/deep/again", WatchEventKind::Create).await;
}

#[tokio::test]
async fn a_created_file_is_told_of_once() {
    let agent = TestAgent::start().await;
    let top = agent.path("top");
    std::fs::create_dir(&top).unwrap();
    let mut watch = watch(&agent, &top, true).await;
    std::fs::create_dir(format!("{top}/d")).unwrap();
    for n in 0..200 {
        std::fs::write(format!("{top}/d/{n}"), "").unwrap();
    }
    std::fs::write(format!("{top}/end"), "").unwrap();
    let mut created = Vec::new();
    // The scan of `d` may tell of its files before or after the event of `end`.
    while created.len() < 202 {
        let event = event(&mut watch).await;
        if event.kind == WatchEventKind::Create {
            assert!(!created.contains(&event.path), "{} twice", event.path);
            created.push(event.path);
        }
    }
}

#[tokio::test]
async fn lost_events_are_said() {
    let agent = TestAgent::start().await;
    let top = agent.path("top");
    std::fs::create_dir(&top).unwrap();
    let mut watch = watch(&agent, &top, false).await;
    let queue: usize = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let (a, b) = (format!("{top}/a"), format!("{top}/b"));
    std::fs::write(&a, "").unwrap();
    // Each round is two events, and nobody takes them while the socket is full.
    for _ in 0..queue {
        std::fs::rename(&a, &b).unwrap();
        std::fs::rename(&b, &a).unwrap();
    }
    until(&mut watch, "", WatchEventKind::Overflow).await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_and_what_goes_away_is_said() {
    let agent = TestAgent::start().await;
    let request = |path: &str| Request::Watch(WatchFiles { path: path.into(), user: None, recursive: true });
    assert_kind(agent.ask(&request("/no/such/dir")).await, ErrorKind::NotFound, "/no/such/dir");
    assert_kind(agent.ask(&request("/etc/passwd")).await, ErrorKind::WrongKind, "/etc/passwd");
    let top = agent.path("top");
    std::fs::create_dir(&top).unwrap();
    let mut watch = watch(&agent, &top, true).await;
    std::fs::remove_dir(&top).unwrap();
    assert_eq!(event(&mut watch).await, WatchEvent { path: String::new(), kind: WatchEventKind::Remove, is_dir: true });
    assert_kind(reply(&mut watch).await, ErrorKind::NotFound, "top");
}
