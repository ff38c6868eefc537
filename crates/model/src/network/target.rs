//! What a rule is about: addresses, or names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, characters (RFC 1035 §2.3.4).
pub const DOMAIN_LEN_MAX: usize = 253;
/// Longest label of a name, characters.
const LABEL_LEN_MAX: usize = 63;
/// Most characters of a wrong text that an error shows.
const SHOWN_MAX: usize = 80;

/// A text that is no target, port or rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct InvalidRule {
    text: String,
    why: String,
}

impl InvalidRule {
    pub(super) fn new(text: &str, why: impl Into<String>) -> Self {
        Self { text: text.chars().take(SHOWN_MAX).collect(), why: why.into() }
    }
}

/// Addresses that share a prefix: `10.0.0.0/8`, `2001:db8::/32`; a single address is one of full length.
///
/// Bits behind the prefix are cleared when it is made, as everybody's tools do: `10.1.2.3/8` is `10.0.0.0/8`, and shown so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(four) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(four) & mask))
            }
            IpAddr::V6(six) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(six) & mask))
            }
            _ => return None,
        };
        Some(Self { address, prefix })
    }

    /// One address.
    #[must_use]
    pub const fn single(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// Lowest address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.address
    }

    /// Highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(four) => {
                IpAddr::V4(Ipv4Addr::from(u32::from(four) | u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)))
            }
            IpAddr::V6(six) => {
                IpAddr::V6(Ipv6Addr::from(u128::from(six) | u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)))
            }
        }
    }

    /// Whether it is all addresses of its family.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.prefix == 0
    }

    /// Of IPv4 or of IPv6.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address is one of these.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && self.first() <= address && address <= self.last()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix } = self;
        if *self == Self::single(*address) { write!(f, "{address}") } else { write!(f, "{address}/{prefix}") }
    }
}

impl FromStr for Cidr {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| InvalidRule::new(text, "is no address or range: write it like 1.2.3.4, 10.0.0.0/8 or 2001:db8::/32"))?;
        if let IpAddr::V6(six) = address
            && let Some(four) = six.to_ipv4_mapped()
        {
            return Err(InvalidRule::new(text, format!("is an IPv4 address in the clothes of IPv6: write {four}")));
        }
        let Some(prefix) = prefix else { return Ok(Self::single(address)) };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = (1..=3).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let cidr = prefix.parse().ok().filter(|_| digits).and_then(|prefix| Self::new(address, prefix));
        cidr.ok_or_else(|| InvalidRule::new(text, format!("is no range: what follows the / is a number from 0 to {most}")))
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidRule;
    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// All addresses of both families.
pub(super) fn everywhere() -> [Cidr; 2] {
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].map(|address| Cidr { address, prefix: 0 })
}

/// One name, or all names below one: `example.com`, `*.example.com`. Lower case, without the final dot.
///
/// A wildcard covers names of any depth below its own (`a.example.com`, `a.b.example.com`) and not `example.com` itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    /// Without `*.`.
    name: String,
    wildcard: bool,
}

impl NamePattern {
    /// Whether it covers `name`, in whatever case and with or without the final dot.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        let (name, own) = (name.strip_suffix('.').unwrap_or(name).as_bytes(), self.name.as_bytes());
        if !self.wildcard {
            return name.eq_ignore_ascii_case(own);
        }
        let Some(rest) = name.len().checked_sub(own.len()).and_then(|at| name.split_at_checked(at)) else { return false };
        rest.1.eq_ignore_ascii_case(own) && rest.0.len() > 1 && rest.0.ends_with(b".")
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.name)
    }
}

impl FromStr for NamePattern {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let refused = |why: &str| Err(InvalidRule::new(text, why));
        let (wildcard, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let name = name.strip_suffix('.').unwrap_or(name);
        if !name.is_ascii() {
            return refused("has letters beyond ASCII: write the name in its ASCII form, xn--…, as the DNS has it");
        }
        if name.contains("://") {
            return refused("is a URL: write the host alone, such as example.com or example.com:443");
        }
        if name.contains('*') {
            return refused("has a * inside: a wildcard is *. in front of a name, such as *.example.com");
        }
        if name.is_empty() || name.len() > DOMAIN_LEN_MAX {
            return Err(InvalidRule::new(text, format!("is no name: a name has 1 to {DOMAIN_LEN_MAX} characters")));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > LABEL_LEN_MAX {
                return Err(InvalidRule::new(
                    text,
                    format!("is no name: each part between the dots has 1 to {LABEL_LEN_MAX} characters"),
                ));
            }
            let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            if !plain || label.starts_with('-') || label.ends_with('-') {
                return refused("is no name: its parts have letters, digits, '-' and '_', and no '-' at their ends");
            }
        }
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return refused("is neither an address nor a name: an IPv4 address has four numbers from 0 to 255");
        }
        Ok(Self { name: name.to_ascii_lowercase(), wildcard })
    }
}

impl TryFrom<String> for NamePattern {
    type Error = InvalidRule;
    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NetworkTarget {
    /// Everything: all addresses, whatever their names.
    Any,
    /// Addresses.
    Addresses(Cidr),
    /// Names.
    Name(NamePattern),
}

impl NetworkTarget {
    /// Whether it is about a name.
    #[must_use]
    pub const fn is_name(&self) -> bool {
        matches!(self, Self::Name(_))
    }

    /// Whether it covers the address. Names cover none.
    #[must_use]
    pub fn covers_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Addresses(cidr) => cidr.contains(address),
            Self::Name(_) => false,
        }
    }

    /// Whether it is about names and covers this one.
    #[must_use]
    pub fn covers_name(&self, name: &str) -> bool {
        matches!(self, Self::Name(pattern) if pattern.covers(name))
    }
}

impl fmt::Display for NetworkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Addresses(cidr) => cidr.fmt(f),
            Self::Name(pattern) => pattern.fmt(f),
        }
    }
}

/// `*`, an address, a range or a name, without ports.
impl FromStr for NetworkTarget {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|inner| inner.contains(':'));
        let bare = inner.unwrap_or(text);
        if bare == "*" {
            return Ok(Self::Any);
        }
        // A name has neither; a URL has both and is a name's error.
        if (bare.contains(['/', ':']) && !bare.contains("://")) || bare.parse::<IpAddr>().is_ok() {
            return bare.parse().map(Self::Addresses);
        }
        bare.parse().map(Self::Name)
    }
}
