//! HTTP in clear.

use std::sync::Arc;
use std::time::Duration;

use sandbank_egress::{Denied, DeniedWhy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::client::{connect, exchange, one, read_some};
use crate::support::web::Web;
use crate::support::{NEIGHBOUR, SANDBOX, STRANGER, World, soon, until, world};

async fn served() -> (World, Web) {
    let web = Web::start(None).await;
    let world = world(web.port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    (world, web)
}

fn denied(web: &Web, name: &str, why: DeniedWhy) -> Denied {
    Denied { name: Some(name.to_owned()), port: Some(web.port()), why }
}

/// One request on a connection of its own.
async fn ask(world: &World, request: &str) -> String {
    exchange(connect(SANDBOX, world.http).await, request).await
}

fn get(host: &str) -> String {
    format!("GET /path?query HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn status(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or_default()
}

#[tokio::test]
async fn an_allowed_host_is_reached_and_its_answer_is_as_it_was() {
    let (world, web) = served().await;
    let request = "POST /path?query HTTP/1.1\r\nHost: Allowed.Test.\r\nX-Own: 1\r\nContent-Length: 4\r\n\
                   Connection: close, X-Private\r\nX-Private: 1\r\n\r\nbody";
    let answer = ask(&world, request).await;
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.contains("x-backend: as it was") && answer.ends_with("/path at allowed.test\n"), "{answer}");
    let [received] = &web.received()[..] else { panic!("one request") };
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/path?query"));
    assert_eq!(&received.body[..], b"body");
    assert_eq!(received.headers["x-own"], "1");
    assert!(!received.headers.contains_key("x-private") && !received.headers.contains_key("via"));
    assert_eq!(world.network.denials(), []);
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for answer in ["200 OK\r\nContent-Length: 1234", "304 Not Modified\r\nETag: \"x\"", "204 No Content"] {
            read_some(&mut stream).await;
            stream
                .write_all(format!("HTTP/1.1 {answer}\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n").as_bytes())
                .await
                .unwrap();
        }
    });
    let mut stream = connect(SANDBOX, world.http).await;
    for (method, expected) in [("HEAD", "content-length: 1234"), ("GET", "etag: \"x\""), ("DELETE", "204 No Content")] {
        stream.write_all(format!("{method} / HTTP/1.1\r\nHost: allowed.test\r\n\r\n").as_bytes()).await.unwrap();
        let answer = read_some(&mut stream).await;
        assert!(answer.to_ascii_lowercase().contains(&expected.to_ascii_lowercase()), "{method}: {answer}");
        assert!(answer.to_ascii_lowercase().matches("set-cookie: ").count() == 2 && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_denied_host_is_answered_in_words() {
    let (world, web) = served().await;
    world.name_at_loopback("denied.test");
    let answer = ask(&world, &get("denied.test")).await;
    assert_eq!(status(&answer), "403");
    assert!(answer.contains("\"denied.test\"") && answer.contains("network policy of this sandbox"), "{answer}");
    assert_eq!(world.network.denials(), [denied(&web, "denied.test", DeniedWhy::Policy)]);
    assert_eq!(*web.connections.lock(), 0);
    // The policy is the sandbox's own.
    let other = exchange(connect(NEIGHBOUR, world.http).await, &get("allowed.test")).await;
    assert_eq!(status(&other), "403");
    let nobody = exchange(connect(STRANGER, world.http).await, &get("allowed.test")).await;
    assert_eq!(nobody, "");
}

#[tokio::test]
async fn a_name_may_be_allowed_at_one_port_only() {
    let (world, web) = served().await;
    world.network.rules.lock().ports.insert(443);
    assert_eq!(status(&ask(&world, &get("allowed.test")).await), "403");
    world.network.rules.lock().ports.insert(web.port());
    assert_eq!(status(&ask(&world, &get("allowed.test")).await), "200");
    assert_eq!(status(&ask(&world, &get(&format!("allowed.test:{}", web.port()))).await), "200");
    assert_eq!(status(&ask(&world, &get("allowed.test:1")).await), "421");
}

#[tokio::test]
async fn every_request_of_a_connection_is_judged() {
    let (world, web) = served().await;
    world.name_at_loopback("denied.test");
    let mut stream = connect(SANDBOX, world.http).await;
    let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for expected in [("allowed.test", "200"), ("denied.test", "403"), ("allowed.test", "200"), ("allowed.test", "200")] {
        assert_eq!(status(&one(&mut stream, &request(expected.0)).await), expected.1, "{expected:?}");
    }
    assert_eq!(web.received().len(), 3);
    assert!(web.received().iter().all(|received| received.host == "allowed.test"));
    assert_eq!(world.network.denials().len(), 1);
    assert!(*web.connections.lock() < 3, "connections to the outside are used again");
}

#[tokio::test]
async fn an_allowed_name_that_stands_for_a_denied_address_is_refused() {
    let (world, web) = served().await;
    world.network.rules.lock().addresses.clear();
    assert_eq!(status(&ask(&world, &get("allowed.test")).await), "403");
    let loopback = DeniedWhy::Address("127.0.0.1".parse().unwrap());
    assert_eq!(world.network.denials(), [denied(&web, "allowed.test", loopback)]);
    assert_eq!(*web.connections.lock(), 0);
}

#[tokio::test]
async fn addresses_as_hosts_go_by_the_rules_for_addresses() {
    let (world, web) = served().await;
    assert_eq!(status(&ask(&world, &get("127.0.0.1")).await), "403");
    assert_eq!(status(&ask(&world, &get("[::1]")).await), "403");
    assert_eq!(status(&ask(&world, &get("[::ffff:127.0.0.1]")).await), "403");
    assert_eq!(world.network.denials().len(), 3);
    world.network.rules.lock().bare_addresses.insert("127.0.0.1".parse().unwrap());
    assert_eq!(status(&ask(&world, &get("127.0.0.1")).await), "200");
    // What some libraries would take for an address is nothing.
    for odd in ["127.1", "2130706433", "0x7f000001"] {
        assert_eq!(status(&ask(&world, &get(odd)).await), "400", "{odd}");
    }
    assert_eq!(web.received().len(), 1);
}

#[tokio::test]
async fn the_hosts_own_names_lead_nowhere() {
    let (world, web) = served().await;
    for name in ["localhost", "a.localhost", "printer", "printer.local"] {
        world.allow_at_loopback(name);
        assert_eq!(status(&ask(&world, &get(name)).await), "502", "{name}");
    }
    assert_eq!(*web.connections.lock(), 0);
    assert_eq!(world.upstream.asked_in_all(), 0);
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused() {
    let (world, web) = served().await;
    world.name_at_loopback("denied.test");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: denied.test\r\n\r\n";
    let get = |rest: &str| format!("GET / HTTP/1.1\r\n{rest}\r\n\r\n");
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: allowed.test\r\n{rest}\r\n\r\n0\r\n\r\n{smuggled}");
    for request in [
        get("X: 1"),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        get("Host: allowed.test\r\nHost: denied.test"),
        get("Host: allowed.test\r\nHost: allowed.test"),
        get("Host: allowed.test, denied.test"),
        get("Host: allowed.test\r\n denied.test"),
        get("Host : allowed.test"),
        get("Host: denied.test@allowed.test"),
        "GET http://denied.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_owned(),
        "GET http://allowed.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_owned(),
        "GET https://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_owned(),
        "CONNECT denied.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_owned(),
        "CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n".to_owned(),
        "TRACE / HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_owned(),
        post("Content-Length: 5\r\nContent-Length: 60"),
        post("Content-Length: 5, 60"),
        post("Content-Length: +5"),
        post("Transfer-Encoding: chunked, identity"),
        post("Transfer-Encoding: xchunked"),
        post("X: 1\r\n folded: 2"),
    ] {
        let answer = ask(&world, &request).await;
        assert!(status(&answer) == "400", "{request:?}: {answer:?}");
        assert!(!answer[3..].contains("HTTP/1.1 "), "one answer, and then the end: {answer:?}");
    }
    // HTTP/2 in clear without asking is not understood at all.
    assert_eq!(ask(&world, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, "");
    assert_eq!(web.received().len(), 0, "{:?}", web.received());
}

#[tokio::test]
async fn nothing_hides_behind_two_framings() {
    let (world, web) = served().await;
    // RFC 9112 §6.3: the length is dropped, the body is what the chunks say, and the connection ends after it.
    for framing in ["Transfer-Encoding: chunked\r\nContent-Length: 100", "Content-Length: 100\r\nTransfer-Encoding: chunked"] {
        let request = format!(
            "POST /first HTTP/1.1\r\nHost: allowed.test\r\n{framing}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{}",
            get("allowed.test").replace("/path", "/smuggled")
        );
        let answer = ask(&world, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
        let received = web.received.lock().drain(..).collect::<Vec<_>>();
        let [only] = &received[..] else { panic!("one request: {received:?}") };
        assert_eq!((only.path.as_str(), &only.body[..]), ("/first", &b"abc"[..]));
        assert!(!only.headers.contains_key("content-length"));
    }
}

#[tokio::test]
async fn a_host_that_is_not_there_is_told() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let world = world(closed, |_| {}).await;
    world.allow_at_loopback("allowed.test");
    let answer = ask(&world, &get("allowed.test")).await;
    assert_eq!(status(&answer), "502");
    assert!(answer.contains("\"allowed.test\" could not be reached"), "{answer}");
    world.network.rules.lock().names.insert("nowhere.test".to_owned());
    let answer = ask(&world, &get("nowhere.test")).await;
    assert!(status(&answer) == "502" && answer.contains("no address"), "{answer}");
}

#[tokio::test]
async fn a_host_that_dies_in_the_middle_ends_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    let dying = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_some(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this").await.unwrap();
        drop(stream);
        let (stream, _) = listener.accept().await.unwrap();
        drop(stream);
    });
    let answer = ask(&world, &get("allowed.test")).await;
    assert!(answer.ends_with("only this"), "{answer}");
    let answer = ask(&world, &get("allowed.test")).await;
    assert_eq!(status(&answer), "502", "{answer}");
    soon(dying).await.unwrap();
}

#[tokio::test]
async fn a_slow_header_is_cut() {
    let web = Web::start(None).await;
    let world = world(web.port(), |settings| settings.header_timeout = Duration::from_millis(200)).await;
    let mut stream = connect(SANDBOX, world.http).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: all").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
}

#[tokio::test]
async fn a_silent_connection_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |settings| settings.idle_timeout = Duration::from_millis(300)).await;
    world.allow_at_loopback("allowed.test");
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    });
    assert_eq!(ask(&world, &get("allowed.test")).await, "");
    soon(silent).await.expect("the connection to the outside is closed too");
}

