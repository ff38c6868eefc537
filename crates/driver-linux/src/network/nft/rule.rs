//! Rules: small programs over registers. Conditions come first, all of which must hold, then what happens.

use std::net::IpAddr;

use super::{Key, octets, value};
use crate::network::netlink::Attributes;

/// A register of 16 bytes.
const REGISTER: u32 = 1;
/// The first two registers of four bytes, side by side.
const REGISTER_4: [u32; 2] = [8, 9];

/// States of a connection, as sets of bits.
pub(in crate::network) const NEW: u32 = 8;
pub(in crate::network) const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// What is compared in a packet's own headers.
#[derive(Debug, Clone, Copy)]
pub(in crate::network) enum Side {
    Source,
    Destination,
}

/// A rule that is being written: conditions first, all of which must hold, then what happens.
pub(in crate::network) struct Rule<'a, 'b>(pub(super) &'a mut Attributes<'b>);

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        const LIST_ELEMENT: u16 = 1;
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        self.0.nest(LIST_ELEMENT, |a| {
            a.text(NAME, name);
            a.nest(DATA, data);
        });
        self
    }

    fn load_meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |a| {
            a.be32(1, REGISTER);
            a.be32(2, key);
        })
    }

    /// Of the connection's first packet, whatever translation did to it since.
    fn load_original(&mut self, key: u32, register: u32) -> &mut Self {
        const ORIGINAL: u8 = 0;
        self.expression("ct", |a| {
            a.be32(1, register);
            a.be32(2, key);
            a.bytes(3, &[ORIGINAL]);
        })
    }

    fn compare(&mut self, operation: u32, bytes: &[u8]) -> &mut Self {
        self.expression("cmp", |a| {
            a.be32(1, REGISTER);
            a.be32(2, operation);
            a.nest(3, |a| value(a, bytes));
        })
    }

    fn look_up(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |a| {
            a.text(1, set);
            a.be32(2, REGISTER);
        })
    }

    fn immediate(&mut self, register: u32, bytes: &[u8]) -> &mut Self {
        self.expression("immediate", |a| {
            a.be32(1, register);
            a.nest(2, |a| value(a, bytes));
        })
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        const VERDICT_REGISTER: u32 = 0;
        const VERDICT: u16 = 2;
        const CODE: u16 = 1;
        const CHAIN: u16 = 2;
        self.expression("immediate", |a| {
            a.be32(1, VERDICT_REGISTER);
            a.nest(2, |a| {
                a.nest(VERDICT, |a| {
                    a.be32(CODE, code as u32);
                    if let Some(chain) = chain {
                        a.text(CHAIN, chain);
                    }
                });
            });
        });
    }

    /// It leaves by the loopback interface, whose number is always 1.
    pub(in crate::network) fn out_by_loopback(&mut self) -> &mut Self {
        self.load_meta(5).compare(EQUAL, &1u32.to_ne_bytes())
    }

    /// It came by the loopback interface.
    pub(in crate::network) fn in_by_loopback(&mut self) -> &mut Self {
        self.load_meta(4).compare(EQUAL, &1u32.to_ne_bytes())
    }

    /// It came by an interface whose name begins so.
    pub(in crate::network) fn in_by(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(6).compare(EQUAL, prefix.as_bytes())
    }

    /// It leaves by an interface whose name begins so.
    pub(in crate::network) fn out_by(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(7).compare(EQUAL, prefix.as_bytes())
    }

    /// It leaves by any other interface.
    pub(in crate::network) fn out_by_other_than(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(7).compare(NOT_EQUAL, prefix.as_bytes())
    }

    /// It is carried by this protocol.
    pub(in crate::network) fn protocol(&mut self, protocol: u8) -> &mut Self {
        self.load_meta(16).compare(EQUAL, &[protocol])
    }

    /// An address in the packet's own header.
    pub(in crate::network) fn address(&mut self, side: Side, address: IpAddr) -> &mut Self {
        let (family, offset, bytes) = match (address, side) {
            (IpAddr::V4(_), Side::Source) => (libc::AF_INET, 12, 4),
            (IpAddr::V4(_), Side::Destination) => (libc::AF_INET, 16, 4),
            (IpAddr::V6(_), Side::Source) => (libc::AF_INET6, 8, 16),
            (IpAddr::V6(_), Side::Destination) => (libc::AF_INET6, 24, 16),
        };
        self.family(family).load_network(offset, bytes).compare(EQUAL, &octets(address))
    }

    /// The source address begins with this address's first bits.
    pub(in crate::network) fn source_in(&mut self, network: IpAddr, bits: u8) -> &mut Self {
        let (family, offset, bytes) = match network {
            IpAddr::V4(_) => (libc::AF_INET, 12, 4),
            IpAddr::V6(_) => (libc::AF_INET6, 8, 16),
        };
        let mask: Vec<u8> = (0..bytes).map(|at| mask_byte(bits, at)).collect();
        self.family(family).load_network(offset, bytes).expression("bitwise", |a| {
            a.be32(1, REGISTER);
            a.be32(2, REGISTER);
            a.be32(3, bytes);
            a.nest(4, |a| value(a, &mask));
            a.nest(5, |a| value(a, &vec![0; mask.len()]));
        });
        self.compare(EQUAL, &octets(network))
    }

    fn family(&mut self, family: i32) -> &mut Self {
        self.load_meta(15).compare(EQUAL, &[family as u8])
    }

    fn load_network(&mut self, offset: u32, bytes: u32) -> &mut Self {
        const NETWORK: u32 = 1;
        self.load_payload(NETWORK, offset, bytes)
    }

    fn load_payload(&mut self, base: u32, offset: u32, bytes: u32) -> &mut Self {
        self.expression("payload", |a| {
            a.be32(1, REGISTER);
            a.be32(2, base);
            a.be32(3, offset);
            a.be32(4, bytes);
        })
    }

    /// The port in the packet's own header. Only after [`Rule::protocol`].
    pub(in crate::network) fn port_is(&mut self, port: u16) -> &mut Self {
        const TRANSPORT: u32 = 2;
        self.load_payload(TRANSPORT, 2, 2).compare(EQUAL, &port.to_be_bytes())
    }

    /// There is no way back to the source by the interface that it came by.
    pub(in crate::network) fn source_is_not_there(&mut self) -> &mut Self {
        const RESULT_OIF: u32 = 1;
        const SOURCE: u32 = 1;
        const INTERFACE: u32 = 8;
        self.expression("fib", |a| {
            a.be32(1, REGISTER);
            a.be32(2, RESULT_OIF);
            a.be32(3, SOURCE | INTERFACE);
        })
        .compare(EQUAL, &0u32.to_ne_bytes())
    }

    /// Its connection is in one of these states.
    pub(in crate::network) fn state(&mut self, states: u32) -> &mut Self {
        const STATE: u32 = 0;
        self.expression("ct", |a| {
            a.be32(1, REGISTER);
            a.be32(2, STATE);
        });
        self.expression("bitwise", |a| {
            a.be32(1, REGISTER);
            a.be32(2, REGISTER);
            a.be32(3, 4);
            a.nest(4, |a| value(a, &states.to_ne_bytes()));
            a.nest(5, |a| value(a, &[0; 4]));
        })
        .compare(NOT_EQUAL, &[0; 4])
    }

    /// Its connection carries this mark.
    pub(in crate::network) fn marked(&mut self, mark: u32) -> &mut Self {
        const MARK: u32 = 3;
        self.expression("ct", |a| {
            a.be32(1, REGISTER);
            a.be32(2, MARK);
        })
        .compare(EQUAL, &mark.to_ne_bytes())
    }

    /// Marks its connection.
    pub(in crate::network) fn mark(&mut self, mark: u32) -> &mut Self {
        const MARK: u32 = 3;
        self.immediate(REGISTER, &mark.to_ne_bytes()).expression("ct", |a| {
            a.be32(2, MARK);
            a.be32(4, REGISTER);
        })
    }

    /// Its connection is carried by this protocol.
    pub(in crate::network) fn original_protocol(&mut self, protocol: u8) -> &mut Self {
        const PROTOCOL: u32 = 10;
        self.load_original(PROTOCOL, REGISTER).compare(EQUAL, &[protocol])
    }

    /// Its connection went to an address in this set; a rule for each family.
    pub(in crate::network) fn original_destination_in(&mut self, key: Key, set: &str) -> &mut Self {
        self.load_original(destination(key), REGISTER).look_up(set)
    }

    /// Its connection went to this port, or one of these.
    pub(in crate::network) fn original_ports(&mut self, first: u16, last: u16) -> &mut Self {
        self.load_original(PORT_OF_DESTINATION, REGISTER);
        if first == last {
            return self.compare(EQUAL, &first.to_be_bytes());
        }
        self.expression("range", |a| {
            a.be32(1, REGISTER);
            a.be32(2, EQUAL);
            a.nest(3, |a| value(a, &first.to_be_bytes()));
            a.nest(4, |a| value(a, &last.to_be_bytes()));
        })
    }

    /// Its connection went to a port in this set.
    pub(in crate::network) fn original_port_in(&mut self, set: &str) -> &mut Self {
        self.load_original(PORT_OF_DESTINATION, REGISTER).look_up(set)
    }

    /// There are more connections than this one, in all that came here.
    pub(in crate::network) fn more_connections_than(&mut self, count: u32) -> &mut Self {
        const INVERTED: u32 = 1;
        self.expression("connlimit", |a| {
            a.be32(1, count);
            a.be32(2, INVERTED);
        })
    }

    /// Notes where its connection went in a set of [`Kept::Learned`].
    pub(in crate::network) fn note_destination(&mut self, key: Key, set: &str) {
        const ADD: u32 = 0;
        let port_register = if key == Key::V4Port { REGISTER_4[1] } else { REGISTER_4[0] + 4 };
        self.load_original(destination(key), REGISTER_4[0]);
        self.load_original(PORT_OF_DESTINATION, port_register);
        self.expression("dynset", |a| {
            a.text(1, set);
            a.be32(3, ADD);
            a.be32(4, REGISTER_4[0]);
        });
    }

    /// Sends it, and all of its connection, elsewhere.
    pub(in crate::network) fn redirect_to(&mut self, address: IpAddr, port: u16) {
        const DESTINATION: u32 = 1;
        const PORT_REGISTER: u32 = 2;
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        self.immediate(REGISTER, &octets(address)).immediate(PORT_REGISTER, &port.to_be_bytes());
        self.expression("nat", |a| {
            a.be32(1, DESTINATION);
            a.be32(2, family as u32);
            a.be32(3, REGISTER);
            a.be32(5, PORT_REGISTER);
        });
    }

    /// Only packets of this family; for what has no other condition that says so.
    pub(in crate::network) fn is_v4(&mut self, v4: bool) -> &mut Self {
        self.family(if v4 { libc::AF_INET } else { libc::AF_INET6 })
    }

    /// Gives it the address of the interface that it leaves by.
    pub(in crate::network) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    pub(in crate::network) fn accept(&mut self) {
        self.verdict(libc::NF_ACCEPT, None);
    }

    pub(in crate::network) fn drop(&mut self) {
        self.verdict(libc::NF_DROP, None);
    }

    /// Goes on in another chain and comes back.
    pub(in crate::network) fn jump(&mut self, chain: &str) {
        self.verdict(-3, Some(chain));
    }

    /// Goes on in another chain for good.
    pub(in crate::network) fn go_to(&mut self, chain: &str) {
        self.verdict(-4, Some(chain));
    }

    /// Leaves the chain; in a base chain: its policy.
    pub(in crate::network) fn leave(&mut self) {
        self.verdict(-5, None);
    }

    /// Ends a TCP connection.
    pub(in crate::network) fn reset(&mut self) {
        self.expression("reject", |a| {
            a.be32(1, 1);
            a.bytes(2, &[0]);
        });
    }

    /// Answers that it is forbidden to go there.
    pub(in crate::network) fn forbid(&mut self) {
        const ICMPX: u32 = 2;
        const ADMIN_PROHIBITED: u8 = 3;
        self.expression("reject", |a| {
            a.be32(1, ICMPX);
            a.bytes(2, &[ADMIN_PROHIBITED]);
        });
    }
}

const PORT_OF_DESTINATION: u32 = 12;

const fn destination(key: Key) -> u32 {
    match key {
        Key::V6 | Key::V6Port => 22,
        _ => 20,
    }
}

/// The byte of a network mask of `bits` bits at a place.
fn mask_byte(bits: u8, at: u32) -> u8 {
    let ones = u32::from(bits).saturating_sub(at * 8).min(8);
    !(0xff_u16 >> ones) as u8
}

#[cfg(test)]
mod tests {
    use super::mask_byte;

    #[test]
    fn masks_begin_with_ones() {
        assert_eq!((0..4).map(|at| mask_byte(18, at)).collect::<Vec<_>>(), [255, 255, 192, 0]);
        assert_eq!((0..4).map(|at| mask_byte(32, at)).collect::<Vec<_>>(), [255; 4]);
    }
}
