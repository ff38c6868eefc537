//! Processes on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use sandbank_agent_protocol::{ErrorKind, HostMessage, ProcessSelector, PtySize, Reply, Request, ResizePty, StartProcess};
use support::*;

fn on_terminal(start: StartProcess) -> StartProcess {
    StartProcess { pty: Some(PtySize { cols: 91, rows: 33 }), ..start }
}

fn text(ran: &Ran) -> String {
    String::from_utf8_lossy(&ran.pty).replace('\r', "")
}

#[tokio::test]
async fn a_terminal_has_the_size_asked_for_and_is_the_controlling_one() {
    let agent = TestAgent::start().await;
    let script = "stty size; tty; ps -o tpgid= -p $$ | tr -d ' '; echo $$; echo $TERM; echo to-stderr >&2; exit 6";
    let ran = agent.run(on_terminal(shell(script))).await;
    let out = text(&ran);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "33 91");
    assert!(lines[1].starts_with("/dev/pts/"), "{out}");
    assert_eq!(lines[2], lines[3], "the program leads the foreground group: {out}");
    assert_eq!(lines[4..], ["xterm-256color", "to-stderr"]);
    assert_eq!(ran.code(), 6);
    assert!(ran.stdout.is_empty() && ran.stderr.is_empty());
}

#[tokio::test]
async fn a_terminal_echoes_and_can_be_resized() {
    let agent = TestAgent::start().await;
    let script = "trap 'echo resized' WINCH; echo ready; while :; do read -r line && { echo \"got $line\"; stty size; }; done";
    let (pid, mut connection) = agent.spawn(on_terminal(argv(&["/bin/bash", "-c", script]))).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "ready").await;
    connection.send_data("hello\n".into()).await.unwrap();
    collect_until(&mut connection, &mut ran, "got hello").await;
    assert!(text(&ran).contains("hello\ngot hello"), "{}", text(&ran));
    connection.send(&HostMessage::Resize(PtySize { cols: 10, rows: 20 })).await.unwrap();
    connection.send_data("\n".into()).await.unwrap();
    collect_until(&mut connection, &mut ran, "resized").await;
    connection.send_data("\n".into()).await.unwrap();
    collect_until(&mut connection, &mut ran, "20 10").await;
    let resize = ResizePty { process: ProcessSelector::Pid(pid), size: PtySize { cols: 7, rows: 8 } };
    assert_eq!(agent.ask(&Request::Resize(resize)).await, Ok(Reply::Done));
    connection.send_data("\n".into()).await.unwrap();
    collect_until(&mut connection, &mut ran, "8 7").await;
    connection.send(&HostMessage::Signal { signal: 9, group: true }).await.unwrap();
    assert_eq!(collect(&mut connection).await.exit.unwrap().signal, Some(9));
}

#[tokio::test]
async fn control_c_interrupts_and_the_end_of_input_is_typed() {
    let agent = TestAgent::start().await;
    let (_, mut connection) = agent.spawn(on_terminal(argv(&["sleep", "1000"]))).await;
    connection.send_data("\u{3}".into()).await.unwrap();
    assert_eq!(collect(&mut connection).await.exit.unwrap().signal, Some(2));
    let (pid, mut connection) = agent.spawn(on_terminal(argv(&["cat"]))).await;
    assert_eq!(agent.ask(&Request::CloseStdin(ProcessSelector::Pid(pid))).await, Ok(Reply::Done));
    assert_eq!(collect(&mut connection).await.code(), 0);
}

#[tokio::test]
async fn a_terminal_can_be_attached_to() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(on_terminal(shell("echo one; cat"))).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "one").await;
    drop(connection);
    let mut again = agent.begin(&attach(pid, Some(0))).await;
    let Reply::Attached { stdout_offset: 0, pty: true, .. } = reply(&mut again).await.unwrap() else {
        panic!("expected Attached at 0 on a terminal")
    };
    again.send_data("two\n".into()).await.unwrap();
    let mut ran = Ran::default();
    collect_until(&mut again, &mut ran, "two\r\ntwo").await;
    assert!(text(&ran).starts_with("one\n"), "{}", text(&ran));
}

#[tokio::test]
async fn a_missing_program_is_refused_before_a_terminal_is_opened() {
    let agent = TestAgent::start().await;
    let error = agent.refused(on_terminal(argv(&["no-such-program"]))).await;
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("no-such-program"));
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_says_so_on_the_terminal() {
    let agent = TestAgent::start().await;
    let script = agent.path("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ran = agent.run(on_terminal(argv(&[&script]))).await;
    assert_eq!(ran.code(), 127);
    assert!(text(&ran).contains("cannot run"), "{}", text(&ran));
}

#[tokio::test]
async fn what_has_no_terminal_is_not_resized() {
    let agent = TestAgent::start().await;
    let (pid, _connection) = agent.spawn(argv(&["sleep", "60"])).await;
    let resize = ResizePty { process: ProcessSelector::Pid(pid), size: PtySize { cols: 7, rows: 8 } };
    assert_kind(agent.ask(&Request::Resize(resize)).await, ErrorKind::WrongKind, "no terminal");
}

#[tokio::test]
async fn the_session_dies_with_its_shell() {
    let agent = TestAgent::start().await;
    // With job control the child is in a group of its own.
    let (_, mut connection) =
        agent.spawn(on_terminal(argv(&["bash", "-c", "set -m; nohup sleep 1000 & echo child=$!.; wait"]))).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, ".").await;
    let child: u32 = text(&ran).split(['=', '.']).nth(1).unwrap().parse().unwrap();
    connection.send(&HostMessage::Signal { signal: 9, group: true }).await.unwrap();
    collect(&mut connection).await;
    eventually("the child is gone", || !is_alive(child)).await;
}
