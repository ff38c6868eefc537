//! Ending connections that a new plan no longer allows, as the processes inside see them: sock_diag(7).
//!
//! The rules would refuse their next packet anyway; but who only waits for data sends none, and would wait for ever.

use std::net::IpAddr;

use rustix::io::Errno;

use super::link::to_address;
use super::netlink::{Netlink, Requests};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// States from established on, but for those that wait out their time or listen: 1 is established, 6 time-wait, 10 listen.
const STATES: u32 = 0xfff & !(1 << 6) & !(1 << 10);
/// Where `struct inet_diag_sockid` lies in requests and in answers, and how long it is.
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
const ID_BYTES: usize = 48;

/// Ends the TCP connections of the socket's network namespace whose other end is forbidden. A kernel that cannot end connections
/// leaves them to the rules.
pub(super) fn end(netlink: &Netlink, forbidden: impl Fn(IpAddr, u16) -> bool) -> Result<(), Errno> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut doomed = Vec::new();
        let mut list = Requests::default();
        list.add(BY_FAMILY, libc::NLM_F_DUMP, &request(family, &[0; ID_BYTES]), |_| {});
        netlink.dump(&list, |body| {
            let Some(id) = body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID_BYTES) else { return };
            if let Some((address, port)) = other_end(family, id)
                && !address.is_loopback()
                && forbidden(address, port)
            {
                doomed.push(request(family, id));
            }
        })?;
        for one in doomed {
            let mut requests = Requests::default();
            requests.add(DESTROY, 0, &one, |_| {});
            match netlink.request(&requests) {
                // Ended by itself, or not to be ended this way.
                Ok(()) | Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    bytes.extend_from_slice(&STATES.to_ne_bytes());
    debug_assert_eq!(bytes.len(), ID_IN_REQUEST);
    bytes.extend_from_slice(id);
    bytes
}

/// Source port, destination port, source address, destination address, each address in 16 bytes.
fn other_end(family: u8, id: &[u8]) -> Option<(IpAddr, u16)> {
    let port = u16::from_be_bytes([*id.get(2)?, *id.get(3)?]);
    let bytes = if family == libc::AF_INET as u8 { 4 } else { 16 };
    Some((to_address(id.get(20..20 + bytes)?)?.to_canonical(), port))
}
