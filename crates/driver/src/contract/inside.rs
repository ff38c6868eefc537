//! Rules of what happens inside: processes, files, ports, counters.

use sandbank_agent_protocol::{
    AttachProcess, ClientError, ErrorKind, FileKind, Frame, HostMessage, ListFiles, MakeDir, MoveFile, OpenMode, ProcessSelector,
    ReadFile, RemoveFile, Reply, Request, SendSignal, StartProcess, StatFile, WatchEvent, WatchEventKind, WatchFiles, WriteFile,
};
use sandbank_model::SandboxSpec;

use super::Subject;
use super::session::{Held, collect, program, within};
use crate::{Capability, DriverError};

fn can(subject: &Subject, capability: Capability) -> bool {
    subject.driver.capabilities().has(capability)
}

/// 0, 1 and any other.
pub async fn programs_exit_with_their_codes(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    assert_eq!(held.run(&["true"]).await.exit.code, Some(0));
    assert_eq!(held.run(&["false"]).await.exit.code, Some(1));
    assert_eq!(held.shell("exit 7").await.exit.code, Some(7));
    held.destroy().await;
}

/// Two streams.
pub async fn stdout_and_stderr_are_told_apart(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let output = held.shell("echo out; echo err >&2; exit 3").await;
    assert_eq!((&output.stdout[..], &output.stderr[..], output.exit.code), (&b"out\n"[..], &b"err\n"[..], Some(3)));
    held.destroy().await;
}

/// Not found, and no program at all.
pub async fn a_program_that_is_not_there_is_told(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let start = |argv: &[&str]| Request::Start(Box::new(program(argv)));
    assert_eq!(held.refusal(&start(&["no-such-program-anywhere"])).await.kind, ErrorKind::NotFound);
    assert_eq!(held.refusal(&start(&[])).await.kind, ErrorKind::Invalid);
    let nobody = StartProcess { user: Some("nobody-by-this-name".to_owned()), ..program(&["true"]) };
    assert_eq!(held.refusal(&Request::Start(Box::new(nobody))).await.kind, ErrorKind::NotFound);
    held.destroy().await;
}

/// Spaces, quotes, dollars.
pub async fn environment_and_arguments_arrive_as_given(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    assert_eq!(held.run(&["echo", "a  b", "$HOME", "'q'"]).await.stdout, b"a  b $HOME 'q'\n");
    let mut request = program(&["sh", "-c", "echo \"$GREETING\""]);
    request.env.insert("GREETING".to_owned(), "hello there".to_owned());
    let (connection, _) = held.start(request).await.unwrap();
    assert_eq!(collect(connection).await.stdout, b"hello there\n");
    held.destroy().await;
}

/// Through the starting connection, and from another one.
pub async fn stdin_reaches_a_process_until_it_is_closed(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let request = StartProcess { stdin: true, ..program(&["cat"]) };
    let (mut connection, pid) = held.start(request).await.unwrap();
    connection.send_data("first\n".into()).await.unwrap();
    let echoed = within("the first line", connection.next()).await.unwrap();
    assert!(matches!(&echoed, Some(Frame::Output(_, data)) if &data[..] == b"first\n"), "{echoed:?}");
    let mut other = held.open(&Request::WriteStdin(ProcessSelector::Pid(pid))).await.unwrap();
    other.send_data("second\n".into()).await.unwrap();
    other.send_end().await.unwrap();
    assert_eq!(within("the write", other.reply("Done")).await.unwrap(), Reply::Done);
    let echoed = within("the second line", connection.next()).await.unwrap();
    assert!(matches!(&echoed, Some(Frame::Output(_, data)) if &data[..] == b"second\n"), "{echoed:?}");
    connection.send(&HostMessage::CloseStdin).await.unwrap();
    assert_eq!(collect(connection).await.exit.code, Some(0));
    // Without stdin the end is there at once.
    assert_eq!(held.run(&["cat"]).await.exit.code, Some(0));
    held.destroy().await;
}

