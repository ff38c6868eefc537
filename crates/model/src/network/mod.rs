//! What a sandbox may reach.

mod floor;
mod headers;
mod plan;
mod planning;
mod policy;
mod ranges;
mod rule;
mod target;

pub use floor::Floor;
pub use headers::{
    HEADER_HOST_LEN_MAX, HEADER_NAME_LEN_MAX, HEADER_RULES_MAX, HEADER_VALUE_LEN_MAX, HEADERS_MAX, HeaderRule, HeaderSecret,
};
pub use plan::{
    AddressRange, Checked, Destination, NameGroup, NamedAddress, NetworkLimits, NetworkPlan, PlanRule, PortRange, Transport,
    Verdict,
};
pub(crate) use policy::shared;
pub use policy::{InvalidPolicy, NAME_GROUPS_MAX, NameGroups, NetworkPolicy, RULES_MAX};
pub use rule::{Flow, NetworkRule, RULE_PORTS_MAX};
pub use target::{Cidr, DOMAIN_LEN_MAX, InvalidRule, NamePattern, NetworkTarget};
