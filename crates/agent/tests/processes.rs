//! Processes without a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use sandbank_agent_protocol::{AttachProcess, ErrorKind, HostMessage, ProcessSelector, Reply, Request, SendSignal, StartProcess};
use support::*;

#[tokio::test]
async fn a_program_runs_and_its_output_and_exit_code_come_back() {
    let agent = TestAgent::start().await;
    let ran = agent.shell("echo out; echo err >&2; exit 7").await;
    assert_eq!((ran.out(), ran.err(), ran.code()), ("out\n", "err\n", 7));
}

#[tokio::test]
async fn a_program_is_found_in_path_and_keeps_its_name() {
    let agent = TestAgent::start().await;
    let ran = agent.run(argv(&["sh", "-c", "echo $0"])).await;
    assert_eq!(ran.out(), "sh\n");
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_reason() {
    let agent = TestAgent::start().await;
    let script = agent.path("plain");
    std::fs::write(&script, "text").unwrap();
    let cases = [
        (argv(&[]), ErrorKind::Invalid, "empty"),
        (argv(&[""]), ErrorKind::Invalid, "empty"),
        (argv(&["a\0b"]), ErrorKind::Invalid, "NUL"),
        (argv(&["no-such-program-here"]), ErrorKind::NotFound, "no-such-program-here"),
        (argv(&["/no/such/program"]), ErrorKind::NotFound, "/no/such/program"),
        (argv(&[&script]), ErrorKind::Denied, "plain"),
        (argv(&["/etc"]), ErrorKind::Denied, "/etc"),
        (StartProcess { cwd: Some("/no/such/dir".into()), ..argv(&["true"]) }, ErrorKind::NotFound, "/no/such/dir"),
        (StartProcess { cwd: Some("/etc/passwd".into()), ..argv(&["true"]) }, ErrorKind::WrongKind, "/etc/passwd"),
        (StartProcess { user: Some("no-such-user".into()), ..argv(&["true"]) }, ErrorKind::NotFound, "no-such-user"),
        (StartProcess { env: env(&[("A=B", "c")]), ..argv(&["true"]) }, ErrorKind::Invalid, "A=B"),
        (StartProcess { env: env(&[("A", "c\0")]), ..argv(&["true"]) }, ErrorKind::Invalid, "NUL"),
    ];
    for (start, kind, part) in cases {
        let what = format!("{:?}", start.argv);
        let error = agent.refused(start).await;
        assert_eq!(error.kind, kind, "{what}: {}", error.message);
        assert!(error.message.contains(part), "{what}: {}", error.message);
    }
}

#[tokio::test]
async fn the_environment_is_what_was_asked_for_with_the_users_defaults() {
    let agent = TestAgent::start().await;
    let ran = agent.run(StartProcess { env: env(&[("MARK", "x y"), ("HOME", "/elsewhere")]), ..argv(&["env"]) }).await;
    let mut lines: Vec<_> = ran.out().lines().collect();
    lines.sort_unstable();
    assert!(lines.contains(&"MARK=x y") && lines.contains(&"HOME=/elsewhere"), "{lines:?}");
    for name in ["USER=", "LOGNAME=", "SHELL=/", "PATH=/"] {
        assert!(lines.iter().any(|line| line.starts_with(name)), "no {name} in {lines:?}");
    }
    assert_eq!(lines.len(), 6, "{lines:?}");
}

#[tokio::test]
async fn the_working_directory_is_the_one_asked_for() {
    let agent = TestAgent::start().await;
    let ran = agent.run(StartProcess { cwd: Some("/usr/bin".into()), ..argv(&["pwd"]) }).await;
    assert_eq!(ran.out(), "/usr/bin\n");
    let again = agent.run(StartProcess { cwd: Some("/".into()), ..argv(&["./bin/pwd"]) }).await;
    assert_eq!(again.out(), "/\n");
    let home = agent.run(argv(&["pwd"])).await.out().to_owned();
    assert_eq!(agent.run(StartProcess { cwd: Some(".".into()), ..argv(&["pwd"]) }).await.out(), home);
}

#[tokio::test]
async fn a_child_gets_no_descriptors_default_signals_and_its_own_group() {
    let agent = TestAgent::start().await;
    let signals = agent.run(argv(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])).await;
    // 32 and 33 are the C library's own.
    let ours = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() & !(3 << 31);
    assert!(signals.out().lines().all(|line| ours(line) == 0), "{}", signals.out());
    let ran = agent.shell("ulimit -c; cut -d' ' -f5 /proc/$$/stat; echo $$").await;
    let lines: Vec<_> = ran.out().split_whitespace().collect();
    assert_eq!(lines[0], "0", "no core files");
    assert_eq!(lines[1], lines[2], "the group is led by the process");
}

