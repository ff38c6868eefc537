//! The gateway to ports inside sandboxes: which port a request is for, who may, and what goes wrong on the way, without any
//! dialect.
//!
//! A port has a host name of its own, `{port}-{sandbox}.{domain}`, so that its pages are an origin of their own to a browser and
//! never the API's. [`by_host`] stands before all routes and takes what is for such a name; dialects that name ports in other ways
//! (paths, fields) admit the visitor themselves and call [`Gateway::forward`].

mod host;
mod login;
mod visitor;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sandbank_control::{Control, Error, ErrorKind, PortPass, PortStream};
use sandbank_model::SandboxId;

pub use host::NamedPort;
pub use visitor::{PORT_TOKEN_HEADER, PORT_TOKEN_NAME, forget_token_in_referer, port_token, query_inside};

use crate::proxy::{
    DialError, HostField, Link, PortKey, PortPool, PortTarget, ProxyFailure, ProxySettings, page, prefers_html, proxy,
};

/// What an installation may set about ports.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Domains that ports have names under, lower case; the first one is told in addresses. Empty: ports have no names.
    pub domains: Vec<String>,
    /// Clients reach this server by HTTPS, through a proxy that ends it.
    pub https: bool,
    /// Fields that carry API keys of any dialect, besides `Authorization`.
    pub key_headers: Vec<HeaderName>,
    /// Longest wait for the connection inside to open.
    pub dial_timeout: Duration,
    /// Longest wait for the first byte of an answer.
    pub response_timeout: Duration,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            domains: vec!["localhost".to_owned()],
            https: false,
            key_headers: ["agentbox-api-key", "x-api-key"].map(HeaderName::from_static).to_vec(),
            dial_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(300),
        }
    }
}

/// The gateway. Cheap to clone; all dialects of a server share one, and with it the idle connections.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    control: Control,
    settings: GatewaySettings,
    proxy: ProxySettings,
    pool: PortPool,
    /// Kept, so that `control` tells it when a sandbox pauses or ends.
    _closer: Arc<dyn Fn(SandboxId) + Send + Sync>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// Why a request did not reach its port.
#[derive(Debug, Clone)]
pub enum Refused {
    /// No such sandbox, not running, or not for this visitor.
    Sandbox(Error),
    /// The program inside, or the request itself.
    Port(ProxyFailure),
}

impl Refused {
    /// Status of the answer, as the native API has it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Sandbox(error) => match error.kind {
                ErrorKind::Invalid | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
                ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
                ErrorKind::Forbidden => StatusCode::FORBIDDEN,
                ErrorKind::NotFound => StatusCode::NOT_FOUND,
                ErrorKind::Conflict | ErrorKind::State => StatusCode::CONFLICT,
                ErrorKind::Quota | ErrorKind::NoCapacity => StatusCode::TOO_MANY_REQUESTS,
                ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::Port(failure) => failure.status(),
        }
    }

    /// For people.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Sandbox(error) => error.message.clone(),
            Self::Port(failure) => failure.to_string(),
        }
    }

    /// A page for browsers, JSON (`{"error": ...}`) for everybody else. `asked`: the request's fields.
    #[must_use]
    pub fn respond(&self, asked: &HeaderMap) -> Response {
        let (status, message) = (self.status(), self.message());
        let mut response = if prefers_html(asked) {
            page(status, &message)
        } else {
            (status, Json(serde_json::json!({ "error": message }))).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sandbank\""));
        }
        response
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Sandbox(error)
    }
}

impl Gateway {
    /// A gateway to the sandboxes of `control`.
    #[must_use]
    pub fn new(control: Control, settings: GatewaySettings) -> Self {
        let pool = PortPool::default();
        let proxy = ProxySettings { dial_timeout: settings.dial_timeout, response_timeout: settings.response_timeout };
        let closed = pool.clone();
        let closer: Arc<dyn Fn(SandboxId) + Send + Sync> = Arc::new(move |id| closed.close(id));
        control.on_ports_closed(&closer);
        Self { inner: Arc::new(Inner { control, settings, proxy, pool, _closer: closer }) }
    }

    /// Address of a port by its host name; `None` where ports have none. `base_url`: `scheme://host:port` of this server.
    #[must_use]
    pub fn url(&self, base_url: &str, named: NamedPort) -> Option<String> {
        self.inner.settings.domains.first().map(|domain| host::url(base_url, domain, named))
    }

