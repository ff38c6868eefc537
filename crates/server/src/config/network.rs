//! `[network]`: what sandboxes may reach that say nothing of it, and what policies decide of at all.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use sandbank_control::NetworkSettings;
use sandbank_model::{Cidr, InvalidRule, NetworkLimits, NetworkPolicy, NetworkRule};
use serde::Deserialize;

use crate::failure::{Failure, Result};

const DNS_PORT: u16 = 53;

/// The network of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// Whether sandboxes have one besides loopback, where the machine lets us make one.
    pub(crate) enabled: bool,
    /// Ranges that are closed to sandboxes everywhere else (private ones, link-local, reserved) and of which policies decide here.
    pub(crate) allow_private: Vec<String>,
    /// DNS servers that sandboxes' names are resolved with; none: those of the host.
    pub(crate) resolvers: Vec<String>,
    /// PEM file with certificate authorities that the proxy trusts besides the system's.
    pub(crate) extra_roots: Option<PathBuf>,
    /// What sandboxes may reach that say nothing of it.
    pub(crate) default_policy: DefaultPolicy,
}

/// How the host's services for what leaves sandboxes reach the outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Outbound {
    /// DNS servers; none: those of the host.
    pub(crate) resolvers: Vec<SocketAddr>,
    /// Certificate authorities in PEM that are trusted besides the system's.
    pub(crate) extra_roots_pem: Vec<u8>,
}

/// A policy in the words of the API, without headers: secrets have no place in this file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DefaultPolicy {
    /// Whether what no rule speaks of may be reached.
    pub(crate) internet: bool,
    /// Allowed, whatever `deny` says.
    pub(crate) allow: Vec<String>,
    /// Denied unless allowed.
    pub(crate) deny: Vec<String>,
    /// Bytes a second into a sandbox.
    pub(crate) in_bytes_per_second: Option<u64>,
    /// Bytes a second out of one.
    pub(crate) out_bytes_per_second: Option<u64>,
    /// Connections of one to the outside at the same time.
    pub(crate) connections: Option<u32>,
}

impl Default for Network {
    fn default() -> Self {
        let (allow_private, resolvers) = (Vec::new(), Vec::new());
        Self { enabled: true, allow_private, resolvers, extra_roots: None, default_policy: DefaultPolicy::default() }
    }
}

impl Default for DefaultPolicy {
    fn default() -> Self {
        let (allow, deny) = (Vec::new(), Vec::new());
        Self { internet: true, allow, deny, in_bytes_per_second: None, out_bytes_per_second: None, connections: None }
    }
}

impl Network {
    /// Checks it.
    pub(super) fn outbound(&self) -> Result<Outbound> {
        let resolvers = self.resolvers.iter().enumerate().map(resolver).collect::<Result<_>>()?;
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| Failure::new(format!("network.extra_roots: cannot read {}: {error}", path.display())))
        };
        let extra_roots_pem = self.extra_roots.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Outbound { resolvers, extra_roots_pem })
    }

    /// Checks it.
    pub(super) fn settings(&self) -> Result<NetworkSettings> {
        let Self { enabled: _, allow_private, resolvers: _, extra_roots: _, default_policy } = self;
        let cidr = |(at, text): (usize, &String)| -> Result<Cidr> {
            text.parse().map_err(|error: InvalidRule| Failure::new(format!("network.allow_private[{at}]: {error}")))
        };
        let allow_private = allow_private.iter().enumerate().map(cidr).collect::<Result<_>>()?;
        Ok(NetworkSettings {
            default_policy: Arc::new(default_policy.model()?),
            allow_private,
            // Known once the data directory is open.
            authority_pem: None,
        })
    }
}

/// An address, with the port of DNS where it names none.
fn resolver((at, text): (usize, &String)) -> Result<SocketAddr> {
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
    bare.or_else(|_| text.parse()).map_err(|_| {
        Failure::new(format!(
            "network.resolvers[{at}]: {text:?} is no address: write 203.0.113.53, 203.0.113.53:53 or [2001:db8::53]:53"
        ))
    })
}

