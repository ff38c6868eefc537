//! Header fields that the proxy adds, and that the sandbox never sees.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandbank_egress::{CertificateAuthority, Denied, DeniedWhy, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::client::{connect, exchange, one, tls};
use crate::support::logs::Logs;
use crate::support::web::{Outside, Web};
use crate::support::{SANDBOX, World, soon, world};

const SECRET: &str = "Bearer sk-never-to-be-seen-5f2c";
const H2: &str = "h2";
const H1: &str = "http/1.1";

struct Scene {
    world: World,
    web: Web,
    outside: Outside,
    /// What the sandbox trusts.
    roots: String,
}

/// A server for two names that speaks `alpn`; requests to the first get a secret.
async fn scene(alpn: &[&str]) -> Scene {
    let outside = Outside::new();
    let web = Web::start(Some(outside.config(&["api.test", "plain.test"], alpn))).await;
    let (world, roots) = trusting(web.port(), outside.pem.clone()).await;
    Scene { world, web, outside, roots }
}

/// A world whose proxy has an authority and trusts `roots`.
async fn trusting(port: u16, roots: String) -> (World, String) {
    let authority = Arc::new(CertificateAuthority::generate(SystemTime::now()).unwrap());
    let pem = authority.certificate_pem().to_owned();
    let world = world(port, |settings| {
        settings.authority = Some(authority);
        settings.extra_roots_pem = roots.into_bytes();
    })
    .await;
    add_secret(&world);
    for name in ["api.test", "plain.test"] {
        world.allow_at_loopback(name);
    }
    (world, pem)
}

fn add_secret(world: &World) {
    let field = (HeaderName::from_static("authorization"), HeaderValue::from_static(SECRET));
    world.network.rules.lock().headers.push(("api.test".to_owned(), field.0, field.1));
}

const GET: &str = "GET /v1/models?key=1 HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer mine\r\nauthorization: again\r\n\
                   Connection: close\r\n\r\n";

async fn h2(stream: TlsStream<TcpStream>) -> http2::SendRequest<Full<Bytes>> {
    let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    sender
}

