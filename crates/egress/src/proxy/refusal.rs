//! What a sandbox is told instead of an answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::dial::DialError;

/// A body from outside, or a text of ours.
pub(super) type Body = Either<Incoming, Full<Bytes>>;

/// A request that is not forwarded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It cannot be understood, or could be in two ways.
    #[error("the request was refused by the sandbox's egress proxy: {0}")]
    Bad(&'static str),
    /// It is for another host than the connection is.
    #[error("the request is for {host:?}, but the connection is for {connection:?}; open a connection for each host")]
    OtherHost { host: String, connection: String },
    /// The policy says no.
    #[error("the network policy of this sandbox does not allow it to reach {host:?} at port {port}")]
    Denied { host: String, port: u16 },
    /// Nobody answers there.
    #[error("the host {host:?} could not be reached for this sandbox: {error}")]
    Dial { host: String, error: DialError },
    /// What the policy adds to it cannot be had.
    #[error("the request for {host:?} was not sent: the headers that the sandbox's network policy adds to it cannot be had")]
    NoHeaders { host: String },
    /// It was reached and went away, or speaks nonsense.
    #[error("the host {host:?} did not answer the request: the connection to it broke")]
    Broken { host: String },
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::OtherHost { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Denied { .. } | Self::Dial { error: DialError::Denied, .. } => StatusCode::FORBIDDEN,
            Self::Dial { error: DialError::Slow, .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Dial { .. } | Self::Broken { .. } | Self::NoHeaders { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// As a label.
    pub(super) fn outcome(&self) -> &'static str {
        match self.status() {
            StatusCode::FORBIDDEN => "denied",
            status if status.is_client_error() => "refused",
            _ => "failed",
        }
    }

    /// As an answer for people. The connection stays: what was sent is understood, or hyper has ended it.
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Either::Right(Full::new(Bytes::from(format!("{self}\n")))));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
