//! TLS that is passed on unread.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use sandbank_egress::{Denied, DeniedWhy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::support::client::{connect, exchange, one, tls};
use crate::support::upstream::{Behaviour, address};
use crate::support::web::{Outside, Web};
use crate::support::{SANDBOX, World, soon, until, world};

/// A server with two names on one address, of which one is allowed.
async fn two_names() -> (World, Web, Outside) {
    let outside = Outside::new();
    let web = Web::start(Some(outside.config(&["allowed.test", "denied.test"], &[]))).await;
    let world = world(web.port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    world.name_at_loopback("denied.test");
    (world, web, outside)
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn denied(web: &Web, name: Option<&str>, why: DeniedWhy) -> Denied {
    Denied { name: name.map(str::to_owned), port: Some(web.port()), why }
}

#[tokio::test]
async fn one_of_two_names_at_one_address_is_reached() {
    let (world, web, outside) = two_names().await;
    let stream = tls(SANDBOX, world.tls, "allowed.test", &outside.pem, &[]).await.expect("the real server's certificate");
    let answer = exchange(stream, &get("allowed.test")).await;
    assert!(answer.ends_with("/ at allowed.test\n"), "{answer}");
    assert_eq!(web.received()[0].server_name.as_deref(), Some("allowed.test"));
    assert_eq!(world.network.denials(), []);

    let error = tls(SANDBOX, world.tls, "denied.test", &outside.pem, &[]).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(world.network.denials(), [denied(&web, Some("denied.test"), DeniedWhy::Policy)]);
    assert_eq!(*web.connections.lock(), 1);
}

#[tokio::test]
async fn without_a_server_name_nothing_passes() {
    let (world, web, outside) = two_names().await;
    world.network.rules.lock().bare_addresses.insert("127.0.0.1".parse().unwrap());
    let error = tls(SANDBOX, world.tls, "127.0.0.1", &outside.pem, &[]).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(world.network.denials(), [denied(&web, None, DeniedWhy::NoServerName)]);
    assert_eq!(*web.connections.lock(), 0);
}

#[tokio::test]
async fn a_name_that_stands_for_a_denied_address_is_refused() {
    let (world, web, outside) = two_names().await;
    world.network.rules.lock().addresses.clear();
    let error = tls(SANDBOX, world.tls, "allowed.test", &outside.pem, &[]).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let loopback = DeniedWhy::Address("127.0.0.1".parse().unwrap());
    assert_eq!(world.network.denials(), [denied(&web, Some("allowed.test"), loopback)]);
}

#[tokio::test]
async fn a_host_that_is_not_there_is_told() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let world = world(closed, |_| {}).await;
    world.allow_at_loopback("allowed.test");
    let error = tls(SANDBOX, world.tls, "allowed.test", "", &[]).await.unwrap_err();
    assert!(error.to_string().contains("InternalError"), "{error}");
}

#[tokio::test]
async fn what_is_not_tls_is_closed() {
    let (world, web, _) = two_names().await;
    assert_eq!(exchange(connect(SANDBOX, world.tls).await, &get("allowed.test")).await, "");
    assert_eq!(*web.connections.lock(), 0);
}

#[tokio::test]
async fn a_slow_greeting_is_cut() {
    let world = world(443, |settings| settings.greeting_timeout = Duration::from_millis(200)).await;
    let mut stream = connect(SANDBOX, world.tls).await;
    stream.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn one_side_may_end_before_the_other() {
    let outside = Outside::new();
    let config = outside.config(&["allowed.test"], &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut stream = tls(SANDBOX, world.tls, "allowed.test", &outside.pem, &[]).await.unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "100000 bytes");
}

#[tokio::test]
async fn a_silent_connection_is_cut() {
    let outside = Outside::new();
    let web = Web::start(Some(outside.config(&["allowed.test"], &[]))).await;
    let world = world(web.port(), |settings| settings.idle_timeout = Duration::from_millis(300)).await;
    world.allow_at_loopback("allowed.test");
    let mut stream = tls(SANDBOX, world.tls, "allowed.test", &outside.pem, &[]).await.unwrap();
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_tighter_policy_cuts_what_is_open() {
    let (world, _web, outside) = two_names().await;
    let mut stream = tls(SANDBOX, world.tls, "allowed.test", &outside.pem, &[]).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
    assert!(one(&mut stream, request).await.contains("200"));
    let id = sandbank_egress::SandboxNetwork::id(&*world.network);
    world.services.policy_changed(id);
    assert!(one(&mut stream, request).await.contains("200"), "a change that still allows it leaves it alone");
    // The name is still allowed, but no longer this address.
    world.network.rules.lock().addresses.clear();
    world.services.policy_changed(id);
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_policy_that_changes_while_a_name_is_resolved_counts() {
    let (world, web, outside) = two_names().await;
    let gate = Arc::new(Semaphore::new(0));
    let records = vec![address("allowed.test", "127.0.0.1", 60)];
    world.upstream.set("allowed.test", RecordType::A, Behaviour::Held(Arc::clone(&gate), records));
    let (at, roots) = (world.tls, outside.pem.clone());
    let connecting = tokio::spawn(async move { tls(SANDBOX, at, "allowed.test", &roots, &[]).await.map(drop) });
    until("the name is being resolved", || world.upstream.asked("allowed.test", RecordType::A) > 0).await;
    world.network.rules.lock().names.clear();
    world.services.policy_changed(sandbank_egress::SandboxNetwork::id(&*world.network));
    gate.add_permits(100);
    let error = soon(connecting).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(web.received().len(), 0);
}
