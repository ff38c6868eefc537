//! Headers that the host adds to requests on their way out, so that code in a sandbox can use an API whose key it cannot read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{InvalidPolicy, NamePattern};
use crate::{Sealed, TenantId};

/// Most header rules of a policy, and most hosts of a rule (e2b.md §3.2).
pub const HEADER_RULES_MAX: usize = 10;
/// Longest host of a header rule, characters.
pub const HEADER_HOST_LEN_MAX: usize = 128;
/// Most paths of a header rule.
const PATHS_MAX: usize = 32;
/// Longest path of a header rule, bytes.
const PATH_LEN_MAX: usize = 1024;
/// Most headers of a rule.
pub const HEADERS_MAX: usize = 20;
/// Longest name of a header, bytes.
pub const HEADER_NAME_LEN_MAX: usize = 64;
/// Longest value of a header, bytes.
pub const HEADER_VALUE_LEN_MAX: usize = 2048;

/// Headers that say how a message is carried: another value would let one message pass for two (RFC 9110 §7.6.1, RFC 9112 §6).
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header's value as it is kept: sealed, for one owner, one header and the hosts of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderSecret {
    /// Who gave it; `None`: the installation, in a template of its own.
    pub owner: Option<TenantId>,
    /// The value.
    pub sealed: Sealed,
}

/// Headers for requests to some hosts. `S` is what is known of a value: in records, [`HeaderSecret`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule<S = HeaderSecret> {
    /// Hosts, by name.
    pub hosts: Vec<NamePattern>,
    /// Only for these paths: `/v1` is it and all below it, `/v1*` all that begins so. None: all paths.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Header to value. A request's own header of that name is replaced.
    pub set: BTreeMap<String, S>,
}

impl<S> HeaderRule<S> {
    /// Whether requests to this host and path get its headers. `path` is as the request spells it, without the query.
    ///
    /// With `paths`, a path that servers read in more than one way (dot segments, encoded slashes or dots, backslashes, empty
    /// segments) gets none: what looks like a path below `/v1` must not take the secret elsewhere.
    #[must_use]
    pub fn covers(&self, host: &str, path: &str) -> bool {
        self.covers_host(host) && (self.paths.is_empty() || (is_plain(path) && self.paths.iter().any(|own| below(own, path))))
    }

    /// Whether it is about this host.
    #[must_use]
    pub fn covers_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| pattern.covers(host))
    }

    /// The hosts in one text: what a sealed value is bound to.
    #[must_use]
    pub fn hosts_text(&self) -> String {
        self.hosts.iter().map(NamePattern::to_string).collect::<Vec<_>>().join(",")
    }

    pub(super) fn check(&self, at: &str) -> Result<(), InvalidPolicy> {
        let refused = |field: String, why: String| Err(InvalidPolicy { at: format!("{at}{field}"), why });
        if !(1..=HEADER_RULES_MAX).contains(&self.hosts.len()) {
            return refused(
                ".hosts".to_owned(),
                format!("a rule names 1 to {HEADER_RULES_MAX} hosts, this one {}", self.hosts.len()),
            );
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let length = host.to_string().len();
            if length > HEADER_HOST_LEN_MAX {
                return refused(
                    format!(".hosts[{index}]"),
                    format!("has {length} characters; at most {HEADER_HOST_LEN_MAX} are taken"),
                );
            }
        }
        if self.paths.len() > PATHS_MAX {
            return refused(".paths".to_owned(), format!("has {} entries; at most {PATHS_MAX} are taken", self.paths.len()));
        }
        for (index, path) in self.paths.iter().enumerate() {
            if path.len() > PATH_LEN_MAX
                || !is_plain(path.strip_suffix('*').unwrap_or(path))
                || path.trim_end_matches('*').contains('*')
            {
                let why = format!(
                    "a path begins with / and is plain ASCII of at most {PATH_LEN_MAX} bytes, perhaps with a * at its end"
                );
                return refused(format!(".paths[{index}]"), why);
            }
        }
        if !(1..=HEADERS_MAX).contains(&self.set.len()) {
            return refused(".set".to_owned(), format!("a rule sets 1 to {HEADERS_MAX} headers, this one {}", self.set.len()));
        }
        let mut seen: Vec<String> = Vec::with_capacity(self.set.len());
        for name in self.set.keys() {
            let shown: String = name.chars().take(HEADER_NAME_LEN_MAX).collect();
            let field = format!(".set.{shown}");
            if !(1..=HEADER_NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(is_token) {
                return refused(
                    field,
                    format!("a header's name has 1 to {HEADER_NAME_LEN_MAX} letters, digits and signs like '-'"),
                );
            }
            let lower = name.to_ascii_lowercase();
            if FRAMING.contains(&lower.as_str()) {
                return refused(field, "this header says how a message is carried and cannot be set".to_owned());
            }
            if seen.contains(&lower) {
                return refused(field, "is set twice: headers' names do not differ by case".to_owned());
            }
            seen.push(lower);
        }
        Ok(())
    }
}

/// A character of a header's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether all servers read the path in the same way.
fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["//", "\\", "%2e", "%2f", "%5c", "%25", "%00"].iter().any(|part| lower.contains(part));
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && !path.contains(['?', '#', ';'])
        && !ambiguous
        && !path.split('/').any(|segment| segment == "." || segment == "..")
}

/// Whether `path` is `own` or below it.
fn below(own: &str, path: &str) -> bool {
    if let Some(prefix) = own.strip_suffix('*') {
        return path.starts_with(prefix);
    }
    match path.strip_prefix(own) {
        Some(rest) => rest.is_empty() || own.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}
