//! The packet filter's language, as far as we speak it: tables, chains, sets and rules, written into one transaction.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Rules are small programs over registers: load something of the packet or of
//! its connection, compare, and say what becomes of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::netlink::{Attributes, Requests, attributes};

/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// A register of 16 bytes.
const REGISTER: u32 = 1;
/// The first two registers of four bytes, side by side.
const REGISTER_4: [u32; 2] = [8, 9];

/// Where a base chain sees packets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    PreRouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    PostRouting = 4,
}

/// A chain that the kernel runs packets through by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
    pub(super) hook: Hook,
    /// Lower ones come first; translation of addresses has -100 and 100, filters 0.
    pub(super) priority: i32,
    /// What no rule decides is dropped.
    pub(super) drops: bool,
}

/// What a set's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    V4,
    V6,
    Port,
    /// An IPv4 address and a port, each in four bytes.
    V4Port,
    /// An IPv6 address and a port.
    V6Port,
}

impl Key {
    const fn bytes(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
            Self::Port => 2,
            Self::V4Port => 8,
            Self::V6Port => 20,
        }
    }

    /// The types that `nft list` shows.
    const fn shown(self) -> u32 {
        const V4: u32 = 7;
        const V6: u32 = 8;
        const PORT: u32 = 13;
        match self {
            Self::V4 => V4,
            Self::V6 => V6,
            Self::Port => PORT,
            Self::V4Port => V4 << 6 | PORT,
            Self::V6Port => V6 << 6 | PORT,
        }
    }
}

/// How a set keeps its elements.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kept {
    /// Ranges, as written.
    Ranges,
    /// Single ones, each for a time.
    ForATime,
    /// Single ones that rules add, for a time, so many at most.
    Learned { most: u32, life: Duration },
}

/// One transaction: all of it takes effect, or nothing.
pub(super) struct Transaction<'a> {
    requests: Requests,
    table: &'a str,
    sets: u32,
}

fn header(resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [INET, 0, resource[0], resource[1]]
}

const fn kind(message: i32) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES << 8) | message) as u16
}

impl<'a> Transaction<'a> {
    /// On the table of this name.
    pub(super) fn on(table: &'a str) -> Self {
        let mut requests = Requests::default();
        let fixed = header(libc::NFNL_SUBSYS_NFTABLES as u16);
        requests.add(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &[0, fixed[1], fixed[2], fixed[3]], |_| {});
        Self { requests, table, sets: 0 }
    }

    /// What is to be sent.
    pub(super) fn finish(mut self) -> Requests {
        let fixed = header(libc::NFNL_SUBSYS_NFTABLES as u16);
        self.requests.add(libc::NFNL_MSG_BATCH_END as u16, 0, &[0, fixed[1], fixed[2], fixed[3]], |_| {});
        self.requests
    }

    fn add(&mut self, message: i32, flags: i32, attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.requests.add(kind(message), flags, &header(0), attributes);
    }

    /// Makes the table, empty: whatever it held is gone. It carries a note.
    pub(super) fn fresh_table(&mut self, note: &[u8]) {
        self.table(&[]);
        self.remove_table();
        self.table(note);
    }

    fn table(&mut self, note: &[u8]) {
        const NAME: u16 = 1;
        let table = self.table;
        self.add(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |a| {
            a.text(NAME, table);
            if !note.is_empty() {
                a.bytes(TABLE_NOTE, note);
            }
        });
    }

    /// Removes the table with all that it holds.
    pub(super) fn remove_table(&mut self) {
        const NAME: u16 = 1;
        let table = self.table;
        self.add(libc::NFT_MSG_DELTABLE, 0, |a| a.text(NAME, table));
    }

    /// Makes a chain; without a base it is only jumped to.
    pub(super) fn chain(&mut self, name: &str, base: Option<Base>) {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        const TYPE: u16 = 7;
        const HOOK_NUMBER: u16 = 1;
        const HOOK_PRIORITY: u16 = 2;
        let table = self.table;
        self.add(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |a| {
            a.text(TABLE, table);
            a.text(NAME, name);
            let Some(base) = base else { return };
            a.nest(HOOK, |a| {
                a.be32(HOOK_NUMBER, base.hook as u32);
                a.be32(HOOK_PRIORITY, base.priority as u32);
            });
            a.be32(POLICY, u32::from(!base.drops));
            a.text(TYPE, base.kind);
        });
    }

