//! The proxy to a port inside a sandbox: HTTP/1.1, streamed both ways, and any `Upgrade` (WebSocket).
//!
//! What the program inside answers is passed on untouched but for hop-by-hop fields (RFC 9110 §7.6.1). It is hostile: hyper
//! bounds its header, and nothing of it is kept.

mod failure;
mod guard;
mod headers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{HeaderName, Method, StatusCode, Uri, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};

pub use failure::{DialError, ProxyFailure};
use guard::{AbortOnDrop, GuardedBody, TouchedIo};
pub use headers::wants_upgrade;

/// Called while bytes flow, so that a busy connection keeps its sandbox's idle clock from running out.
pub type Touch = Arc<dyn Fn() + Send + Sync>;

/// What a proxied request is allowed.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Longest wait for the connection to open.
    pub dial_timeout: Duration,
    /// Longest wait for the first byte of the answer.
    pub response_timeout: Duration,
    /// Header fields that carry our own credentials: they never reach the sandbox.
    pub credential_headers: Vec<HeaderName>,
    /// Least time between two calls of [`Touch`].
    pub touch_interval: Duration,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct PortTarget {
    /// Port inside.
    pub port: u16,
    /// Path and query inside, as the client encoded them; begins with `/`.
    pub path: String,
    /// What was cut off in front of `path`: told to the program as `X-Forwarded-Prefix`.
    pub prefix: String,
}

/// Passes `request` to what `dial` connects to and gives its answer. Dropping the returned future, or the answer's body, closes
/// the connection inside.
pub async fn proxy<D, F, R, W>(
    request: Request,
    target: &PortTarget,
    settings: &ProxySettings,
    touch: Touch,
    dial: D,
) -> Result<Response, ProxyFailure>
where
    D: FnOnce(u16) -> F,
    F: Future<Output = Result<(R, W), DialError>>,
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let mut request = outgoing(request, target, settings)?;
    let client_upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (read, write) = tokio::time::timeout(settings.dial_timeout, dial(target.port))
        .await
        .map_err(|_| ProxyFailure::DialTimeout { port: target.port })??;
    let io = TouchedIo::new(tokio::io::join(read, write), touch, settings.touch_interval);
    let broken = |error: hyper::Error| ProxyFailure::Broken { port: target.port, detail: error.to_string() };
    let (mut sender, connection) =
        http1::Builder::new().max_headers(100).handshake::<_, Body>(TokioIo::new(io)).await.map_err(broken)?;
    let guard = AbortOnDrop::new(tokio::spawn(async move {
        // Its error reaches the caller through the sender or the body.
        let _ = connection.with_upgrades().await;
    }));
    let answer = tokio::time::timeout(settings.response_timeout, sender.send_request(request))
        .await
        .map_err(|_| ProxyFailure::ResponseTimeout { port: target.port })?
        .map_err(broken)?;
    match client_upgrade {
        Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(upgraded(answer, client, guard)),
        // Switching without having been asked to would desynchronise the client's connection.
        None if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Err(ProxyFailure::Broken { port: target.port, detail: "it switched protocols unasked".to_owned() })
        }
        _ => {
            let (mut parts, body) = answer.into_parts();
            headers::strip_hop_by_hop(&mut parts.headers);
            parts.version = Version::HTTP_11;
            Ok(Response::from_parts(parts, Body::new(GuardedBody::new(body, guard, sender))))
        }
    }
}

/// The request as the program inside sees it.
fn outgoing(request: Request, target: &PortTarget, settings: &ProxySettings) -> Result<http::Request<Body>, ProxyFailure> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(ProxyFailure::BadRequest { what: "CONNECT is not passed on".to_owned() });
    }
    headers::refuse_ambiguous_framing(&parts.headers)?;
    let path: PathAndQuery = target
        .path
        .parse()
        .map_err(|_| ProxyFailure::BadRequest { what: "the path inside the sandbox is not a valid URI path".to_owned() })?;
    headers::forward(&mut parts, target, &settings.credential_headers);
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    // Extensions belong to this server's connection; only the upgrade handle is needed later, and hyper looks for it there.
    Ok(http::Request::from_parts(parts, body))
}

/// Answers 101 and joins both connections until one ends.
fn upgraded(
    mut answer: http::Response<hyper::body::Incoming>,
    client: hyper::upgrade::OnUpgrade,
    guard: AbortOnDrop,
) -> Response {
    let inside = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let _guard = guard;
        let Ok((client, inside)) = tokio::try_join!(client, inside) else {
            return;
        };
        let (mut client, mut inside) = (TokioIo::new(client), TokioIo::new(inside));
        // An error means that one side went away, which ends the other too.
        let _ = copy_bidirectional(&mut client, &mut inside).await;
    });
    let (parts, _) = answer.into_parts();
    Response::from_parts(parts, Body::empty())
}
