//! How registries are spoken to, and with whose credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use crate::reference::{self, DOCKER_REGISTRY};
use crate::{Error, Result};

/// Where Docker's registry really answers.
const DOCKER_REGISTRY_HOST: &str = "registry-1.docker.io";

/// Settings of a [`super::RegistryClient`].
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// What a name without a host belongs to.
    pub default_registry: String,
    /// A registry's host to its mirrors, `[https://]host[:port][/prefix]`, which are asked first, in this order, without
    /// credentials. The prefix goes in front of the repository.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts, with their port if it is not the usual one, that may be spoken to in plain HTTP. Those on loopback may anyway.
    pub insecure: BTreeSet<String>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// Without a single byte.
    pub stall_timeout: Duration,
    /// For a whole manifest, configuration or token.
    pub document_timeout: Duration,
    /// How often one thing is asked for before giving up. A layer that came on by a MiB since the last failure starts anew.
    pub tries_max: u32,
    /// Before the second try; doubles up to ten seconds.
    pub backoff: Duration,
    /// The longest `Retry-After` that is waited for.
    pub retry_after_max: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            default_registry: DOCKER_REGISTRY.to_owned(),
            mirrors: BTreeMap::new(),
            insecure: BTreeSet::new(),
            ca_files: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            document_timeout: Duration::from_secs(60),
            tries_max: 5,
            backoff: Duration::from_millis(250),
            retry_after_max: Duration::from_secs(30),
        }
    }
}

impl RegistrySettings {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |setting, reason: String| Err(Error::Setting { setting, reason });
        let names_a_host = |host: &str| reference::is_host(host) && (host.contains(['.', ':']) || host == "localhost");
        if !names_a_host(&self.default_registry) {
            let reason =
                format!("{} is no host; write it with a dot or a port, like registry.example:5000", self.default_registry);
            return wrong("default_registry", reason);
        }
        if let Some(host) = self.insecure.iter().find(|host| !reference::is_host(host)) {
            return wrong("insecure", format!("{host} is no host"));
        }
        if let Some(host) = self.mirrors.keys().find(|host| !reference::is_host(host)) {
            return wrong("mirrors", format!("{host} is no host"));
        }
        for mirror in self.mirrors.values().flatten() {
            Endpoint::mirror(mirror)?;
        }
        if self.tries_max == 0 {
            return wrong("tries_max", "at least one try is needed".to_owned());
        }
        Ok(())
    }

    /// Whether this host, with its port, may be spoken to in plain HTTP.
    pub(crate) fn may_be_plain(&self, authority: &str) -> bool {
        self.insecure.contains(authority) || is_loopback(authority)
    }

    /// Where to ask for images of `registry`: its mirrors, then itself.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>> {
        let mirrors = self.mirrors.get(registry).into_iter().flatten().map(|mirror| Endpoint::mirror(mirror));
        mirrors.chain([Ok(Endpoint::registry(registry))]).collect()
    }
}

/// A server with a registry's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host, and port if it has one.
    pub(crate) authority: String,
    /// `http` or `https` where it was said.
    pub(crate) scheme: Option<String>,
    /// Empty, or ends with a slash.
    pub(crate) prefix: String,
    pub(crate) is_mirror: bool,
}

impl Endpoint {
    fn registry(host: &str) -> Self {
        let authority = if host == DOCKER_REGISTRY { DOCKER_REGISTRY_HOST } else { host }.to_owned();
        Self { authority, scheme: None, prefix: String::new(), is_mirror: false }
    }

    fn mirror(text: &str) -> Result<Self> {
        let wrong =
            || Error::Setting { setting: "mirrors", reason: "a mirror is written [https://]host[:port][/prefix]".to_owned() };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme.to_owned()), rest),
            Some(_) => return Err(wrong()),
            None => (None, text),
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        if !reference::is_host(authority) || !prefix.bytes().all(plain) || prefix.contains("..") {
            return Err(wrong());
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { authority: authority.to_owned(), scheme, prefix, is_mirror: true })
    }
}

/// `localhost`, `127.0.0.1:5000`, `[::1]`.
fn is_loopback(authority: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{authority}/")) else { return false };
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Host and port of `url` as settings write them.
pub(crate) fn authority_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Who asks. Shown to the image's registry and to the token server that it names, over HTTPS unless the registry itself is spoken
/// to in plain HTTP; never to mirrors, and never after a redirect to another host.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user, with a password or what the registry takes for one (an access token).
    Password {
        /// Name.
        username: String,
        /// Secret.
        password: String,
    },
    /// A bearer token for the registry itself.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Credentials::Password(..)",
            Self::Token(_) => "Credentials::Token(..)",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_listed_hosts_may_be_plain() {
        let settings = RegistrySettings { insecure: ["reg.corp:5000".to_owned()].into(), ..RegistrySettings::default() };
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "reg.corp:5000"] {
            assert!(settings.may_be_plain(host), "{host}");
        }
        for host in ["reg.corp", "localhost.evil.example", "128.0.0.1", "docker.io"] {
            assert!(!settings.may_be_plain(host), "{host}");
        }
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let mirrors =
            [("docker.io".to_owned(), vec!["http://m.example:80/proxy/hub/".to_owned(), "n.example".to_owned()])].into();
        let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
        settings.check().unwrap();
        let endpoints = settings.endpoints("docker.io").unwrap();
        let shown: Vec<_> = endpoints.iter().map(|e| (e.authority.as_str(), e.prefix.as_str(), e.is_mirror)).collect();
        assert_eq!(shown, [("m.example:80", "proxy/hub/", true), ("n.example", "", true), (DOCKER_REGISTRY_HOST, "", false)]);
        assert_eq!(settings.endpoints("ghcr.io").unwrap().len(), 1);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let usual = RegistrySettings::default;
        let mirror = |text: &str| [("docker.io".to_owned(), vec![text.to_owned()])].into();
        for (settings, says) in [
            (RegistrySettings { default_registry: "registry".to_owned(), ..usual() }, "default_registry"),
            (RegistrySettings { insecure: ["http://x".to_owned()].into(), ..usual() }, "insecure"),
            (RegistrySettings { mirrors: mirror("ftp://x"), ..usual() }, "mirrors"),
            (RegistrySettings { mirrors: mirror("https://user:password@x"), ..usual() }, "mirrors"),
            (RegistrySettings { mirrors: mirror("x/../y"), ..usual() }, "mirrors"),
            (RegistrySettings { tries_max: 0, ..usual() }, "tries_max"),
        ] {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("password"), "{error}");
        }
    }

    #[test]
    fn credentials_do_not_show() {
        let password = Credentials::Password { username: "me".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{password:?} {:?}", Credentials::Token("secret".to_owned())).contains("secret"));
    }
}
