//! Ports inside the sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use sandbank_agent_protocol::{Connection, ErrorKind, Frame, Reply, Request};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn dial(agent: &TestAgent, listener: &TcpListener) -> Connection {
    let port = listener.local_addr().unwrap().port();
    let mut connection = agent.begin(&Request::Dial { port }).await;
    assert_eq!(reply(&mut connection).await, Ok(Reply::Done));
    connection
}

async fn receive(connection: &mut Connection) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match next(connection).await {
            Some(Frame::Data(data)) => all.extend_from_slice(&data),
            Some(Frame::End) => return all,
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_can_half_close() {
    let agent = TestAgent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        stream.write_all(&request).await.unwrap();
        request.len()
    });
    let port = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port() };
    assert_ne!(port, 0);
    let mut connection = agent.begin(&Request::Dial { port: 0 }).await;
    assert_kind(reply(&mut connection).await, ErrorKind::Invalid, "port 0");
    server.abort();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut connection = dial(&agent, &listener).await;
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        stream.write_all(&request).await.unwrap();
    });
    let payload = vec![b'p'; 5_000_000];
    connection.send_data(payload.clone().into()).await.unwrap();
    connection.send_end().await.unwrap();
    assert!(receive(&mut connection).await == payload);
    echo.await.unwrap();
}

#[tokio::test]
async fn a_server_that_half_closes_still_receives() {
    let agent = TestAgent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut connection = dial(&agent, &listener).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(receive(&mut connection).await, b"bye");
    connection.send_data("late".into()).await.unwrap();
    connection.send_end().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"late");
    assert!(next(&mut connection).await.is_none());
}

#[tokio::test]
async fn closing_the_connection_closes_the_port() {
    let agent = TestAgent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connection = dial(&agent, &listener).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    drop(connection);
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    let mut lost = false;
    for _ in 0..2000 {
        if stream.write_all(b"x").await.is_err() {
            lost = true;
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(lost, "the agent still holds the port");
}

#[tokio::test]
async fn the_other_loopback_address_is_tried_too() {
    let agent = TestAgent::start().await;
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return skipped("no IPv6 loopback") };
    let mut connection = dial(&agent, &listener).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"six").await.unwrap();
    drop(stream);
    assert_eq!(receive(&mut connection).await, b"six");
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_refused() {
    let agent = TestAgent::start().await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_kind(agent.ask(&Request::Dial { port }).await, ErrorKind::NotFound, &port.to_string());
}