impl DefaultPolicy {
    fn model(&self) -> Result<NetworkPolicy> {
        let Self { internet, allow, deny, in_bytes_per_second, out_bytes_per_second, connections } = self;
        let rules = |list: &str, texts: &[String]| -> Result<Vec<NetworkRule>> {
            let refused = |at: usize, error: InvalidRule| Failure::new(format!("network.default_policy.{list}[{at}]: {error}"));
            texts.iter().enumerate().map(|(at, text)| text.parse().map_err(|error| refused(at, error))).collect()
        };
        let limits = NetworkLimits {
            out_bytes_per_second: *out_bytes_per_second,
            in_bytes_per_second: *in_bytes_per_second,
            connections: *connections,
        };
        let policy = NetworkPolicy {
            internet: *internet,
            allow: rules("allow", allow)?,
            deny: rules("deny", deny)?,
            headers: Vec::new(),
            limits,
        };
        policy.check().map_err(|error| Failure::new(format!("network.default_policy.{error}")))?;
        Ok(policy)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Network {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn nothing_said_is_the_whole_internet() {
        assert_eq!(read("").settings().unwrap(), NetworkSettings::default());
        assert!(read("[default_policy]\ndeny = [\"*:25\"]").settings().unwrap().default_policy.internet);
    }

    #[test]
    fn a_policy_is_read() {
        let text =
            "allow_private = [\"10.1.0.0/16\"]\n[default_policy]\ninternet = false\nallow = [\"a.example:443\"]\nconnections = 9";
        let settings = read(text).settings().unwrap();
        assert_eq!(settings.allow_private, vec!["10.1.0.0/16".parse().unwrap()]);
        let NetworkPolicy { internet, allow, limits, .. } = &*settings.default_policy;
        assert_eq!((*internet, allow[0].to_string().as_str(), limits.connections), (false, "a.example:443", Some(9)));
    }

    #[test]
    fn nonsense_is_refused_with_the_setting_s_name() {
        for (text, place) in [
            ("allow_private = [\"10.0.0.0/8\", \"example.com\"]", "network.allow_private[1]: "),
            ("[default_policy]\nallow = [\"a b\"]", "network.default_policy.allow[0]: "),
            ("[default_policy]\ndeny = [\"evil.com:22\"]", "network.default_policy.deny[0]: "),
            ("[default_policy]\nconnections = 0", "network.default_policy.limits.connections: "),
        ] {
            let error = read(text).settings().unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
        assert!(toml::from_str::<Network>("allow_privat = []").is_err());
        let error = read("resolvers = [\"9.9.9.9\", \"dns.example\"]").outbound().unwrap_err().to_string();
        assert!(error.starts_with("network.resolvers[1]: "), "{error}");
    }

    #[test]
    fn resolvers_are_addresses_with_or_without_a_port() {
        let text = "resolvers = [\"203.0.113.53\", \"203.0.113.53:5353\", \"2001:db8::53\", \"[2001:db8::53]:54\"]";
        let Outbound { resolvers, extra_roots_pem: _ } = read(text).outbound().unwrap();
        let spelled: Vec<String> = resolvers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(spelled, ["203.0.113.53:53", "203.0.113.53:5353", "[2001:db8::53]:53", "[2001:db8::53]:54"]);
        assert_eq!(read("").outbound().unwrap(), Outbound::default());
    }

    #[test]
    fn roots_are_read_from_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("company.pem");
        let text = format!("extra_roots = {file:?}");
        let error = read(&text).outbound().unwrap_err().to_string();
        assert!(error.starts_with(&format!("network.extra_roots: cannot read {}: ", file.display())), "{error}");
        std::fs::write(&file, "a certificate").unwrap();
        assert_eq!(read(&text).outbound().unwrap().extra_roots_pem, b"a certificate");
    }
}
