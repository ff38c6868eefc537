//! Network namespaces, made ahead: making one takes the kernel longer than all others together.
//!
//! Each is used by one sandbox and goes away with it, its interfaces and rules too. What waits here has seen nobody.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::step::{At, Step};
use crate::cgroup::write_value;
use crate::network::{NetworkOrder, Workshop};
use crate::sys;

/// Namespaces that wait, so that a few sandboxes in a row need not wait for theirs. Each takes some 100 KiB of kernel memory.
const READY_MAX: usize = 4;
/// `ping_group_range` for everybody, and where only the group 0 exists.
pub(super) const EVERY_GROUP: &str = "0 2147483647";
pub(super) const ONE_GROUP: &str = "0 0";

/// A network namespace that nobody has used.
pub(super) struct Network {
    pub(super) namespace: OwnedFd,
    /// Which addresses it has; `None`: only loopback.
    pub(super) number: Option<u16>,
}

/// How often the kernel goes on sending what a program left behind that has ended: seconds, not the minutes that are usual, since a
/// connection that nobody answers keeps the namespace of a destroyed sandbox, with its interfaces and addresses, as long.
const ORPHAN_RETRIES: &str = "3";

/// The stock.
pub(super) struct Networks {
    /// The launcher's own, to come back to.
    own: OwnedFd,
    workshop: Option<Workshop>,
    ready: Vec<Network>,
}

impl Networks {
    /// With an order, namespaces get a network; else only loopback.
    pub(super) fn start(order: Option<NetworkOrder>) -> Step<Self> {
        let workshop = order.map(Workshop::open).transpose().at("speak to the kernel about interfaces")?;
        let own = open_current().at("open its own network namespace")?;
        Ok(Self { own, workshop, ready: Vec::with_capacity(READY_MAX) })
    }

    /// One that nobody has used.
    pub(super) fn take(&mut self) -> Step<Network> {
        self.ready.pop().map_or_else(|| self.make(), Ok)
    }

    /// Whether there are fewer than there should be.
    pub(super) fn wants_more(&self) -> bool {
        self.ready.len() < READY_MAX
    }

    /// Makes one more for later.
    pub(super) fn add(&mut self) -> Step<()> {
        let fresh = self.make()?;
        self.ready.push(fresh);
        Ok(())
    }

    fn make(&mut self) -> Step<Network> {
        sys::unshare_namespaces(libc::CLONE_NEWNET).at("make a network namespace")?;
        let made = self.furnish();
        // Whatever went wrong: what is made next must not be made from within a sandbox's network.
        sys::setns(self.own.as_fd(), libc::CLONE_NEWNET).at("leave the network namespace")?;
        made
    }

    fn furnish(&mut self) -> Step<Network> {
        let namespace = open_current().at("open the network namespace")?;
        let number = match &mut self.workshop {
            Some(workshop) => Some(workshop.furnish(namespace.as_fd()).at("give the sandbox its network")?),
            None => {
                sys::loopback_up().at("bring the loopback interface up")?;
                None
            }
        };
        Ok(Network { namespace, number })
    }
}

fn open_current() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Every port and unprivileged ping allowed, since nobody inside has power over the network namespace, and orphans given up soon. `groups`: the ids that may
/// ping. `proc`: the sandbox's own. The host's would keep an entry of the same name for each namespace in one list, and looking it up
/// would take longer the more sandboxes there are.
pub(super) fn open_ports(proc: &Path, groups: &str) -> Step<()> {
    let settings = [("ip_unprivileged_port_start", "0"), ("ping_group_range", groups), ("tcp_orphan_retries", ORPHAN_RETRIES)];
    for (file, value) in settings {
        match write_value(&proc.join("sys/net/ipv4").join(file), value) {
            Ok(()) | Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(errno).at("open the low ports"),
        }
    }
    Ok(())
}
