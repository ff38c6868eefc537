//! Names of sandboxes' ports.

use serde::Deserialize;

use crate::failure::{Failure, Result};

/// Names of sandboxes' ports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ports {
    /// Domains that `{port}-{sandbox}.{domain}` are looked for under; the first one is told in addresses. Empty: ports have no names.
    pub(crate) domain: Domains,
}

/// One or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "ports.domain must be a domain or a list of domains")]
pub(crate) enum Domains {
    /// One.
    One(String),
    /// Several, or none.
    List(Vec<String>),
}

impl Default for Ports {
    fn default() -> Self {
        // Every browser and most resolvers take names under `localhost` for this machine (RFC 6761 §6.3).
        Self { domain: Domains::One("localhost".to_owned()) }
    }
}

impl Ports {
    /// The domains, lower case, checked.
    pub(super) fn domains(&self) -> Result<Vec<String>> {
        let given = match &self.domain {
            Domains::One(domain) => std::slice::from_ref(domain),
            Domains::List(list) => list,
        };
        given.iter().map(|domain| checked(domain)).collect()
    }
}

fn checked(domain: &str) -> Result<String> {
    let lower = domain.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    // The names in front of it have 42 characters and a dot at most.
    let fits = lower.len() <= 200 && lower.split('.').all(label) && lower.parse::<std::net::IpAddr>().is_err();
    if fits {
        Ok(lower)
    } else {
        Err(Failure::new(format!("ports.domain {domain:?} is not a domain: write it like boxes.example.com, without a port")))
    }
}
