//! Peers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use sandbank_agent_protocol::{AgentError, ErrorKind, Frame, FrameReader, Reply, Request};
use support::*;
use tokio::io::AsyncWriteExt;

/// Sends raw bytes, half-closes, and says what the agent refuses with, if anything.
async fn answer(agent: &TestAgent, bytes: &[u8]) -> Option<AgentError> {
    let mut stream = agent.stream().await;
    // The agent may close before it has taken all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut reader = FrameReader::new(stream);
    let frame = tokio::time::timeout(PATIENCE, reader.next()).await.expect("the agent hangs");
    let Ok(Some(Frame::Message(body))) = frame else { return None };
    match Frame::parse::<Reply>(&body).unwrap() {
        Reply::Error(error) => Some(error),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn message(json: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    bytes.push(0);
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

#[tokio::test]
async fn garbage_is_answered_or_dropped_and_the_agent_lives() {
    let agent = TestAgent::start().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(Vec<u8>, Option<ErrorKind>)> = vec![
        (vec![], None),
        (vec![1, 2, 3], None),
        (vec![0xff; 5], Some(ErrorKind::Invalid)),
        (vec![0xff, 0xff, 0xff, 0x7f, 0], Some(ErrorKind::Invalid)),
        (vec![0, 0, 0, 0, 9], Some(ErrorKind::Invalid)),
        (vec![0, 0, 0, 0, 5], Some(ErrorKind::Invalid)),
        (vec![100, 0, 0, 0, 0, b'{'], None),
        (message(""), Some(ErrorKind::Invalid)),
        (message("{"), Some(ErrorKind::Invalid)),
        (message("\"NoSuchRequest\""), Some(ErrorKind::Unsupported)),
        (message("{\"NoSuchRequest\":{}}"), Some(ErrorKind::Unsupported)),
        (message("{\"Start\":{}}"), Some(ErrorKind::Invalid)),
        (message("{\"Start\":{\"argv\":5,\"env\":{},\"stdin\":false}}"), Some(ErrorKind::Invalid)),
        (message("{\"Dial\":{\"port\":70000}}"), Some(ErrorKind::Invalid)),
        (message(&deep), Some(ErrorKind::Invalid)),
        (message("\"\\ud800\""), Some(ErrorKind::Invalid)),
    ];
    for (bytes, expected) in cases {
        let error = answer(&agent, &bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(error.map(|error| error.kind), expected, "{shown:?}");
    }
    let mut seed = 88_172_645_463_325_252u64;
    for _ in 0..300 {
        let noise: Vec<u8> = (0..200)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed & 0xff) as u8
            })
            .collect();
        answer(&agent, &noise).await;
    }
    assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { .. })));
}

#[tokio::test]
async fn a_message_with_fields_of_the_future_is_understood() {
    let agent = TestAgent::start().await;
    let json = "{\"Stat\":{\"path\":\"/\",\"user\":null,\"follow\":true,\"added_later\":{\"x\":[1,2]}}}";
    let mut stream = agent.stream().await;
    stream.write_all(&message(json)).await.unwrap();
    let Some(Frame::Message(body)) = FrameReader::new(stream).next().await.unwrap() else { panic!("expected a message") };
    assert!(matches!(Frame::parse::<Reply>(&body).unwrap(), Reply::Stat(_)));
}

#[tokio::test]
async fn garbage_in_mid_stream_ends_only_that_connection() {
    let agent = TestAgent::start().await;
    let (pid, connection) = agent.spawn(argv(&["sleep", "1000"])).await;
    let (_reader, mut writer) = connection.split();
    writer.write_all(&[0xff; 64]).await.unwrap();
    let (mut reader, _writer) = agent.begin(&attach(pid, None)).await.split();
    assert!(matches!(reader.next().await, Ok(Some(Frame::Message(_)))));
    assert!(is_alive(pid));
}

#[tokio::test]
async fn a_host_that_only_stops_sending_still_receives() {
    let agent = TestAgent::start().await;
    let (_, connection) = agent.spawn(shell("sleep 0.5; echo late")).await;
    let (mut reader, writer) = connection.split();
    drop(writer);
    let mut seen = Vec::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap() {
        if let Frame::Output(_, data) = frame {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(seen, b"late\n");
}

#[tokio::test]
async fn too_many_connections_are_told_so_and_the_rest_goes_on() {
    let agent = TestAgent::start().await;
    let mut waiting = Vec::new();
    for _ in 0..512 {
        waiting.push(agent.stream().await);
    }
    assert_kind(agent.ask(&Request::Ping).await, ErrorKind::Exhausted, "512");
    waiting.truncate(500);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while agent.ask(&Request::Ping).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "places are not given back");
    }
}

#[tokio::test]
async fn a_process_that_fills_its_stdin_pipe_does_not_stop_others() {
    let agent = TestAgent::start().await;
    let start = sandbank_agent_protocol::StartProcess { stdin: true, kill_on_disconnect: true, ..argv(&["sleep", "1000"]) };
    let (pid, mut connection) = agent.spawn(start).await;
    let stuck = tokio::time::timeout(std::time::Duration::from_millis(300), connection.send_data(vec![0; 8_000_000].into()));
    assert!(stuck.await.is_err(), "somebody buffers without bound");
    assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { .. })));
    drop(connection);
    eventually("the disconnect is noticed", || !is_alive(pid)).await;
}
