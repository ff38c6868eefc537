//! Header fields on their way through the proxy.

use axum::extract::ConnectInfo;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::net::SocketAddr;

use super::{HostField, PortTarget, ProxyFailure};
use crate::cookies;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Nonce of a handshake that stands for an extended CONNECT, which has none. It proves only that the other end speaks WebSocket
/// (RFC 6455 §1.3), so that it need not be random.
const EXTENDED_KEY: &str = "c2FuZGJhbmsgZXh0IENPTg==";

/// Fields that concern one connection only (RFC 9110 §7.6.1; `HTTP2-Settings`: RFC 7540 §3.2.1).
const HOP_BY_HOP: [HeaderName; 10] = [
    HeaderName::from_static("http2-settings"),
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

/// How a client asks to switch protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// HTTP/1.1: the value of `Upgrade`.
    Field(HeaderValue),
    /// HTTP/2: extended CONNECT for a WebSocket (RFC 8441).
    Extended,
}

impl Upgrade {
    /// What the request asks for. HTTP/2 without TLS (`h2c`) is no such thing here: it would carry requests past the proxy.
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        if parts.method == Method::CONNECT {
            let protocol = parts.extensions.get::<hyper::ext::Protocol>()?;
            return protocol.as_str().eq_ignore_ascii_case("websocket").then_some(Self::Extended);
        }
        let headers = &parts.headers;
        let value = headers.get(header::UPGRADE)?;
        let http2 = value.to_str().is_ok_and(|text| text.split(',').any(|name| is_http2(name.trim())));
        (!http2 && names_upgrade(headers)).then(|| Self::Field(value.clone()))
    }
}

fn is_http2(protocol: &str) -> bool {
    ["h2c", "h2"].iter().any(|name| protocol.eq_ignore_ascii_case(name))
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    headers
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
pub(super) fn forward(parts: &mut Parts, target: &PortTarget, upgrade: Option<&Upgrade>) {
    // HTTP/2 carries the host in the URI.
    let host = parts
        .headers
        .get(header::HOST)
        .cloned()
        .or_else(|| parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()));
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    let headers = &mut parts.headers;
    strip_hop_by_hop(headers);
    for name in &target.credentials {
        headers.remove(name);
    }
    cookies::remove(headers, header::COOKIE, &target.credential_cookies);
    // hyper has answered `100 Continue` itself once the body is read.
    headers.remove(header::EXPECT);
    ask_to_switch(headers, upgrade);
    if let Some(host) = host.clone() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    headers.remove(FORWARDED_PREFIX);
    if let Ok(prefix) = HeaderValue::from_str(&target.prefix)
        && !prefix.is_empty()
    {
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
    let local = || HeaderValue::from_str(&format!("localhost:{}", target.port)).ok();
    let host = match &target.host {
        HostField::Local => local(),
        HostField::AsAsked => host.or_else(local),
        HostField::Fixed(value) => Some(value.clone()),
    };
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    for (name, value) in &target.request_headers {
        headers.insert(name, value.clone());
    }
}

/// The HTTP/1.1 handshake, whichever way the client asked.
fn ask_to_switch(headers: &mut HeaderMap, upgrade: Option<&Upgrade>) {
    let protocol = match upgrade {
        None => return,
        Some(Upgrade::Field(value)) => value.clone(),
        Some(Upgrade::Extended) => {
            headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static(EXTENDED_KEY));
            HeaderValue::from_static("websocket")
        }
    };
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Rewrites an answer's fields for the client.
pub(super) fn answer(headers: &mut HeaderMap, target: &PortTarget) {
    cookies::remove_set(headers, &target.credential_cookies);
    for (name, value) in &target.response_headers {
        headers.insert(name, value.clone());
    }
    for (name, value) in &target.added_headers {
        headers.append(name, value.clone());
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
        let prefix = "/v1/sandboxes/a/ports/8000".to_owned();
        PortTarget { port: 8000, path: "/".to_owned(), prefix, ..PortTarget::default() }
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
        let credentials = vec![HeaderName::from_static("agentbox-api-key")];
        forward(&mut parts, &PortTarget { credentials, ..target() }, None);
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
        let upgrade = Upgrade::of(&parts).unwrap();
        forward(&mut parts, &target(), Some(&upgrade));
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
        forward(&mut parts, &target(), None);
        assert_eq!(parts.headers["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
    }

    #[test]
    fn http2_without_tls_is_not_switched_to() {
        let mut parts = parts(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")]);
        assert_eq!(Upgrade::of(&parts), None);
        forward(&mut parts, &target(), None);
        for gone in ["connection", "upgrade", "http2-settings"] {
            assert!(!parts.headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn the_host_is_local_as_asked_or_fixed() {
        for (host, seen) in [
            (HostField::Local, "localhost:8000"),
            (HostField::AsAsked, "8000-a.localhost"),
            (HostField::Fixed(HeaderValue::from_static("app.test")), "app.test"),
        ] {
            let mut parts = parts(&[("host", "8000-a.localhost")]);
            forward(&mut parts, &PortTarget { host, prefix: String::new(), ..target() }, None);
            assert_eq!(parts.headers["host"], seen);
            assert_eq!(parts.headers["x-forwarded-host"], "8000-a.localhost");
            assert!(!parts.headers.contains_key("x-forwarded-prefix"));
        }
    }

    #[test]
    fn fields_are_set_in_both_directions_and_our_cookie_goes_neither_way() {
        let pair = |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let target = PortTarget {
            credential_cookies: vec!["ours"],
            request_headers: vec![pair("x-preview", "1")],
            response_headers: vec![pair("x-frame-options", "DENY")],
            added_headers: vec![pair("content-security-policy", "sandbox")],
            ..target()
        };
        let mut parts = parts(&[("cookie", "a=1; ours=secret; b=2"), ("x-preview", "forged")]);
        forward(&mut parts, &target, None);
        assert_eq!(
            (&parts.headers["cookie"], &parts.headers["x-preview"]),
            (&"a=1; b=2".parse().unwrap(), &"1".parse().unwrap())
        );
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("set-cookie", "ours=x; Path=/"), ("set-cookie", "theirs=y"), ("content-security-policy", "default-src 'self'")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        answer(&mut headers, &target);
        assert_eq!(headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["theirs=y"]);
        assert_eq!(headers.get_all("content-security-policy").iter().count(), 2);
        assert_eq!(headers["x-frame-options"], "DENY");
    }
}
