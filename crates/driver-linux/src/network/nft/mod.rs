//! The packet filter's language, as far as we speak it: tables, chains, sets and rules, written into one transaction.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Rules are small programs over registers: load something of the packet or of
//! its connection, compare, and say what becomes of it.

mod list;
mod rule;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::netlink::{Attributes, Requests};
pub(super) use list::{ListedChain, get_table, list_chains, list_elements, read_chain, read_elements, read_note};
pub(super) use rule::{ESTABLISHED_OR_RELATED, NEW, Rule, Side};

/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;

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

    /// Makes the table where there is none.
    pub(super) fn table(&mut self, note: &[u8]) {
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

/// `NFTA_TABLE_USERDATA`: bytes that the kernel keeps with a table and does not look at.
const TABLE_NOTE: u16 = 6;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_neighbours() {
        assert_eq!(octets_after(IpAddr::from([10, 0, 0, 255])), Some(vec![10, 0, 1, 0]));
        assert_eq!(octets_after(IpAddr::from([255; 4])), None);
    }
}
