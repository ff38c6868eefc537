//! Whether sandboxes can have a network.

use super::{Check, Machine, setting};
use crate::network::{ForeignDrop, foreign_drops, trial};

const NAME: &str = "network";

pub(super) fn network(machine: &Machine) -> Check {
    if !machine.is_root {
        return Check::degraded(
            NAME,
            "sandboxes have loopback alone; ports inside are reached through the server",
            "run as root to give each sandbox an address, a way out and a network policy",
        );
    }
    if let Err(error) = trial() {
        return Check::degraded(
            NAME,
            format!("sandboxes have loopback alone: cannot {}: {}", error.step, error.errno),
            "the kernel lacks CONFIG_VETH, CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_REJECT, \
             CONFIG_NFT_FIB_INET, CONFIG_NFT_CONNLIMIT or their modules, or this process has no CAP_NET_ADMIN",
        );
    }
    // What cannot be listed is not known to be in the way.
    let drops = foreign_drops().unwrap_or_default();
    if !drops.is_empty() {
        let shown: Vec<String> = drops.iter().map(ForeignDrop::to_string).collect();
        return Check::degraded(
            NAME,
            format!("another firewall drops by default what no rule of its own allows: {}", shown.join(", ")),
            "allow what comes in by interfaces named sbk* there, to pass on and to the host's ports 17053, 17080 and 17443; with Docker: \
             `iptables -I DOCKER-USER -i sbk+ -j ACCEPT` and `iptables -I DOCKER-USER -o sbk+ -j ACCEPT`",
        );
    }
    let forwarding = setting("/proc/sys/net/ipv4/ip_forward").unwrap_or_else(|| "unset".to_owned());
    Check::ok(
        NAME,
        format!("each sandbox gets an address in 10.208.0.0/12 and its own rules (net.ipv4.ip_forward is {forwarding})"),
    )
}
