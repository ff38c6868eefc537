//! The messages' form on the wire: it is a contract with agents of older and newer servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use sandbank_agent_protocol::{
    AgentError, ErrorKind, ExitStatus, Frame, FrameError, HostMessage, Metrics, OpenMode, ProcessSelector, PtySize, ReadFile,
    Reply, Request, SendSignal, StartProcess, WatchEvent, WatchEventKind, WriteFile,
};

fn json<T: serde::Serialize>(message: &T) -> String {
    let Frame::Message(body) = Frame::message(message).unwrap() else { panic!("expected a message") };
    String::from_utf8(body.to_vec()).unwrap()
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> T {
    Frame::parse(text.as_bytes()).unwrap()
}

#[test]
fn requests_have_their_agreed_form() {
    let start = StartProcess {
        argv: vec!["true".into()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        pty: Some(PtySize { cols: 80, rows: 24 }),
        ..StartProcess::default()
    };
    let cases = [
        (Request::Ping, r#""Ping""#),
        (Request::Dial { port: 80 }, r#"{"Dial":{"port":80}}"#),
        (
            Request::Start(Box::new(start)),
            r#"{"Start":{"argv":["true"],"env":{"A":"b"},"cwd":null,"user":null,"pty":{"cols":80,"rows":24},"stdin":false,"tag":null,"deadline_ms":null,"ring_bytes":null,"kill_on_disconnect":false}}"#,
        ),
        (
            Request::Signal(SendSignal { process: ProcessSelector::Pid(7), signal: 9, group: true }),
            r#"{"Signal":{"process":{"Pid":7},"signal":9,"group":true}}"#,
        ),
        (Request::CloseStdin(ProcessSelector::Tag("t".into())), r#"{"CloseStdin":{"Tag":"t"}}"#),
        (
            Request::Read(ReadFile { path: "/x".into(), user: None, offset: 1, length: Some(u64::MAX) }),
            r#"{"Read":{"path":"/x","user":null,"offset":1,"length":18446744073709551615}}"#,
        ),
        (
            Request::Write(WriteFile { path: "x".into(), user: Some("u".into()), mode: Some(0o644), open: OpenMode::CreateNew }),
            r#"{"Write":{"path":"x","user":"u","mode":420,"open":"CreateNew"}}"#,
        ),
    ];
    for (request, text) in cases {
        assert_eq!(json(&request), text);
        assert_eq!(parsed::<Request>(text), request);
    }
}

#[test]
fn replies_have_their_agreed_form() {
    let cases = [
        (Reply::Done, r#""Done""#),
        (Reply::Pong { protocol: 1, uptime_ms: 5 }, r#"{"Pong":{"protocol":1,"uptime_ms":5}}"#),
        (
            Reply::Exited(ExitStatus { code: None, signal: Some(9), timed_out: true }),
            r#"{"Exited":{"code":null,"signal":9,"timed_out":true}}"#,
        ),
        (
            Reply::Watched(WatchEvent { path: "a".into(), kind: WatchEventKind::Create, is_dir: false }),
            r#"{"Watched":{"path":"a","kind":"Create","is_dir":false}}"#,
        ),
        (Reply::Error(AgentError::new(ErrorKind::NotFound, "no")), r#"{"Error":{"kind":"NotFound","message":"no"}}"#),
    ];
    for (reply, text) in cases {
        assert_eq!(json(&reply), text);
        assert_eq!(parsed::<Reply>(text), reply);
    }
}

#[test]
fn fields_added_later_are_ignored() {
    let request: Request = parsed(r#"{"Read":{"path":"/x","user":null,"offset":0,"length":null,"added":{"deep":[1]}}}"#);
    assert_eq!(request, Request::Read(ReadFile { path: "/x".into(), user: None, offset: 0, length: None }));
    let reply: Reply = parsed(r#"{"Pong":{"protocol":9,"uptime_ms":1,"added":true}}"#);
    assert_eq!(reply, Reply::Pong { protocol: 9, uptime_ms: 1 });
    let message: HostMessage = parsed(r#"{"Signal":{"signal":2,"group":false,"added":null}}"#);
    assert_eq!(message, HostMessage::Signal { signal: 2, group: false });
}

#[test]
fn optional_fields_may_be_missing() {
    let request: Request = parsed(r#"{"Start":{"argv":["a"],"env":{},"stdin":false}}"#);
    assert_eq!(request, Request::Start(Box::new(StartProcess { argv: vec!["a".into()], ..StartProcess::default() })));
}

#[test]
fn what_is_no_message_is_refused() {
    for text in ["", "{", "null", "5", r#""NoSuch""#, r#"{"Dial":{"port":70000}}"#, r#"{"Dial":{"port":-1}}"#, r#"{"Dial":{}}"#] {
        let outcome = Frame::parse::<Request>(text.as_bytes());
        assert!(matches!(outcome, Err(FrameError::Malformed { .. })), "{text}");
    }
    assert!(Frame::parse::<Request>(&[0xff, 0xfe]).is_err());
    assert!(Frame::parse::<Request>("[".repeat(500_000).as_bytes()).is_err(), "depth is bounded");
}

#[test]
fn an_exit_status_reads_as_a_shell_shows_it() {
    let status = |code, signal| ExitStatus { code, signal, timed_out: false }.shell_code();
    assert_eq!((status(Some(3), None), status(None, Some(15)), status(None, None)), (3, 143, -1));
    assert_eq!(status(None, Some(i32::MAX)), i32::MAX);
}

#[test]
fn metrics_begin_at_zero() {
    let metrics = Metrics::default();
    assert_eq!(parsed::<Metrics>(&json(&metrics)), metrics);
}
