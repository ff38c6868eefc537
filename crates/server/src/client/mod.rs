//! The client side of the native API: what every command but `serve` stands on.

pub(crate) mod exec;
mod path;
mod terminal;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

pub(crate) use path::{encode_query, encode_segment};

use crate::cli::Global;
use crate::config::{Config, Given};
use crate::data_dir::find_server;
use crate::failure::{Failure, Result};

/// Header that carries the key (native.md §3).
const KEY_HEADER: &str = "AGENTBOX-API-KEY";
/// Largest answer that is read as one JSON document.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest line of an NDJSON stream.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Body of a request.
pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// A server and the key to it.
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    key: String,
    http: HttpClient<HttpConnector, Body>,
}

impl Client {
    /// Finds the server: by the options and their variables, else by the data directory.
    pub(crate) fn find(global: &Global) -> Result<Self> {
        let given = Given { config: global.config.clone(), data_dir: global.data_dir.clone(), ..Given::default() };
        let (url, key) = match (&global.url, &global.key) {
            (Some(url), Some(key)) => (url.clone(), key.clone()),
            (Some(_), None) => return Err(Failure::new("no key for that server: set SANDBANK_KEY or give --key")),
            (None, key) => {
                let dir = Config::data_dir_only(&given)?;
                let (server, admin_key) = find_server(&dir)?;
                let Some(server) = server else {
                    return Err(Failure::new(format!(
                        "no server is running with the data directory {}: start one with `sandbank up` or `sandbank serve`, \
                         or set SANDBANK_URL and SANDBANK_KEY",
                        dir.display()
                    )));
                };
                let key = key.clone().or(admin_key).or_else(|| std::env::var("SANDBANK_ADMIN_KEY").ok()).ok_or_else(|| {
                    Failure::new(format!("{} holds no admin key: set SANDBANK_KEY or give --key", dir.display()))
                })?;
                (server.url, key)
            }
        };
        Self::new(&url, &key)
    }

    /// For a known server.
    pub(crate) fn new(url: &str, key: &str) -> Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if base.starts_with("https://") {
            return Err(Failure::usage(format!(
                "the command line speaks plain HTTP, and {base} is HTTPS: run it on the server's machine, or through an SSH tunnel"
            )));
        }
        let host = base.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.contains(['?', '#', ' ']));
        if host.is_none() {
            return Err(Failure::usage(format!("{url:?} is not a server's address: write it like http://127.0.0.1:7070")));
        }
        if key.is_empty() || http::HeaderValue::from_str(key).is_err() {
            return Err(Failure::usage("the key has characters that no key has: check SANDBANK_KEY"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Ok(Self { base, key: key.to_owned(), http: HttpClient::builder(TokioExecutor::new()).build(connector) })
    }

    /// The server's base address, without a path.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The key. For what prints it on purpose.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// `GET path` as a JSON document. `path` begins with `/`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.document(Method::GET, path, None).await
    }

    /// `GET path` as a JSON document; `None` when there is no such object.
    pub(crate) async fn get_if_any(&self, path: &str) -> Result<Option<Value>> {
        let request = self
            .request(Method::GET, path)
            .body(full(Bytes::new()))
            .map_err(|error| Failure::new(format!("cannot ask {}: {error}", self.base)))?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(&error))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => self.parse(&collect(response).await?).map(Some),
            _ => Err(refusal(response).await),
        }
    }

    /// `POST path` with a JSON body, answered by a JSON document (`null` when the answer is empty).
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.document(Method::POST, path, Some(body)).await
    }

    /// `PUT path` with a JSON body.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.document(Method::PUT, path, Some(body)).await
    }

    /// `DELETE path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        self.document(Method::DELETE, path, None).await
    }

    /// Every entry of a list that is served in pages of `{items,total,limit,offset}`.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut entries = Vec::new();
        loop {
            let page = self.get(&format!("{path}{separator}limit=100&offset={}", entries.len())).await?;
            let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
            let count = items.len();
            entries.extend(items);
            if count == 0 || entries.len() as u64 >= total {
                return Ok(entries);
            }
        }
    }

    async fn document(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.request(method, path);
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let response = self.send(request, full(body)).await?;
        let bytes = collect(response).await?;
        if bytes.is_empty() { Ok(Value::Null) } else { self.parse(&bytes) }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Value> {
        serde_json::from_slice(bytes)
            .map_err(|_| Failure::new(format!("{} did not answer with JSON: is it a Sandbank server?", self.base)))
    }

    /// Begins a request with the key in it.
    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(KEY_HEADER, &self.key)
            .header(header::USER_AGENT, concat!("sandbank/", env!("CARGO_PKG_VERSION")))
    }

    /// Sends a request; an answer that is not a success becomes the server's own words.
    pub(crate) async fn send(&self, request: http::request::Builder, body: Body) -> Result<Response<Incoming>> {
        let request = request.body(body).map_err(|error| Failure::new(format!("cannot ask {}: {error}", self.base)))?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn unreachable(&self, error: &hyper_util::client::legacy::Error) -> Failure {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            detail = cause.to_string();
            source = cause.source();
        }
        let advice = if error.is_connect() { "is the server running there? (sandbank up, sandbank serve)" } else { "try again" };
        Failure::new(format!("cannot reach the server at {}: {detail}; {advice}", self.base))
    }

    /// Opens a byte stream with `GET path`, which switches to `tcp`.
    pub(crate) async fn tunnel(&self, path: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
        let request = self.request(Method::GET, path).header(header::CONNECTION, "upgrade").header(header::UPGRADE, "tcp");
        let request =
            request.body(full(Bytes::new())).map_err(|error| Failure::new(format!("cannot ask {}: {error}", self.base)))?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(&error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.map(TokioIo::new).map_err(|error| Failure::new(format!("{} broke the connection off: {error}", self.base)))
    }

    /// Opens an NDJSON stream with `GET path`.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines> {
        self.lines_of(self.request(Method::GET, path), full(Bytes::new())).await
    }

    /// Opens an NDJSON stream with a request.
    pub(crate) async fn lines_of(&self, request: http::request::Builder, body: Body) -> Result<Lines> {
        let response = self.send(request, body).await?;
        Ok(Lines { body: response.into_body(), pending: Vec::new() })
    }

    /// A WebSocket handshake request to `path`.
    pub(crate) fn websocket_request(&self, path: &str) -> Result<tokio_tungstenite::tungstenite::handshake::client::Request> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let wrong = |detail: &dyn std::fmt::Display| Failure::new(format!("cannot ask {}: {detail}", self.base));
        let url = format!("ws{}{path}", self.base.trim_start_matches("http"));
        let mut request = url.into_client_request().map_err(|error| wrong(&error))?;
        let key = http::HeaderValue::from_str(&self.key).map_err(|error| wrong(&error))?;
        request.headers_mut().insert(KEY_HEADER, key);
        Ok(request)
    }
}