/// SIGKILL from another connection.
pub async fn a_signal_ends_a_process_and_is_told(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let (connection, pid) = held.start(program(&["sleep", "3600"])).await.unwrap();
    let signal = |signal| Request::Signal(SendSignal { process: ProcessSelector::Pid(pid), signal, group: true });
    assert_eq!(held.refusal(&signal(0)).await.kind, ErrorKind::Invalid);
    assert_eq!(held.refusal(&signal(65)).await.kind, ErrorKind::Invalid);
    assert_eq!(held.ask(&signal(9)).await.unwrap(), Reply::Done);
    let exit = collect(connection).await.exit;
    assert_eq!((exit.code, exit.signal, exit.timed_out), (None, Some(9), false));
    let unknown = SendSignal { process: ProcessSelector::Pid(999_999), signal: 9, group: false };
    assert_eq!(held.refusal(&Request::Signal(unknown)).await.kind, ErrorKind::NotFound);
    held.destroy().await;
}

/// `deadline_ms`.
pub async fn a_deadline_ends_a_process_and_is_told(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let request = StartProcess { deadline_ms: Some(100), ..program(&["sleep", "3600"]) };
    let (connection, _) = held.start(request).await.unwrap();
    let exit = collect(connection).await.exit;
    assert!(exit.timed_out && exit.code.is_none(), "{exit:?}");
    held.destroy().await;
}

/// The process belongs to the agent, not to the connection.
pub async fn output_is_replayed_after_the_connection_is_gone(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let request =
        StartProcess { stdin: true, tag: Some("talker".to_owned()), ..program(&["sh", "-c", "echo one; cat; echo three"]) };
    let (connection, pid) = held.start(request).await.unwrap();
    drop(connection);
    let attach = |offset| {
        let process = ProcessSelector::Tag("talker".to_owned());
        Request::Attach(AttachProcess { process, stdout_offset: Some(offset), stderr_offset: Some(0), no_follow: false })
    };
    let mut again = held.open(&attach(0)).await.unwrap();
    let begun = within("the attachment", again.reply("Attached")).await.unwrap();
    assert!(matches!(begun, Reply::Attached { pid: of, stdout_offset: 0, pty: false, .. } if of == pid), "{begun:?}");
    again.send_data("two\n".into()).await.unwrap();
    again.send_end().await.unwrap();
    let output = collect(again).await;
    assert_eq!((&output.stdout[..], output.exit.code), (&b"one\ntwo\nthree\n"[..], Some(0)));
    let mut late = held.open(&attach(4)).await.unwrap();
    within("the attachment", late.reply("Attached")).await.unwrap();
    assert_eq!(collect(late).await.stdout, b"two\nthree\n", "an ended process is still replayed, from any offset");
    held.destroy().await;
}

/// `ListProcesses`.
pub async fn a_listed_process_is_found_by_its_tag(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let request = StartProcess { tag: Some("napper".to_owned()), ..program(&["sleep", "3600"]) };
    let (_connection, pid) = held.start(request).await.unwrap();
    let Reply::Processes(list) = held.ask(&Request::ListProcesses).await.unwrap() else { panic!("a list was asked for") };
    let found: Vec<_> = list.iter().filter(|process| process.tag.as_deref() == Some("napper")).collect();
    assert_eq!(found.len(), 1, "{list:?}");
    assert_eq!((found[0].pid, found[0].exit, &found[0].argv[..]), (pid, None, &["sleep".to_owned(), "3600".to_owned()][..]));
    held.destroy().await;
}

