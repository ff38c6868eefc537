//! Whom a request is for, if it says so in one way only.

use http::request::Parts;
use http::uri::Scheme as UriScheme;
use http::{Method, Version, header};

use super::refusal::Refusal;
use crate::name::{self, Host};
use crate::network::Scheme;

/// The host of a request, and the port if the client named one. Where the request ends was settled before: hyper refuses lengths
/// that disagree and folded fields, takes the chunks where there is a length too and ends the connection after them, and what goes
/// out is framed anew.
pub(super) fn of(parts: &Parts, scheme: Scheme) -> Result<(Host, Option<u16>), Refusal> {
    let bad = |what| Err(Refusal::Bad(what));
    match parts.method {
        Method::CONNECT => return bad("CONNECT is not passed on; connect to the host itself"),
        // It returns the request's header, and with it what the sandbox must not see.
        Method::TRACE => return bad("TRACE is not passed on"),
        _ => {}
    }
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return bad("there is more than one Host field");
    }
    let field = match field.map(|value| value.to_str().ok().and_then(name::parse_host)) {
        None => None,
        Some(Some(host)) => Some(host),
        Some(None) => return bad("the Host field holds no name and no address"),
    };
    let line = match parts.uri.authority().map(|authority| name::parse_host(authority.as_str())) {
        None => None,
        Some(Some(host)) => Some(host),
        Some(None) => return bad("the request line holds no name and no address"),
    };
    if parts.uri.scheme().is_some_and(|given| *given != uri_scheme(scheme)) {
        return bad("the request line names another scheme than the connection has");
    }
    match (field, line) {
        (Some(field), Some(line)) if field != line => bad("the request line and the Host field name different hosts"),
        (None, Some(line)) if parts.version == Version::HTTP_2 => Ok(line),
        (Some(field), _) => Ok(field),
        (None, _) => bad("there is no Host field"),
    }
}

fn uri_scheme(scheme: Scheme) -> UriScheme {
    match scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_host_is_found() {
        let expected = (Host::Name("a.example".to_owned()), None);
        assert_eq!(of(&parts("GET", "/", &["A.example"]), Scheme::Http).unwrap(), expected);
        assert_eq!(of(&parts("GET", "http://a.example/x", &["a.example"]), Scheme::Http).unwrap(), expected);
        let mut two = parts("GET", "https://a.example/", &[]);
        two.version = Version::HTTP_2;
        assert_eq!(of(&two, Scheme::Https).unwrap(), expected);
    }

    #[test]
    fn everything_else_is_refused() {
        for (method, uri, hosts) in [
            ("GET", "/", &[][..]),
            ("GET", "/", &["a.example", "a.example"]),
            ("GET", "/", &["a.example", "b.example"]),
            ("GET", "/", &["a.example, b.example"]),
            ("GET", "/", &["user@a.example"]),
            ("GET", "/", &[""]),
            ("GET", "http://b.example/", &["a.example"]),
            ("GET", "http://b.example/", &[]),
            ("GET", "http://a.example:81/", &["a.example"]),
            ("GET", "https://a.example/", &["a.example"]),
            ("GET", "http://a.example@b.example/", &["a.example"]),
            ("CONNECT", "a.example:443", &["a.example"]),
            ("TRACE", "/", &["a.example"]),
        ] {
            let refused = of(&parts(method, uri, hosts), Scheme::Http);
            assert!(matches!(refused, Err(Refusal::Bad(_))), "{method} {uri} {hosts:?}: {refused:?}");
        }
    }
}
