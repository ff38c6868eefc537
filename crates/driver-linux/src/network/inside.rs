//! A sandbox's own side, changed while it runs.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use sandbank_model::{NamedAddress, NetworkPlan, Transport, Verdict};

use super::link::{self, INSIDE};
use super::netlink::Netlink;
use super::{Block, nft, plan, sockets};
use crate::sys;

/// The network namespace of a sandbox, entered for one thing at a time.
pub(crate) struct SandboxNetwork {
    namespace: OwnedFd,
}

impl SandboxNetwork {
    /// That of a process. The caller sees to it that the process still is who it was, after this.
    pub(crate) fn of_process(pid: u32) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { namespace: rustix::fs::open(format!("/proc/{pid}/ns/net"), flags, Mode::empty())? })
    }

    /// Puts a plan in force, with addresses opened for names; connections that it no longer allows end. The mark must not have been
    /// used for this sandbox before.
    pub(crate) fn install(&self, new: &NetworkPlan, named: &[NamedAddress], block: Block, mark: u32) -> Result<(), Errno> {
        let requests = plan::install(new, named, &block, mark);
        self.netfilter()?.request(&requests)?;
        let route = sys::within_network(self.namespace.as_fd(), Netlink::route)?;
        link::limit(&route, name_to_index(route.as_fd(), INSIDE)?, new.limits.out_bytes_per_second)?;
        let diagnosis = sys::within_network(self.namespace.as_fd(), Netlink::sock_diag)?;
        let forbidden = |address: IpAddr, port: u16| plan::verdict(new, named, address, port, Transport::Tcp) == Verdict::Deny;
        sockets::end(&diagnosis, forbidden)
    }

    /// Opens addresses. What the plan in force does not speak of is left out.
    pub(crate) fn open_names(&self, named: &[NamedAddress]) -> Result<(), Errno> {
        match self.netfilter()?.request(&plan::open_names(named)) {
            // Another plan, with other names, has come meanwhile.
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// Where connections wanted to go that were refused in the last while.
    pub(crate) fn denied(&self) -> Result<Vec<(IpAddr, u16)>, Errno> {
        let filter = self.netfilter()?;
        let mut found = Vec::new();
        for (key, set) in plan::DENIED {
            filter.dump(&nft::list_elements(plan::TABLE, set), |body| {
                nft::read_elements(body, |element| found.extend(plan::read_denied(key, element)));
            })?;
        }
        Ok(found)
    }

    fn netfilter(&self) -> Result<Netlink, Errno> {
        sys::within_network(self.namespace.as_fd(), Netlink::netfilter)
    }
}

impl AsFd for SandboxNetwork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