/// Empty, small, and longer than a frame.
pub async fn files_come_back_as_they_were_written(subject: &Subject) {
    if !can(subject, Capability::Files) {
        return;
    }
    let held = Held::create(subject).await;
    let long: Vec<u8> = (0..1_500_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (path, content) in [("/tmp/empty", &b""[..]), ("/home/user/a/b/deep", b"deep"), ("/tmp/long", &long[..])] {
        let stat = held.write(path, content).await.unwrap();
        assert_eq!((&stat.path[..], stat.kind, stat.size), (path, FileKind::File, content.len() as u64));
        assert!(held.read(path).await.unwrap() == content, "{path} comes back");
    }
    let piece = ReadFile { path: "/tmp/long".to_owned(), user: None, offset: 300_000, length: Some(10) };
    let mut connection = held.open(&Request::Read(piece)).await.unwrap();
    within("the read", connection.reply("Stat")).await.unwrap();
    let data = within("the data", connection.next()).await.unwrap();
    assert!(matches!(&data, Some(Frame::Data(data)) if data[..] == long[300_000..300_010]), "{data:?}");
    held.destroy().await;
}

/// `List`, `MakeDir`, `Move`, `Remove`, `Stat`.
pub async fn files_are_listed_moved_and_removed(subject: &Subject) {
    if !can(subject, Capability::Files) {
        return;
    }
    let held = Held::create(subject).await;
    let path = |path: &str| path.to_owned();
    held.write("/tmp/d/a", b"a").await.unwrap();
    held.ask(&Request::MakeDir(MakeDir { path: path("/tmp/d/sub"), user: None, mode: None, exclusive: true })).await.unwrap();
    held.write("/tmp/d/sub/b", b"bb").await.unwrap();
    assert_eq!(list(&held, "/tmp/d", 1).await, ["/tmp/d/a", "/tmp/d/sub"]);
    assert_eq!(list(&held, "/tmp/d", 2).await, ["/tmp/d/a", "/tmp/d/sub", "/tmp/d/sub/b"]);
    let rename = MoveFile { from: path("/tmp/d/sub"), to: path("/tmp/d/other"), user: None, overwrite: false };
    held.ask(&Request::Move(rename)).await.unwrap();
    assert_eq!(held.read("/tmp/d/other/b").await.unwrap(), b"bb");
    let remove = |recursive| Request::Remove(RemoveFile { path: path("/tmp/d"), user: None, recursive });
    assert_eq!(held.refusal(&remove(false)).await.kind, ErrorKind::WrongKind, "it is not empty");
    assert_eq!(held.ask(&remove(true)).await.unwrap(), Reply::Done);
    let stat = Request::Stat(StatFile { path: path("/tmp/d"), user: None, follow: true });
    assert_eq!(held.refusal(&stat).await.kind, ErrorKind::NotFound);
    held.destroy().await;
}

async fn list(held: &Held<'_>, path: &str, depth: u32) -> Vec<String> {
    let request = Request::List(ListFiles { path: path.to_owned(), user: None, depth, limit: 1000 });
    let mut connection = held.open(&request).await.unwrap();
    let mut paths = Vec::new();
    loop {
        match within("the list", connection.reply("Entries")).await.unwrap() {
            Reply::Entries(entries) => paths.extend(entries.into_iter().map(|entry| entry.path)),
            Reply::Done => break,
            other => panic!("entries or the end, not {other:?}"),
        }
    }
    paths.sort_unstable();
    paths
}

/// Missing, existing, wrong kind, no path.
pub async fn file_errors_say_their_kind(subject: &Subject) {
    if !can(subject, Capability::Files) {
        return;
    }
    let held = Held::create(subject).await;
    let kind = |outcome: Result<Vec<u8>, DriverError>| match outcome {
        Err(DriverError::Agent(ClientError::Refused(error))) => error.kind,
        other => panic!("the agent refuses, and yet: {other:?}"),
    };
    assert_eq!(kind(held.read("/tmp/missing").await), ErrorKind::NotFound);
    assert_eq!(kind(held.read("/tmp").await), ErrorKind::WrongKind);
    assert_eq!(kind(held.read("/tmp/nul\0byte").await), ErrorKind::Invalid);
    held.write("/tmp/file", b"x").await.unwrap();
    assert_eq!(kind(held.read("/tmp/file/below").await), ErrorKind::WrongKind);
    let exclusive = WriteFile { path: "/tmp/file".to_owned(), user: None, mode: None, open: OpenMode::CreateNew };
    let mut connection = held.open(&Request::Write(exclusive)).await.unwrap();
    let _ = connection.send_end().await;
    let refused = within("the write", connection.reply("Stat")).await;
    assert!(matches!(&refused, Err(ClientError::Refused(error)) if error.kind == ErrorKind::Exists), "{refused:?}");
    let again = MakeDir { path: "/tmp".to_owned(), user: None, mode: None, exclusive: true };
    assert_eq!(held.refusal(&Request::MakeDir(again)).await.kind, ErrorKind::Exists);
    held.write("/tmp/target", b"y").await.unwrap();
    let rename = MoveFile { from: "/tmp/file".to_owned(), to: "/tmp/target".to_owned(), user: None, overwrite: false };
    assert_eq!(held.refusal(&Request::Move(rename)).await.kind, ErrorKind::Exists);
    held.destroy().await;
}

/// A client that disconnects in the middle of a write.
pub async fn an_aborted_write_leaves_the_old_file(subject: &Subject) {
    if !can(subject, Capability::Files) {
        return;
    }
    let held = Held::create(subject).await;
    held.write("/tmp/file", b"old").await.unwrap();
    let request = WriteFile { path: "/tmp/file".to_owned(), user: None, mode: None, open: OpenMode::Replace };
    let mut connection = held.open(&Request::Write(request)).await.unwrap();
    connection.send_data("new and only half of it".into()).await.unwrap();
    drop(connection);
    assert_eq!(held.read("/tmp/file").await.unwrap(), b"old");
    held.write("/tmp/file", b"newer").await.unwrap();
    assert_eq!(held.read("/tmp/file").await.unwrap(), b"newer", "and the next write is not in its way");
    held.destroy().await;
}

/// Below directories that are made later, too.
pub async fn changes_are_told_to_watchers(subject: &Subject) {
    if !can(subject, Capability::Files) {
        return;
    }
    let held = Held::create(subject).await;
    let watch = WatchFiles { path: "/tmp".to_owned(), user: None, recursive: true };
    let mut changes = held.open(&Request::Watch(watch)).await.unwrap();
    assert_eq!(within("the watch", changes.reply("Done")).await.unwrap(), Reply::Done);
    held.write("/tmp/sub/file", b"x").await.unwrap();
    within("the change of sub/file", async {
        loop {
            match changes.reply("Watched").await.unwrap() {
                Reply::Watched(WatchEvent { path, kind: WatchEventKind::Create | WatchEventKind::Write, is_dir: false })
                    if path == "sub/file" =>
                {
                    break;
                }
                Reply::Watched(_) => {}
                other => panic!("only changes, not {other:?}"),
            }
        }
    })
    .await;
    held.destroy().await;
}

/// A refusal, not a hang.
pub async fn dialling_a_port_without_listener_is_told(subject: &Subject) {
    if !can(subject, Capability::Ports) {
        return;
    }
    let held = Held::create(subject).await;
    assert_eq!(held.refusal(&Request::Dial { port: 9 }).await.kind, ErrorKind::NotFound);
    held.destroy().await;
}

/// A driver that dials by itself refuses what the agent refuses, and knows no sandbox that is gone.
pub async fn dialling_directly_reaches_nothing_that_is_not_there(subject: &Subject) {
    if !can(subject, Capability::Ports) {
        return;
    }
    let held = Held::create(subject).await;
    if let Some(dialled) = within("the refusal", subject.driver.dial(held.target(), 9)).await {
        assert_eq!(dialled.err().map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionRefused));
    }
    held.destroy().await;
    let dialled = within("the end", subject.driver.dial(held.target(), 9)).await;
    assert!(!matches!(dialled, Some(Ok(_))), "a destroyed sandbox was dialled");
}

/// What is enforced is told.
pub async fn metrics_tell_the_limits(subject: &Subject) {
    if !can(subject, Capability::Metrics) {
        return;
    }
    let held = Held::create(subject).await;
    let metrics = within("metrics", subject.driver.metrics(held.target())).await.unwrap();
    let limits = SandboxSpec::of_image(subject.image.name.clone()).resources;
    if can(subject, Capability::MemoryLimit) {
        assert_eq!(metrics.memory_limit_bytes, limits.memory_bytes);
    }
    if can(subject, Capability::CpuLimit) {
        assert_eq!(metrics.cpu_limit_millis, limits.cpu_millis);
    }
    if can(subject, Capability::PidsLimit) {
        assert_eq!(metrics.pids_limit, limits.pids);
    }
    assert!(metrics.memory_used_bytes > 0 && metrics.pids > 0, "{metrics:?}");
    held.destroy().await;
}
