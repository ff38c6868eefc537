//! Header fields on their way through the proxy.

use axum::extract::ConnectInfo;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::net::SocketAddr;

use super::{PortTarget, ProxyFailure};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Fields that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whether the client asks to switch protocols.
#[must_use]
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Refuses what two parsers could read differently (request smuggling). hyper refuses most of it before us.
pub(super) fn refuse_ambiguous_framing(headers: &HeaderMap) -> Result<(), ProxyFailure> {
    let refused = |what: &str| Err(ProxyFailure::BadRequest { what: what.to_owned() });
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return refused("Content-Length and Transfer-Encoding cannot stand together");
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next()
        && lengths.any(|other| other != first)
    {
        return refused("two Content-Length fields disagree");
    }
    Ok(())
}

/// Removes the hop-by-hop fields, also those that `Connection` names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|token| token.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Rewrites a request's fields for the program inside.
pub(super) fn forward(parts: &mut Parts, target: &PortTarget, credentials: &[HeaderName]) {
    let upgrade = wants_upgrade(&parts.headers).then(|| parts.headers.get(header::UPGRADE).cloned()).flatten();
    // HTTP/2 carries the host in the URI.
    let host = parts
        .headers
        .get(header::HOST)
        .cloned()
        .or_else(|| parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()));
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    let headers = &mut parts.headers;
    strip_hop_by_hop(headers);
    for name in credentials {
        headers.remove(name);
    }
    // hyper has answered `100 Continue` itself once the body is read.
    headers.remove(header::EXPECT);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Ok(prefix) = HeaderValue::from_str(&target.prefix) {
        headers.insert(FORWARDED_PREFIX, prefix);
    }
    if let Some(peer) = peer {
        let chain = match headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok()) {
            Some(before) => format!("{before}, {peer}"),
            None => peer,
        };
        if let Ok(value) = HeaderValue::from_str(&chain) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    if let Ok(host) = HeaderValue::from_str(&format!("localhost:{}", target.port)) {
        headers.insert(header::HOST, host);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn target() -> PortTarget {
        PortTarget { port: 8000, path: "/".to_owned(), prefix: "/v1/sandboxes/a/ports/8000".to_owned() }
    }

    #[test]
    fn hop_by_hop_fields_and_credentials_are_removed() {
        let mut parts = parts(&[
            ("host", "example.org"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("agentbox-api-key", "secret"),
            ("x-other", "kept"),
        ]);
        forward(&mut parts, &target(), &[HeaderName::from_static("agentbox-api-key")]);
        let names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        for gone in ["connection", "x-private", "keep-alive", "te", "agentbox-api-key"] {
            assert!(!names.contains(&gone), "{gone}");
        }
        assert_eq!(parts.headers["host"], "localhost:8000");
        assert_eq!(parts.headers["x-forwarded-host"], "example.org");
        assert_eq!(parts.headers["x-other"], "kept");
    }

    #[test]
    fn an_upgrade_survives() {
        let mut parts = parts(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")]);
        assert!(wants_upgrade(&parts.headers));
        forward(&mut parts, &target(), &[]);
        assert_eq!(parts.headers["connection"], "upgrade");
        assert_eq!(parts.headers["upgrade"], "websocket");
        assert_eq!(parts.headers["sec-websocket-key"], "k");
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let both = parts(&[("content-length", "1"), ("transfer-encoding", "chunked")]);
        assert!(refuse_ambiguous_framing(&both.headers).is_err());
        let two = parts(&[("content-length", "1"), ("content-length", "2")]);
        assert!(refuse_ambiguous_framing(&two.headers).is_err());
        let same = parts(&[("content-length", "1"), ("content-length", "1")]);
        assert!(refuse_ambiguous_framing(&same.headers).is_ok());
    }

    #[test]
    fn the_forwarded_chain_grows() {
        let mut parts = parts(&[("x-forwarded-for", "10.0.0.1")]);
        parts.extensions.insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 5))));
        forward(&mut parts, &target(), &[]);
        assert_eq!(parts.headers["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
    }
}
