//! What a sandbox may reach.

mod plan;

pub use plan::{
    AddressRange, Checked, Destination, NameGroup, NamedAddress, NetworkLimits, NetworkPlan, PlanRule, PortRange, Transport,
    Verdict,
};