#[tokio::test]
async fn stdin_reaches_the_process_and_ends() {
    let agent = TestAgent::start().await;
    let (_, mut connection) = agent.spawn(StartProcess { stdin: true, ..argv(&["sha256sum"]) }).await;
    let data = vec![b'x'; 3_000_000];
    connection.send_data(data.into()).await.unwrap();
    connection.send_end().await.unwrap();
    let ran = collect(&mut connection).await;
    assert_eq!(ran.code(), 0);
    assert!(ran.out().ends_with("  -\n"), "{}", ran.out());
}

#[tokio::test]
async fn without_stdin_a_process_reads_the_end_at_once() {
    let agent = TestAgent::start().await;
    assert_eq!(agent.run(argv(&["cat"])).await.code(), 0);
    let (pid, _connection) = agent.spawn(argv(&["sleep", "60"])).await;
    let closed = agent.ask(&Request::CloseStdin(ProcessSelector::Pid(pid))).await;
    assert_kind(closed, ErrorKind::Invalid, "without stdin");
}

#[tokio::test]
async fn another_connection_can_write_and_close_stdin() {
    let agent = TestAgent::start().await;
    let start = StartProcess { stdin: true, tag: Some("reader".into()), ..argv(&["cat"]) };
    let (_, mut connection) = agent.spawn(start).await;
    let selector = ProcessSelector::Tag("reader".into());
    let mut writer = agent.begin(&Request::WriteStdin(selector.clone())).await;
    writer.send_data("hello".into()).await.unwrap();
    writer.send_end().await.unwrap();
    assert_eq!(reply(&mut writer).await, Ok(Reply::Done));
    assert_eq!(agent.ask(&Request::CloseStdin(selector.clone())).await, Ok(Reply::Done));
    assert_eq!(collect(&mut connection).await.out(), "hello");
    let mut late = agent.begin(&Request::WriteStdin(selector)).await;
    late.send_data("more".into()).await.unwrap();
    assert_kind(reply(&mut late).await, ErrorKind::NotFound, "stdin");
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(shell("sleep 1000 & echo $!; wait")).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "\n").await;
    let child: u32 = ran.out().trim().parse().unwrap();
    let signal = SendSignal { process: ProcessSelector::Pid(pid), signal: 9, group: true };
    assert_eq!(agent.ask(&Request::Signal(signal.clone())).await, Ok(Reply::Done));
    let exit = collect(&mut connection).await.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.shell_code()), (None, Some(9), 137));
    eventually("the child of the shell is gone", || !is_alive(child)).await;
    assert_kind(agent.ask(&Request::Signal(signal)).await, ErrorKind::NotFound, "has ended");
}

#[tokio::test]
async fn a_signal_can_go_to_the_process_alone_and_over_its_own_connection() {
    let agent = TestAgent::start().await;
    let (_, mut connection) =
        agent.spawn(shell("trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done")).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "ready").await;
    connection.send(&HostMessage::Signal { signal: 10, group: false }).await.unwrap();
    let rest = collect(&mut connection).await;
    assert_eq!((rest.out(), rest.code()), ("caught\n", 3));
}

