//! Ports inside: HTTP and WebSocket, under `/v1/sandboxes/{id}/ports/{port}/` and on the data plane `/sandboxes/{id}/{port}/`.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sandbank_control::{Caller, ErrorKind, PortPass, PortVisitor};
use sandbank_http::{
    PORT_TOKEN_HEADER, PORT_TOKEN_NAME, PortTarget, Refused, bearer, forget_token_in_referer, port_token, query_inside,
};
use sandbank_model::SandboxId;

use crate::app::App;
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_sandbox;
use crate::session::{KEY_HEADERS, Session};

const SANDBOX_ID: &str = "x-sandbox-id";
const SANDBOX_PORT: &str = "x-sandbox-port";
/// Pages by path share an origin with the API and with each other. This gives each of them one of its own that is nobody's, so that
/// a page from inside a sandbox reads neither what another one keeps in the browser nor what a page of the API's does. Pages that
/// need an origin (cookies, storage, workers) are for the port's host name.
const SANDBOXED: &str = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads";

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
    // Only what decides between a page and JSON: the request itself goes inside.
    let accept: HeaderMap =
        request.headers().get(header::ACCEPT).map(|value| (header::ACCEPT, value.clone())).into_iter().collect();
    match forward_or_refuse(app, request, target).await {
        Ok(response) => response,
        Err(NotForwarded::Api(error)) => error.into_response(),
        // The dialect's own errors (no such sandbox, not running) keep their shape; the proxy's own become 502 and 504.
        Err(NotForwarded::Gateway(Refused::Sandbox(error))) => ApiError::from(error).into_response(),
        Err(NotForwarded::Gateway(Refused::Port(failure))) => {
            failure.page(&accept).unwrap_or_else(|| ApiError::new(failure.status(), failure.to_string()).into_response())
        }
    }
}

enum NotForwarded {
    Api(ApiError),
    Gateway(Refused),
}

impl From<ApiError> for NotForwarded {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

async fn forward_or_refuse(app: App, request: Request, target: ApiResult<Cut>) -> Result<Response, NotForwarded> {
    let (mut parts, body) = request.into_parts();
    let visitor = visitor(&app, &parts).await?;
    let Cut { id, port, prefix, path } = target?;
    let id = parse_sandbox(&id, &app.settings.cluster_id)?.value;
    let port = port.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(|| {
        let shown: String = port.chars().take(20).collect();
        ApiError::bad_request(format!("{shown:?} is not a port: ports are 1 to 65535"))
    })?;
    let credentials = credentials(&app, &visitor, &parts.headers).await;
    let pass = admit(&app, visitor, id, port).await?;
    let target = PortTarget {
        path: format!("{path}{}", query_inside(parts.uri.query())),
        prefix,
        credentials,
        credential_cookies: vec![PORT_TOKEN_NAME],
        added_headers: vec![(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOXED))],
        ..PortTarget::default()
    };
    forget_token_in_referer(&mut parts.headers);
    app.gateway.forward(Request::from_parts(parts, body), pass, target).await.map_err(NotForwarded::Gateway)
}

/// Who asks for a port by path.
enum Visitor {
    /// Shows a port token.
    Token(String),
    /// Shows a key.
    Caller(Box<Caller>),
    /// Shows nothing that is ours; the error is for a private port.
    Anyone(ApiError),
}

async fn visitor(app: &App, parts: &Parts) -> ApiResult<Visitor> {
    if let Some(token) = port_token(parts) {
        return Ok(Visitor::Token(token.to_owned()));
    }
    match Session::of_parts(parts, app).await {
        Ok(session) => Ok(Visitor::Caller(Box::new(session.caller))),
        // `Authorization` may be the program's own.
        Err(error) if KEY_HEADERS.iter().all(|name| !parts.headers.contains_key(name)) => Ok(Visitor::Anyone(error)),
        Err(error) => Err(error),
    }
}

async fn admit(app: &App, visitor: Visitor, id: SandboxId, port: u16) -> ApiResult<PortPass> {
    match visitor {
        Visitor::Token(token) => Ok(app.control.port_admit(PortVisitor::Token(&token), id, port).await?),
        Visitor::Caller(caller) => Ok(app.control.port_admit(PortVisitor::Caller(&caller), id, port).await?),
        // Somebody without a key does not learn which sandboxes there are.
        Visitor::Anyone(refused) => match app.control.port_admit(PortVisitor::Anyone, id, port).await {
            Ok(pass) => Ok(pass),
            Err(error) if matches!(error.kind, ErrorKind::Unauthenticated | ErrorKind::NotFound) => Err(refused),
            Err(error) => Err(error.into()),
        },
    }
}

/// Fields that must not reach the program: a key would open it. `Authorization` is the program's own unless it carries a key.
async fn credentials(app: &App, visitor: &Visitor, headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = vec![PORT_TOKEN_HEADER];
    names.extend(KEY_HEADERS);
    let by_field = KEY_HEADERS.iter().any(|name| headers.contains_key(name));
    let is_key = match (visitor, bearer(headers)) {
        (_, None) | (Visitor::Anyone(_), _) => false,
        (Visitor::Caller(_), Some(_)) if !by_field => true,
        (_, Some(secret)) => app.control.authenticate(secret).await.is_ok(),
    };
    if is_key {
        names.push(header::AUTHORIZATION);
    }
    names
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
