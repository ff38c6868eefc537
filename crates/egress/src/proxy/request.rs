//! Requests that the proxy reads: each is judged for itself, also the hundredth on a connection.

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::backend::{Backends, Tasks};
use super::connection::Connection;
use super::refusal::{Body, Refusal};
use super::stream::splice;
use super::{headers, target};
use crate::name::Host;
use crate::network::{DeniedWhy, RequestTarget, Scheme};
use crate::telemetry;

/// Bytes of an HTTP/1 connection that are read ahead, and with it of one header.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Bytes of one HTTP/2 header block.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// Bytes of answers that wait to be sent, for one of them.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// Bytes of requests that may be on their way before the outside has taken what came: for one of them, and for all.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// The requests of one connection.
struct Requests {
    connection: Arc<Connection>,
    backends: Arc<Backends>,
    scheme: Scheme,
    /// Whom the connection itself is for, if it said so.
    server_name: Option<Host>,
}

/// Serves HTTP/1 in clear; says what became of it.
pub(super) async fn serve_clear<S>(connection: &Arc<Connection>, stream: S) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Requests::new(connection, Scheme::Http, None).serve_one(stream).await;
    "served"
}

/// Serves the requests inside a TLS connection for `name` that was ended here, over HTTP/2 or HTTP/1.
pub(super) async fn serve_ended<S>(connection: &Arc<Connection>, stream: S, name: &str, two: bool) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let requests = Requests::new(connection, Scheme::Https, Some(Host::Name(name.to_owned())));
    if two {
        requests.serve_two(stream).await
    } else {
        requests.serve_one(stream).await
    }
    "ended"
}

impl Requests {
    fn new(connection: &Arc<Connection>, scheme: Scheme, server_name: Option<Host>) -> Arc<Self> {
        let backends = Backends::new(connection, scheme);
        Arc::new(Self { connection: Arc::clone(connection), backends, scheme, server_name })
    }

    async fn serve_one<S>(self: &Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let this = Arc::clone(self);
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.connection.shared.settings.header_timeout)
            .max_buf_size(READ_AHEAD_BYTES)
            .preserve_header_case(true)
            .auto_date_header(false);
        let service = service_fn(move |request| answer(Arc::clone(&this), request));
        let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        if let Err(error) = served {
            tracing::debug!(%error, "an HTTP connection ended");
        }
        self.connection.gone_on().await;
    }

    async fn serve_two<S>(self: &Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let this = Arc::clone(self);
        let mut builder = http2::Builder::new(Tasks(Arc::clone(&self.connection)));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_send_buf_size(SEND_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .auto_date_header(false);
        let service = service_fn(move |request| answer(Arc::clone(&this), request));
        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
    }

    /// Judges one request, sends it on, and returns what came back.
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let (host, port) = target::of(&parts, self.scheme)?;
        let text = host.text();
        let port_on_outside = self.connection.port;
        let network = self.connection.network().ok_or(Refusal::Bad("the sandbox is gone"))?;
        if let Some(name) = &self.server_name
            && *name != host
        {
            self.connection.denied(&*network, Some(&host), DeniedWhy::OtherHost);
            return Err(Refusal::OtherHost { host: text, connection: name.text() });
        }
        if port.is_some_and(|port| port != port_on_outside) {
            return Err(Refusal::OtherHost { host: host.field(port), connection: format!("port {port_on_outside}") });
        }
        if !self.connection.allows(&*network, &host) {
            return Err(Refusal::Denied { host: text, port: port_on_outside });
        }
        let path = parts.uri.path().to_owned();
        let target = RequestTarget { scheme: self.scheme, host: &text, port: port_on_outside, path: &path };
        let websocket = parts.version == Version::HTTP_11 && headers::is_websocket(&parts.headers);
        if let Err(error) = headers::prepare(&mut parts, &*network, &target, &host.field(port)) {
            tracing::warn!(sandbox = %network.id(), host = %text, %error, "a request was not sent for want of its headers");
            return Err(Refusal::NoHeaders { host: text });
        }
        let mut request = Request::from_parts(parts, body);
        let inside = websocket.then(|| hyper::upgrade::on(&mut request));
        let mut response = self.backends.send(&*network, &host, request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let inside = inside.filter(|_| headers::is_websocket(response.headers()));
            let inside = inside.ok_or(Refusal::Broken { host: text })?;
            let outside = hyper::upgrade::on(&mut response);
            self.connection.go_on_with(async move {
                if let (Ok(inside), Ok(outside)) = tokio::join!(inside, outside) {
                    let _ = splice(TokioIo::new(inside), TokioIo::new(outside)).await;
                }
            });
            headers::strip(response.headers_mut(), true);
        } else {
            headers::strip(response.headers_mut(), false);
        }
        Ok(response.map(Either::Left))
    }
}

async fn answer(requests: Arc<Requests>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let one = request.version() != Version::HTTP_2;
    match requests.forward(request).await {
        Ok(response) => {
            telemetry::request("forwarded");
            Ok(response)
        }
        Err(refusal) => {
            telemetry::request(refusal.outcome());
            tracing::debug!(%refusal, "a request was not sent on");
            let mut response = refusal.response();
            // Where a request is not understood, neither is where the next one begins.
            if one && matches!(refusal, Refusal::Bad(_)) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    }
}
