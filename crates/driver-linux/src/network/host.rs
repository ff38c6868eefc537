//! The host's side: the gateway's addresses, forwarding, and one table of rules for all sandboxes of a server.
//!
//! What belongs to whom is read from the kernel, so that a server that comes back finds what it left: the gateway's IPv4 address
//! carries a label with the server's name, interfaces and the table have it in theirs.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use super::link::{self, LOOPBACK};
use super::netlink::{Netlink, Requests};
use super::nft::{Base, ESTABLISHED_OR_RELATED, Hook, Side, Transaction};
use super::prepare::interface_name;
use super::{Block, DNS_PORT, HTTP_PORT, TLS_PORT};

/// What the names of all servers' interfaces begin with.
const EVERYBODY: &str = "sbk";
/// Characters of a server's name in the names of its interfaces, which have at most 15.
const NAME_CHARS: usize = 6;
/// Where what sandboxes may not send is refused: at once, so that nobody inside waits for an answer.
const REFUSE: &str = "refuse";
const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const FORWARDING_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const INTERFACES_V6: &str = "/proc/sys/net/ipv6/conf";

/// The host's side of the network of one server's sandboxes.
#[derive(Debug)]
pub(crate) struct HostNetwork {
    block: Block,
    prefix: String,
    table: String,
}

/// A step of setting it up that failed.
#[derive(Debug)]
pub(crate) struct HostError {
    /// Reads after "cannot".
    pub(crate) step: &'static str,
    pub(crate) errno: Errno,
}

pub(super) trait At<T> {
    fn at(self, step: &'static str) -> Result<T, HostError>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: &'static str) -> Result<T, HostError> {
        self.map_err(|errno| HostError { step, errno })
    }
}

impl HostNetwork {
    /// Takes a block of addresses for the server of this name, or the one that it has, and puts the host's rules in force.
    pub(crate) fn prepare(server: &str) -> Result<Self, HostError> {
        let name = &server[..server.len().min(NAME_CHARS)];
        let prefix = format!("{EVERYBODY}{name}-");
        let netlink = Netlink::route().at("speak to the kernel about interfaces")?;
        let label = format!("lo:{EVERYBODY}{name}");
        let block = match own_block(&netlink, &label).at("list addresses")? {
            Some(block) => block,
            None => take_block(&netlink, &label, server)?,
        };
        let mut requests = Requests::default();
        for v6 in block.gateways().into_iter().filter(IpAddr::is_ipv6) {
            link::add_address(&mut requests, v6, LOOPBACK);
        }
        let block = match netlink.request(&requests) {
            Ok(()) | Err(Errno::EXIST) => block,
            Err(errno) => {
                tracing::info!(error = %errno, "this host has no IPv6, so sandboxes have none");
                block.without_v6()
            }
        };
        let host = Self { block, prefix, table: format!("sandbank-{name}") };
        let filter = Netlink::netfilter().at("speak to the packet filter")?;
        filter.request(&host.rules()).at("put the host's rules in force")?;
        forward().at("forward packets (net.ipv4.ip_forward)")?;
        Ok(host)
    }

    pub(crate) fn block(&self) -> Block {
        self.block
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether packets to this address stay on the host, as its routes say now. What cannot be found out counts as the host's.
    pub(crate) fn is_own_address(address: IpAddr) -> bool {
        match Netlink::route().and_then(|netlink| link::is_local(&netlink, address)) {
            // There is no way there, so it is nobody's.
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH) => false,
            result => result.unwrap_or(true),
        }
    }

    /// Bytes out of a sandbox and into it.
    pub(crate) fn traffic(&self, number: u16) -> Result<(u64, u64), Errno> {
        let link = link::get(&Netlink::route()?, &interface_name(&self.prefix, number))?;
        Ok((link.received, link.sent))
    }

    /// Bytes a second into a sandbox.
    pub(crate) fn limit(&self, number: u16, bytes_per_second: Option<u64>) -> Result<(), Errno> {
        let netlink = Netlink::route()?;
        let index = name_to_index(netlink.as_fd(), &interface_name(&self.prefix, number))?;
        link::limit(&netlink, index, bytes_per_second)
    }

    /// Takes everything back. Only when there is no sandbox left that needs it.
    pub(crate) fn release(&self) {
        let mut transaction = Transaction::on(&self.table);
        transaction.remove_table();
        // What is gone already needs no removing.
        let _ = Netlink::netfilter().and_then(|filter| filter.request(&transaction.finish()));
        let mut requests = Requests::default();
        for address in self.block.gateways() {
            link::remove_address(&mut requests, address, LOOPBACK);
        }
        let _ = Netlink::route().and_then(|netlink| netlink.request(&requests));
    }

    fn rules(&self) -> Requests {
        let mut transaction = Transaction::on(&self.table);
        transaction.fresh_table(&[]);
        let filter = |hook, priority| Some(Base { kind: "filter", hook, priority, drops: false });
        transaction.chain("before", filter(Hook::PreRouting, -300));
        transaction.rule("before", |rule| rule.in_by(&self.prefix).source_is_not_there().drop());
        transaction.chain(REFUSE, None);
        transaction.rule(REFUSE, |rule| rule.protocol(TCP).reset());
        transaction.rule(REFUSE, |rule| rule.forbid());
        // Before the host's own chains: what those forbid besides stays forbidden.
        transaction.chain("to-host", filter(Hook::Input, -10));
        self.to_host(&mut transaction);
        transaction.chain("through", filter(Hook::Forward, -10));
        self.through(&mut transaction);
        transaction.chain("translate", Some(Base { kind: "nat", hook: Hook::PostRouting, priority: 100, drops: false }));
        for (network, bits) in self.block.networks() {
            transaction.rule("translate", |rule| rule.source_in(network, bits).out_by_other_than(EVERYBODY).masquerade());
        }
        transaction.finish()
    }