    /// Makes a set.
    pub(super) fn set(&mut self, name: &str, key: Key, kept: Kept) {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const FLAGS: u16 = 3;
        const KEY_TYPE: u16 = 4;
        const KEY_BYTES: u16 = 5;
        const DESCRIPTION: u16 = 9;
        const ID: u16 = 10;
        const TIMEOUT: u16 = 11;
        const DESCRIPTION_SIZE: u16 = 1;
        const INTERVAL: u32 = 0x4;
        const TIMED: u32 = 0x10;
        const EVALUATED: u32 = 0x20;
        self.sets += 1;
        let (table, id) = (self.table, self.sets);
        self.add(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |a| {
            a.text(TABLE, table);
            a.text(NAME, name);
            a.be32(KEY_TYPE, key.shown());
            a.be32(KEY_BYTES, key.bytes());
            a.be32(ID, id);
            match kept {
                Kept::Ranges => a.be32(FLAGS, INTERVAL),
                Kept::ForATime => a.be32(FLAGS, TIMED),
                Kept::Learned { most, life } => {
                    a.be32(FLAGS, TIMED | EVALUATED);
                    a.be64(TIMEOUT, millis(life));
                    a.nest(DESCRIPTION, |a| a.be32(DESCRIPTION_SIZE, most));
                }
            }
        });
    }

    /// Adds ranges of addresses to a set of one family; those of the other are left out. They must be sorted and apart.
    pub(super) fn add_ranges(&mut self, set: &str, ranges: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>) {
        let mut ranges = ranges.peekable();
        // An attribute holds at most 64 KiB.
        const MOST: usize = 500;
        while ranges.peek().is_some() {
            let some: Vec<_> = ranges.by_ref().take(MOST).collect();
            self.elements(libc::NFT_MSG_NEWSETELEM, set, |a| {
                for (first, after) in some {
                    element(a, &first, None, false);
                    if let Some(after) = after {
                        element(a, &after, None, true);
                    }
                }
            });
        }
    }

    /// Adds an address for a time, from now, whether it is there already or not.
    pub(super) fn renew_address(&mut self, set: &str, address: IpAddr, life: Duration) {
        let key = octets(address);
        // Kernels before 6.13 leave what is there as it is: it goes and comes again, in one transaction.
        self.elements(libc::NFT_MSG_NEWSETELEM, set, |a| element(a, &key, Some(life), false));
        self.elements(libc::NFT_MSG_DELSETELEM, set, |a| element(a, &key, None, false));
        self.elements(libc::NFT_MSG_NEWSETELEM, set, |a| element(a, &key, Some(life), false));
    }

    fn elements(&mut self, message: i32, set: &str, elements: impl FnOnce(&mut Attributes<'_>)) {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        let table = self.table;
        self.add(message, libc::NLM_F_CREATE, |a| {
            a.text(TABLE, table);
            a.text(SET, set);
            a.nest(ELEMENTS, elements);
        });
    }

    /// Adds a rule to the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, write: impl FnOnce(&mut Rule<'_, '_>)) {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        const EXPRESSIONS: u16 = 4;
        let table = self.table;
        self.add(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |a| {
            a.text(TABLE, table);
            a.text(CHAIN, chain);
            a.nest(EXPRESSIONS, |a| write(&mut Rule(a)));
        });
    }
}

/// A request for the elements of a set.
pub(super) fn list_elements(table: &str, set: &str) -> Requests {
    const TABLE: u16 = 1;
    const SET: u16 = 2;
    let mut requests = Requests::default();
    requests.add(kind(libc::NFT_MSG_GETSETELEM), libc::NLM_F_DUMP, &header(0), |a| {
        a.text(TABLE, table);
        a.text(SET, set);
    });
    requests
}

/// `NFTA_TABLE_USERDATA`: bytes that the kernel keeps with a table and does not look at.
const TABLE_NOTE: u16 = 6;

/// A request for one table.
pub(super) fn get_table(table: &str) -> Requests {
    const NAME: u16 = 1;
    let mut requests = Requests::default();
    requests.add(kind(libc::NFT_MSG_GETTABLE), 0, &header(0), |a| a.text(NAME, table));
    requests
}

/// The note of a table that was asked for; empty where it has none.
pub(super) fn read_note(body: &[u8]) -> Option<Vec<u8>> {
    let note = attributes(body.get(4..)?).find(|(kind, _)| *kind == TABLE_NOTE);
    Some(note.map(|(_, note)| note.to_vec()).unwrap_or_default())
}

