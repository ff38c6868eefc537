//! `/.sandbank/auth?token=...&to=/path`: a link that gives a browser the cookie that opens a port, and leads on to its pages.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, header};
use sandbank_control::{Control, PortVisitor, Result};
use sandbank_model::Timestamp;

use super::host::NamedPort;
use super::visitor::PORT_TOKEN_NAME;
use crate::Query;

/// Paths of the gateway's own on a port's host.
pub(super) const OWN_PATHS: &str = "/.sandbank/";
/// The link.
const AUTH: &str = "/.sandbank/auth";

/// Where a browser takes a token to, on the port's host.
pub(super) fn link(base: &str, token: &str) -> String {
    format!("{base}{AUTH}?token={token}&to=/")
}

/// Answers one of the gateway's own paths; `None` inside: there is nothing there.
pub(super) async fn answer(
    control: &Control,
    named: NamedPort,
    (method, path, query): (&Method, &str, Option<&str>),
    secure: bool,
) -> Result<Option<Response>> {
    if path != AUTH || !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let query = Query::parse(query).map_err(|error| sandbank_control::Error::invalid(error.to_string()))?;
    let text = |wanted: &str| query.pairs().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
    let token = text("token").unwrap_or_default();
    control.port_admit(PortVisitor::Token(&token), named.sandbox, named.port).await?;
    let end = control.port_token_end(&token, named.sandbox, named.port)?;
    let to = text("to").filter(|to| is_path_here(to)).unwrap_or_else(|| "/".to_owned());
    let location = HeaderValue::from_str(&to).unwrap_or(HeaderValue::from_static("/"));
    let cookie = cookie(&token, end, control.now(), secure);
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
        cookie.set_sensitive(true);
        headers.insert(header::SET_COOKIE, cookie);
    }
    Ok(Some(response))
}

/// A path on the same host: `//host` and `/\host` are none to a browser.
fn is_path_here(to: &str) -> bool {
    let bytes = to.as_bytes();
    bytes.first() == Some(&b'/')
        && !matches!(bytes.get(1), Some(b'/' | b'\\'))
        && bytes.iter().all(|byte| byte.is_ascii_graphic())
        && bytes.len() <= 4096
}

fn cookie(token: &str, end: Option<Timestamp>, now: Timestamp, secure: bool) -> String {
    let life = end.map(|end| format!("; Max-Age={}", end.as_millis().saturating_sub(now.as_millis()) / 1000));
    let secure = if secure { "; Secure" } else { "" };
    format!("{PORT_TOKEN_NAME}={token}; Path=/; HttpOnly; SameSite=Lax{}{secure}", life.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_nowhere_else() {
        for to in ["/", "/a/b?c=d#e", "/%0d%0a"] {
            assert!(is_path_here(to), "{to}");
        }
        for to in ["", "a", "//evil.test", "/\\evil.test", "https://evil.test", "/a\r\nX: y", "/a b", "/é"] {
            assert!(!is_path_here(to), "{to}");
        }
    }

    #[test]
    fn the_cookie_ends_with_its_token() {
        let at = Timestamp::from_millis;
        assert_eq!(
            cookie("t", Some(at(61_500)), at(1_000), true),
            "sandbank_port_token=t; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure"
        );
        assert_eq!(cookie("t", None, at(0), false), "sandbank_port_token=t; Path=/; HttpOnly; SameSite=Lax");
    }
}
