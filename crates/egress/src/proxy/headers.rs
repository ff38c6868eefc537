//! Header fields on their way out and back.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::network::{HeadersError, RequestTarget, SandboxNetwork};

/// Fields that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// The parts of the fields' lists that are separated by commas.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')).map(str::trim)
}

/// Whether the message switches to WebSocket. No other protocol may be switched to: with `h2c` requests would follow that nobody
/// looks at.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && tokens(headers, &header::UPGRADE).eq(["websocket"])
}

/// Removes what concerns one connection only, also what `Connection` names; what is needed to switch to WebSocket stays.
pub(super) fn strip(headers: &mut HeaderMap, websocket: bool) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    // gRPC insists on it, and it says nothing of the connection (RFC 9113 §8.2.2).
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, WEBSOCKET);
    }
}

/// Readies a request's fields for the outside: `host` is what was checked, and the secrets of the policy replace what the sandbox
/// sent under their names.
pub(super) fn prepare(
    parts: &mut Parts,
    network: &dyn SandboxNetwork,
    target: &RequestTarget<'_>,
    host: &str,
) -> Result<(), HeadersError> {
    let websocket = is_websocket(&parts.headers);
    strip(&mut parts.headers, websocket);
    // hyper answers `100 Continue` itself once the body is read.
    parts.headers.remove(header::EXPECT);
    // HTTP/2 may send cookies in pieces, HTTP/1.1 must not (RFC 9113 §8.2.3).
    let cookies: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice()))
    {
        parts.headers.insert(header::COOKIE, joined);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        parts.headers.insert(header::HOST, host);
    }
    let secrets = network.headers_for(target)?;
    for (name, _) in &secrets {
        parts.headers.remove(name);
    }
    for (name, mut value) in secrets {
        value.set_sensitive(true);
        parts.headers.append(name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn only_websocket_is_switched_to() {
        assert!(is_websocket(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])));
        assert!(!is_websocket(&headers(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")])));
        assert!(!is_websocket(&headers(&[("connection", "upgrade"), ("upgrade", "websocket, h2c")])));
        assert!(!is_websocket(&headers(&[("upgrade", "websocket")])));
    }

    #[test]
    fn fields_of_one_connection_are_removed() {
        let mut stripped = headers(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("te", "gzip, trailers"),
            ("x-other", "kept"),
        ]);
        strip(&mut stripped, false);
        assert_eq!(stripped, headers(&[("x-other", "kept"), ("te", "trailers")]));
    }
}
