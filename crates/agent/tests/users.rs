//! Acting as users of the sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use sandbank_agent_protocol::{
    ErrorKind, ListFiles, MakeDir, OpenMode, PtySize, ReadFile, RemoveFile, Reply, Request, StartProcess, WatchFiles, WriteFile,
};
use support::*;

const STRANGER: &str = "4321:4322";

fn as_user(user: &str, start: StartProcess) -> StartProcess {
    StartProcess { user: Some(user.into()), cwd: Some("/".into()), ..start }
}

fn reading(path: &str, user: &str) -> ReadFile {
    ReadFile { path: path.into(), user: Some(user.into()), offset: 0, length: None }
}

fn writing(path: &str, user: &str) -> WriteFile {
    WriteFile { path: path.into(), user: Some(user.into()), mode: None, open: OpenMode::Replace }
}

#[tokio::test]
async fn a_process_has_its_users_ids_and_no_way_back() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let ran = agent.run(as_user(STRANGER, shell("grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/$$/status"))).await;
    let words: Vec<_> = ran.out().split_whitespace().collect();
    assert_eq!(words[..5], ["Uid:", "4321", "4321", "4321", "4321"]);
    assert_eq!(words[5..10], ["Gid:", "4322", "4322", "4322", "4322"]);
    assert_eq!(words[10..12], ["Groups:", "4322"]);
    assert_eq!(words[12..], ["CapPrm:", "0000000000000000", "CapEff:", "0000000000000000"]);
    let root = agent.shell("id -u; id -g").await;
    assert_eq!(root.out(), "0\n0\n", "the agent is root again");
}

#[tokio::test]
async fn a_named_user_has_its_supplementary_groups_and_home() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let group = std::fs::read_to_string("/etc/group").unwrap();
    let member = group.lines().find_map(|line| {
        let members = line.split(':').nth(3)?;
        members.split(',').find(|name| !name.is_empty() && *name != "root").map(str::to_owned)
    });
    let name = member.unwrap_or_else(|| "nobody".to_owned());
    let expected = String::from_utf8(std::process::Command::new("id").arg(&name).output().unwrap().stdout).unwrap();
    let ran = agent.run(as_user(&name, argv(&["id"]))).await;
    assert_eq!(ran.out(), expected);
    let home = passwd.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap().split(':').nth(5).unwrap();
    let ran = agent.run(as_user(&name, shell("echo $HOME $USER $LOGNAME"))).await;
    assert_eq!(ran.out(), format!("{home} {name} {name}\n"));
}

#[tokio::test]
async fn a_user_cannot_enter_run_or_read_what_is_not_its_own() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let (secret, locked) = (agent.path("secret"), agent.path("locked"));
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o700)).unwrap();
    assert_kind(agent.read(reading(&secret, STRANGER)).await, ErrorKind::Denied, "secret");
    assert_kind(agent.write(writing(&secret, STRANGER), "x").await, ErrorKind::Denied, "secret");
    assert_kind(agent.write(writing(&format!("{locked}/x"), STRANGER), "x").await, ErrorKind::Denied, "locked");
    let list = ListFiles { path: locked.clone(), user: Some(STRANGER.into()), depth: 1, limit: 10 };
    assert_kind(agent.list(list).await, ErrorKind::Denied, "locked");
    let watch = WatchFiles { path: locked.clone(), user: Some(STRANGER.into()), recursive: false };
    assert_kind(agent.ask(&Request::Watch(watch)).await, ErrorKind::Denied, "locked");
    let remove = RemoveFile { path: secret.clone(), user: Some(STRANGER.into()), recursive: false };
    assert_kind(agent.ask(&Request::Remove(remove)).await, ErrorKind::Denied, "secret");
    let start = StartProcess { user: Some(STRANGER.into()), cwd: Some(locked), ..argv(&["true"]) };
    assert_eq!(agent.refused(start).await.kind, ErrorKind::Denied);
    assert_eq!(agent.refused(as_user(STRANGER, argv(&[&secret]))).await.kind, ErrorKind::Denied);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "root's");
}

#[tokio::test]
async fn what_a_user_makes_is_its_own() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let home = agent.path("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(4321), Some(4322)).unwrap();
    let path = format!("{home}/a/b/file");
    let written = agent.write(writing(&path, STRANGER), "x").await.unwrap();
    assert_eq!((written.uid, written.gid, written.owner.as_str()), (4321, 4322, "4321"));
    assert_eq!(std::fs::metadata(format!("{home}/a")).unwrap().uid(), 4321);
    let make = MakeDir { path: format!("{home}/d/e"), user: Some(STRANGER.into()), mode: None, exclusive: true };
    let Ok(Reply::Stat(made)) = agent.ask(&Request::MakeDir(make)).await else { panic!("expected Stat") };
    assert_eq!((made.uid, made.gid), (4321, 4322));
    std::fs::write(format!("{home}/by-root"), "old").unwrap();
    assert_kind(agent.write(writing(&format!("{home}/by-root"), STRANGER), "x").await, ErrorKind::Denied, "by-root");
}

#[tokio::test]
async fn a_file_in_a_directory_that_may_not_be_written_is_still_replaced() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let path = agent.path("mine");
    std::fs::write(&path, "old and longer").unwrap();
    chown(&path, Some(4321), Some(4322)).unwrap();
    agent.write(writing(&path, STRANGER), "new").await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    let mut connection = agent.begin(&Request::Write(writing(&path, STRANGER))).await;
    connection.send_data("lost".into()).await.unwrap();
    drop(connection);
    assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
}

#[tokio::test]
async fn a_terminal_belongs_to_its_user() {
    if !is_root() {
        return skipped("acting as another user needs root");
    }
    let agent = TestAgent::start().await;
    let start = StartProcess {
        pty: Some(PtySize { cols: 80, rows: 24 }),
        ..as_user(STRANGER, shell("stat -c '%u %g %a' $(tty); echo ok > $(tty)"))
    };
    let ran = agent.run(start).await;
    assert_eq!(String::from_utf8_lossy(&ran.pty), "4321 4322 620\r\nok\r\n");
}

#[tokio::test]
async fn an_agent_without_root_refuses_other_users() {
    if !is_root() {
        return skipped("becoming an ordinary user first needs root");
    }
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let binary = dir.path().join("agent");
    std::fs::copy(env!("CARGO_BIN_EXE_sandbank-agent"), &binary).unwrap();
    let socket = dir.path().join("agent.sock");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=4321", "--regid=4322", "--clear-groups"]).arg(&binary).arg("--listen").arg(&socket);
    let agent = TestAgent::launch(dir, socket, command).await;
    assert_eq!(agent.run(argv(&["id", "-u"])).await.out(), "4321\n");
    assert_eq!(agent.run(StartProcess { user: Some("4321".into()), ..argv(&["id", "-u"]) }).await.out(), "4321\n");
    let error = agent.refused(StartProcess { user: Some("root".into()), ..argv(&["true"]) }).await;
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message.contains("without root"), "{}", error.message);
}