#[tokio::test]
async fn connections_are_bounded() {
    let web = Web::start(None).await;
    let world = world(web.port(), |settings| settings.limits.connections = 2).await;
    world.allow_at_loopback("allowed.test");
    let mut held = vec![connect(SANDBOX, world.http).await, connect(SANDBOX, world.tls).await];
    let mut third = connect(SANDBOX, world.http).await;
    assert_eq!(soon(third.read(&mut [0; 1])).await.unwrap_or(0), 0, "one too many");
    let neighbour = exchange(connect(NEIGHBOUR, world.http).await, &get("allowed.test")).await;
    assert_eq!(status(&neighbour), "403", "its neighbour is served");
    held.clear();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while status(&ask(&world, &get("allowed.test")).await) != "200" {
        assert!(tokio::time::Instant::now() < deadline, "the places are never free again");
    }
}

#[tokio::test]
async fn a_tighter_policy_cuts_what_is_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    let endless = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_some(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst").await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
    let mut stream = connect(SANDBOX, world.http).await;
    stream.write_all(get("allowed.test").as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let mut answer = String::new();
    while !answer.ends_with("first") {
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    let id = sandbank_egress::SandboxNetwork::id(&*world.network);
    // A change that still allows it leaves it alone.
    world.network.rules.lock().names.insert("more.test".to_owned());
    world.services.policy_changed(id);
    let quiet = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer)).await;
    assert!(quiet.is_err(), "still open");
    world.network.rules.lock().names.remove("allowed.test");
    world.services.policy_changed(id);
    assert_eq!(soon(stream.read(&mut buffer)).await.unwrap_or(0), 0);
    soon(endless).await.unwrap();
}

