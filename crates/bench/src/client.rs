//! One kept-alive HTTP/1.1 connection to the server.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{BenchError, Result};

type Body = BoxBody<Bytes, std::io::Error>;

/// A connection. Requests go one after the other.
pub(crate) struct Client {
    sender: SendRequest<Body>,
    key: String,
    host: String,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| BenchError::new(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Self { sender, key: key.to_owned(), host: address.to_string() })
    }

    /// Sends a JSON request; the answer must have status `expected`.
    pub(crate) async fn call(&mut self, method: Method, path: &str, body: Option<&Value>, expected: StatusCode) -> Result<Value> {
        let bytes = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
        let (status, answer) = self.raw(method.clone(), path, full(bytes)).await?;
        if status != expected {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(500)]).into_owned();
            return Err(BenchError::new(format!("{method} {path}: expected {expected}, got {status}: {text}")));
        }
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|error| BenchError::new(format!("{method} {path}: {error}")))
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None, StatusCode::OK).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value, expected: StatusCode) -> Result<Value> {
        self.call(Method::POST, path, Some(body), expected).await
    }

    /// Status and whole body.
    pub(crate) async fn raw(&mut self, method: Method, path: &str, body: Body) -> Result<(StatusCode, Bytes)> {
        let failed = |error: hyper::Error| BenchError::new(format!("{path}: {error}"));
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(failed)?.to_bytes();
        Ok((status, bytes))
    }

    /// Reads a body to its end without keeping it; status and length.
    pub(crate) async fn drain(&mut self, path: &str) -> Result<(StatusCode, u64)> {
        let response = self.send(Method::GET, path, full(Bytes::new())).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| BenchError::new(format!("{path}: {error}")))?;
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok((status, length))
    }

    /// Uploads `total` zero bytes in pieces.
    pub(crate) async fn upload(&mut self, path: &str, total: u64) -> Result<(StatusCode, Bytes)> {
        const PIECE: usize = 256 * 1024;
        let piece = Bytes::from(vec![0u8; PIECE]);
        let pieces = usize::try_from(total / PIECE as u64).unwrap_or(usize::MAX);
        let frames = futures_util::stream::iter((0..pieces).map(move |_| Ok::<_, std::io::Error>(Frame::data(piece.clone()))));
        self.raw(Method::PUT, path, BodyExt::boxed(StreamBody::new(frames))).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Body) -> Result<http::Response<hyper::body::Incoming>> {
        let failed = |error: hyper::Error| BenchError::new(format!("{path}: {error}"));
        self.sender.ready().await.map_err(failed)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("agentbox-api-key", &self.key)
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| BenchError::new(error.to_string()))?;
        self.sender.send_request(request).await.map_err(failed)
    }
}

/// A body that is all there.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
