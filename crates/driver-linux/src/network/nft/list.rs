//! Asking the packet filter what it has.

use super::{TABLE_NOTE, header, kind};
use crate::network::netlink::{Requests, attributes};

/// A request for the elements of a set.
pub(in crate::network) fn list_elements(table: &str, set: &str) -> Requests {
    const TABLE: u16 = 1;
    const SET: u16 = 2;
    let mut requests = Requests::default();
    requests.add(kind(libc::NFT_MSG_GETSETELEM), libc::NLM_F_DUMP, &header(0), |a| {
        a.text(TABLE, table);
        a.text(SET, set);
    });
    requests
}

/// A request for one table.
pub(in crate::network) fn get_table(table: &str) -> Requests {
    const NAME: u16 = 1;
    let mut requests = Requests::default();
    requests.add(kind(libc::NFT_MSG_GETTABLE), 0, &header(0), |a| a.text(NAME, table));
    requests
}

/// The note of a table that was asked for; empty where it has none.
pub(in crate::network) fn read_note(body: &[u8]) -> Option<Vec<u8>> {
    let note = attributes(body.get(4..)?).find(|(kind, _)| *kind == TABLE_NOTE);
    Some(note.map(|(_, note)| note.to_vec()).unwrap_or_default())
}

/// A request for all chains of all tables.
pub(in crate::network) fn list_chains() -> Requests {
    const ANY: u8 = 0;
    let mut requests = Requests::default();
    let fixed = header(0);
    requests.add(kind(libc::NFT_MSG_GETCHAIN), libc::NLM_F_DUMP, &[ANY, fixed[1], fixed[2], fixed[3]], |_| {});
    requests
}

/// A base chain as the kernel lists it.
pub(in crate::network) struct ListedChain {
    pub(in crate::network) table: String,
    pub(in crate::network) name: String,
    pub(in crate::network) hook: u32,
    pub(in crate::network) drops: bool,
}

/// Reads a chain of such a list; `None` for one that is only jumped to.
pub(in crate::network) fn read_chain(body: &[u8]) -> Option<ListedChain> {
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
pub(in crate::network) fn read_elements(body: &[u8], mut take: impl FnMut(&[u8])) {
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