#[tokio::test]
async fn a_websocket_passes_and_nothing_else_is_switched_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    tokio::spawn(async move {
        let mut header = [0; 1024];
        let (mut stream, _) = listener.accept().await.unwrap();
        let read = stream.read(&mut header).await.unwrap();
        let text = String::from_utf8_lossy(&header[..read]).to_ascii_lowercase();
        assert!(text.contains("upgrade: websocket") && text.contains("sec-websocket-key: k"), "{text}");
        stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi").await.unwrap();
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        drop(write);

        let (mut stream, _) = listener.accept().await.unwrap();
        let read = stream.read(&mut header).await.unwrap();
        let text = String::from_utf8_lossy(&header[..read]).to_ascii_lowercase();
        assert!(!text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
        stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut header).await;
    });
    let mut stream = connect(SANDBOX, world.http).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: allowed.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: k\r\n\r\n";
    let answer = one(&mut stream, upgrade).await;
    assert_eq!(status(&answer), "101", "{answer}");
    stream.write_all(b" echo").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    soon(stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "hi echo", "half-closed, and still heard");

    let plain = "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABk\r\n\r\n";
    assert_eq!(status(&one(&mut connect(SANDBOX, world.http).await, plain).await), "502");
}

#[tokio::test]
async fn a_websocket_that_never_closes_ends_with_its_permission() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(listener.local_addr().unwrap().port(), |_| {}).await;
    world.allow_at_loopback("allowed.test");
    let outside = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_some(&mut stream).await;
        stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
    let mut stream = connect(SANDBOX, world.http).await;
    let upgrade = "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(status(&one(&mut stream, upgrade).await), "101");
    world.directory.set(SANDBOX, None);
    world.services.policy_changed(sandbank_egress::SandboxNetwork::id(&*world.network));
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
    soon(outside).await.unwrap();
}

#[tokio::test]
async fn dropping_the_services_ends_everything() {
    let (world, _web) = served().await;
    let mut stream = connect(SANDBOX, world.http).await;
    assert_eq!(status(&one(&mut stream, "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n").await), "200");
    let (services, http) = (world.services, world.http);
    drop(services);
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
    let free = || std::net::TcpListener::bind(http).is_ok();
    until("the address is free again", free).await;
    drop(Arc::clone(&world.network));
}