#[tokio::test]
async fn impossible_signals_and_unknown_processes_are_refused() {
    let agent = TestAgent::start().await;
    let (pid, _connection) = agent.spawn(argv(&["sleep", "60"])).await;
    for signal in [0, -1, 65, i32::MAX, i32::MIN] {
        let request = SendSignal { process: ProcessSelector::Pid(pid), signal, group: true };
        assert_kind(agent.ask(&Request::Signal(request)).await, ErrorKind::Invalid, "not a signal");
    }
    let request = SendSignal { process: ProcessSelector::Pid(1), signal: 15, group: true };
    assert_kind(agent.ask(&Request::Signal(request)).await, ErrorKind::NotFound, "process 1");
    let selector = ProcessSelector::Tag("nothing".into());
    assert_kind(agent.ask(&Request::CloseStdin(selector)).await, ErrorKind::NotFound, "nothing");
}

#[tokio::test]
async fn the_deadline_kills_the_whole_group() {
    let agent = TestAgent::start().await;
    let start = StartProcess { deadline_ms: Some(200), ..shell("sleep 1000 & echo $!; wait") };
    let ran = agent.run(start).await;
    let exit = ran.exit.unwrap();
    assert_eq!((exit.signal, exit.timed_out), (Some(9), true));
    let child: u32 = ran.out().trim().parse().unwrap();
    eventually("the child is gone", || !is_alive(child)).await;
}

#[tokio::test]
async fn a_process_outlives_its_connection_unless_told_otherwise() {
    let agent = TestAgent::start().await;
    let (survivor, connection) = agent.spawn(argv(&["sleep", "1000"])).await;
    let doomed = StartProcess { kill_on_disconnect: true, ..argv(&["sleep", "1000"]) };
    let (victim, doomed) = agent.spawn(doomed).await;
    drop((connection, doomed));
    eventually("the doomed one is killed", || !is_alive(victim)).await;
    assert!(is_alive(survivor));
}

#[tokio::test]
async fn a_later_attach_replays_from_an_offset() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(shell("printf 0123456789; printf abc >&2; sleep 1000")).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "0123456789").await;
    collect_until(&mut connection, &mut ran, "abc").await;
    drop(connection);
    let mut again = agent.begin(&attach(pid, Some(2))).await;
    let attached = reply(&mut again).await.unwrap();
    assert_eq!(attached, Reply::Attached { pid, stdout_offset: 2, stderr_offset: 2, pty: false });
    let mut replay = Ran::default();
    collect_until(&mut again, &mut replay, "23456789").await;
    collect_until(&mut again, &mut replay, "c").await;
    assert_eq!((replay.out(), replay.err()), ("23456789", "c"));
    let Reply::Attached { stdout_offset, .. } = reply(&mut agent.begin(&attach(pid, None)).await).await.unwrap() else {
        panic!("expected Attached")
    };
    assert_eq!(stdout_offset, 10);
}

#[tokio::test]
async fn an_ended_process_can_still_be_read_and_is_listed() {
    let agent = TestAgent::start().await;
    let start = StartProcess { tag: Some("done".into()), env: env(&[("A", "b")]), ..shell("printf kept; exit 4") };
    let (pid, mut connection) = agent.spawn(start).await;
    collect(&mut connection).await;
    let mut again = agent.begin(&attach(pid, Some(0))).await;
    reply(&mut again).await.unwrap();
    let ran = collect(&mut again).await;
    assert_eq!((ran.out(), ran.code()), ("kept", 4));
    let Reply::Processes(list) = agent.ask(&Request::ListProcesses).await.unwrap() else { panic!("expected Processes") };
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].pid, list[0].tag.as_deref(), list[0].stdout_bytes), (pid, Some("done"), 4));
    assert_eq!(list[0].exit.unwrap().code, Some(4));
    assert_eq!(list[0].env, env(&[("A", "b")]));
}

#[tokio::test]
async fn logs_of_a_running_process_end_without_waiting() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(shell("printf so-far; sleep 1000")).await;
    let mut ran = Ran::default();
    collect_until(&mut connection, &mut ran, "so-far").await;
    let request =
        AttachProcess { process: ProcessSelector::Pid(pid), stdout_offset: Some(0), stderr_offset: Some(0), no_follow: true };
    let mut logs = agent.begin(&Request::Attach(request)).await;
    reply(&mut logs).await.unwrap();
    let logs = collect(&mut logs).await;
    assert_eq!((logs.out(), logs.exit), ("so-far", None));
}