async fn send(sender: &mut http2::SendRequest<Full<Bytes>>, request: http::request::Builder) -> (StatusCode, String) {
    let request = request.body(Full::new(Bytes::from_static(b"body"))).unwrap();
    let response: Response<_> = soon(sender.send_request(request)).await.unwrap();
    let status = response.status();
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn authorization(received: &crate::support::web::Received) -> Vec<&str> {
    received.headers.get_all("authorization").iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_field_is_added_in_clear_and_replaces_what_the_sandbox_sent() {
    let logs = Logs::capture();
    let web = Web::start(None).await;
    let world = world(web.port(), |_| {}).await;
    world.allow_at_loopback("api.test");
    add_secret(&world);
    let answer = exchange(connect(SANDBOX, world.http).await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains(SECRET), "{answer}");
    assert_eq!(authorization(&web.received()[0]), [SECRET]);
    assert_eq!(*world.network.targets.lock(), [("api.test".to_owned(), "/v1/models".to_owned())]);
    // So that something is logged at all: with the secret in hand, the host cannot be reached.
    world.network.rules.lock().addresses.clear();
    assert!(exchange(connect(SANDBOX, world.http).await, GET).await.starts_with("HTTP/1.1 403"));
    assert!(logs.text().contains("a request was not sent on"), "{}", logs.text());
    assert!(!logs.text().contains("never-to-be-seen"));
}

#[tokio::test]
async fn a_field_is_added_over_tls_with_http_1() {
    let logs = Logs::capture();
    for alpn in [&[][..], &[H1], &[H2, H1]] {
        let scene = scene(alpn).await;
        let stream = tls(SANDBOX, scene.world.tls, "api.test", &scene.roots, &[H1]).await.unwrap();
        let answer = exchange(stream, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("/v1/models at api.test\n"), "{answer}");
        let received = &scene.web.received()[0];
        assert_eq!((authorization(received), received.version), (vec![SECRET], Version::HTTP_11));
        assert_eq!(received.server_name.as_deref(), Some("api.test"));
    }
    assert!(!logs.text().contains("never-to-be-seen"));
}

#[tokio::test]
async fn a_field_is_added_over_tls_with_http_2() {
    let logs = Logs::capture();
    for (alpn, version) in [(&[H2][..], Version::HTTP_2), (&[H1], Version::HTTP_11)] {
        let scene = scene(alpn).await;
        let stream = tls(SANDBOX, scene.world.tls, "api.test", &scene.roots, &[H2, H1]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(H2.as_bytes()));
        let mut sender = h2(stream).await;
        for _ in 0..3 {
            let request = Request::post("https://api.test/x").header("authorization", "mine").header("te", "trailers");
            let request = request.header("cookie", "a=1").header("cookie", "b=2");
            assert_eq!(send(&mut sender, request).await, (StatusCode::OK, "/x at api.test\n".to_owned()));
        }
        for received in scene.web.received() {
            assert_eq!((authorization(&received), received.version), (vec![SECRET], version));
            assert_eq!((&received.body[..], received.host.as_str()), (&b"body"[..], "api.test"));
            assert_eq!(received.headers["cookie"], "a=1; b=2");
            assert_eq!(received.headers.contains_key("te"), version == Version::HTTP_2, "gRPC needs it, HTTP/1 has none");
        }
        assert_eq!(scene.web.received().len(), 3);
        assert!(*scene.web.connections.lock() <= 2, "the outside is not dialled for each request");
    }
    assert!(!logs.text().contains("never-to-be-seen"));
}

#[tokio::test]
async fn a_name_without_fields_is_passed_on_unread() {
    let scene = scene(&[]).await;
    let stream = tls(SANDBOX, scene.world.tls, "plain.test", &scene.outside.pem, &[]).await.expect("the real certificate");
    let answer = exchange(stream, &GET.replace("api.test", "plain.test")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(authorization(&scene.web.received()[0]), ["Bearer mine", "again"]);
}

#[tokio::test]
async fn a_request_for_another_host_gets_no_further() {
    let scene = scene(&[H2, H1]).await;
    let mut stream = tls(SANDBOX, scene.world.tls, "api.test", &scene.roots, &[H1]).await.unwrap();
    for host in ["plain.test", "denied.test"] {
        let answer = one(&mut stream, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 421") && answer.contains(host), "{answer}");
    }
    let mut sender = h2(tls(SANDBOX, scene.world.tls, "api.test", &scene.roots, &[H2]).await.unwrap()).await;
    assert_eq!(send(&mut sender, Request::get("https://plain.test/")).await.0, StatusCode::MISDIRECTED_REQUEST);
    let both = Request::get("https://api.test/").header("host", "plain.test");
    assert_eq!(send(&mut sender, both).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send(&mut sender, Request::get("https://api.test/")).await.0, StatusCode::OK, "the connection goes on");
    assert_eq!(scene.web.received().len(), 1);
    let other = |name: &str| Denied { name: Some(name.to_owned()), port: Some(scene.web.port()), why: DeniedWhy::OtherHost };
    assert_eq!(scene.world.network.denials(), [other("plain.test"), other("denied.test"), other("plain.test")]);
}

#[tokio::test]
async fn every_request_is_judged() {
    let scene = scene(&[H2]).await;
    let mut sender = h2(tls(SANDBOX, scene.world.tls, "api.test", &scene.roots, &[H2]).await.unwrap()).await;
    assert_eq!(send(&mut sender, Request::get("https://api.test/")).await.0, StatusCode::OK);
    // Nobody says that the policy changed: the next request finds out by itself.
    scene.world.network.rules.lock().names.clear();
    let (status, text) = send(&mut sender, Request::get("https://api.test/")).await;
    assert!(status == StatusCode::FORBIDDEN && text.contains("\"api.test\""), "{text}");
    scene.world.network.rules.lock().names.insert("api.test".to_owned());
    scene.world.network.rules.lock().addresses.clear();
    assert_eq!(send(&mut sender, Request::get("https://api.test/")).await.0, StatusCode::FORBIDDEN, "nor its address");
    assert_eq!(scene.web.received().len(), 1);
}

#[tokio::test]
async fn a_secret_goes_only_to_a_server_that_proves_who_it_is() {
    let impostor = Outside::new();
    let web = Web::start(Some(impostor.config(&["api.test"], &[H2, H1]))).await;
    let (world, roots) = trusting(web.port(), Outside::new().pem).await;
    for alpn in [H1, H2] {
        let stream = tls(SANDBOX, world.tls, "api.test", &roots, &[alpn]).await.unwrap();
        if alpn == H1 {
            let answer = exchange(stream, GET).await;
            assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("TLS with it failed"), "{answer}");
        } else {
            assert_eq!(send(&mut h2(stream).await, Request::get("https://api.test/")).await.0, StatusCode::BAD_GATEWAY);
        }
    }
    assert_eq!(web.received().len(), 0);
}

#[tokio::test]
async fn without_an_authority_nothing_is_sent_unchanged() {
    let outside = Outside::new();
    let web = Web::start(Some(outside.config(&["api.test"], &[]))).await;
    let world = world(web.port(), |_| {}).await;
    world.allow_at_loopback("api.test");
    add_secret(&world);
    let error = tls(SANDBOX, world.tls, "api.test", &outside.pem, &[]).await.unwrap_err();
    assert!(error.to_string().contains("InternalError"), "{error}");
    assert_eq!(*web.connections.lock(), 0);
}

#[tokio::test]
async fn a_websocket_carries_the_secret() {
    let outside = Outside::new();
    let config = outside.config(&["api.test"], &[H2, H1]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (world, roots) = trusting(listener.local_addr().unwrap().port(), outside.pem.clone()).await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(H1.as_bytes()), "HTTP/2 could not switch");
        let mut header = [0; 1024];
        let read = stream.read(&mut header).await.unwrap();
        stream.write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        let mut frame = [0; 5];
        stream.read_exact(&mut frame).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        stream.flush().await.unwrap();
        String::from_utf8_lossy(&header[..read]).into_owned()
    });
    let mut stream = tls(SANDBOX, world.tls, "api.test", &roots, &[H1]).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(one(&mut stream, upgrade).await.starts_with("HTTP/1.1 101"));
    stream.write_all(b"frame").await.unwrap();
    let mut frame = [0; 5];
    soon(stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(&frame, b"frame");
    assert!(soon(server).await.unwrap().contains(SECRET));
}

#[tokio::test]
async fn trailers_pass_as_grpc_needs_them() {
    let outside = Outside::new();
    let config = outside.config(&["api.test"], &[H2]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (world, roots) = trusting(listener.local_addr().unwrap().port(), outside.pem.clone()).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
        let service = service_fn(async |request: Request<Incoming>| {
            let asked = request.into_body().collect().await.unwrap();
            assert_eq!(asked.trailers().unwrap()["x-asked"], "1");
            let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
            let frames = [Frame::data(asked.to_bytes()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
        });
        let _ = server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    });
    let stream = tls(SANDBOX, world.tls, "api.test", &roots, &[H2]).await.unwrap();
    let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-asked"), HeaderValue::from_static("1"))]);
    let frames = [Frame::data(Bytes::from_static(b"message")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("https://api.test/service/method").header("te", "trailers").body(body).unwrap();
    let answer = soon(sender.send_request(request)).await.unwrap();
    let answer = soon(answer.into_body().collect()).await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(&answer.to_bytes()[..], b"message");
}
