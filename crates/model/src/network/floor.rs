//! What no policy opens: addresses of the host's own networks, and those that are nobody's.

use std::net::IpAddr;
use std::sync::LazyLock;

use super::ranges::AddressSet;
use super::{AddressRange, Cidr};

/// IPv4 addresses that are not of the public internet (IANA's special-purpose registry, RFC 6890), and one that is but serves the
/// metadata of a cloud's machines.
const RESERVED_IPV4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// All that is not global unicast (2000::/3) falls: loopback, IPv4 in IPv6 (`::ffff:0:0/96`), NAT64 (`64:ff9b::/96`), unique local,
/// link-local, multicast. Within it: protocol assignments with Teredo (2001::/32), 6to4 (2002::/16), documentation.
const RESERVED_IPV6: [&str; 10] =
    ["::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/3", "6000::/3", "8000::/2", "c000::/3", "e000::/3"];

static RESERVED: LazyLock<AddressSet> = LazyLock::new(|| {
    let cidrs: Vec<Cidr> = RESERVED_IPV4.iter().chain(&RESERVED_IPV6).filter_map(|text| text.parse().ok()).collect();
    // A text that does not parse would be a hole in the floor.
    assert!(cidrs.len() == RESERVED_IPV4.len() + RESERVED_IPV6.len(), "a reserved range does not parse");
    AddressSet::of(&cidrs)
});

/// Addresses that are denied whatever a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    denied: AddressSet,
}

impl Default for Floor {
    /// All that is not of the public internet.
    fn default() -> Self {
        Self { denied: RESERVED.clone() }
    }
}

impl Floor {
    /// All that is not of the public internet, but for what the operator takes out of it: there, policies decide.
    #[must_use]
    pub fn new(allow_private: &[Cidr]) -> Self {
        Self { denied: RESERVED.minus(&AddressSet::of(allow_private)) }
    }

    /// Whether the address is denied whatever a policy says.
    #[must_use]
    pub fn denies(&self, address: IpAddr) -> bool {
        self.denied.contains(address)
    }

    /// The addresses: sorted, and no two ranges touch or overlap.
    #[must_use]
    pub fn ranges(&self) -> Vec<AddressRange> {
        self.denied.ranges()
    }
}
