//! Ports inside, dialled from the host's side without the agent.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use sandbank_agent_protocol::{Connection, Frame, Request, StartProcess, Stream};
use sandbank_driver::{Driver, PortIo};
use support::{Fixture, SOON, Sandbox, can_run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Sends back what it gets, one client after the other, having said that it listens.
const ECHO: &str = "use IO::Socket::IP; $| = 1; my $l = IO::Socket::IP->new(LocalHost => $ARGV[0], LocalPort => $ARGV[1], \
                    Listen => 128, ReuseAddr => 1) or die \"$@\"; print \"listening\\n\"; \
                    while (my $c = $l->accept) { while (sysread($c, my $b, 65536)) { syswrite($c, $b) } close $c }";

/// Starts an echo inside; it runs for as long as the connection is held.
async fn echo(fixture: &Fixture, sandbox: &Sandbox, address: &str, port: u16) -> Connection {
    let argv = ["perl", "-e", ECHO, address, &port.to_string()].map(str::to_owned).to_vec();
    let start = StartProcess { argv, kill_on_disconnect: true, ..StartProcess::default() };
    let mut process = fixture.driver().open(sandbox.target(), &Request::Start(Box::new(start))).await.unwrap();
    let mut told = String::new();
    while !told.contains("listening") {
        match tokio::time::timeout(SOON, process.next()).await.expect("it listens soon").unwrap() {
            Some(Frame::Output(Stream::Stdout | Stream::Stderr, bytes)) => told.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Frame::Message(body)) if !String::from_utf8_lossy(&body).contains("Started") => panic!("{told} {body:?}"),
            Some(_) => {}
            None => panic!("it ended: {told}"),
        }
    }
    process
}

async fn dial(fixture: &Fixture, sandbox: &Sandbox, port: u16) -> std::io::Result<Box<dyn PortIo>> {
    let dialled = tokio::time::timeout(SOON, fixture.driver().dial(sandbox.target(), port)).await;
    dialled.expect("an answer in time").expect("this driver dials as root")
}

async fn back_and_forth(io: &mut Box<dyn PortIo>) {
    io.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    tokio::time::timeout(SOON, io.read_exact(&mut back)).await.expect("the echo in time").unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_on_any_loopback_address_are_reached_and_nothing_else_is() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let (sandbox, other) = (fixture.create().await, fixture.create().await);
    let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    for (port, address) in [(8001, "127.0.0.1"), (8002, "0.0.0.0"), (8003, "::1"), (8004, "::")] {
        let _process = echo(&fixture, &sandbox, address, port).await;
        let mut io = dial(&fixture, &sandbox, port).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        back_and_forth(&mut io).await;
        // A half close: the echo ends, and so does the stream.
        io.shutdown().await.unwrap();
        assert_eq!(tokio::time::timeout(SOON, io.read(&mut [0; 8])).await.expect("the end in time").unwrap(), 0);
        let missing = dial(&fixture, &other, port).await.err().map(|error| error.kind());
        assert_eq!(missing, Some(ErrorKind::ConnectionRefused), "{address}: another sandbox's port");
    }
    // The host's own listeners are on another loopback.
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = dial(&fixture, &sandbox, host.local_addr().unwrap().port()).await;
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), home);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_sandbox_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let warm_up = fixture.create().await;
    fixture.driver().destroy(warm_up.id).await.unwrap();
    let before = fixture.census().await;
    let sandbox = fixture.create().await;
    let process = echo(&fixture, &sandbox, "127.0.0.1", 8001).await;
    let mut io = dial(&fixture, &sandbox, 8001).await.unwrap();
    back_and_forth(&mut io).await;
    fixture.driver().destroy(sandbox.id).await.unwrap();
    let ended = tokio::time::timeout(SOON, io.read(&mut [0; 8])).await.expect("the end in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(!matches!(fixture.driver().dial(sandbox.target(), 8001).await, Some(Ok(_))));
    drop((io, process));
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sandbox_is_not_dialled() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    let _process = echo(&fixture, &sandbox, "127.0.0.1", 8001).await;
    if fixture.driver().pause(sandbox.target()).await.is_err() {
        eprintln!("skipped: nothing can be frozen here");
        return;
    }
    let refused = dial(&fixture, &sandbox, 8001).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::NotConnected));
    fixture.driver().resume(sandbox.target()).await.unwrap();
    back_and_forth(&mut dial(&fixture, &sandbox, 8001).await.unwrap()).await;
}

/// Threads serve many sandboxes: no dial may leave one of them in the wrong namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_dials_at_once_reach_the_right_sandboxes_and_leave_every_thread_at_home() {
    if !can_run() {
        return;
    }
    let fixture = std::sync::Arc::new(Fixture::new().await);
    let open = std::sync::Arc::new(fixture.create().await);
    let closed = std::sync::Arc::new(fixture.create().await);
    let _process = echo(&fixture, &open, "127.0.0.1", 8001).await;
    let began = Instant::now();
    let dials = (0..200).map(|number| {
        let (fixture, open, closed) = (fixture.clone(), open.clone(), closed.clone());
        async move {
            let sandbox = if number % 2 == 0 { open } else { closed };
            dial(&fixture, &sandbox, 8001).await.is_ok() == (number % 2 == 0)
        }
    });
    let outcomes = dials.collect::<tokio::task::JoinSet<_>>().join_all().await;
    assert!(outcomes.into_iter().all(|right| right));
    assert!(began.elapsed() < Duration::from_secs(20));
    let home = std::fs::read_link("/proc/self/ns/net").unwrap();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        assert_eq!(std::fs::read_link(task.path().join("ns/net")).unwrap(), home);
    }
}
