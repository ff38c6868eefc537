//! Names of hosts, as policies and the resolver use them.

use std::net::IpAddr;

/// Longest name in characters without the dot at the end (RFC 1035 §2.3.4).
const NAME_CHARS_MAX: usize = 253;
/// Longest label.
const LABEL_CHARS_MAX: usize = 63;

/// What becomes of a name before any policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    /// It is asked of the upstreams.
    Public,
    /// `localhost` and what is below it (RFC 6761 §6.3): the sandbox's own loopback.
    Loopback,
    /// It means something on one network only (`printer`, `printer.local`): the host's neighbours are nobody's business.
    Local,
}

/// `text` in lower case and without the dot at the end; `None` if it is not a name of a host. Underscores are taken, as in
/// `_dmarc.example.com`.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let letters = |label: &str| label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let good = |label: &str| !label.is_empty() && label.len() <= LABEL_CHARS_MAX && letters(label);
    (text.len() <= NAME_CHARS_MAX && text.split('.').all(good)).then(|| text.to_ascii_lowercase())
}

/// Sorts a canonical name.
pub(crate) fn kind(name: &str) -> NameKind {
    match name.rsplit('.').next() {
        Some("localhost") => NameKind::Loopback,
        Some("local") => NameKind::Local,
        _ if !name.contains('.') => NameKind::Local,
        _ => NameKind::Public,
    }
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// A canonical name.
    Name(String),
    /// A literal address.
    Address(IpAddr),
}

impl Host {
    /// As it stands in events and texts.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        }
    }

    /// As it stands in a `Host` field, with `port` if the client named one.
    pub(crate) fn field(&self, port: Option<u16>) -> String {
        let host = match self {
            Self::Address(IpAddr::V6(address)) => format!("[{address}]"),
            other => other.text(),
        };
        port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }
}

/// Takes a `Host` field or an authority apart: a name or an address, and a port if one is named. Stricter than RFC 3986: no user
/// information, no escapes, and no number that some library would read as an IPv4 address (`127.1`, `0x7f000001`).
pub(crate) fn parse_host(text: &str) -> Option<(Host, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        // An IPv4 address in the clothes of IPv6 is the IPv4 address.
        let address = IpAddr::V6(address.parse().ok()?).to_canonical();
        return Some((Host::Address(address), parse_port(rest)?));
    }
    let split = text.find(':').unwrap_or(text.len());
    let (host, port) = (&text[..split], parse_port(&text[split..])?);
    if let Ok(address) = host.parse() {
        return Some((Host::Address(IpAddr::V4(address)), port));
    }
    let name = canonical(host)?;
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    (!number).then_some((Host::Name(name), port))
}

/// Nothing, or a colon and a port.
fn parse_port(text: &str) -> Option<Option<u16>> {
    match text.strip_prefix(':') {
        None => text.is_empty().then_some(None),
        Some(digits) => {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten().map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_brought_to_one_spelling() {
        assert_eq!(canonical("API.Example.COM.").as_deref(), Some("api.example.com"));
        assert_eq!(canonical("_sip._tcp.example.com").as_deref(), Some("_sip._tcp.example.com"));
        let long = format!("{}.example", "a".repeat(64));
        for wrong in ["", ".", "a..b", ".a", "a.b..", "ä.example", "a b.example", "a/b", "a@b", "a:b", &long, &"a.".repeat(128)]
        {
            assert_eq!(canonical(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn names_of_one_network_are_told_from_public_ones() {
        assert_eq!(kind("example.com"), NameKind::Public);
        assert_eq!(kind("localhost"), NameKind::Loopback);
        assert_eq!(kind("a.localhost"), NameKind::Loopback);
        assert_eq!(kind("printer"), NameKind::Local);
        assert_eq!(kind("printer.local"), NameKind::Local);
        assert_eq!(kind("local.example"), NameKind::Public);
    }

    #[test]
    fn hosts_are_parsed_strictly() {
        let name = |text: &str| Host::Name(text.to_owned());
        assert_eq!(parse_host("Example.com:8080"), Some((name("example.com"), Some(8080))));
        assert_eq!(parse_host("example.com."), Some((name("example.com"), None)));
        assert_eq!(parse_host("192.0.2.1"), Some((Host::Address("192.0.2.1".parse().unwrap()), None)));
        assert_eq!(parse_host("[2001:db8::1]:80"), Some((Host::Address("2001:db8::1".parse().unwrap()), Some(80))));
        assert_eq!(parse_host("[::ffff:10.0.0.1]"), Some((Host::Address("10.0.0.1".parse().unwrap()), None)));
        for wrong in [
            "",
            ":80",
            "a@b.example",
            "a.example:",
            "a.example:x",
            "a.example:+80",
            "a.example:99999",
            "a.example:80:80",
            "[::1",
            "[::1]x",
            "::1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.0x1",
            "a.example/",
            "a.example b.example",
            "a%2eexample",
        ] {
            assert_eq!(parse_host(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_host_is_written_as_it_was_understood() {
        assert_eq!(Host::Address("2001:db8::1".parse().unwrap()).field(Some(80)), "[2001:db8::1]:80");
        assert_eq!(Host::Name("a.example".to_owned()).field(None), "a.example");
    }
}
