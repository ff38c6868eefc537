//! Programs, files and ports inside.

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use http::Request;
use sandbank_driver::Responder;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{ADMIN, Server};

#[tokio::test]
async fn a_command_is_run_collected_and_streamed() {
    let server = Server::new().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox(ADMIN).await);
    let result =
        server.post(ADMIN, &format!("{path}/exec"), json!({"command": "echo out; echo err >&2; exit 3"})).await.expect(200);
    assert_eq!(
        (result["exitCode"].as_i64(), result["stdout"].as_str(), result["stderr"].as_str()),
        (Some(3), Some("out\n"), Some("err\n"))
    );
    let answer = server.post(ADMIN, &format!("{path}/exec/stream"), json!({"command": ["cat"], "stdin": "grüße"})).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines = answer.lines();
    assert_eq!(lines[0]["type"], "started");
    let text: String = lines.iter().filter(|line| line["type"] == "stdout").filter_map(|line| line["data"].as_str()).collect();
    assert_eq!(text, "grüße");
    let last = lines.last().unwrap();
    assert_eq!(
        (last["type"].as_str(), last["exitCode"].as_i64(), last["timedOut"].as_bool()),
        (Some("exited"), Some(0), Some(false))
    );
    let list = server.get(ADMIN, &format!("{path}/processes")).await.expect(200);
    let pid = list["items"][0]["pid"].as_u64().unwrap();
    let again = server.get(ADMIN, &format!("{path}/processes/{pid}/attach?follow=false")).await.lines();
    assert_eq!(again[0]["type"], "started");
}

#[tokio::test]
async fn a_client_that_goes_away_in_mid_stream_kills_its_command() {
    let server = Server::new().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox(ADMIN).await);
    let body = json!({"command": ["yes"]}).to_string();
    let request = Request::builder()
        .method("POST")
        .uri(format!("{path}/exec/stream"))
        .header("X-API-Key", ADMIN)
        .body(Body::from(body))
        .unwrap();
    let mut stream = server.raw(request).await.into_body().into_data_stream();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    for _ in 0..500 {
        let list = server.get(ADMIN, &format!("{path}/processes")).await.expect(200);
        if list["items"].as_array().unwrap().iter().all(|process| process["running"] == false) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the command outlived its client");
}

#[tokio::test]
async fn files_go_in_and_come_out_as_they_are() {
    let server = Server::new().await;
    let path = format!("/v1/sandboxes/{}/files", server.sandbox(ADMIN).await);
    let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let written = server.call_text(ADMIN, "PUT", &format!("{path}?path=/tmp/a.bin&mode=0600"), data.clone()).await.expect(201);
    assert_eq!((written["file"]["size"].as_u64(), written["file"]["mode"].as_str()), (Some(300_000), Some("0600")));
    let read = server.get(ADMIN, &format!("{path}?path=/tmp/a.bin")).await;
    assert_eq!((read.status.as_u16(), read.headers["x-file-mode"].to_str().unwrap()), (200, "0600"));
    assert!(read.body == data);
    assert_eq!(server.get(ADMIN, &format!("{path}?path=/tmp/a.bin&offset=10&length=5")).await.body, data[10..15]);
    server.call_text(ADMIN, "PUT", &format!("{path}?path=/tmp/a.bin&exclusive=true"), "x").await.expect(409);
    assert_eq!(server.get(ADMIN, &format!("{path}/stat?path=/tmp/a.bin")).await.expect(200)["file"]["type"], "file");
    let moved = server.post(ADMIN, &format!("{path}/move"), json!({"from": "/tmp/a.bin", "to": "/tmp/b.bin"})).await.expect(200);
    assert_eq!(moved["file"]["name"], "b.bin");
    server.post(ADMIN, &format!("{path}/mkdir"), json!({"path": "/tmp/d"})).await.expect(201);
    let list = server.get(ADMIN, &format!("{path}/list?path=/tmp")).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    server.delete(ADMIN, &format!("{path}?path=/tmp/b.bin")).await.expect(204);
    server.get(ADMIN, &format!("{path}?path=/tmp/b.bin")).await.expect(404);
}

#[tokio::test]
async fn changes_below_a_directory_are_streamed() {
    let server = Server::new().await;
    let path = format!("/v1/sandboxes/{}/files", server.sandbox(ADMIN).await);
    let request =
        Request::builder().uri(format!("{path}/watch?path=/tmp")).header("X-API-Key", ADMIN).body(Body::empty()).unwrap();
    let mut lines = server.raw(request).await.into_body().into_data_stream();
    assert_eq!(lines.next().await.unwrap().unwrap(), "{\"type\":\"ready\"}\n");
    server.call_text(ADMIN, "PUT", &format!("{path}?path=/tmp/new"), "x").await.expect(201);
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next()).await.unwrap().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&line).contains("\"path\":\"new\""), "{line:?}");
}

#[tokio::test]
async fn a_port_inside_is_reached_both_ways_and_a_closed_one_is_502() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    server.faults.respond(8000, Responder::Http { status: 418, body: "tea".to_owned() });
    for path in [
        format!("/v1/sandboxes/{id}/ports/8000/pot?x=1"),
        format!("/v1/sandboxes/{id}/ports/8000"),
        format!("/sandboxes/{id}/8000/pot"),
    ] {
        let answer = server.get(ADMIN, &path).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (418, b"tea".as_slice()), "{path}");
    }
    let named = Request::builder()
        .uri("/sandboxes/any")
        .header("X-API-Key", ADMIN)
        .header("x-sandbox-id", &id)
        .header("x-sandbox-port", "8000");
    assert_eq!(server.send(named.body(Body::empty()).unwrap()).await.status, 418);
    server.get(ADMIN, &format!("/v1/sandboxes/{id}/ports/8001/")).await.expect(502);
    server.get("wrong", &format!("/sandboxes/{id}/8000/")).await.expect(401);
    let browser =
        Request::builder().uri(format!("/sandboxes/{id}/8001/")).header("X-API-Key", ADMIN).header("accept", "text/html");
    let page = server.send(browser.body(Body::empty()).unwrap()).await;
    assert_eq!((page.status.as_u16(), page.headers["content-type"].to_str().unwrap()), (502, "text/html; charset=utf-8"));
}

/// The echo inside sends the request head back, which is no HTTP answer; what matters is that it is what we meant to send.
#[tokio::test]
async fn a_program_that_speaks_no_http_is_502_and_a_silent_one_can_be_left() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    server.faults.respond(7, Responder::Echo);
    server.get(ADMIN, &format!("/v1/sandboxes/{id}/ports/7/")).await.expect(502);
    server.faults.respond(9, Responder::Silent);
    let address = server.listen().await;
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET /v1/sandboxes/{id}/ports/9/ HTTP/1.1\r\nHost: x\r\nX-API-Key: {ADMIN}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(200), client.read(&mut byte)).await.is_err());
    drop(client);
    server.delete(ADMIN, &format!("/v1/sandboxes/{id}")).await.expect(202);
}
