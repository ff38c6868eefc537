//! WebSockets over a real listener.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{ADMIN, Server};

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

async fn next(socket: &mut Socket) -> Message {
    loop {
        match tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

async fn token(server: &Server, id: &str) -> String {
    let made = server.call(ADMIN, "POST", &format!("/v1/sandboxes/{id}/exec-token"), None).await.expect(200);
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_opens_the_terminal_of_its_sandbox_once() {
    let server = Server::new().await;
    let address = server.listen().await;
    let (id, other) = (server.sandbox(ADMIN).await, server.sandbox(ADMIN).await);
    let made = token(&server, &id).await;
    let url = format!("ws://{address}/v1/sandboxes/{id}/terminal?shell=sh&token={made}");
    let (mut socket, _) = connect_async(&url).await.unwrap();
    socket.send(Message::Text("{\"type\":\"resize\",\"cols\":100,\"rows\":30}".into())).await.unwrap();
    socket.send(Message::Binary("echo hi\n".into())).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("hi") {
        match next(&mut socket).await {
            Message::Binary(data) => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    socket.send(Message::Text("exit 4\n".into())).await.unwrap();
    loop {
        if let Message::Close(Some(frame)) = next(&mut socket).await {
            assert_eq!(frame.reason.as_str(), "exit code 4");
            break;
        }
    }
    assert!(connect_async(&url).await.is_err(), "a token works once");
    let made = token(&server, &id).await;
    assert!(connect_async(format!("ws://{address}/v1/sandboxes/{other}/terminal?token={made}")).await.is_err());
}

#[tokio::test]
async fn an_interactive_exec_streams_both_ways() {
    let server = Server::new().await;
    let address = server.listen().await;
    let id = server.sandbox(ADMIN).await;
    let mut request = format!("ws://{address}/v1/sandboxes/{id}/exec/ws").into_client_request().unwrap();
    request.headers_mut().insert("x-api-key", ADMIN.parse().unwrap());
    let (mut socket, _) = connect_async(request.clone()).await.unwrap();
    socket.send(Message::Text(json!({"command": ["cat"], "stdin": true}).to_string().into())).await.unwrap();
    let started: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!(started["type"], "started");
    socket.send(Message::Binary("abc".into())).await.unwrap();
    assert_eq!(next(&mut socket).await.into_data(), [b"\x01".as_slice(), b"abc"].concat());
    socket.send(Message::Text("{\"type\":\"eof\"}".into())).await.unwrap();
    let exited: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!((exited["type"].as_str(), exited["exitCode"].as_i64()), (Some("exited"), Some(0)));
    assert!(matches!(next(&mut socket).await, Message::Close(_)));

    let (mut socket, _) = connect_async(request).await.unwrap();
    socket.send(Message::Text("{\"command\": 5}".into())).await.unwrap();
    let error: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!(error["type"], "error");
    assert!(matches!(next(&mut socket).await, Message::Close(Some(_))));
}

#[tokio::test]
async fn a_socket_without_a_key_is_refused() {
    let server = Server::new().await;
    let address = server.listen().await;
    let id = server.sandbox(ADMIN).await;
    assert!(connect_async(format!("ws://{address}/v1/sandboxes/{id}/terminal")).await.is_err());
    assert!(connect_async(format!("ws://{address}/v1/sandboxes/{id}/exec/ws?token=guess")).await.is_err());
}
