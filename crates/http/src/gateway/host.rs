//! Host names of ports: `{port}-{sandbox}.{domain}`.

use http::request::Parts;
use http::{HeaderMap, Uri, header};
use sandbank_model::SandboxId;
use uuid::Uuid;

/// A port that a host name names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedPort {
    /// Sandbox.
    pub sandbox: SandboxId,
    /// Port inside; from 1 on.
    pub port: u16,
}

/// What a label looks like. Each spelling gives `None` for what is not meant for it, and an error for what is and names no port: such
/// a name never falls through to the API.
type Spelling = fn(&str) -> Option<Result<NamedPort, String>>;

/// The spellings that are understood. Dialects whose names look otherwise add theirs here.
const SPELLINGS: [Spelling; 1] = [port_then_sandbox];

/// `8000-0190f3c4-...`, the UUID with or without its dashes.
fn port_then_sandbox(label: &str) -> Option<Result<NamedPort, String>> {
    let (port, id) = label.split_once('-')?;
    let sandbox = SandboxId::from_uuid(Uuid::try_parse(id).ok()?);
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port: &u16| *port > 0);
    Some(port.map(|port| NamedPort { sandbox, port }).ok_or_else(|| {
        let shown: String = label.chars().take(20).collect();
        format!("{shown}... names no port: ports are 1 to 65535")
    }))
}

/// The host that a request is for, without its port: the URI's authority where there is one (RFC 9112 §3.2.2), else `Host`.
/// An error when two disagree: whoever stands before us may have believed the other.
pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, String> {
    let mut fields = headers.get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err("a request has one Host".to_owned());
    }
    let field = field.and_then(|value| value.to_str().ok());
    match (uri.authority().map(http::uri::Authority::as_str), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            Err("the request's target and its Host name different hosts".to_owned())
        }
        (Some(authority), _) => Ok(Some(without_port(authority))),
        (None, Some(field)) => Ok(Some(without_port(field))),
        (None, None) => Ok(None),
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// The port that `host` names under one of `domains`; `None` when it is another host.
pub(super) fn named_port(host: &str, domains: &[String]) -> Option<Result<NamedPort, String>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = domains.iter().find_map(|domain| {
        let cut = host.len().checked_sub(domain.len() + 1)?;
        let (label, rest) = (host.get(..cut)?, host.get(cut..)?);
        (rest.starts_with('.') && rest[1..].eq_ignore_ascii_case(domain) && !label.contains('.')).then_some(label)
    })?;
    SPELLINGS.iter().find_map(|spelling| spelling(label))
}

/// Address of a port for people and programs: scheme and port of `base_url`, host of the port.
pub(super) fn url(base_url: &str, domain: &str, named: NamedPort) -> String {
    let (scheme, rest) = base_url.split_once("://").unwrap_or(("http", base_url));
    let authority = rest.split('/').next().unwrap_or_default();
    let port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => format!(":{port}"),
        _ => String::new(),
    };
    format!("{scheme}://{}-{}.{domain}{port}", named.port, named.sandbox)
}

/// Whether `origin` (`scheme://host:port`) is that of the host the request is for.
pub(super) fn is_own_origin(origin: &str, parts: &Parts) -> bool {
    let own = parts.uri.authority().map(http::uri::Authority::as_str);
    let own = own.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
    let asked = origin.split_once("://").map(|(_, host)| host);
    own.zip(asked).is_some_and(|(own, asked)| own.eq_ignore_ascii_case(asked))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "0190f3c4-7b1a-7000-8000-0123456789ab";

    fn named(host: &str) -> Option<Result<(u16, String), String>> {
        let domains = ["localhost".to_owned(), "boxes.example.com".to_owned()];
        named_port(host, &domains).map(|named| named.map(|named| (named.port, named.sandbox.to_string())))
    }

    #[test]
    fn a_port_and_a_sandbox_under_a_domain_are_named() {
        let simple = ID.replace('-', "");
        for host in [
            format!("8000-{ID}.localhost"),
            format!("8000-{simple}.localhost"),
            format!("8000-{}.LOCALHOST.", ID.to_uppercase()),
            format!("8000-{ID}.boxes.example.com"),
        ] {
            assert_eq!(named(&host), Some(Ok((8000, ID.to_owned()))), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_not_ports_and_bad_ports_do_not_fall_through() {
        for host in [
            "localhost",
            "127.0.0.1",
            "[::1]",
            ".localhost",
            "",
            "ocalhost",
            &format!("8000-{ID}"),
            &format!("8000-{ID}.other"),
            &format!("a.8000-{ID}.localhost"),
            &format!("web-{ID}.localhost"),
            &format!("8000-{ID}xlocalhost"),
            "8000-nothing.localhost",
            "é-é.localhost",
        ] {
            assert_eq!(named(host), None, "{host}");
        }
        for port in ["0", "65536", "99999999999999999999"] {
            assert!(named(&format!("{port}-{ID}.localhost")).unwrap().is_err(), "{port}");
        }
    }

    #[test]
    fn a_request_for_two_hosts_is_refused() {
        let host = |uri: &str, hosts: &[&'static str]| {
            let hosts = hosts.iter().map(|host| (header::HOST, http::HeaderValue::from_static(host)));
            let mut headers = HeaderMap::new();
            headers.extend(hosts);
            host_of(&uri.parse().unwrap(), &headers).map(|host| host.map(str::to_owned)).ok()
        };
        let is = |name: &str| Some(Some(name.to_owned()));
        assert_eq!(host("/", &["a.test:80"]), is("a.test"));
        assert_eq!(host("http://a.test/", &["A.test"]), is("a.test"));
        assert_eq!(host("/", &["[::1]:80"]), is("[::1]"));
        assert_eq!(host("/", &[]), Some(None));
        assert_eq!(host("http://a.test/", &["b.test"]), None);
        assert_eq!(host("/", &["a.test", "a.test"]), None);
    }

    #[test]
    fn addresses_keep_scheme_and_port_of_the_server() {
        let named = NamedPort { sandbox: SandboxId::from_uuid(Uuid::try_parse(ID).unwrap()), port: 80 };
        assert_eq!(url("http://127.0.0.1:7070", "localhost", named), format!("http://80-{ID}.localhost:7070"));
        assert_eq!(url("https://sandbank.example/x", "b.example", named), format!("https://80-{ID}.b.example"));
        assert_eq!(url("http://[::1]:9", "localhost", named), format!("http://80-{ID}.localhost:9"));
        assert_eq!(url("http://[::1]", "localhost", named), format!("http://80-{ID}.localhost"));
    }
}
