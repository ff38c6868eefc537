//! Interfaces, addresses and routes of a sandbox's network.
//!
//! A sandbox's `eth0` is one end of a pair; the other stays with the host. Both ends have the same hardware address and ask for none:
//! so nobody resolves anything, no table of neighbours fills up however many addresses somebody scans, and there is nothing to forge.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use super::netlink::{Attributes, Netlink, Requests, attributes};

/// The hardware address of every end: locally administered.
const HARDWARE: [u8; 6] = [0x02, 0x73, 0x61, 0x6e, 0x64, 0x62];
/// The interface inside.
pub(crate) const INSIDE: &str = "eth0";
/// Bytes of a packet, as on any Ethernet.
const MTU: u32 = 1500;
/// The loopback interface is the first one of every network namespace.
pub(super) const LOOPBACK: u32 = 1;
/// What an interface of ours is: up, and without resolution of addresses.
const FLAGS: u32 = (libc::IFF_UP | libc::IFF_NOARP) as u32;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE`, and its value for interfaces that give themselves no address.
const ADDRESS_MODE: u16 = 8;
const ADDRESS_MODE_NONE: u8 = 1;

/// `RTNH_F_ONLINK`: the gateway is to be taken as reachable.
const ONLINK: u32 = 4;

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// `struct ifinfomsg`.
fn interface(index: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn end(a: &mut Attributes<'_>, name: &str) {
    a.text(libc::IFLA_IFNAME, name);
    a.bytes(libc::IFLA_ADDRESS, &HARDWARE);
    a.u32(libc::IFLA_MTU, MTU);
}

/// Brings an end of a pair up, without an address of its own making: nobody speaks to routers or joins groups on it.
pub(super) fn bring_up(requests: &mut Requests, index: u32) {
    requests.add(libc::RTM_SETLINK, 0, &interface(index, 0), |a| {
        a.nest(libc::IFLA_AF_SPEC, |a| a.nest(libc::AF_INET6 as u16, |a| a.bytes(ADDRESS_MODE, &[ADDRESS_MODE_NONE])));
    });
    requests.add(libc::RTM_SETLINK, 0, &interface(index, FLAGS), |_| {});
}

/// A pair of interfaces: `name` here, [`INSIDE`] in the network namespace given. Neither is up.
pub(super) fn add_pair(requests: &mut Requests, name: &str, inside: BorrowedFd<'_>) {
    requests.add(libc::RTM_NEWLINK, CREATE, &interface(0, 0), |a| {
        end(a, name);
        a.nest(libc::IFLA_LINKINFO, |a| {
            a.bytes(libc::IFLA_INFO_KIND, b"veth");
            a.nest(libc::IFLA_INFO_DATA, |a| {
                a.nest(PEER, |a| {
                    a.raw(&interface(0, 0));
                    end(a, INSIDE);
                    a.u32(libc::IFLA_NET_NS_FD, inside.as_raw_fd().unsigned_abs());
                });
            });
        });
    });
}

/// Brings the loopback interface up.
pub(super) fn loopback_up(requests: &mut Requests) {
    requests.add(libc::RTM_NEWLINK, 0, &interface(LOOPBACK, libc::IFF_UP as u32), |_| {});
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

const fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `struct ifaddrmsg` of one address alone.
fn address_header(address: IpAddr, index: u32) -> [u8; 8] {
    // `IFA_F_NODAD`: nobody else can have it.
    const NO_DETECTION: u8 = 0x02;
    let mut bytes = [family(address), whole(address), NO_DETECTION, libc::RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// Gives an interface an address; refused when it has it.
pub(super) fn add_address(requests: &mut Requests, address: IpAddr, index: u32) {
    requests.add(libc::RTM_NEWADDR, CREATE, &address_header(address, index), |a| {
        a.address(libc::IFA_LOCAL, address);
        a.address(libc::IFA_ADDRESS, address);
    });
}

/// Gives the loopback interface an IPv4 address with a label; refused when it has it.
pub(super) fn add_labelled_address(netlink: &Netlink, address: IpAddr, label: &str) -> Result<(), Errno> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_NEWADDR, CREATE, &address_header(address, LOOPBACK), |a| {
        a.address(libc::IFA_LOCAL, address);
        a.address(libc::IFA_ADDRESS, address);
        a.text(libc::IFA_LABEL, label);
    });
    netlink.request(&requests)
}

/// The addresses with this label.
pub(super) fn labelled(netlink: &Netlink, label: &str) -> Result<Vec<IpAddr>, Errno> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0], |_| {});
    let mut found = Vec::new();
    netlink.dump(&requests, |body| {
        let (mut address, mut ours) = (None, false);
        for (kind, value) in attributes(body.get(8..).unwrap_or_default()) {
            match kind {
                libc::IFA_LOCAL => address = to_address(value),
                libc::IFA_LABEL => ours = value.strip_suffix(&[0]).unwrap_or(value) == label.as_bytes(),
                _ => {}
            }
        }
        found.extend(address.filter(|_| ours));
    })?;
    Ok(found)
}

/// Takes an address away.
pub(super) fn remove_address(requests: &mut Requests, address: IpAddr, index: u32) {
    requests.add(libc::RTM_DELADDR, 0, &address_header(address, index), |a| a.address(libc::IFA_LOCAL, address));
}

/// `struct rtmsg` for an ordinary route of the main table.
fn route_header(address: IpAddr, bits: u8, scope: u8, flags: u32) -> [u8; 12] {
    let mut bytes = [family(address), bits, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// A route to one address by an interface.
pub(super) fn add_route(requests: &mut Requests, to: IpAddr, index: u32) {
    let scope = if to.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    requests.add(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &route_header(to, whole(to), scope, 0), |a| {
        a.address(libc::RTA_DST, to);
        a.u32(libc::RTA_OIF, index);
    });
}

/// The route to everywhere, over an address that needs no route of its own.
pub(super) fn add_default_route(requests: &mut Requests, gateway: IpAddr, index: u32) {
    let header = route_header(gateway, 0, libc::RT_SCOPE_UNIVERSE, ONLINK);
    requests.add(libc::RTM_NEWROUTE, CREATE, &header, |a| {
        a.address(libc::RTA_GATEWAY, gateway);
        a.u32(libc::RTA_OIF, index);
    });
}

/// Most bytes that wait at a limited interface, as a part of a second, and what may leave at once; at least as much as the kernel sends as
/// one packet.
const QUEUE_PART: u64 = 5;
const BURST_PART: u64 = 50;
const BURST_BYTES_MIN: u64 = 64 * 1024;

/// Has an interface send so many bytes a second on the average, by a queue before it (tc-tbf(8)): what is more waits, and who sends it
/// slows down.
pub(super) fn limit(netlink: &Netlink, index: u32, bytes_per_second: Option<u64>) -> Result<(), Errno> {
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    const PARAMETERS: u16 = 1;
    const RATE: u16 = 4;
    const BURST: u16 = 6;
    // `struct tcmsg`: the interface, a handle of ours, and the place before all others.
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&0x1_0000_u32.to_ne_bytes());
    header[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    let mut requests = Requests::default();
    let Some(rate) = bytes_per_second else {
        requests.add(libc::RTM_DELQDISC, 0, &header, |_| {});
        return match netlink.request(&requests) {
            // There was none.
            Err(Errno::NOENT | Errno::INVAL) => Ok(()),
            result => result,
        };
    };
    let at_most_32_bits = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let burst = (rate / BURST_PART).max(BURST_BYTES_MIN);
    // `struct tc_tbf_qopt`: two rates of 12 bytes, of which only the last four of the first are used here; then the queue's limit.
    let mut parameters = [0; 36];
    parameters[8..12].copy_from_slice(&at_most_32_bits(rate).to_ne_bytes());
    parameters[24..28].copy_from_slice(&at_most_32_bits((rate / QUEUE_PART).max(4 * burst)).to_ne_bytes());
    requests.add(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &header, |a| {
        a.text(KIND, "tbf");
        a.nest(OPTIONS, |a| {
            a.bytes(PARAMETERS, &parameters);
            a.bytes(RATE, &rate.to_ne_bytes());
            a.u32(BURST, at_most_32_bits(burst));
        });
    });
    netlink.request(&requests)
}

/// An interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Received and sent by it, in bytes.
    pub(super) received: u64,
    pub(super) sent: u64,
}

fn read_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let mut link = Link { index, name: String::new(), received: 0, sent: 0 };
    for (kind, value) in attributes(body.get(16..)?) {
        if kind == libc::IFLA_IFNAME {
            link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
        } else if kind == libc::IFLA_STATS64 {
            // `struct rtnl_link_stats64`: packets received and sent, bytes received and sent.
            let number = |at: usize| value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
            (link.received, link.sent) = (number(16), number(24));
        }
    }
    Some(link)
}

/// The interface of this name.
pub(super) fn get(netlink: &Netlink, name: &str) -> Result<Link, Errno> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETLINK, 0, &interface(0, 0), |a| a.text(libc::IFLA_IFNAME, name));
    netlink.ask(&requests, read_link)
}

/// The destinations of all routes, with the number of their first bits that count. Default routes are not among them.
pub(super) fn routes(netlink: &Netlink) -> Result<Vec<(IpAddr, u8)>, Errno> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &[0; 12], |_| {});
    let mut routes = Vec::new();
    netlink.dump(&requests, |body| {
        let Some(&bits) = body.get(1) else { return };
        for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
            if kind == libc::RTA_DST
                && let Some(address) = to_address(value)
            {
                routes.push((address, bits));
            }
        }
    })?;
    Ok(routes)
}

/// Whether packets to this address would stay on this host.
pub(super) fn is_local(netlink: &Netlink, address: IpAddr) -> Result<bool, Errno> {
    // Where the type lies in `struct rtmsg`.
    const TYPE: usize = 7;
    let mut requests = Requests::default();
    let header = [family(address), whole(address), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    requests.add(libc::RTM_GETROUTE, 0, &header, |a| a.address(libc::RTA_DST, address));
    netlink.ask(&requests, |body| body.get(TYPE).map(|kind| *kind == libc::RTN_LOCAL))
}

/// An address as netlink writes it.
pub(super) fn to_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
