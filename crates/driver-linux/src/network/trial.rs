//! Whether this machine lets us make a sandbox's network, and whether anybody else's firewall is in its way.

use std::fmt;

use rustix::io::Errno;
use sandbank_model::NetworkPlan;

use super::host::{At as _, HostError};
use super::link;
use super::netlink::{Netlink, Requests};
use super::nft::{self, Hook, ListedChain};
use super::{Block, plan};
use crate::sys;

/// Makes a pair of interfaces and a plan's rules in a network namespace of its own, which goes away again.
pub(crate) fn trial() -> Result<(), HostError> {
    // Only a thread that ends afterwards may leave its network namespace.
    let tried = std::thread::spawn(|| {
        sys::unshare_namespaces(libc::CLONE_NEWNET).at("make a network namespace")?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let here = rustix::fs::open("/proc/thread-self/ns/net", flags, rustix::fs::Mode::empty());
        let here = here.at("open a network namespace")?;
        let mut requests = Requests::default();
        link::add_pair(&mut requests, "sbk-trial", std::os::fd::AsFd::as_fd(&here));
        Netlink::route().and_then(|netlink| netlink.request(&requests)).at("make a pair of interfaces (veth)")?;
        let rules = plan::install_first(&NetworkPlan::closed(), &Block::new(0), 1);
        Netlink::netfilter().and_then(|filter| filter.request(&rules)).at("make packet filter rules (nf_tables)")
    });
    tried.join().unwrap_or(Err(HostError { step: "try it", errno: Errno::IO }))
}

/// A chain of somebody else's that drops what its rules do not allow, where sandboxes' packets pass.
#[derive(Debug)]
pub(crate) struct ForeignDrop {
    table: String,
    chain: String,
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of table {}", self.chain, self.table)
    }
}

/// All of them in the network namespace of the caller.
pub(crate) fn foreign_drops() -> Result<Vec<ForeignDrop>, Errno> {
    let mut found = Vec::new();
    Netlink::netfilter()?.dump(&nft::list_chains(), |body| {
        let in_the_way = |chain: &ListedChain| {
            chain.drops
                && [Hook::Input as u32, Hook::Forward as u32].contains(&chain.hook)
                && !chain.table.starts_with("sandbank")
        };
        found.extend(nft::read_chain(body).filter(in_the_way).map(|chain| ForeignDrop { table: chain.table, chain: chain.name }));
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_says_what_root_can_do_here() {
        let tried = trial();
        assert_eq!(tried.is_ok(), rustix::process::geteuid().is_root(), "{tried:?}");
        if tried.is_ok() {
            assert!(foreign_drops().is_ok());
        }
    }
}