    /// A link that opens a private port in a browser by `token`; `None` where ports have no host names.
    #[must_use]
    pub fn browser_url(&self, base_url: &str, named: NamedPort, token: &str) -> Option<String> {
        self.url(base_url, named).map(|base| login::link(&base, token))
    }

    /// Idle connections that are kept.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        self.inner.pool.len()
    }

    /// Passes a request of an admitted visitor on. `target` names path, prefix and fields; its port is the pass's.
    pub async fn forward(&self, request: Request, pass: PortPass, target: PortTarget) -> Result<Response, Refused> {
        let inner = &self.inner;
        let target = PortTarget { port: pass.port(), ..target };
        let key = PortKey { sandbox: pass.id(), port: pass.port() };
        let pass = Arc::new(pass);
        // What control refuses keeps its kind; the proxy's own failures are about the program.
        let refused: Arc<OnceLock<Error>> = Arc::default();
        let dial = || {
            let (control, pass, refused) = (inner.control.clone(), Arc::clone(&pass), Arc::clone(&refused));
            async move {
                match control.port_connect(&pass).await {
                    Ok(stream) => Ok(link(stream)),
                    Err(error) if error.kind == ErrorKind::NotFound => Err(DialError::NotListening(error.message)),
                    Err(error) => {
                        let message = error.message.clone();
                        let _ = refused.set(error);
                        Err(DialError::Other(message))
                    }
                }
            }
        };
        let hold = Box::new(Arc::clone(&pass));
        let answer = proxy(request, &target, &inner.proxy, (&inner.pool, key), hold, dial).await;
        answer.map_err(|failure| match refused.get() {
            Some(error) => Refused::Sandbox(error.clone()),
            None => Refused::Port(failure),
        })
    }

    /// The port that the request's host names; `None` when it is for the API.
    fn named(&self, request: &Request) -> Result<Option<NamedPort>, String> {
        let host = host::host_of(request.uri(), request.headers())?;
        host.and_then(|host| host::named_port(host, &self.inner.settings.domains)).transpose()
    }

    async fn serve(&self, request: Request, named: NamedPort) -> Response {
        // Only what decides between a page and JSON: the request itself goes inside.
        let accept: HeaderMap =
            request.headers().get(header::ACCEPT).map(|value| (header::ACCEPT, value.clone())).into_iter().collect();
        match self.serve_or_refuse(request, named).await {
            Ok(response) => response,
            Err(refused) => refused.respond(&accept),
        }
    }

    async fn serve_or_refuse(&self, request: Request, named: NamedPort) -> Result<Response, Refused> {
        let inner = &self.inner;
        let (mut parts, body) = request.into_parts();
        if parts.uri.path().starts_with(login::OWN_PATHS) {
            let asked = (&parts.method, parts.uri.path(), parts.uri.query());
            let secure = inner.settings.https || parts.headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
            let nothing = || Error::not_found(format!("{} is the gateway's own, and there is nothing", login::OWN_PATHS));
            return Ok(login::answer(&inner.control, named, asked, secure).await?.ok_or_else(nothing)?);
        }
        let admitted = visitor::admit(&inner.control, &inner.settings.key_headers, &parts, named).await?;
        forget_token_in_referer(&mut parts.headers);
        let path = match parts.uri.path() {
            "" => "/",
            path => path,
        };
        let target = PortTarget {
            path: format!("{path}{}", query_inside(parts.uri.query())),
            host: HostField::AsAsked,
            credentials: admitted.credentials,
            credential_cookies: vec![PORT_TOKEN_NAME],
            ..PortTarget::default()
        };
        if inner.settings.https {
            parts.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        }
        self.forward(Request::from_parts(parts, body), admitted.pass, target).await
    }
}

fn link(stream: PortStream) -> Link {
    let (io, end) = stream.into_parts();
    Link { io, ended: Arc::new(move || Box::pin(end.clone().ended())) }
}

/// Takes what is for a port's host name; everything else goes on to the routes. To be laid around all of them: nothing that a
/// port's page asks of its own origin may end up at the API.
pub async fn by_host(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    match gateway.named(&request) {
        Ok(None) => next.run(request).await,
        Ok(Some(named)) => gateway.serve(request, named).await,
        Err(what) => Refused::Sandbox(Error::invalid(what)).respond(request.headers()),
    }
}