/// A body that is at hand.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The lines of an NDJSON answer.
pub(crate) struct Lines {
    body: Incoming,
    pending: Vec<u8>,
}

impl Lines {
    /// The next document; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| Failure::new(format!("the server sent a line that is not JSON: {error}")));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(Failure::new("the server sent a line without end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(interrupted(&error)),
            }
        }
    }
}

/// The whole body, within bounds.
async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    let body = http_body_util::Limited::new(response.into_body(), DOCUMENT_BYTES_MAX);
    body.collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| Failure::new(format!("the answer broke off: {error}")))
}

/// A stream that broke.
pub(crate) fn interrupted(error: &hyper::Error) -> Failure {
    Failure::new(format!("the connection to the server broke ({error}): it may have been restarted; try again"))
}

/// What the server said against a request.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = collect(response).await.unwrap_or_default();
    Failure::new(explain(status, &body))
}

/// One line from an error envelope `{error, errorCode?, detail?}` (native.md §5).
pub(crate) fn explain(status: StatusCode, body: &[u8]) -> String {
    let envelope: Option<Value> = serde_json::from_slice(body).ok();
    let text = |name: &str| envelope.as_ref().and_then(|value| value.get(name)).and_then(Value::as_str);
    let Some(message) = text("error") else {
        return format!("the server answered {status} without saying why");
    };
    let detail = envelope.as_ref().and_then(|value| value.get("detail"));
    let advice = match detail {
        Some(Value::String(detail)) if !detail.is_empty() && detail != message => Some(detail.clone()),
        Some(Value::Object(fields)) => fields.get("hint").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let keys = if status == StatusCode::UNAUTHORIZED { " (check SANDBANK_KEY or --key)" } else { "" };
    match advice {
        Some(advice) => format!("{message}: {advice}{keys}").replace('\n', " "),
        None => format!("{message}{keys}").replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_envelope_becomes_one_line_with_its_hint() {
        let body = br#"{"error":"sandbox pool a/x not found","detail":{"availablePools":[],"hint":"create it first"}}"#;
        assert_eq!(explain(StatusCode::NOT_FOUND, body), "sandbox pool a/x not found: create it first");
        assert_eq!(
            explain(StatusCode::UNAUTHORIZED, br#"{"error":"invalid api key"}"#),
            "invalid api key (check SANDBANK_KEY or --key)"
        );
        assert_eq!(explain(StatusCode::BAD_GATEWAY, b"<html>"), "the server answered 502 Bad Gateway without saying why");
    }

    #[test]
    fn addresses_are_checked() {
        for wrong in ["", "127.0.0.1:7070", "ftp://x", "http://", "https://example.org"] {
            assert!(Client::new(wrong, "k").is_err(), "{wrong}");
        }
        assert_eq!(Client::new("http://127.0.0.1:7070/v1/", "k").unwrap().base(), "http://127.0.0.1:7070");
        assert!(Client::new("http://127.0.0.1:7070", "a\nb").is_err());
    }
}
