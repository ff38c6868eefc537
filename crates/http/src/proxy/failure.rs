//! What can go wrong on the way to a port, and how it is told.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// Why a port could not be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// Nothing listens there, or what listens refused.
    NotListening(String),
    /// The sandbox cannot be reached at all now; the dialect answers in its own words with this.
    Other(String),
}

/// Why a request could not be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFailure {
    /// The client's request cannot be passed on: status 400.
    #[error("{what}")]
    BadRequest {
        /// For people.
        what: String,
    },
    /// Nothing listens: status 502.
    #[error("{0}")]
    NotListening(String),
    /// The sandbox cannot be reached: status 503.
    #[error("{0}")]
    Unreachable(String),
    /// What listens speaks no HTTP, or broke off: status 502.
    #[error("the program on port {port} broke the connection off: {detail}")]
    Broken {
        /// Port inside.
        port: u16,
        /// What was seen.
        detail: String,
    },
    /// The connection did not open in time: status 504.
    #[error("port {port} did not accept the connection in time")]
    DialTimeout {
        /// Port inside.
        port: u16,
    },
    /// No answer in time: status 504.
    #[error("the program on port {port} did not answer in time")]
    ResponseTimeout {
        /// Port inside.
        port: u16,
    },
}

impl From<DialError> for ProxyFailure {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NotListening(message) => Self::NotListening(message),
            DialError::Other(message) => Self::Unreachable(message),
        }
    }
}

impl ProxyFailure {
    /// Status of the answer.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::NotListening(_) | Self::Broken { .. } => StatusCode::BAD_GATEWAY,
            Self::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::DialTimeout { .. } | Self::ResponseTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// An HTML page when the client is a browser (prefers `text/html`); `None` for everybody else, to whom the dialect
    /// answers in its own envelope.
    #[must_use]
    pub fn page(&self, asked: &HeaderMap) -> Option<Response> {
        prefers_html(asked).then(|| page(self.status(), &self.to_string()))
    }
}

/// Whether whoever sent these fields reads HTML rather than JSON: a browser.
#[must_use]
pub fn prefers_html(asked: &HeaderMap) -> bool {
    let Some(accept) = asked.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else { return false };
    let Some(html) = accept.find("text/html") else { return false };
    accept.find("application/json").is_none_or(|json| html < json)
}

/// A page that says what is wrong. `message` may quote what came from inside a sandbox.
#[must_use]
pub fn page(status: StatusCode, message: &str) -> Response {
    let message = escape(message);
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{status}</title>\
         <body style=\"font-family:sans-serif;margin:4em auto;max-width:40em\"><h1>{status}</h1><p>{message}</p></body></html>"
    );
    let mut response = (status, page).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The message quotes what came from inside the sandbox: nothing in this page may run.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"));
    response
}

fn escape(text: &str) -> String {
    text.chars().take(500).fold(String::new(), |mut out, c| {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn browsers_get_a_page_and_programs_do_not() {
        let failure = ProxyFailure::NotListening("nothing listens on <8000>".to_owned());
        let accept = |text: &str| HeaderMap::from_iter([(header::ACCEPT, text.parse().unwrap())]);
        assert!(failure.page(&accept("text/html,application/xhtml+xml")).is_some());
        assert!(failure.page(&accept("application/json, text/html")).is_none());
        assert!(failure.page(&accept("*/*")).is_none());
        assert!(failure.page(&HeaderMap::new()).is_none());
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
