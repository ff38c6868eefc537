//! The proxy to a port inside a sandbox: HTTP/1.1 inside, streamed both ways, and WebSockets (by `Upgrade`, and from HTTP/2 by
//! extended CONNECT, RFC 8441).
//!
//! What the program inside answers is passed on untouched but for hop-by-hop fields (RFC 9110 §7.6.1). It is hostile: hyper
//! bounds its header, and nothing of it is kept. Nothing is buffered: a client that does not read stops the program's connection.

mod failure;
mod guard;
mod headers;
mod pool;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sandbank_control::PortIo;
use tokio::io::copy_bidirectional;

pub use failure::{DialError, ProxyFailure, page, prefers_html};
pub use guard::Hold;
use guard::{AbortOnDrop, GuardedBody};
use headers::Upgrade;
use pool::Connection;
pub use pool::{PortKey, PortPool};

/// Most bytes that are read ahead of a program's answer. The client's connection has as much again at most, so that a client that
/// does not read costs little.
const READ_AHEAD_MAX: usize = 256 * 1024;
/// Most header fields of an answer.
const HEADERS_MAX: usize = 100;

/// Makes a future that is done when the sandbox has ended.
pub type Ended = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A connection to a program inside.
pub struct Link {
    /// The bytes.
    pub io: Box<dyn PortIo>,
    /// When to let go of it, whatever the bytes say.
    pub ended: Ended,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// What a proxied request is allowed.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Longest wait for the connection to open.
    pub dial_timeout: Duration,
    /// Longest wait for the first byte of the answer.
    pub response_timeout: Duration,
}

/// The `Host` that the program inside sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HostField {
    /// `localhost` and the port: what a program expects that knows nothing of a proxy.
    #[default]
    Local,
    /// As the client wrote it.
    AsAsked,
    /// This.
    Fixed(HeaderValue),
}

/// Where a request goes, and what is changed of it and of its answer.
#[derive(Debug, Clone, Default)]
pub struct PortTarget {
    /// Port inside.
    pub port: u16,
    /// Path and query inside, as the client encoded them; begins with `/`.
    pub path: String,
    /// What was cut off in front of `path`, told to the program as `X-Forwarded-Prefix`; empty: nothing was.
    pub prefix: String,
    /// `Host` inside.
    pub host: HostField,
    /// Header fields that carry our own credentials: they never reach the sandbox.
    pub credentials: Vec<HeaderName>,
    /// Cookies that carry our own credentials: they never reach the sandbox, and no answer sets them.
    pub credential_cookies: Vec<&'static str>,
    /// Fields that are set in the request, whatever the client sent.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are set in the answer, whatever the program sent.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are added to those of the answer.
    pub added_headers: Vec<(HeaderName, HeaderValue)>,
}

/// Passes `request` to the program that `key` names and gives its answer. `dial` makes a connection where none is idle, at most
/// twice. `hold` lives as long as the exchange does. Dropping the returned future, or the answer's body, closes the connection
/// inside.
pub async fn proxy<D, F>(
    request: Request,
    target: &PortTarget,
    settings: &ProxySettings,
    (pool, key): (&PortPool, PortKey),
    hold: Hold,
    dial: D,
) -> Result<Response, ProxyFailure>
where
    D: Fn() -> F + Send,
    F: Future<Output = Result<Link, DialError>> + Send,
{
    let (mut request, upgrade) = outgoing(request, target)?;
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let exchange = Exchange { port: target.port, settings, pool, key, dial };
    let (answer, connection, ended) = exchange.answer(request, client.is_some()).await?;
    let (mut parts, body) = answer.into_parts();
    headers::refuse_ambiguous_framing(&parts.headers)
        .map_err(|error| ProxyFailure::Broken { port: target.port, detail: error.to_string() })?;
    let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    match (client, upgrade, ended) {
        (Some(client), Some(upgrade), Some(ended)) if switches => {
            let answer = http::Response::from_parts(parts, body);
            Ok(upgraded(answer, client, &upgrade, target, (connection, ended, hold)))
        }
        // Switching without having been asked to would desynchronise the client's connection.
        _ if switches => Err(ProxyFailure::Broken { port: target.port, detail: "it switched protocols unasked".to_owned() }),
        _ => {
            headers::strip_hop_by_hop(&mut parts.headers);
            headers::answer(&mut parts.headers, target);
            parts.version = Version::HTTP_11;
            Ok(Response::from_parts(parts, Body::new(GuardedBody::new(body, pool.clone(), key, connection, hold))))
        }
    }
}

/// The request as the program inside sees it, and how the client asks to switch protocols.
fn outgoing(request: Request, target: &PortTarget) -> Result<(http::Request<Body>, Option<Upgrade>), ProxyFailure> {
    let (mut parts, body) = request.into_parts();
    let upgrade = Upgrade::of(&parts);
    if parts.method == Method::CONNECT && !matches!(upgrade, Some(Upgrade::Extended)) {
        return Err(ProxyFailure::BadRequest { what: "CONNECT is not passed on".to_owned() });
    }
    headers::refuse_ambiguous_framing(&parts.headers)?;
    let path: PathAndQuery = target
        .path
        .parse()
        .map_err(|_| ProxyFailure::BadRequest { what: "the path inside the sandbox is not a valid URI path".to_owned() })?;
    headers::forward(&mut parts, target, upgrade.as_ref());
    if matches!(upgrade, Some(Upgrade::Extended)) {
        parts.method = Method::GET;
    } else if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // Said outright, since hyper takes a GET without it for one without a body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    // An extended CONNECT's body is the stream that follows the handshake.
    let body = if matches!(upgrade, Some(Upgrade::Extended)) { Body::empty() } else { body };
    Ok((http::Request::from_parts(parts, body), upgrade))
}

