//! A sandbox's own side, changed while it runs.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use sandbank_model::{Flow, NameGroup, NamedAddress, NetworkPlan, Transport, Verdict};

use super::link::{self, INSIDE};
use super::netlink::Netlink;
use super::{Block, nft, plan, sockets};
use crate::sys;

/// Sockets that wait to be closed; more of them are closed where they are.
const CLOSING_MAX: usize = 256;

/// Closes a socket to the packet filter in a thread of its own: the kernel has closing wait until what was removed in the namespace is
/// gone for good, which takes it some ten milliseconds.
fn close_later(socket: Netlink) {
    static CLOSER: OnceLock<Option<SyncSender<Netlink>>> = OnceLock::new();
    let closer = CLOSER.get_or_init(|| {
        let (sender, closing) = sync_channel::<Netlink>(CLOSING_MAX);
        let thread =
            std::thread::Builder::new().name("netlink-close".to_owned()).spawn(move || closing.into_iter().for_each(drop));
        thread.ok().map(|_| sender)
    });
    if let Some(closer) = closer {
        // What comes back is dropped here.
        let _ = closer.try_send(socket);
    }
}

/// The network namespace of a sandbox, entered for one thing at a time.
pub(crate) struct SandboxNetwork<'a> {
    /// A pidfd of its first process.
    pub(crate) process: BorrowedFd<'a>,
    /// The server's own network namespace.
    pub(crate) home: BorrowedFd<'a>,
}

impl SandboxNetwork<'_> {
    /// A socket that was opened inside.
    fn open(&self, socket: impl FnOnce() -> Result<Netlink, Errno>) -> Result<Netlink, Errno> {
        sys::in_network_namespace(self.process, self.home, socket)?
    }

    /// Puts a plan in force, with addresses opened for names; connections that it no longer allows end. The mark must not have been
    /// used for this sandbox before. A plan that is in force already stays as it is, and what was opened under it stays open.
    pub(crate) fn install(&self, new: &NetworkPlan, named: &[NamedAddress], block: Block, mark: u32) -> Result<(), Errno> {
        let is_new = self.with_filter(|filter| {
            let in_force = filter.ask(&nft::get_table(plan::TABLE), nft::read_note).unwrap_or_default();
            if in_force == plan::fingerprint(new, &block) {
                return filter.request(&plan::open_names(&plan::spoken_of(new, named))).map(|()| false);
            }
            filter.request(&plan::install(new, named, &block, mark)).map(|()| true)
        })?;
        if !is_new {
            return Ok(());
        }
        let route = self.open(Netlink::route)?;
        link::limit(&route, name_to_index(route.as_fd(), INSIDE)?, new.limits.out_bytes_per_second)?;
        let diagnosis = self.open(Netlink::sock_diag)?;
        let forbidden = |address: IpAddr, port: u16| {
            let groups: Vec<NameGroup> = named.iter().filter(|one| one.address == address).map(|one| one.group).collect();
            new.verdict(&groups, &Flow { address, port, transport: Some(Transport::Tcp) }) == Verdict::Deny
        };
        sockets::end(&diagnosis, forbidden)
    }

    /// Opens addresses. What the plan in force does not speak of is left out.
    pub(crate) fn open_names(&self, named: &[NamedAddress]) -> Result<(), Errno> {
        match self.with_filter(|filter| filter.request(&plan::open_names(named))) {
            // Another plan, with other names, has come meanwhile.
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// Where connections wanted to go that were refused in the last while.
    pub(crate) fn denied(&self) -> Result<Vec<(IpAddr, u16)>, Errno> {
        let mut found = Vec::new();
        self.with_filter(|filter| {
            plan::DENIED.into_iter().try_for_each(|(key, set)| {
                filter.dump(&nft::list_elements(plan::TABLE, set), |body| {
                    nft::read_elements(body, |element| found.extend(plan::read_denied(key, element)));
                })
            })
        })?;
        Ok(found)
    }

    fn with_filter<T>(&self, action: impl FnOnce(&Netlink) -> Result<T, Errno>) -> Result<T, Errno> {
        let filter = self.open(Netlink::netfilter)?;
        let result = action(&filter);
        close_later(filter);
        result
    }
}
