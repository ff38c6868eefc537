//! What a visitor of a port shows: an API key or a port token. Wherever it stands, it never reaches the program inside.

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, header};
use sandbank_control::{Caller, Control, Error, ErrorKind, PortPass, PortVisitor, Result};

use super::host::{NamedPort, is_own_origin};
use crate::{bearer, cookies};

/// Field that carries a port token.
pub const PORT_TOKEN_HEADER: HeaderName = HeaderName::from_static("x-sandbank-port-token");
/// Name of the query parameter and of the cookie that carry a port token.
pub const PORT_TOKEN_NAME: &str = "sandbank_port_token";
/// Most cookies of our name that are tried: other sites of the domain can set some.
const COOKIES_TRIED: usize = 4;

/// A visitor who was let in.
pub(super) struct Admission {
    pub(super) pass: PortPass,
    /// Fields that carry credentials of ours.
    pub(super) credentials: Vec<HeaderName>,
}

/// The port token in the request's field or query, if there is one.
#[must_use]
pub fn port_token(parts: &Parts) -> Option<&str> {
    let field = parts.headers.get(PORT_TOKEN_HEADER).map(|value| value.to_str().unwrap_or_default().trim());
    field.or_else(|| query_token(parts.uri.query()?))
}

fn query_token(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix(PORT_TOKEN_NAME)?.strip_prefix('='))
}

/// A query without port tokens, `?` in front; the rest as it was written. Empty when nothing is left.
#[must_use]
pub fn query_inside(query: Option<&str>) -> String {
    let Some(query) = query else { return String::new() };
    let ours = |pair: &str| pair.split('=').next() == Some(PORT_TOKEN_NAME);
    if !query.split('&').any(ours) {
        return format!("?{query}");
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !ours(pair)).collect();
    if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) }
}

/// Takes out of a request's fields what repeats its address with a token in it.
pub fn forget_token_in_referer(headers: &mut HeaderMap) {
    let tells = |value: &http::HeaderValue| {
        value.as_bytes().windows(PORT_TOKEN_NAME.len()).any(|part| part == PORT_TOKEN_NAME.as_bytes())
    };
    if headers.get_all(header::REFERER).iter().any(tells) {
        headers.remove(header::REFERER);
    }
}

/// Lets a visitor to the port in, by whatever they show first that opens it, or because it is public.
pub(super) async fn admit(control: &Control, key_headers: &[HeaderName], parts: &Parts, named: NamedPort) -> Result<Admission> {
    let NamedPort { sandbox, port } = named;
    let mut attempts = Attempts { pass: None, refused: None };
    for token in tokens(parts) {
        attempts.add(control.port_admit(PortVisitor::Token(token), sandbox, port).await);
    }
    let mut credentials = vec![PORT_TOKEN_HEADER];
    for (name, secret) in keys(&parts.headers, key_headers) {
        // The program inside may have keys of its own under such names: what opens nothing here is its business.
        let Ok(principal) = control.authenticate(secret).await else { continue };
        credentials.push(name);
        if attempts.pass.is_none() {
            let caller = Caller { principal, request_id: String::new() };
            attempts.add(control.port_admit(PortVisitor::Caller(&caller), sandbox, port).await);
        }
    }
    if attempts.pass.is_none() {
        let anyone = control.port_admit(PortVisitor::Anyone, sandbox, port).await;
        match (anyone, attempts.refused.take()) {
            (Ok(pass), _) => attempts.pass = Some(pass),
            (Err(_), Some(shown)) => return Err(shown),
            (Err(error), None) => return Err(error),
        }
    }
    let nothing = || Error::new(ErrorKind::Unauthenticated, "show an API key or a port token");
    Ok(Admission { pass: attempts.pass.ok_or_else(nothing)?, credentials })
}

struct Attempts {
    pass: Option<PortPass>,
    refused: Option<Error>,
}

