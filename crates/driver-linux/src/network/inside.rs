//! A sandbox's own side, changed while it runs.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use sandbank_model::{Flow, NameGroup, NamedAddress, NetworkPlan, Transport, Verdict};

use super::link::{self, INSIDE};
use super::netlink::Netlink;
use super::{Block, nft, plan, sockets};
use crate::sys;

/// A socket to a sandbox's packet filter, once it was needed. It is kept: the kernel has closing one wait until what was removed before is
/// gone for good, some ten milliseconds, and has whoever changes the rules next wait with it. One thread at a time speaks through it.
#[derive(Debug, Default)]
pub(crate) struct FilterSocket(Mutex<Option<Netlink>>);

impl FilterSocket {
    /// Closes it: it keeps the namespace there.
    pub(crate) fn close(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Netlink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network namespace of a sandbox, entered for one thing at a time.
pub(crate) struct SandboxNetwork<'a> {
    /// A pidfd of its first process.
    pub(crate) process: BorrowedFd<'a>,
    /// The server's own network namespace.
    pub(crate) home: BorrowedFd<'a>,
    pub(crate) filter: &'a FilterSocket,
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
        let mut kept = self.filter.lock();
        let filter = match kept.take() {
            Some(filter) => filter,
            None => self.open(Netlink::netfilter)?,
        };
        let result = action(kept.insert(filter));
        if result.is_err() {
            // Answers may be left in it.
            *kept = None;
        }
        result
    }
}