    /// The host itself is out of reach, but for its services for sandboxes; and those are for nobody else.
    fn to_host(&self, transaction: &mut Transaction<'_>) {
        let chain = "to-host";
        transaction.rule(chain, |rule| rule.in_by(&self.prefix).state(ESTABLISHED_OR_RELATED).accept());
        for gateway in self.block.gateways() {
            for (protocol, port) in [(UDP, DNS_PORT), (TCP, DNS_PORT), (TCP, HTTP_PORT), (TCP, TLS_PORT)] {
                transaction.rule(chain, |rule| {
                    rule.in_by(&self.prefix).address(Side::Destination, gateway).protocol(protocol).port_is(port).accept();
                });
            }
        }
        transaction.rule(chain, |rule| rule.in_by(&self.prefix).go_to(REFUSE));
        transaction.rule(chain, |rule| rule.in_by_loopback().leave());
        for gateway in self.block.gateways() {
            transaction.rule(chain, |rule| rule.address(Side::Destination, gateway).drop());
        }
    }

    /// Sandboxes do not reach each other, and nobody begins a connection to them.
    fn through(&self, transaction: &mut Transaction<'_>) {
        let chain = "through";
        transaction.rule(chain, |rule| rule.in_by(&self.prefix).out_by(EVERYBODY).go_to(REFUSE));
        transaction.rule(chain, |rule| rule.in_by(&self.prefix).accept());
        transaction.rule(chain, |rule| rule.out_by(&self.prefix).state(ESTABLISHED_OR_RELATED).accept());
        transaction.rule(chain, |rule| rule.out_by(&self.prefix).drop());
    }
}

/// The block whose gateway carries our label.
fn own_block(netlink: &Netlink, label: &str) -> Result<Option<Block>, Errno> {
    let ours = link::labelled(netlink, label)?;
    Ok((0..Block::COUNT).map(Block::new).find(|block| ours.contains(&block.gateways()[0])))
}

/// Takes a block that nothing on this host uses. The kernel gives each gateway address away once, so that of two servers that begin
/// together only one gets it.
fn take_block(netlink: &Netlink, label: &str, server: &str) -> Result<Block, HostError> {
    let routes = link::routes(netlink).at("list routes")?;
    let begin = server.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    for step in 0..Block::COUNT {
        let block = Block::new(begin.wrapping_add(step));
        if block.networks().into_iter().any(|(network, bits)| routes.iter().any(|route| overlap((network, bits), *route))) {
            continue;
        }
        match link::add_labelled_address(netlink, block.gateways()[0], label) {
            Ok(()) => return Ok(block),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at("add the gateway's address"),
        }
    }
    Err(Errno::ADDRINUSE).at("find a block of addresses in 10.208.0.0/12 that nothing on this host uses")
}

/// Whether two networks share an address.
fn overlap(a: (IpAddr, u8), b: (IpAddr, u8)) -> bool {
    // The bits after those that both fix do not matter; shifting all out leaves nothing to differ.
    let free = |whole: u32| whole.saturating_sub(u32::from(a.1.min(b.1)));
    match (a.0, b.0) {
        (IpAddr::V4(x), IpAddr::V4(y)) => (u32::from(x) ^ u32::from(y)).checked_shr(free(32)).unwrap_or(0) == 0,
        (IpAddr::V6(x), IpAddr::V6(y)) => (u128::from(x) ^ u128::from(y)).checked_shr(free(128)).unwrap_or(0) == 0,
        _ => false,
    }
}

/// Lets the host pass packets on. Forwarding IPv6 would make it deaf to routers' announcements, from which it may have its own
/// route: so it is told to go on listening.
fn forward() -> Result<(), Errno> {
    turn_on(Path::new(FORWARDING_V4), "0", "1")?;
    let all = Path::new(INTERFACES_V6).join("all/forwarding");
    // A host without IPv6 has none to pass on.
    if fs::read_to_string(&all).is_ok_and(|value| value.trim() == "0") {
        for interface in fs::read_dir(INTERFACES_V6).into_iter().flatten().flatten() {
            let _ = turn_on(&interface.path().join("accept_ra"), "1", "2");
        }
        turn_on(&all, "0", "1")?;
    }
    Ok(())
}

fn turn_on(file: &Path, from: &str, to: &str) -> Result<(), Errno> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    if fs::read_to_string(file).map_err(failed)?.trim() == from {
        fs::write(file, to).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn net(text: &str) -> (IpAddr, u8) {
        let (address, bits) = text.split_once('/').unwrap();
        (address.parse().unwrap(), bits.parse().unwrap())
    }

    #[test]
    fn networks_that_share_an_address_overlap() {
        for (a, b, expected) in [
            ("10.208.0.0/18", "10.0.0.0/8", true),
            ("10.208.0.0/18", "10.208.63.255/32", true),
            ("10.208.0.0/18", "10.208.64.0/18", false),
            ("10.208.0.0/18", "0.0.0.0/0", true),
            ("fd73::/64", "fd73::1/128", true),
            ("fd73::/64", "fd73:0:0:1::/64", false),
            ("fd73::/64", "10.0.0.0/8", false),
        ] {
            assert_eq!(overlap(net(a), net(b)), expected, "{a} {b}");
            assert_eq!(overlap(net(b), net(a)), expected, "{b} {a}");
        }
    }
}