impl Attempts {
    /// What a good credential was told (no such sandbox, paused) says more than that another one is wrong.
    fn add(&mut self, attempt: Result<PortPass>) {
        match attempt {
            Ok(pass) => self.pass = self.pass.take().or(Some(pass)),
            Err(error) => {
                let says_more =
                    |known: &Error| known.kind == ErrorKind::Unauthenticated && error.kind != ErrorKind::Unauthenticated;
                if self.refused.as_ref().is_none_or(says_more) {
                    self.refused = Some(error);
                }
            }
        }
    }
}

fn tokens(parts: &Parts) -> impl Iterator<Item = &str> {
    let cookies = cookie_counts(parts).then(|| cookies::values(&parts.headers, PORT_TOKEN_NAME).take(COOKIES_TRIED));
    port_token(parts).into_iter().chain(cookies.into_iter().flatten())
}

/// A cookie says whose browser it is, not that its owner meant to ask. Pages of other sandboxes are "same site" to a browser, so
/// that `SameSite` does not keep them from sending requests here: what other pages start counts only as a visit by a link.
fn cookie_counts(parts: &Parts) -> bool {
    let field = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(origin) = field("origin")
        && !is_own_origin(origin, parts)
    {
        return false;
    }
    match field("sec-fetch-site") {
        None | Some("same-origin" | "none") => true,
        Some(_) => matches!(parts.method, Method::GET | Method::HEAD) && field("sec-fetch-mode") == Some("navigate"),
    }
}

fn keys<'a>(headers: &'a HeaderMap, names: &'a [HeaderName]) -> impl Iterator<Item = (HeaderName, &'a str)> {
    let named = names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.to_str().ok()?.trim())));
    named.chain(bearer(headers).map(|secret| (header::AUTHORIZATION, secret)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn parts(method: &str, fields: Fields<'_>) -> Parts {
        let mut request = http::Request::builder().method(method).uri("/a?x=1&sandbank_port_token=t");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_token_leaves_the_query_and_the_rest_stays_as_written() {
        for (query, inside) in [
            (None, ""),
            (Some(""), "?"),
            (Some("a=1&b=%20"), "?a=1&b=%20"),
            (Some("sandbank_port_token=x"), ""),
            (Some("a=1&sandbank_port_token=x&b"), "?a=1&b"),
            (Some("sandbank_port_token=x&sandbank_port_token=y&"), "?"),
            (Some("sandbank_port_tokens=x"), "?sandbank_port_tokens=x"),
            (Some("sandbank_port_token"), ""),
        ] {
            assert_eq!(query_inside(query), inside, "{query:?}");
        }
        assert_eq!(port_token(&parts("GET", &[])), Some("t"));
        assert_eq!(port_token(&parts("GET", &[("x-sandbank-port-token", "h")])), Some("h"));
    }

    #[test]
    fn a_referer_with_a_token_goes_and_another_stays() {
        for (value, stays) in [("http://a.test/?sandbank_port_token=t", false), ("http://a.test/?q=1", true)] {
            let mut headers = HeaderMap::from_iter([(header::REFERER, value.parse().unwrap())]);
            forget_token_in_referer(&mut headers);
            assert_eq!(headers.contains_key(header::REFERER), stays);
        }
    }

    #[test]
    fn a_cookie_counts_for_what_its_own_page_or_a_link_asks() {
        let host = ("host", "80-a.box.test:7070");
        let cases: [(&str, Fields<'_>, bool); 8] = [
            ("GET", &[host], true),
            ("POST", &[host, ("origin", "http://80-a.box.test:7070"), ("sec-fetch-site", "same-origin")], true),
            ("GET", &[host, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], true),
            ("GET", &[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], true),
            ("GET", &[host, ("origin", "http://80-b.box.test:7070")], false),
            ("GET", &[host, ("origin", "null")], false),
            ("GET", &[host, ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], false),
            ("POST", &[host, ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], false),
        ];
        for (method, fields, counts) in cases {
            assert_eq!(cookie_counts(&parts(method, fields)), counts, "{method} {fields:?}");
        }
    }
}