#[tokio::test]
async fn bytes_that_left_the_ring_are_skipped_and_said() {
    let agent = TestAgent::start().await;
    let start = StartProcess { ring_bytes: Some(4096), ..shell("head -c 100000 /dev/zero; printf tail") };
    let (pid, mut connection) = agent.spawn(start).await;
    assert_eq!(collect(&mut connection).await.stdout.len(), 100_004, "an attached reader misses nothing");
    let mut again = agent.begin(&attach(pid, Some(5))).await;
    let Reply::Attached { stdout_offset, .. } = reply(&mut again).await.unwrap() else { panic!("expected Attached") };
    assert_eq!(stdout_offset, 100_004 - 4096);
    let ran = collect(&mut again).await;
    assert_eq!(ran.stdout.len(), 4096);
    assert!(ran.stdout.ends_with(b"tail"));
}

#[tokio::test]
async fn a_flood_against_a_stalled_reader_blocks_the_process_and_not_memory() {
    let agent = TestAgent::start().await;
    let (pid, connection) = agent.spawn(argv(&["yes"])).await;
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    eventually("yes is blocked on its pipe", || {
        let before = written();
        std::thread::sleep(std::time::Duration::from_millis(30));
        before > 100_000 && before == written()
    })
    .await;
    assert!(private_kib(agent.pid()) < 4096, "{} KiB", private_kib(agent.pid()));
    assert!(written() < 3 * 1024 * 1024);
    let before = written();
    drop(connection);
    eventually("the process goes on when the reader is gone", || written() > before + 10_000_000).await;
    assert!(private_kib(agent.pid()) < 4096, "{} KiB", private_kib(agent.pid()));
}

#[tokio::test]
async fn a_background_child_that_keeps_the_pipe_does_not_delay_the_exit() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(shell("(while :; do echo more; sleep 0.02; done) & echo first")).await;
    let ran = collect(&mut connection).await;
    assert_eq!(ran.code(), 0);
    assert!(ran.out().contains("first"));
    let so_far = ran.stdout.len() as u64;
    let grown = || async {
        let Reply::Attached { stdout_offset, .. } = reply(&mut agent.begin(&attach(pid, None)).await).await.unwrap() else {
            panic!("expected Attached")
        };
        stdout_offset
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while grown().await <= so_far {
        assert!(tokio::time::Instant::now() < deadline, "the ring no longer collects");
    }
    let group = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_flooding_background_child_does_not_delay_the_exit_either() {
    let agent = TestAgent::start().await;
    let (pid, mut connection) = agent.spawn(shell("yes & sleep 0.1; exit 5")).await;
    let ran = collect(&mut connection).await;
    assert_eq!(ran.code(), 5);
    let group = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn ended_processes_are_reaped_and_the_oldest_forgotten() {
    let agent = TestAgent::start().await;
    for round in 0..270 {
        let (pid, mut connection) = agent.spawn(argv(&["true"])).await;
        assert_eq!(collect(&mut connection).await.code(), 0, "round {round}");
        assert_eq!(state(pid), None, "a zombie is left");
    }
    let Reply::Processes(list) = agent.ask(&Request::ListProcesses).await.unwrap() else { panic!("expected Processes") };
    assert_eq!(list.len(), 256);
}

#[tokio::test]
async fn the_agent_has_one_thread_and_little_memory() {
    let agent = TestAgent::start().await;
    for _ in 0..20 {
        agent.shell("echo x").await;
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
    assert_eq!(threads, 1);
    let Reply::Metrics(metrics) = agent.ask(&Request::Metrics).await.unwrap() else { panic!("expected Metrics") };
    assert!(metrics.pids > 0 && metrics.agent_bytes > 0);
}

#[tokio::test]
async fn shutdown_kills_what_runs_and_ends_the_agent() {
    let agent = TestAgent::start().await;
    let (pid, _connection) = agent.spawn(argv(&["sleep", "1000"])).await;
    assert_eq!(agent.ask(&Request::Shutdown).await, Ok(Reply::Done));
    eventually("the process is gone", || !is_alive(pid)).await;
    eventually("the agent is gone", || !is_alive(agent.pid())).await;
}
