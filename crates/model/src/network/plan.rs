//! What a driver enforces on a sandbox's connections: a policy with nothing left to decide.
//!
//! Rules are in order, the first that matches decides. Names are not in here: a resolver that the host runs tells the driver which
//! addresses it answered for which group of names, and for how long ([`NamedAddress`]).

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It goes through.
    Allow,
    /// It is refused at once, so that nobody inside waits for a timeout.
    Deny,
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

/// Addresses of one family from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressRange {
    /// Lowest.
    pub first: IpAddr,
    /// Highest.
    pub last: IpAddr,
}

/// A set of names whose addresses are opened together, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameGroup(pub u8);

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// Anywhere.
    Anywhere,
    /// Into one of these: sorted, and no two of them touch or overlap.
    Addresses(Vec<AddressRange>),
    /// To an address that was answered for one of these names and is still good.
    Named(NameGroup),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRule {
    /// Where to.
    pub to: Destination,
    /// By what; `None`: by anything.
    pub transport: Option<Transport>,
    /// To which ports, sorted and disjoint; none named: to all.
    pub ports: Vec<PortRange>,
    /// What then.
    pub verdict: Verdict,
}

/// Which TCP connections to the ports 80 and 443 go through the host's proxy, which looks at the name that they ask for. The rules decide
/// about them all the same, by where they wanted to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Checked {
    /// None.
    #[default]
    Nothing,
    /// Those to addresses that are open for a group of names, on ports that the group's rule opens: another name may live at the same
    /// address, or headers are to be added.
    Named,
    /// Those, and all that no rule about addresses speaks of.
    All,
}

/// Most of what one sandbox may take of the network. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkLimits {
    /// Bytes a second out of the sandbox.
    pub out_bytes_per_second: Option<u64>,
    /// Bytes a second into the sandbox.
    pub in_bytes_per_second: Option<u64>,
    /// Connections to the outside at the same time.
    pub connections: Option<u32>,
}

/// Everything that a driver enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// Rules, in order.
    pub rules: Vec<PlanRule>,
    /// What becomes of a connection that no rule matches.
    pub otherwise: Verdict,
    /// What is looked at more closely.
    pub checked: Checked,
    /// How much.
    pub limits: NetworkLimits,
}

impl NetworkPlan {
    /// Nothing leaves the sandbox.
    #[must_use]
    pub const fn closed() -> Self {
        Self {
            rules: Vec::new(),
            otherwise: Verdict::Deny,
            checked: Checked::Nothing,
            limits: NetworkLimits { out_bytes_per_second: None, in_bytes_per_second: None, connections: None },
        }
    }
}

/// An address that a resolver answered for a name that a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedAddress {
    /// Whose names.
    pub group: NameGroup,
    /// The address.
    pub address: IpAddr,
    /// How long the answer is good for.
    pub life: Duration,
}
