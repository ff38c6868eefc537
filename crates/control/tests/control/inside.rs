//! Operations inside sandboxes: what works, what is refused, and agents that hang, die or lie.

use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_control::{CreateSandbox, ErrorKind, Exec, LeaseRequest, LogQuery, ProcessEvent, TemplateSource};
use sandbank_driver::{AgentFault, Method, Responder};
use sandbank_model::{EventKind, FailureReason, Probe, Runtime, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{World, create, create_with, eventually, exec, pool_request, template_spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_of_a_process_is_request_over_lease_over_spec() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut spec = template_spec().sandbox;
    spec.env = [("A".to_owned(), "spec".to_owned()), ("B".into(), "spec".into()), ("C".into(), "spec".into())].into();
    let env = [("B".to_owned(), "lease".to_owned()), ("C".into(), "lease".into())].into();
    let request = CreateSandbox {
        source: sandbank_control::CreateSource::Spec(Box::new(spec)),
        lease: LeaseRequest { env, ..LeaseRequest::default() },
        ..create()
    };
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    let run = Exec { env: [("C".to_owned(), "request".to_owned())].into(), ..exec(&["env"]) };
    let output = world.control.exec_collect(&user, id, run).await.unwrap();
    let text = String::from_utf8(output.stdout.to_vec()).unwrap();
    for line in ["A=spec", "B=lease", "C=request"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_output_is_cut_said_and_does_not_stall_the_program() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let flood = Exec { timeout: Some(Duration::from_millis(300)), ..exec(&["yes"]) };
    let output = world.control.exec_collect(&user, id, flood).await.unwrap();
    assert_eq!(output.stdout.len(), world.settings.exec_output_max);
    assert!(output.truncated);
    assert!(output.status.timed_out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_cannot_be_are_refused() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let bad = [
        Exec::default(),
        exec(&[""]),
        exec(&["echo", "a\0b"]),
        Exec { timeout: Some(Duration::ZERO), ..exec(&["true"]) },
        Exec { timeout: Some(Duration::MAX), ..exec(&["true"]) },
        Exec { env: [("A=B".to_owned(), String::new())].into(), ..exec(&["true"]) },
        Exec { tag: Some(String::new()), ..exec(&["true"]) },
    ];
    for run in bad {
        let refused = world.control.exec_collect(&user, id, run).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{}", refused.message);
    }
    let missing = world.control.exec_collect(&user, id, exec(&["no-such-program"])).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound, "{}", missing.message);
    for path in ["", "a\0b", &"x".repeat(5000)] {
        let stat = agent::StatFile { path: path.into(), user: None, follow: true };
        assert_eq!(world.control.file_stat(&user, id, stat).await.unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_in_and_out() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let write = agent::WriteFile { path: "/tmp/f".into(), user: None, mode: None, open: agent::OpenMode::Replace };
    let content = Bytes::from(vec![7u8; 1_000_000]);
    let mut writer = world.control.file_write(&user, id, write).await.unwrap();
    writer.write(content.clone()).await.unwrap();
    assert_eq!(writer.finish().await.unwrap().size, 1_000_000);
    let read = agent::ReadFile { path: "/tmp/f".into(), user: None, offset: 0, length: None };
    let mut reader = world.control.file_read(&user, id, read.clone()).await.unwrap();
    let mut back = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        back.extend_from_slice(&piece);
    }
    assert_eq!(back, content);
    let list = agent::ListFiles { path: "/tmp".into(), user: None, depth: 1, limit: 10 };
    assert!(world.control.file_list(&user, id, list).await.unwrap().iter().any(|file| file.path == "/tmp/f"));
    let remove = agent::RemoveFile { path: "/tmp/f".into(), user: None, recursive: false };
    world.control.file_remove(&user, id, remove).await.unwrap();
    assert_eq!(world.control.file_read(&user, id, read).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_inside_is_a_byte_stream_with_half_close() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.respond(7, Responder::Echo);
    let (mut reader, mut writer) = world.control.port_dial(&user, id, 7).await.unwrap().into_split();
    let sent = vec![42u8; 300_000];
    let (back, ()) = tokio::join!(
        async {
            let mut back = Vec::new();
            reader.read_to_end(&mut back).await.unwrap();
            back
        },
        async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        }
    );
    assert_eq!(back, sent);
    assert_eq!(world.control.port_dial(&user, id, 8).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.control.port_dial(&user, id, 0).await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_lies_is_unavailable_and_after_failed_pings_the_sandbox_has_failed() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    for fault in [AgentFault::Garbage, AgentFault::OutOfTurn, AgentFault::Die] {
        let id = world.created(&user).await;
        world.faults.agent(id, fault);
        let refused = world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{fault:?}: {}", refused.message);
        world.reaches(id, State::Failed).await;
        let failure = world.control.get(&user, id).await.unwrap().sandbox.failure.clone().unwrap();
        assert_eq!(failure.reason, FailureReason::AgentUnresponsive);
    }
    eventually("what is left is destroyed", || async { world.faults.sandboxes().is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_makes_no_request_hang() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.agent(id, AgentFault::Hang);
    let stat = agent::StatFile { path: "/".into(), user: None, follow: true };
    let (first, second) =
        tokio::join!(world.control.file_stat(&user, id, stat), world.control.exec_collect(&user, id, exec(&["true"])),);
    assert_eq!(first.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(second.unwrap_err().kind, ErrorKind::Unavailable);
    // The agent recovers in time: nothing happens to the sandbox.
    world.faults.agent(id, AgentFault::None);
    eventually("it answers again", || async { world.control.exec_collect(&user, id, exec(&["true"])).await.is_ok() }).await;
    assert_eq!(world.state(id).await, State::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_a_clear_error_when_its_sandbox_does() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let mut stream = world.control.exec(&user, id, exec(&["sleep", "1000"])).await.unwrap();
    assert!(matches!(stream.events.next().await, Ok(Some(ProcessEvent::Started { .. }))));
    // Even when destroying does not work.
    world.faults.fail(Method::Destroy, 2);
    world.control.release(&user, id).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.events.next()).await.unwrap();
    assert!(matches!(ended.unwrap_err().kind, ErrorKind::State | ErrorKind::Unavailable));
    assert!(matches!(stream.events.next().await, Ok(None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_dies_says_why() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let (dead, out_of_memory) = (world.created(&user).await, world.created(&user).await);
    world.faults.end(dead, false, "process 1 ended");
    world.faults.end(out_of_memory, true, "killed");
    for (id, reason) in [(dead, FailureReason::AgentDied), (out_of_memory, FailureReason::OutOfMemory)] {
        world.reaches(id, State::Failed).await;
        assert_eq!(world.control.get(&user, id).await.unwrap().sandbox.failure.as_ref().unwrap().reason, reason);
        let events = world.control.events(&user, Some(id), None, None, true, 1).await.unwrap();
        assert_eq!(events[0].kind, EventKind::Failed(reason));
        assert_eq!(world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err().kind, ErrorKind::State);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_from_the_start_and_its_log_and_exit_outlive_the_sandbox() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let request = create_with(&["sh", "-c", "echo one; echo two; echo bad >&2; sleep 0.05; false"]);
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    eventually("its exit is recorded", || async {
        world.control.get(&user, id).await.unwrap().sandbox.exit.as_ref().is_some_and(|exit| exit.code == 1)
    })
    .await;
    let live = world.control.logs(&user, id, LogQuery::default()).await.unwrap();
    let text: Vec<&str> = live.lines.iter().filter(|line| !line.stderr).map(|line| line.text.as_str()).collect();
    assert_eq!(text, ["one", "two"]);
    assert!(live.live && live.lines.iter().any(|line| line.stderr && line.text == "bad"));
    let last = world.control.logs(&user, id, LogQuery { lines: Some(1), runtime: None }).await.unwrap();
    assert_eq!(last.lines.len(), 1);
    world.control.release(&user, id).await.unwrap();
    world.reaches(id, State::Terminated).await;
    let kept = world.control.logs(&user, id, LogQuery::default()).await.unwrap();
    assert!(!kept.live);
    assert_eq!(kept.lines.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_start_fails_the_create() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let refused = world.control.create(&user, create_with(&["no-such-program"])).await.unwrap_err();
    assert!(refused.message.starts_with("the command could not be started"), "{}", refused.message);
    world.settled().await;
    assert!(world.faults.sandboxes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_are_ready_when_their_probes_say_so() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let runtime = |name: &str, readiness| Runtime {
        name: name.into(),
        port: Some(80),
        protocol: None,
        description: None,
        log_dir: None,
        readiness,
    };
    let mut spec = template_spec();
    spec.runtimes = vec![
        runtime("plain", None),
        runtime("good", Some(Probe::HttpGet { port: 80, path: "/".into() })),
        runtime("bad", Some(Probe::HttpGet { port: 81, path: "/".into() })),
        runtime("closed", Some(Probe::TcpConnect { port: 82 })),
    ];
    world.faults.respond(80, Responder::Http { status: 200, body: String::new() });
    world.faults.respond(81, Responder::Http { status: 500, body: String::new() });
    let request = sandbank_control::PoolRequest { template: TemplateSource::Inline(Box::new(spec)), ..pool_request("p", 1) };
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 1).await;
    let id = world.claim(&user, "p").await.unwrap().sandbox.id;
    let seen = world.control.readiness(&user, id).await.unwrap();
    let ready: Vec<(&str, bool)> = seen.iter().map(|one| (one.name.as_str(), one.ready)).collect();
    assert_eq!(ready, [("plain", true), ("good", true), ("bad", false), ("closed", false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtimes_log_is_read_while_it_runs_and_only_then() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut spec = template_spec();
    let (name, log_dir) = ("web".to_owned(), Some("/var/log/web".to_owned()));
    spec.runtimes = vec![Runtime { name, port: None, protocol: None, description: None, log_dir, readiness: None }];
    let request = sandbank_control::PoolRequest { template: TemplateSource::Inline(Box::new(spec)), ..pool_request("p", 1) };
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 1).await;
    let id = world.claim(&user, "p").await.unwrap().sandbox.id;
    let path = "/var/log/web/a.log".to_owned();
    let write = agent::WriteFile { path, user: None, mode: None, open: agent::OpenMode::Replace };
    let mut writer = world.control.file_write(&user, id, write).await.unwrap();
    writer.write(Bytes::from_static(b"started\nready\n")).await.unwrap();
    writer.finish().await.unwrap();
    let of = |runtime: &str| LogQuery { lines: None, runtime: Some(runtime.into()) };
    let logs = world.control.logs(&user, id, of("web")).await.unwrap();
    assert_eq!(logs.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["started", "ready"]);
    assert_eq!(world.control.logs(&user, id, of("other")).await.unwrap_err().kind, ErrorKind::Invalid);
    world.control.pause(&user, id).await.unwrap();
    assert_eq!(world.control.logs(&user, id, of("web")).await.unwrap_err().kind, ErrorKind::State);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_followed_from_its_beginning() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id =
        world.control.create(&user, create_with(&["sh", "-c", "echo first; sleep 0.1; echo second"])).await.unwrap().sandbox.id;
    let mut stream = world.control.logs_follow(&user, id).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = stream.events.next().await.unwrap() {
        if let ProcessEvent::Output(_, data) = event {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(seen, b"first\nsecond\n");
    let plain = world.created(&user).await;
    assert_eq!(world.control.logs_follow(&user, plain).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_attached_to_written_to_and_signalled() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let run = Exec { stdin: true, tag: Some("echo".into()), ..exec(&["cat"]) };
    let mut stream = world.control.exec(&user, id, run).await.unwrap();
    assert!(matches!(stream.events.next().await, Ok(Some(ProcessEvent::Started { .. }))));
    stream.input.write(Bytes::from_static(b"one ")).await.unwrap();
    let process = agent::ProcessSelector::Tag("echo".into());
    let mut seen = Vec::new();
    // Two connections have no order between them, so the first is heard of before the second writes.
    for all in [&b"one "[..], b"one two"] {
        while seen.len() < all.len() {
            match stream.events.next().await.unwrap() {
                Some(ProcessEvent::Output(_, data)) => seen.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, all);
        if seen == b"one " {
            world.control.process_write(&user, id, process.clone(), Bytes::from_static(b"two")).await.unwrap();
        }
    }
    assert_eq!(world.control.process_list(&user, id).await.unwrap().len(), 1);
    drop(stream);
    let attach = agent::AttachProcess { process: process.clone(), stdout_offset: Some(4), stderr_offset: None, no_follow: false };
    let mut again = world.control.process_attach(&user, id, attach).await.unwrap();
    assert!(matches!(again.events.next().await, Ok(Some(ProcessEvent::Started { stdout_offset: 4, .. }))));
    let signal = agent::SendSignal { process, signal: 9, group: true };
    world.control.process_signal(&user, id, agent::SendSignal { signal: 0, ..signal.clone() }).await.unwrap_err();
    world.control.process_signal(&user, id, signal).await.unwrap();
    let mut last = None;
    while let Some(event) = again.events.next().await.unwrap() {
        last = Some(event);
    }
    assert!(matches!(last, Some(ProcessEvent::Exited(status)) if status.signal == Some(9)));
}