/// A request for all chains of all tables.
pub(super) fn list_chains() -> Requests {
    const ANY: u8 = 0;
    let mut requests = Requests::default();
    let fixed = header(0);
    requests.add(kind(libc::NFT_MSG_GETCHAIN), libc::NLM_F_DUMP, &[ANY, fixed[1], fixed[2], fixed[3]], |_| {});
    requests
}

/// A base chain as the kernel lists it.
pub(super) struct ListedChain {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: u32,
    pub(super) drops: bool,
}

/// Reads a chain of such a list; `None` for one that is only jumped to.
pub(super) fn read_chain(body: &[u8]) -> Option<ListedChain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOK_NUMBER: u16 = 1;
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let mut chain = ListedChain { table: String::new(), name: String::new(), hook: u32::MAX, drops: false };
    for (kind, value) in attributes(body.get(4..)?) {
        match kind {
            TABLE => chain.table = text(value),
            NAME => chain.name = text(value),
            HOOK => chain.hook = attributes(value).find(|(kind, _)| *kind == HOOK_NUMBER).and_then(|(_, value)| number(value))?,
            POLICY => chain.drops = number(value) == Some(0),
            _ => {}
        }
    }
    (chain.hook != u32::MAX).then_some(chain)
}

/// The elements of a list that was asked for.
pub(super) fn read_elements(body: &[u8], mut take: impl FnMut(&[u8])) {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    let parts = |bytes, wanted: u16| attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    // After the fixed part; each element lies in a list entry of its own.
    for list in parts(body.get(4..).unwrap_or_default(), ELEMENTS) {
        for (_, element) in attributes(list) {
            parts(element, KEY).flat_map(|key| parts(key, VALUE)).for_each(&mut take);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn element(a: &mut Attributes<'_>, key: &[u8], life: Option<Duration>, is_end: bool) {
    const LIST_ELEMENT: u16 = 1;
    const KEY: u16 = 1;
    const FLAGS: u16 = 3;
    const TIMEOUT: u16 = 4;
    const INTERVAL_END: u32 = 1;
    a.nest(LIST_ELEMENT, |a| {
        a.nest(KEY, |a| value(a, key));
        if is_end {
            a.be32(FLAGS, INTERVAL_END);
        }
        if let Some(life) = life {
            a.be64(TIMEOUT, millis(life));
        }
    });
}

fn value(a: &mut Attributes<'_>, bytes: &[u8]) {
    const VALUE: u16 = 1;
    a.bytes(VALUE, bytes);
}

/// An address as packets carry it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address after this one; `None` after the last.
pub(super) fn octets_after(address: IpAddr) -> Option<Vec<u8>> {
    let after = match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(u32::from(address).checked_add(1)?)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address).checked_add(1)?)),
    };
    Some(octets(after))
}

/// States of a connection, as sets of bits.
pub(super) const NEW: u32 = 8;
pub(super) const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// What is compared in a packet's own headers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Source,
    Destination,
}

