//! What sandboxes reach: each has an address of its own in a block of private addresses, a route to everywhere, and packet filter
//! rules in its own network namespace that say where it may go.
//!
//! | part | where it lives | how long |
//! |---|---|---|
//! | a pair of interfaces, its addresses and routes | one end inside, one with the host | as long as the sandbox's namespace |
//! | the plan's rules | the sandbox's namespace | as long as it |
//! | the block's gateway addresses, one table of rules against the host and among sandboxes, translation of addresses | the host | until a server stops that has no sandboxes |
//!
//! All of it needs root. The launcher makes namespaces ahead with everything in them; a plan of its own is put in force when a
//! sandbox is there.

mod host;
mod inside;
mod link;
pub(crate) mod netlink;
mod nft;
mod plan;
mod prepare;
mod sockets;
mod trial;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

pub(crate) use host::HostNetwork;
pub(crate) use inside::{FilterSocket, SandboxNetwork};
pub(crate) use prepare::Workshop;
pub(crate) use trial::{ForeignDrop, foreign_drops, trial};

/// Ports at the gateway's addresses: below those that the kernel hands out, and nobody else's.
pub(crate) const DNS_PORT: u16 = 17_053;
pub(crate) const HTTP_PORT: u16 = 17_080;
pub(crate) const TLS_PORT: u16 = 17_443;

/// Addresses of one server's sandboxes: 16,384 of them, cut from 10.208.0.0/12 and, on a host that has IPv6, from
/// fd73:616e:6462::/48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    number: u8,
    v6: bool,
}

impl Block {
    /// How many there are.
    pub(crate) const COUNT: u8 = 64;
    /// Bits of an address that all sandboxes of a block have in common.
    const BITS_V4: u8 = 18;
    const BITS_V6: u8 = 64;
    const FIRST_V4: u32 = u32::from_be_bytes([10, 208, 0, 0]);
    const FIRST_V6: u128 = 0xfd73_616e_6462_0000_0000_0000_0000_0000;
    /// Addresses for sandboxes are counted from 2 to this.
    pub(crate) const LAST: u16 = 0x3ffe;

    /// With both families.
    pub(crate) const fn new(number: u8) -> Self {
        Self { number: number % Self::COUNT, v6: true }
    }

    /// The same without IPv6.
    pub(crate) const fn without_v6(self) -> Self {
        Self { v6: false, ..self }
    }

    /// The addresses of one host in it, IPv4 first.
    fn of(self, host: u16) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(Ipv4Addr::from(Self::FIRST_V4 | u32::from(self.number) << 14 | u32::from(host)));
        let v6 = IpAddr::V6(Ipv6Addr::from(Self::FIRST_V6 | u128::from(self.number) << 64 | u128::from(host)));
        if self.v6 { vec![v4, v6] } else { vec![v4] }
    }

    /// The addresses of the host that sandboxes of this block may speak to, IPv4 first.
    pub(crate) fn gateways(self) -> Vec<IpAddr> {
        self.of(1)
    }

    /// The addresses of a sandbox, in the order of the gateways'.
    pub(crate) fn addresses(self, number: u16) -> Vec<IpAddr> {
        self.of(number)
    }

    /// The networks.
    pub(crate) fn networks(self) -> Vec<(IpAddr, u8)> {
        let bits = |address: IpAddr| if address.is_ipv4() { Self::BITS_V4 } else { Self::BITS_V6 };
        self.of(0).into_iter().map(|address| (address, bits(address))).collect()
    }

    /// Which sandbox has this address.
    pub(crate) fn number_of(self, address: IpAddr) -> Option<u16> {
        let number = match address {
            IpAddr::V4(address) => u16::try_from(u32::from(address) & 0x3fff).ok()?,
            IpAddr::V6(address) => u16::try_from(u128::from(address) & 0xffff_ffff).ok()?,
        };
        ((2..=Self::LAST).contains(&number) && self.addresses(number).contains(&address)).then_some(number)
    }
}

/// What the launcher needs to give sandboxes their network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkOrder {
    pub(crate) block: Block,
    /// What interfaces' names on the host begin with.
    pub(crate) prefix: String,
    /// What a new sandbox may reach until it is told otherwise.
    pub(crate) plan: sandbank_model::NetworkPlan,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_addresses_tell_whose_they_are() {
        let (a, b) = (Block::new(3), Block::new(4));
        assert_eq!(a.gateways()[0].to_string(), "10.208.192.1");
        assert_eq!(b.gateways()[0].to_string(), "10.209.0.1");
        assert_eq!(b.gateways()[1].to_string(), "fd73:616e:6462:4::1");
        for number in [2, 300, Block::LAST] {
            for address in a.addresses(number) {
                assert_eq!(a.number_of(address), Some(number));
                assert_eq!(b.number_of(address), None);
            }
        }
        assert_eq!(Block::new(63).addresses(Block::LAST)[0].to_string(), "10.223.255.254");
        assert!(a.gateways().iter().all(|gateway| a.number_of(*gateway).is_none()));
        assert_eq!(a.number_of(IpAddr::from([192, 0, 2, 1])), None);
        let v4_only = a.without_v6();
        assert_eq!((v4_only.gateways(), v4_only.addresses(300)), (a.gateways()[..1].to_vec(), a.addresses(300)[..1].to_vec()));
        assert_eq!(v4_only.number_of(a.addresses(300)[1]), None);
    }
}