/// One request and what it needs to be answered.
struct Exchange<'a, D> {
    port: u16,
    settings: &'a ProxySettings,
    pool: &'a PortPool,
    key: PortKey,
    dial: D,
}

type Answer = (http::Response<hyper::body::Incoming>, Connection, Option<Ended>);

impl<D, F> Exchange<'_, D>
where
    D: Fn() -> F + Send,
    F: Future<Output = Result<Link, DialError>> + Send,
{
    /// Sends the request on an idle connection, if there is one, else on a fresh one. A program may close an idle connection at any
    /// moment: what certainly did not reach it, or may be repeated (RFC 9110 §9.2.2) and has no body, is sent once more.
    async fn answer(&self, request: http::Request<Body>, fresh: bool) -> Result<Answer, ProxyFailure> {
        let request = match self.pool.take(self.key).filter(|_| !fresh) {
            None => request,
            Some(mut idle) => {
                let again = repeatable(&request);
                match self.send(&mut idle, request).await? {
                    Ok(answer) => return Ok((answer, idle, None)),
                    Err(mut failed) => match failed.take_message().or(again) {
                        Some(request) => request,
                        None => return Err(self.broken(&failed.into_error())),
                    },
                }
            }
        };
        let (mut connection, ended) = self.connect().await?;
        match self.send(&mut connection, request).await? {
            Ok(answer) => Ok((answer, connection, Some(ended))),
            Err(failed) => Err(self.broken(&failed.into_error())),
        }
    }

    async fn send(
        &self,
        connection: &mut Connection,
        request: http::Request<Body>,
    ) -> Result<Result<http::Response<hyper::body::Incoming>, TrySend>, ProxyFailure> {
        let sending = connection.sender.try_send_request(request);
        tokio::time::timeout(self.settings.response_timeout, sending)
            .await
            .map_err(|_| ProxyFailure::ResponseTimeout { port: self.port })
    }

    async fn connect(&self) -> Result<(Connection, Ended), ProxyFailure> {
        let closed = self.pool.opening(self.key.sandbox);
        let dialled = tokio::time::timeout(self.settings.dial_timeout, (self.dial)()).await;
        let Link { io, ended } = dialled.map_err(|_| ProxyFailure::DialTimeout { port: self.port })??;
        let mut builder = http1::Builder::new();
        builder.max_headers(HEADERS_MAX).max_buf_size(READ_AHEAD_MAX);
        let (sender, connection) = builder.handshake::<_, Body>(TokioIo::new(io)).await.map_err(|error| self.broken(&error))?;
        let over = ended();
        let task = AbortOnDrop::new(tokio::spawn(async move {
            tokio::select! {
                // Its error reaches the caller through the sender or the body.
                _ = connection.with_upgrades() => {}
                // Dropping the connection in the middle of an answer ends that with an error.
                () = over => {}
            }
        }));
        Ok((Connection { sender, task, closed }, ended))
    }

    fn broken(&self, error: &hyper::Error) -> ProxyFailure {
        ProxyFailure::Broken { port: self.port, detail: error.to_string() }
    }
}

type TrySend = hyper::client::conn::TrySendError<http::Request<Body>>;

/// The same request once more, where sending it twice is as good as once.
fn repeatable(request: &http::Request<Body>) -> Option<http::Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = http::Request::new(Body::empty());
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

/// Answers that protocols are switched and joins both connections until one ends, or the sandbox does.
fn upgraded(
    mut answer: http::Response<hyper::body::Incoming>,
    client: hyper::upgrade::OnUpgrade,
    upgrade: &Upgrade,
    target: &PortTarget,
    (connection, ended, hold): (Connection, Ended, Hold),
) -> Response {
    let inside = hyper::upgrade::on(&mut answer);
    let over = ended();
    tokio::spawn(async move {
        let _held = (connection.task, hold);
        let joined = async {
            let Ok((client, inside)) = tokio::try_join!(client, inside) else {
                return;
            };
            let (mut client, mut inside) = (TokioIo::new(client), TokioIo::new(inside));
            // An error means that one side went away, which ends the other too.
            let _ = copy_bidirectional(&mut client, &mut inside).await;
        };
        tokio::select! {
            () = joined => {}
            () = over => {}
        }
    });
    let (mut parts, _) = answer.into_parts();
    if matches!(upgrade, Upgrade::Extended) {
        // RFC 8441 §5: a 2xx answer, without the fields that only HTTP/1.1's handshake has.
        parts.status = StatusCode::OK;
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        parts.version = Version::HTTP_2;
    }
    headers::answer(&mut parts.headers, target);
    Response::from_parts(parts, Body::empty())
}
