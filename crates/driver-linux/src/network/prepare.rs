//! Making network namespaces with everything in them.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use super::link::{self, INSIDE};
use super::netlink::{Netlink, Requests};
use super::{Block, NetworkOrder, plan};

/// The mark of connections that the first plan of a sandbox lets through.
pub(super) const FIRST_MARK: u32 = 1;

/// Makes them for one server's sandboxes. What numbers are taken only the kernel knows: a number is free when no interface has the
/// name that belongs to it.
pub(crate) struct Workshop {
    order: NetworkOrder,
    /// The plan as the kernel takes it: the same for all.
    plan: Requests,
    /// To the host's own interfaces.
    host: Netlink,
    last: u16,
}

impl Workshop {
    /// Must be called in the host's network namespace.
    pub(crate) fn open(order: NetworkOrder) -> Result<Self, Errno> {
        let plan = plan::install_first(&order.plan, &order.block, FIRST_MARK);
        Ok(Self { order, plan, host: Netlink::route()?, last: 1 })
    }

    /// Gives the network namespace that the caller is in (and that `namespace` is) its interfaces, addresses, routes and rules. The
    /// number that says which addresses.
    pub(crate) fn furnish(&mut self, namespace: BorrowedFd<'_>) -> Result<u16, Errno> {
        let number = self.pair(namespace)?;
        let addresses = self.order.block.addresses(number);
        let outside = name_to_index(self.host.as_fd(), &interface_name(&self.order.prefix, number))?;
        let mut requests = Requests::default();
        link::bring_up(&mut requests, outside);
        for address in &addresses {
            link::add_route(&mut requests, *address, outside);
        }
        self.host.request(&requests)?;
        let here = Netlink::route()?;
        let inside = name_to_index(here.as_fd(), INSIDE)?;
        let mut requests = Requests::default();
        link::loopback_up(&mut requests);
        link::bring_up(&mut requests, inside);
        for (address, gateway) in addresses.into_iter().zip(self.order.block.gateways()) {
            link::add_address(&mut requests, address, inside);
            link::add_default_route(&mut requests, gateway, inside);
        }
        here.request(&requests)?;
        let limits = self.order.plan.limits;
        if let Some(rate) = limits.out_bytes_per_second {
            link::limit(&here, inside, Some(rate))?;
        }
        if let Some(rate) = limits.in_bytes_per_second {
            link::limit(&self.host, outside, Some(rate))?;
        }
        Netlink::netfilter()?.request(&self.plan)?;
        Ok(number)
    }

    fn pair(&mut self, namespace: BorrowedFd<'_>) -> Result<u16, Errno> {
        for _ in 2..=Block::LAST {
            self.last = if self.last >= Block::LAST { 2 } else { self.last + 1 };
            let mut requests = Requests::default();
            link::add_pair(&mut requests, &interface_name(&self.order.prefix, self.last), namespace);
            match self.host.request(&requests) {
                // A sandbox that lives has it, or one that has just ended.
                Err(Errno::EXIST) => {}
                result => return result.map(|()| self.last),
            }
        }
        Err(Errno::ADDRNOTAVAIL)
    }
}

/// The host's end of a sandbox's network.
pub(super) fn interface_name(prefix: &str, number: u16) -> String {
    format!("{prefix}{number:x}")
}
