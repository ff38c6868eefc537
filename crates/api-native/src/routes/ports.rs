//! Ports inside: HTTP and WebSocket, under `/v1/sandboxes/{id}/ports/{port}/` and on the data plane `/sandboxes/{id}/{port}/`.

use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use sandbank_control::{Caller, Control, ErrorKind};
use sandbank_http::{DialError, PortTarget, ProxySettings, Touch, proxy};
use sandbank_model::SandboxId;

use crate::app::App;
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_sandbox;
use crate::session::{KEY_HEADERS, Session};

const SANDBOX_ID: &str = "x-sandbox-id";
const SANDBOX_PORT: &str = "x-sandbox-port";

/// Speak to a port inside a sandbox
///
/// Any method, any path below, and WebSocket upgrades. The answer is that of the program inside; 502 when nothing listens, 504
/// when it does not answer in time.
#[utoipa::path(method(get, post, put, patch, delete, head, options), path = "/v1/sandboxes/{id}/ports/{port}/{rest}", tag = "ports",
    responses((status = "default", description = "What the program inside answers.", body = [u8], content_type = "*/*")))]
pub(crate) async fn on_port(State(app): State<App>, request: Request) -> Response {
    // /v1/sandboxes/{id}/ports/{port}/rest
    let target = cut_path(request.uri().path(), 5, 3, 5);
    forward(app, request, target).await
}

/// The data plane (native.md §2): headers `x-sandbox-id` and `x-sandbox-port` win over the path.
pub(crate) async fn data_plane(State(app): State<App>, request: Request) -> Response {
    // /sandboxes/{id}/{port}/rest
    let target = cut_path(request.uri().path(), 3, 2, 3);
    let target = match named_by_headers(request.headers()) {
        Some((id, port)) => {
            // A path that names a sandbox and a port too is cut as usual; any other goes inside below the prefix.
            let (prefix, path) = match target {
                Ok(cut) if cut.port.parse::<u16>().is_ok() && cut.id.len() >= 36 => (cut.prefix, cut.path),
                _ => {
                    let rest = request.uri().path().strip_prefix("/sandboxes").unwrap_or("/");
                    ("/sandboxes".to_owned(), rest.to_owned())
                }
            };
            Ok(Cut { id, port, prefix, path })
        }
        None => target,
    };
    forward(app, request, target).await
}

fn named_by_headers(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some((text(SANDBOX_ID)?, text(SANDBOX_PORT)?))
}

/// A path taken apart, undecoded: what goes inside must arrive as the client wrote it.
struct Cut {
    id: String,
    port: String,
    prefix: String,
    path: String,
}

/// The segments of `path` counted from 1: `id` and `port` name the sandbox, everything after `last` goes inside.
fn cut_path(path: &str, last: usize, id: usize, port: usize) -> ApiResult<Cut> {
    let segments: Vec<&str> = path.split('/').collect();
    let segment =
        |at: usize| segments.get(at).copied().filter(|text| !text.is_empty()).ok_or_else(|| ApiError::not_found("no such route"));
    let cut = Cut {
        id: segment(id)?.to_owned(),
        port: segment(port)?.to_owned(),
        prefix: segments.iter().take(last + 1).copied().collect::<Vec<_>>().join("/"),
        path: String::new(),
    };
    let path = path[cut.prefix.len()..].to_owned();
    Ok(Cut { path: if path.is_empty() { "/".to_owned() } else { path }, ..cut })
}

async fn forward(app: App, request: Request, target: ApiResult<Cut>) -> Response {
    let accept = request.headers().clone();
    match forward_or_refuse(app, request, target, &accept).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn forward_or_refuse(app: App, request: Request, target: ApiResult<Cut>, accept: &HeaderMap) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let session = Session::of_parts(&parts, &app).await?;
    let Cut { id, port, prefix, path } = target?;
    let id = parse_sandbox(&id, &app.settings.cluster_id)?.value;
    let port = port.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(|| {
        let shown: String = port.chars().take(20).collect();
        ApiError::bad_request(format!("{shown:?} is not a port: ports are 1 to 65535"))
    })?;
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = PortTarget { port, path: format!("{path}{query}"), prefix };
    let settings = settings_for(&app, &parts.headers);
    let (control, caller) = (app.control.clone(), session.caller);
    let touch = touch(control.clone(), caller.clone(), id);
    let dial = |port| dial(control, caller, id, port);
    let request = Request::from_parts(parts, body);
    // The dialect's own errors (no such sandbox, not running) keep their shape; the proxy's own become 502 and 504.
    let refused: Arc<OnceLock<sandbank_control::Error>> = Arc::default();
    let kept = refused.clone();
    let answer = proxy(request, &target, &settings, touch, |port| async move {
        dial(port).await.map_err(|error| match error {
            Refused::Port(message) => DialError::NotListening(message),
            Refused::Sandbox(error) => {
                let message = error.message.clone();
                let _ = kept.set(error);
                DialError::Other(message)
            }
        })
    })
    .await;
    answer.or_else(|failure| match refused.get() {
        Some(error) => Err(error.clone().into()),
        None => failure.page(accept).ok_or_else(|| ApiError::new(failure.status(), failure.to_string())),
    })
}

/// `Authorization` is the program's own unless it carried our key.
fn settings_for(app: &App, headers: &HeaderMap) -> ProxySettings {
    let mut settings = app.proxy.clone();
    if KEY_HEADERS.iter().all(|name| !headers.contains_key(name)) {
        settings.credential_headers.push(header::AUTHORIZATION);
    }
    settings
}

/// Keeps the sandbox's idle clock from running out while bytes flow.
fn touch(control: Control, caller: Caller, id: SandboxId) -> Touch {
    Arc::new(move || {
        let (control, caller) = (control.clone(), caller.clone());
        tokio::spawn(async move {
            // A sandbox that ended meanwhile cannot be touched; its connection ends by itself.
            let _ = control.touch(&caller, id).await;
        });
    })
}

enum Refused {
    /// Nothing listens on the port.
    Port(String),
    /// The sandbox itself: missing, paused, ended.
    Sandbox(sandbank_control::Error),
}

type Halves = (Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin>, Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>);

async fn dial(control: Control, caller: Caller, id: SandboxId, port: u16) -> Result<Halves, Refused> {
    match control.port_dial(&caller, id, port).await {
        Ok(stream) => Ok(stream.into_split()),
        // "Not found" is the sandbox or the listener inside: asking for the sandbox tells which.
        Err(error) if error.kind == ErrorKind::NotFound && control.get(&caller, id).await.is_ok() => {
            Err(Refused::Port(error.message))
        }
        Err(error) => Err(Refused::Sandbox(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn paths_are_cut_without_being_decoded() {
        let cut = cut_path("/v1/sandboxes/abc/ports/80/a%2Fb/../c", 5, 3, 5).unwrap_or_else(|_| panic!("cut"));
        assert_eq!((cut.id.as_str(), cut.port.as_str()), ("abc", "80"));
        assert_eq!((cut.prefix.as_str(), cut.path.as_str()), ("/v1/sandboxes/abc/ports/80", "/a%2Fb/../c"));
        let bare = cut_path("/sandboxes/abc/80", 3, 2, 3).unwrap_or_else(|_| panic!("cut"));
        assert_eq!((bare.prefix.as_str(), bare.path.as_str()), ("/sandboxes/abc/80", "/"));
        assert!(cut_path("/sandboxes/abc", 3, 2, 3).is_err());
    }
}
