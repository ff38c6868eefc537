//! The proxy before programs that behave, and before those that do not.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use sandbank_http::{DialError, Link, PortKey, PortPool, PortTarget, ProxyFailure, ProxySettings, proxy};
use sandbank_model::{SandboxId, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

/// A program inside, and the proxy before it.
struct World {
    address: std::net::SocketAddr,
    pool: PortPool,
    key: PortKey,
    dialled: AtomicUsize,
    ended: watch::Sender<bool>,
}

impl World {
    /// Each connection to the program is handed to `serve` with its number, from 0 on.
    async fn new<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Arc<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, number));
            }
        });
        let key = PortKey { sandbox: SandboxId::new(Timestamp::from_millis(1), [1; 10]), port: 8000 };
        let world =
            Self { address, pool: PortPool::default(), key, dialled: AtomicUsize::new(0), ended: watch::Sender::new(false) };
        Arc::new(world)
    }

    async fn send(&self, request: Request<Body>) -> Result<Response, ProxyFailure> {
        let settings = ProxySettings { dial_timeout: Duration::from_secs(5), response_timeout: Duration::from_secs(5) };
        let target = PortTarget { port: 8000, path: request.uri().path().to_owned(), ..PortTarget::default() };
        let dial = || async {
            self.dialled.fetch_add(1, Ordering::SeqCst);
            let stream = TcpStream::connect(self.address).await.map_err(|error| DialError::NotListening(error.to_string()))?;
            let ended = self.ended.subscribe();
            let ended = move || {
                let mut ended = ended.clone();
                Box::pin(async move {
                    let _ = ended.wait_for(|ended| *ended).await;
                }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
            };
            Ok(Link { io: Box::new(stream), ended: Arc::new(ended) })
        };
        within("the answer", proxy(request, &target, &settings, (&self.pool, self.key), Box::new(()), dial)).await
    }

    async fn get(&self) -> Result<Response, ProxyFailure> {
        self.send(Request::builder().uri("/").body(Body::empty()).unwrap()).await
    }

    async fn text(&self) -> String {
        read(self.get().await.unwrap()).await.unwrap()
    }

    /// Waits until this many connections are idle.
    async fn idle(&self, count: usize) {
        within("idle connections", async {
            while self.pool.len() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

async fn read(response: Response) -> Result<String, axum::Error> {
    let bytes = within("the body", response.into_body().collect()).await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads one request head; `None` at the end.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// Answers every request with `answer`.
async fn repeat(mut stream: TcpStream, answer: &'static str) {
    while head(&mut stream).await.is_some() {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection_and_concurrent_ones_do_not() {
    let world = World::new(|stream, _| repeat(stream, OK)).await;
    for _ in 0..5 {
        assert_eq!(world.text().await, "ok");
        world.idle(1).await;
    }
    assert_eq!(world.dialled.load(Ordering::SeqCst), 1);
    let (first, second) = (world.get().await.unwrap(), world.get().await.unwrap());
    assert_eq!(world.dialled.load(Ordering::SeqCst), 2);
    assert_eq!((read(first).await.unwrap(), read(second).await.unwrap()), ("ok".to_owned(), "ok".to_owned()));
    world.idle(2).await;
    world.pool.close(world.key.sandbox);
    assert!(world.pool.is_empty());
}

#[tokio::test]
async fn idle_connections_to_one_port_are_bounded() {
    let world = World::new(|stream, _| repeat(stream, OK)).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(world.get().await.unwrap());
    }
    for response in open {
        read(response).await.unwrap();
    }
    world.idle(32).await;
}

#[tokio::test]
async fn a_connection_in_use_while_the_sandbox_paused_does_not_come_back() {
    let world = World::new(|stream, _| repeat(stream, OK)).await;
    let response = world.get().await.unwrap();
    world.pool.close(world.key.sandbox);
    assert_eq!(read(response).await.unwrap(), "ok");
    assert_eq!(world.text().await, "ok");
    assert_eq!(world.dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn another_sandbox_that_ends_changes_nothing() {
    let world = World::new(|stream, _| repeat(stream, OK)).await;
    let response = world.get().await.unwrap();
    world.pool.close(SandboxId::new(Timestamp::from_millis(1), [2; 10]));
    read(response).await.unwrap();
    world.idle(1).await;
    assert_eq!(world.text().await, "ok");
    assert_eq!(world.dialled.load(Ordering::SeqCst), 1);
}

/// The program closes its idle connection exactly when the next request arrives on it.
#[tokio::test]
async fn a_connection_that_died_idle_costs_a_repeatable_request_nothing() {
    let serve = |mut stream: TcpStream, _| async move {
        if head(&mut stream).await.is_some() {
            stream.write_all(OK.as_bytes()).await.unwrap();
            // The second request is read and never answered.
            head(&mut stream).await;
        }
    };
    let world = World::new(serve).await;
    assert_eq!(world.text().await, "ok");
    world.idle(1).await;
    assert_eq!(world.text().await, "ok");
    assert_eq!(world.dialled.load(Ordering::SeqCst), 2);
    world.idle(1).await;
    // What may have had an effect is not sent twice.
    let post = Request::builder().method(Method::POST).uri("/").body(Body::from("x")).unwrap();
    assert!(matches!(world.send(post).await, Err(ProxyFailure::Broken { .. })));
    assert_eq!(world.dialled.load(Ordering::SeqCst), 2);
}

/// Bytes after an answer would be taken for the next request's answer.
#[tokio::test]
async fn a_connection_with_bytes_left_over_is_closed() {
    let world = World::new(|stream, _| {
        repeat(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    })
    .await;
    for round in 1..=3 {
        assert_eq!(world.text().await, "ok");
        assert_eq!(world.dialled.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_not_an_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let serve = move |mut stream: TcpStream, _| async move {
            head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let world = World::new(serve).await;
        assert!(read(world.get().await.unwrap()).await.is_err(), "{answer}");
        assert!(world.pool.is_empty());
    }
}

#[tokio::test]
async fn an_answer_ends_with_an_error_when_its_sandbox_does() {
    let serve = |mut stream: TcpStream, _| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await.unwrap();
        // The program says nothing more and does not hang up either.
        head(&mut stream).await;
    };
    let world = World::new(serve).await;
    let mut body = world.get().await.unwrap().into_body();
    assert_eq!(within("a piece", body.frame()).await.unwrap().unwrap().into_data().unwrap(), "half");
    world.ended.send_replace(true);
    assert!(within("the end", body.frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn answers_that_two_parsers_could_read_differently_are_refused() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx-folded: a\r\n b\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: evil\r\nconnection: upgrade\r\n\r\n",
        "not HTTP at all\r\n\r\n",
    ] {
        let world = World::new(move |stream, _| repeat(stream, answer)).await;
        let refused = world.get().await;
        assert!(matches!(refused, Err(ProxyFailure::Broken { .. })), "{answer:?}: {refused:?}");
        assert!(world.pool.is_empty());
    }
}

#[tokio::test]
async fn requests_that_two_parsers_could_read_differently_are_refused() {
    let world = World::new(|stream, _| repeat(stream, OK)).await;
    for fields in
        [[("content-length", "1"), ("transfer-encoding", "chunked")], [("content-length", "1"), ("content-length", "2")]]
    {
        let mut request = Request::new(Body::from("x"));
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(world.send(request).await.unwrap_err().status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(world.dialled.load(Ordering::SeqCst), 0);
}

/// Who does not read stops the program: what is in between is bounded.
#[tokio::test]
async fn a_client_that_does_not_read_stops_the_program() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let serve = move |mut stream: TcpStream, _| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let piece = vec![0; 64 * 1024];
            while stream.write_all(&piece).await.is_ok() {
                counted.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    };
    let world = World::new(serve).await;
    let response = world.get().await.unwrap();
    let mut before = 0;
    within("the program stands still", async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = sent.load(Ordering::SeqCst);
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
    })
    .await;
    // The kernel's buffers of two sockets, and what hyper reads ahead.
    assert!(before < 32 * 1024 * 1024, "{before} bytes in between");
    let mut body = response.into_body();
    let mut taken = 0;
    while taken < 2 * before {
        taken += within("a piece", body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert!(sent.load(Ordering::SeqCst) > before);
}

#[tokio::test]
async fn a_body_of_unknown_length_arrives_whatever_the_method() {
    let serve = |mut stream: TcpStream, _| async move {
        let head = head(&mut stream).await.unwrap();
        let mut body = [0; 13];
        stream.read_exact(&mut body).await.unwrap();
        let told = head.contains("transfer-encoding: chunked") && body == *b"3\r\nabc\r\n0\r\n\r\n";
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.to_string().len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    for method in [Method::GET, Method::POST] {
        let world = World::new(serve).await;
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("abc")]);
        let request = Request::builder().method(method.clone()).uri("/").body(Body::from_stream(pieces)).unwrap();
        assert_eq!(read(world.send(request).await.unwrap()).await.unwrap(), "true", "{method}");
    }
}
