//! Ports of real sandboxes through a real server: by path, by host name, over HTTP/1.1, HTTP/2 and WebSockets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use support::{Server, can_run, wait_for};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const PORT: u16 = 8000;

/// A server, a sandbox, and the program of the fixtures listening in it.
struct World {
    server: Server,
    id: String,
    programs: Vec<Child>,
}

impl World {
    fn new() -> Self {
        let server = Server::start();
        let id = made(&server);
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ports/program.py");
        server.words(&["cp", fixture.to_str().unwrap(), &format!("{id}:/tmp/program.py")]).ok();
        let mut world = Self { server, id, programs: Vec::new() };
        world.listen("127.0.0.1", PORT);
        world
    }

    /// Starts the program on another address and port.
    fn listen(&mut self, address: &str, port: u16) {
        let words = ["exec", &self.id, "--", "python3", "/tmp/program.py", address, &port.to_string()];
        let mut program = self.server.command(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        self.programs.push(program);
    }

    fn host(&self, port: u16) -> String {
        let (_, listen) = self.server.url().rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        format!("{port}-{}.localhost:{listen}", self.id)
    }

    fn key(&self) -> (&'static str, String) {
        ("x-api-key", self.server.key())
    }

    /// Sends a request as it is written and gives all that comes until the server closes.
    fn raw(&self, request: &str) -> String {
        let mut answer = Vec::new();
        // A connection that breaks off has told what it had.
        let _ = self.open(request).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn open(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// `GET path` on the port's host; the connection is closed afterwards.
    fn get(&self, port: u16, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let answer = self.raw(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{fields}\r\n", self.host(port)));
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    fn get_with_key(&self, path: &str) -> (u16, String) {
        let (name, key) = self.key();
        self.get(PORT, path, &[(name, &key)])
    }

    fn finish(mut self) {
        self.server.words(&["rm", &self.id]).ok();
        for program in &mut self.programs {
            wait_for("the program's client to end", || program.try_wait().unwrap());
        }
        self.server.finish();
    }
}

fn made(server: &Server) -> String {
    let body = r#"{"image":"host"}"#;
    let (status, answer) = support::http(&server.address(), &server.key(), "POST", "/v1/sandboxes", body).unwrap();
    assert_eq!(status, 201, "{answer}");
    answer["sandbox"]["sandboxId"].as_str().unwrap().to_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn ports_on_every_loopback_address_answer_by_host_path_and_field() {
    if !can_run() {
        return;
    }
    let mut world = World::new();
    for (port, address) in [(8001, "0.0.0.0"), (8002, "::1"), (8003, "::")] {
        world.listen(address, port);
    }
    let (name, key) = world.key();
    for port in [PORT, 8001, 8002, 8003] {
        let (status, body) = world.get(port, "/v1/a%2Fb?x=%20", &[(name, &key)]);
        assert_eq!(status, 200, "{body}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&seen["path"], &seen["fields"]["host"]), (&"/v1/a%2Fb?x=%20".into(), &world.host(port).into()));
        assert!(seen["fields"].get(name).is_none(), "{seen}");
    }
    let by_path = |path: &str, fields: &str| {
        world.raw(&format!("GET {path} HTTP/1.1\r\nhost: api.test\r\nconnection: close\r\n{name}: {key}\r\n{fields}\r\n"))
    };
    let native = by_path(&format!("/v1/sandboxes/{}/ports/{PORT}/deep?x=1", world.id), "");
    assert!(native.contains("\"path\": \"/deep?x=1\"") && native.contains("content-security-policy: sandbox"), "{native}");
    let named = by_path("/sandboxes/any", &format!("x-sandbox-id: {}\r\nx-sandbox-port: {PORT}\r\n", world.id));
    assert!(named.contains("\"path\": \"/any\""), "{named}");
    assert_eq!(world.get(9, "/", &[(name, &key)]).0, 502);
    assert_eq!(world.get(PORT, "/", &[]).0, 401);
    // A paused one is not reached, and goes on with the same program afterwards.
    world.server.words(&["pause", &world.id]).ok();
    assert_eq!(world.get_with_key("/").0, 409);
    world.server.words(&["resume", &world.id]).ok();
    assert_eq!(world.get_with_key("/").0, 200);
    world.finish();
}

#[test]
fn answers_come_piece_by_piece_and_one_that_breaks_off_never_looks_complete() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let (name, key) = world.key();
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{name}: {key}\r\n\r\n", world.host(PORT));
    let mut events = world.open(&ask("/events"));
    let mut read = String::new();
    let mut take = |until: &str| {
        while !read.contains(until) {
            let mut piece = [0; 4096];
            let count = events.read(&mut piece).unwrap();
            assert!(count > 0, "{read}");
            read.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        read.clone()
    };
    let first = take("data: first");
    assert!(!first.contains("second"), "{first}");
    assert_eq!(world.get_with_key("/go"), (200, "gone".to_owned()));
    take("data: second");
    // Half of what was promised, then the end of the connection.
    let broken = world.raw(&ask("/die"));
    assert!(broken.ends_with("half") && broken.contains("content-length: 100"), "{broken}");
    for path in ["/fold", "/both"] {
        assert_eq!(world.get_with_key(path).0, 502, "{path}");
    }
    world.finish();
}

#[test]
fn smuggled_requests_are_refused_at_the_door() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let (name, key) = world.key();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let head = format!("POST /a HTTP/1.1\r\nhost: {}\r\n{name}: {key}\r\n", world.host(PORT));
    for fields in [
        format!("content-length: 0\r\ncontent-length: {}\r\n\r\n", smuggled.len()),
        "content-length: +4\r\n\r\n".to_owned(),
        "transfer-encoding: gzip\r\n\r\n".to_owned(),
        "x-a: b\r\n folded: c\r\n\r\n".to_owned(),
        "x-a : b\r\n\r\n".to_owned(),
        format!("host: {}\r\n\r\n", world.host(PORT)),
    ] {
        let answer = world.raw(&format!("{head}connection: close\r\n{fields}{smuggled}"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields:?}: {answer}");
        assert!(!answer.contains("smuggled\""), "{fields:?}: {answer}");
    }
    // Both lengths: chunks count (RFC 9112 §6.3), and inside only they are told, so that the program cannot read it otherwise.
    for lengths in ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"] {
        let answer = world.raw(&format!("{head}connection: close\r\n{lengths}\r\n\r\n0\r\n\r\n{smuggled}"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"size\": 0"), "{answer}");
        assert!(!answer.contains("\"content-length\"") && !answer.contains("smuggled"), "{answer}");
    }
    world.finish();
}

#[test]
fn a_client_that_does_not_read_costs_the_server_little() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let (name, key) = world.key();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    world.get_with_key("/");
    let before = memory();
    let ask = format!("GET /flood HTTP/1.1\r\nhost: {}\r\n{name}: {key}\r\n\r\n", world.host(PORT));
    let readers: Vec<TcpStream> = (0..8).map(|_| world.open(&ask)).collect();
    let mut last = String::new();
    let mut still_since = Instant::now();
    wait_for("the program to stand still", || {
        let (_, now) = world.get_with_key("/flooded");
        if now != last {
            (last, still_since) = (now, Instant::now());
        }
        (last != "0" && still_since.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let grown = memory().saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB for 8 clients that do not read");
    drop(readers);
    assert_eq!(world.get_with_key("/").0, 200);
    world.finish();
}

#[test]
fn http2_and_websockets_reach_a_port_by_its_host_name() {
    if !can_run() {
        return;
    }
    let world = World::new();
    runtime().block_on(async {
        let (host, (name, key)) = (world.host(PORT), world.key());
        let connect = || async { TokioIo::new(tokio::net::TcpStream::connect(world.server.address()).await.unwrap()) };
        // HTTP/2 with prior knowledge: many requests on one connection.
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), connect().await).await.unwrap();
        tokio::spawn(connection);
        for number in 0..3 {
            let uri = format!("http://{host}/{number}");
            let request = http::Request::builder().uri(uri).header(name, &key).body(Empty::<Bytes>::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
            let seen: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert_eq!((&seen["path"], &seen["fields"]["host"]), (&format!("/{number}").into(), &host.as_str().into()));
        }
        // A WebSocket on the same connection (RFC 8441).
        let mut request = http::Request::connect(format!("http://{host}/ws")).header(name, &key);
        request = request.header("sec-websocket-version", "13").extension(hyper::ext::Protocol::from_static("websocket"));
        let answer = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let upgraded = hyper::upgrade::on(answer).await.unwrap();
        echoes(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await).await;
        // And over HTTP/1.1.
        let stream = tokio::net::TcpStream::connect(world.server.address()).await.unwrap();
        let request = http::Request::builder()
            .uri(format!("ws://{host}/ws"))
            .header("host", &host)
            .header(name, &key)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", tokio_tungstenite::tungstenite::handshake::client::generate_key());
        let (mut socket, answer) = tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await.unwrap();
        assert_eq!(answer.status(), 101);
        socket.send(Message::text("still here")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
        // One that never closes ends with its sandbox.
        world.server.words(&["rm", &world.id]).ok();
        let ended = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.expect("it ends");
        assert!(!matches!(ended, Some(Ok(Message::Text(_) | Message::Binary(_)))), "{ended:?}");
    });
    let World { server, mut programs, .. } = world;
    for program in &mut programs {
        wait_for("the program's client to end", || program.try_wait().unwrap());
    }
    server.finish();
}

async fn echoes<S>(mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    for text in ["hello", "again"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
}

#[test]
fn links_and_tokens_outlive_the_server_until_they_are_closed() {
    if !can_run() {
        return;
    }
    let mut world = World::new();
    let port = PORT.to_string();
    let link = world.server.words(&["port", "url", &world.id, &port]).ok();
    assert!(link.starts_with(&format!("http://{}/.sandbank/auth?token=sbpt_", world.host(PORT))), "{link}");
    let token = link.split("token=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let field = [("x-sandbank-port-token", token.as_str())];
    let (status, seen) = world.get(PORT, "/", &field);
    assert!(status == 200 && !seen.contains("sbpt_"), "{status} {seen}");
    let (status, seen) = world.get(PORT, &format!("/q?sandbank_port_token={token}&a=1"), &[]);
    assert!(status == 200 && seen.contains("\"/q?a=1\"") && !seen.contains("sbpt_"), "{status} {seen}");
    let cookies = format!("sandbank_port_token={token}; session=theirs");
    let (status, seen) = world.get(PORT, "/", &[("cookie", &cookies)]);
    assert!(status == 200 && seen.contains("session=theirs") && !seen.contains("sbpt_"), "{status} {seen}");
    world.server.kill();
    world.server.start_again();
    // The program was started by a client of the server that was killed, and ended with it.
    wait_for("the program to end", || (world.get(PORT, "/", &field).0 == 502).then_some(()));
    world.listen("127.0.0.1", PORT);
    assert_eq!(world.get(PORT, "/", &field).0, 200);
    let public = world.server.words(&["port", "url", &world.id, &port, "--public"]).ok();
    assert_eq!(public.trim(), format!("http://{}", world.host(PORT)));
    assert_eq!(world.get(PORT, "/", &[]).0, 200);
    world.server.words(&["port", "close", &world.id]).ok();
    assert_eq!((world.get(PORT, "/", &[]).0, world.get(PORT, "/", &field).0), (401, 401));
    assert!(world.server.words(&["port", "url", &world.id, &port, "--expires", "25h"]).fails(1).contains("expiresInSeconds"));
    assert!(!world.server.log().contains("sbpt_"));
    world.finish();
}

#[test]
fn a_port_is_forwarded_to_this_machine_for_any_protocol() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let mut forward = world.server.command(["port", "forward", &world.id, "0:8000"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split_whitespace().nth(1).expect("an address").to_owned();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /raw HTTP/1.1\r\nhost: mine\r\n\r\n").unwrap();
        // The program answers and then sees our end: half closes go through.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"host\": \"mine\"") && !answer.contains("x-forwarded"), "{answer}");
    }
    forward.kill().unwrap();
    forward.wait().unwrap();
    let missing = world.server.words(&["port", "forward", "0190f3c4-7b1a-7000-8000-0123456789ab", "0:8000"]).fails(1);
    assert!(missing.contains("not found"), "{missing}");
    world.finish();
}

/// A real browser, of which Debian has one, follows the link that the command line gives.
#[test]
fn a_browser_opens_a_page_with_a_web_socket_by_its_link() {
    if !can_run() {
        return;
    }
    if !Path::new("/usr/bin/chromium").exists() {
        eprintln!("skipped: Debian's chromium is not installed");
        return;
    }
    let world = World::new();
    let link = world.server.words(&["port", "url", &world.id, &PORT.to_string()]).ok();
    // The link leads to the port's first page; this one leads to the page with the socket.
    let link = format!("{}&to=/page", link.trim().split("&to=").next().unwrap_or_default());
    assert!(link.contains(".localhost:"), "{link}");
    let browser = |link: &str| {
        let profile = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("/usr/bin/chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--no-proxy-server",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--timeout=20000", "--virtual-time-budget=15000", "--dump-dom", link])
            .env("HOME", profile.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = browser(&link);
    assert!(shown.contains("heard hello at /page"), "{shown}");
    // Without the link there is a page for people, and none of the sandbox's.
    let refused = browser(&format!("http://{}/page", world.host(PORT)));
    assert!(refused.contains("401") && !refused.contains("inside"), "{refused}");
    world.finish();
}
