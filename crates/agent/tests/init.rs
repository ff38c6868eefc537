//! The agent as process 1 of a pid namespace, and with an inherited socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use sandbank_agent_protocol::{Reply, Request};
use support::*;
use tempfile::TempDir;

async fn process_one() -> Option<TestAgent> {
    unshared(&["-p", "-f", "--mount-proc"]).await
}

async fn unshared(namespaces: &[&str]) -> Option<TestAgent> {
    if !is_root() {
        skipped("a pid namespace needs root");
        return None;
    }
    let works = Command::new("unshare").args(namespaces).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        skipped(&format!("unshare {} does not work here", namespaces.join(" ")));
        return None;
    }
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = dir.path().join("agent.sock");
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["--kill-child", env!("CARGO_BIN_EXE_sandbank-agent"), "--listen"]).arg(&socket);
    Some(TestAgent::launch(dir, socket, command).await)
}

#[tokio::test]
async fn orphans_are_adopted_and_reaped() {
    let Some(agent) = process_one().await else { return };
    agent.shell("for i in 1 2 3 4 5; do (sleep 0.05 &) ; done").await;
    let zombies = "ps -eo stat=,ppid= | grep -c '^Z' ; ps -eo pid= | wc -l";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The agent, the shell, `ps` and what counts its lines.
    while agent.shell(zombies).await.out().split_whitespace().collect::<Vec<_>>() != ["0", "4"] {
        assert!(tokio::time::Instant::now() < deadline, "zombies are left");
    }
}

#[tokio::test]
async fn nothing_inside_can_kill_trace_or_read_process_one() {
    let Some(agent) = process_one().await else { return };
    let ran = agent.shell("kill -9 1; kill -TERM 1; kill -INT 1; kill -HUP 1; kill -USR1 1; kill -STOP 1; kill -SEGV 1; kill -BUS 1; kill -SEGV 1; kill -CHLD 1; echo sent").await;
    assert_eq!(ran.out(), "sent\n");
    assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { .. })));
    let user = sandbank_agent_protocol::StartProcess {
        user: Some("4321".into()),
        ..shell("cat /proc/1/environ /proc/1/maps; ls /proc/1/fd; kill -9 1")
    };
    let ran = agent.run(user).await;
    assert_eq!(ran.out(), "", "a user may read the agent");
    assert_ne!(ran.code(), 0);
}

#[tokio::test]
async fn processes_are_the_ones_to_die_when_memory_runs_out() {
    let Some(agent) = process_one().await else { return };
    let ran = agent.shell("sleep 0.05; cat /proc/$$/oom_score_adj").await;
    assert_eq!(ran.out(), "500\n");
}

#[tokio::test]
async fn shutdown_ends_everything() {
    let Some(agent) = process_one().await else { return };
    let (_, mut connection) = agent.spawn(shell("setsid sleep 1000 & setsid sleep 1000 & echo started; wait")).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "started").await;
    assert_eq!(agent.ask(&Request::Shutdown).await, Ok(Reply::Done));
    eventually("the namespace is gone", || !is_alive(agent.pid())).await;
}

#[tokio::test]
async fn a_fork_bomb_does_not_stop_the_agent_from_serving() {
    let Some(agent) = process_one().await else { return };
    // A limit on the user's processes stands in for the sandbox's pids limit.
    let script = "ulimit -u 60; b() { b | b & }; b; sleep 0.3; echo over";
    let start = sandbank_agent_protocol::StartProcess { user: Some("4323".into()), ..argv(&["bash", "-c", script]) };
    let (_, connection) = agent.spawn(start).await;
    for _ in 0..50 {
        assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { .. })));
    }
    drop(connection);
    assert_eq!(agent.ask(&Request::Shutdown).await, Ok(Reply::Done));
    eventually("the namespace is gone", || !is_alive(agent.pid())).await;
}

#[tokio::test]
async fn an_inherited_socket_is_served_and_kept_from_children() {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = dir.path().join("agent.sock");
    // Python hands descriptor 3 over as a driver does.
    let script = "import os,socket,sys\n\
                  s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(64)\n\
                  os.dup2(s.fileno(), 3) if s.fileno() != 3 else os.set_inheritable(3, True)\n\
                  os.execv(sys.argv[2], ['sandbank-agent', '--listen-fd', '3'])";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(&socket).arg(env!("CARGO_BIN_EXE_sandbank-agent"));
    let agent = TestAgent::launch(dir, socket, command).await;
    let ran = agent.run(argv(&["ls", "-l", "/proc/self/fd"])).await;
    assert!(!ran.out().contains("socket"), "{}", ran.out());
    assert!(agent.run(argv(&["env"])).await.out().lines().all(|line| !line.starts_with("LISTEN")));
}

#[tokio::test]
async fn a_user_that_the_namespace_does_not_map_is_refused_and_root_still_works() {
    let Some(agent) = unshared(&["-U", "-r", "-p", "-f", "--mount-proc"]).await else { return };
    let start = sandbank_agent_protocol::StartProcess { user: Some("4321".into()), ..argv(&["true"]) };
    let error = agent.refused(start).await;
    assert!(error.message.contains("not mapped into this sandbox"), "{}", error.message);
    let ran = agent.run(argv(&["id", "-u"])).await;
    assert_eq!(ran.out(), "0\n");
}
