//! Long transfers: everything arrives, and what one side does not read the other side does not send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use sandbank_egress::{CertificateAuthority, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::client::{connect, read_some, tls};
use crate::support::web::Outside;
use crate::support::{SANDBOX, World, soon, world};

const MIB: u64 = 1024 * 1024;
const TRANSFER_BYTES: u64 = 256 * MIB;
/// What the buffers of the system's sockets and of TLS may hold between the two ends: far less than the transfer.
const ON_THE_WAY_BYTES_MAX: u64 = 24 * MIB;
/// What the process may grow by.
const GROWTH_BYTES_MAX: u64 = 48 * MIB;

/// A server that sends as fast as it can, and says how much it could.
struct Source {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Source {
    async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Self { address: listener.local_addr().unwrap(), sent: Arc::default() };
        let sent = Arc::clone(&source.sent);
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            match tls {
                None => pour(stream, &sent).await,
                Some(config) => pour(tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap(), &sent).await,
            }
        });
        source
    }
}

async fn pour(mut stream: impl AsyncRead + AsyncWrite + Unpin, sent: &AtomicU64) {
    read_some(&mut stream).await;
    let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {TRANSFER_BYTES}\r\nConnection: close\r\n\r\n");
    stream.write_all(header.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    while sent.load(Ordering::Relaxed) < TRANSFER_BYTES {
        stream.write_all(&piece).await.unwrap();
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    stream.shutdown().await.unwrap();
}

/// Reads nothing until the source stands still, and then everything.
async fn stall_and_read(mut stream: impl AsyncRead + AsyncWrite + Unpin, source: &Source) {
    let before = resident_bytes_max();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: big.test\r\n\r\n").await.unwrap();
    soon(held_back(source)).await;
    let mut read = 0;
    let mut buffer = vec![0; 256 * 1024];
    while read < TRANSFER_BYTES {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "it ended after {read} bytes");
        read += length as u64;
    }
    grew_little(before);
}

/// Waits until the source cannot send more, which must be soon.
async fn held_back(source: &Source) {
    let mut last = u64::MAX;
    while last != source.sent.load(Ordering::Relaxed) || last == 0 {
        last = source.sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(last < ON_THE_WAY_BYTES_MAX, "{last} bytes were taken from the source although nobody reads");
}

fn grew_little(before: u64) {
    // The kernel counts in batches: the later number may be the smaller one.
    let growth = resident_bytes_max().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "the process grew by {growth} bytes");
}

/// The most memory that this process has had so far.
fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

async fn world_for(source: &Source, roots: &str) -> (World, String) {
    let authority = Arc::new(CertificateAuthority::generate(SystemTime::now()).unwrap());
    let trusted = authority.certificate_pem().to_owned();
    let world = world(source.address.port(), |settings| {
        settings.authority = Some(authority);
        settings.extra_roots_pem = roots.as_bytes().to_vec();
    })
    .await;
    world.allow_at_loopback("big.test");
    (world, trusted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_is_passed_on_is_held_back_by_a_slow_reader() {
    let outside = Outside::new();
    let source = Source::start(Some(outside.config(&["big.test"], &[]))).await;
    let (world, _) = world_for(&source, "").await;
    stall_and_read(tls(SANDBOX, world.tls, "big.test", &outside.pem, &[]).await.unwrap(), &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_clear_is_held_back_by_a_slow_reader() {
    let source = Source::start(None).await;
    let (world, _) = world_for(&source, "").await;
    stall_and_read(connect(SANDBOX, world.http).await, &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_ended_tls_is_held_back_by_a_slow_reader() {
    let outside = Outside::new();
    let source = Source::start(Some(outside.config(&["big.test"], &[]))).await;
    let (world, trusted) = world_for(&source, &outside.pem).await;
    end_tls(&world);
    stall_and_read(tls(SANDBOX, world.tls, "big.test", &trusted, &["http/1.1"]).await.unwrap(), &source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_http_2_is_held_back_by_a_slow_reader() {
    let outside = Outside::new();
    let source = Source::start(Some(outside.config(&["big.test"], &[]))).await;
    let (world, trusted) = world_for(&source, &outside.pem).await;
    end_tls(&world);
    let before = resident_bytes_max();
    let stream = tls(SANDBOX, world.tls, "big.test", &trusted, &["h2"]).await.unwrap();
    let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    let request = Request::get("https://big.test/").body(Empty::<Bytes>::new()).unwrap();
    let mut body = sender.send_request(request).await.unwrap().into_body();
    soon(held_back(&source)).await;
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len() as u64;
    }
    assert_eq!(read, TRANSFER_BYTES);
    grew_little(before);
}

/// Has the proxy end the TLS of the server's name.
fn end_tls(world: &World) {
    let field = (HeaderName::from_static("x-key"), HeaderValue::from_static("secret"));
    world.network.rules.lock().headers.push(("big.test".to_owned(), field.0, field.1));
}
