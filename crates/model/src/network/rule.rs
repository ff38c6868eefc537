//! One line of a policy: where to, on which ports, by what.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidRule, NetworkTarget, PortRange, Transport};

/// Most port ranges of one rule.
pub const RULE_PORTS_MAX: usize = 64;
/// The port of HTTPS: over UDP, of QUIC, which shows nobody on the way the name that it means.
const HTTPS: u16 = 443;

/// A connection, or a packet of what has no connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where to.
    pub address: IpAddr,
    /// Which port; 0 for what has none.
    pub port: u16,
    /// By what; `None`: by something that has no ports, such as ICMP.
    pub transport: Option<Transport>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetworkRule {
    /// Where to.
    pub to: NetworkTarget,
    /// What of it the rule is not about: names of a name, addresses of addresses.
    #[serde(default)]
    pub except: Vec<NetworkTarget>,
    /// Which ports, sorted and disjoint; none: all, and what has no ports.
    #[serde(default)]
    pub ports: Vec<PortRange>,
    /// By what; `None`: by anything. An allowed name whose rule says nothing of it is not reached on port 443 over UDP: QUIC hides
    /// which name it means, so that another one at the same address could not be told from it. Without it, programs use TCP.
    #[serde(default)]
    pub transport: Option<Transport>,
}

impl NetworkRule {
    /// About all ports of the target.
    #[must_use]
    pub const fn to(target: NetworkTarget) -> Self {
        Self { to: target, except: Vec::new(), ports: Vec::new(), transport: None }
    }

    /// The same with these ports, brought into order.
    #[must_use]
    pub fn on_ports(mut self, ports: Vec<PortRange>) -> Self {
        self.ports = merged_ports(ports);
        self
    }

    /// Whether the port and the transport are among those that it is about.
    #[must_use]
    pub fn covers_port(&self, port: u16, transport: Option<Transport>) -> bool {
        if self.transport.is_some() && self.transport != transport {
            return false;
        }
        if self.to.is_name() && self.transport.is_none() && transport == Some(Transport::Udp) && port == HTTPS {
            return false;
        }
        let within = |range: &PortRange| range.first <= port && port <= range.last;
        self.ports.is_empty() || (transport.is_some() && self.ports.iter().any(within))
    }

    /// Whether it is about addresses, among them this one.
    #[must_use]
    pub fn covers_address(&self, address: IpAddr) -> bool {
        self.to.covers_address(address) && !self.except.iter().any(|target| target.covers_address(address))
    }

    /// Whether it is about names, among them this one.
    #[must_use]
    pub fn covers_name(&self, name: &str) -> bool {
        self.to.covers_name(name) && !self.except.iter().any(|target| target.covers_name(name))
    }
}

/// `[tcp://|udp://]target[:ports]`: `1.2.3.4`, `10.0.0.0/8:22`, `[2001:db8::1]:443`, `*.example.com:80,8000-8100`, `*:53`.
/// Exceptions have no text.
impl fmt::Display for NetworkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, except: _, ports, transport } = self;
        if let Some(transport) = transport {
            write!(f, "{}://", transport.as_str())?;
        }
        if ports.is_empty() {
            return write!(f, "{to}");
        }
        match to {
            NetworkTarget::Addresses(cidr) if !cidr.is_ipv4() => write!(f, "[{cidr}]:")?,
            _ => write!(f, "{to}:")?,
        }
        for (at, range) in ports.iter().enumerate() {
            write!(f, "{}{range}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for NetworkRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let (transport, rest) = match text.split_once("://") {
            Some(("tcp", rest)) => (Some(Transport::Tcp), rest),
            Some(("udp", rest)) => (Some(Transport::Udp), rest),
            _ => (None, text),
        };
        let (target, ports) = split_ports(rest);
        let whole = |error: InvalidRule| if target == text { error } else { error.within(text) };
        let to = target.parse().map_err(whole)?;
        let ports = ports.map(parse_ports).transpose().map_err(|error| error.within(text))?.unwrap_or_default();
        Ok(Self { transport, ..Self::to(to).on_ports(ports) })
    }
}

impl InvalidRule {
    /// The same, told of the text that the wrong one is a part of.
    fn within(self, whole: &str) -> Self {
        Self::new(whole, format!("cannot be read: {self}"))
    }
}

/// The target, and the ports behind it. An IPv6 address has ports only behind brackets.
fn split_ports(text: &str) -> (&str, Option<&str>) {
    if text.contains("://") {
        return (text, None);
    }
    if text.starts_with('[')
        && let Some((target, ports)) = text.rsplit_once("]:")
    {
        return (text.get(..=target.len()).unwrap_or(text), Some(ports));
    }
    match text.split_once(':') {
        Some((target, ports)) if !ports.contains(':') && !text.starts_with('[') => (target, Some(ports)),
        _ => (text, None),
    }
}

/// `443`, `8000-8100`, or several with commas between.
fn parse_ports(text: &str) -> Result<Vec<PortRange>, InvalidRule> {
    if text.split(',').count() > RULE_PORTS_MAX {
        return Err(InvalidRule::new(text, format!("has too many ports: a rule takes at most {RULE_PORTS_MAX} ranges")));
    }
    text.split(',').map(str::parse).collect()
}

/// The same ports, sorted, in ranges that do not touch.
fn merged_ports(mut ports: Vec<PortRange>) -> Vec<PortRange> {
    ports.sort_unstable();
    let mut out: Vec<PortRange> = Vec::with_capacity(ports.len());
    for range in ports {
        match out.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => before.last = before.last.max(range.last),
            _ => out.push(range),
        }
    }
    out
}

impl PortRange {
    /// One port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl FromStr for PortRange {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| digits && *port > 0)
        };
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            (Some(_), Some(_)) => Err(InvalidRule::new(text, "is no range of ports: the lower one comes first")),
            _ => Err(InvalidRule::new(text, "is no port: write a number from 1 to 65535, or two with '-' between")),
        }
    }
}

impl Transport {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The inverse of [`Transport::as_str`], in either case.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|transport| transport.as_str().eq_ignore_ascii_case(word))
    }
}