/// A rule that is being written: conditions first, all of which must hold, then what happens.
pub(super) struct Rule<'a, 'b>(&'a mut Attributes<'b>);

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
    pub(super) fn out_by_loopback(&mut self) -> &mut Self {
        self.load_meta(5).compare(EQUAL, &1u32.to_ne_bytes())
    }

    /// It came by the loopback interface.
    pub(super) fn in_by_loopback(&mut self) -> &mut Self {
        self.load_meta(4).compare(EQUAL, &1u32.to_ne_bytes())
    }

    /// It came by an interface whose name begins so.
    pub(super) fn in_by(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(6).compare(EQUAL, prefix.as_bytes())
    }

    /// It leaves by an interface whose name begins so.
    pub(super) fn out_by(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(7).compare(EQUAL, prefix.as_bytes())
    }

    /// It leaves by any other interface.
    pub(super) fn out_by_other_than(&mut self, prefix: &str) -> &mut Self {
        self.load_meta(7).compare(NOT_EQUAL, prefix.as_bytes())
    }

    /// It is carried by this protocol.
    pub(super) fn protocol(&mut self, protocol: u8) -> &mut Self {
        self.load_meta(16).compare(EQUAL, &[protocol])
    }

    /// An address in the packet's own header.
    pub(super) fn address(&mut self, side: Side, address: IpAddr) -> &mut Self {
        let (family, offset, bytes) = match (address, side) {
            (IpAddr::V4(_), Side::Source) => (libc::AF_INET, 12, 4),
            (IpAddr::V4(_), Side::Destination) => (libc::AF_INET, 16, 4),
            (IpAddr::V6(_), Side::Source) => (libc::AF_INET6, 8, 16),
            (IpAddr::V6(_), Side::Destination) => (libc::AF_INET6, 24, 16),
        };
        self.family(family).load_network(offset, bytes).compare(EQUAL, &octets(address))
    }

    /// The source address begins with this address's first bits.
    pub(super) fn source_in(&mut self, network: IpAddr, bits: u8) -> &mut Self {
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
    pub(super) fn port_is(&mut self, port: u16) -> &mut Self {
        const TRANSPORT: u32 = 2;
        self.load_payload(TRANSPORT, 2, 2).compare(EQUAL, &port.to_be_bytes())
    }

    /// There is no way back to the source by the interface that it came by.
    pub(super) fn source_is_not_there(&mut self) -> &mut Self {
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
    pub(super) fn state(&mut self, states: u32) -> &mut Self {
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
    pub(super) fn marked(&mut self, mark: u32) -> &mut Self {
        const MARK: u32 = 3;
        self.expression("ct", |a| {
            a.be32(1, REGISTER);
            a.be32(2, MARK);
        })
        .compare(EQUAL, &mark.to_ne_bytes())
    }

    /// Marks its connection.
    pub(super) fn mark(&mut self, mark: u32) -> &mut Self {
        const MARK: u32 = 3;
        self.immediate(REGISTER, &mark.to_ne_bytes()).expression("ct", |a| {
            a.be32(2, MARK);
            a.be32(4, REGISTER);
        })
    }

    /// Its connection is carried by this protocol.
    pub(super) fn original_protocol(&mut self, protocol: u8) -> &mut Self {
        const PROTOCOL: u32 = 10;
        self.load_original(PROTOCOL, REGISTER).compare(EQUAL, &[protocol])
    }

    /// Its connection went to an address in this set; a rule for each family.
    pub(super) fn original_destination_in(&mut self, key: Key, set: &str) -> &mut Self {
        self.load_original(destination(key), REGISTER).look_up(set)
    }

    /// Its connection went to this port, or one of these.
    pub(super) fn original_ports(&mut self, first: u16, last: u16) -> &mut Self {
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
    pub(super) fn original_port_in(&mut self, set: &str) -> &mut Self {
        self.load_original(PORT_OF_DESTINATION, REGISTER).look_up(set)
    }

    /// There are more connections than this one, in all that came here.
    pub(super) fn more_connections_than(&mut self, count: u32) -> &mut Self {
        const INVERTED: u32 = 1;
        self.expression("connlimit", |a| {
            a.be32(1, count);
            a.be32(2, INVERTED);
        })
    }

    /// Notes where its connection went in a set of [`Kept::Learned`].
    pub(super) fn note_destination(&mut self, key: Key, set: &str) {
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
    pub(super) fn redirect_to(&mut self, address: IpAddr, port: u16) {
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
    pub(super) fn is_v4(&mut self, v4: bool) -> &mut Self {
        self.family(if v4 { libc::AF_INET } else { libc::AF_INET6 })
    }

    /// Gives it the address of the interface that it leaves by.
    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    pub(super) fn accept(&mut self) {
        self.verdict(libc::NF_ACCEPT, None);
    }

    pub(super) fn drop(&mut self) {
        self.verdict(libc::NF_DROP, None);
    }

    /// Goes on in another chain and comes back.
    pub(super) fn jump(&mut self, chain: &str) {
        self.verdict(-3, Some(chain));
    }

    /// Goes on in another chain for good.
    pub(super) fn go_to(&mut self, chain: &str) {
        self.verdict(-4, Some(chain));
    }

    /// Leaves the chain; in a base chain: its policy.
    pub(super) fn leave(&mut self) {
        self.verdict(-5, None);
    }

    /// Ends a TCP connection.
    pub(super) fn reset(&mut self) {
        self.expression("reject", |a| {
            a.be32(1, 1);
            a.bytes(2, &[0]);
        });
    }

    /// Answers that it is forbidden to go there.
    pub(super) fn forbid(&mut self) {
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
    use super::*;

    #[test]
    fn masks_and_neighbours() {
        assert_eq!((0..4).map(|at| mask_byte(18, at)).collect::<Vec<_>>(), [255, 255, 192, 0]);
        assert_eq!((0..4).map(|at| mask_byte(32, at)).collect::<Vec<_>>(), [255; 4]);
        assert_eq!(octets_after(IpAddr::from([10, 0, 0, 255])), Some(vec![10, 0, 1, 0]));
        assert_eq!(octets_after(IpAddr::from([255; 4])), None);
    }
}
