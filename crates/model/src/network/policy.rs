//! What a sandbox may reach, as its owner says it.
//!
//! A connection is decided by the first of these that speaks of it:
//!
//! 1. the [`Floor`]: denied,
//! 2. `allow`: allowed,
//! 3. `deny`: denied,
//! 4. `internet`.
//!
//! So allow beats deny, and nothing beats the floor. A rule about a name speaks of connections to addresses that a resolver answered
//! for that name; of what else lives there, the name that a connection asks for decides ([`Checked`](super::Checked)).

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Floor, Flow, HEADER_RULES_MAX, HeaderRule, HeaderSecret, NameGroup, NetworkLimits, NetworkRule, NetworkTarget, PortRange,
    Transport, Verdict,
};

/// Most rules of a policy, their exceptions counted too (opensandbox.md §1.11).
pub const RULES_MAX: usize = 4096;
/// Most different sets of ports and transports that rules about names may have: a driver keeps the addresses of each apart.
pub const NAME_GROUPS_MAX: usize = 200;
/// Least rate that a limit can set, bytes a second: below it not even a name is resolved in time.
const RATE_MIN: u64 = 1024;
/// Ports on which connections say which name they mean.
const NAMED_PORTS: [u16; 2] = [80, 443];

/// A policy that cannot be, and where: `allow[3]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {why}")]
pub struct InvalidPolicy {
    /// Field, with the index of the entry.
    pub at: String,
    /// What is wrong and what to write instead.
    pub why: String,
}

/// What a sandbox may reach. The default is all of the internet, and nothing of the host's own networks.
///
/// `S` is what is known of injected headers' values: in records, [`HeaderSecret`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy<S = HeaderSecret> {
    /// Whether what no rule speaks of may be reached.
    pub internet: bool,
    /// Allowed, whatever `deny` says.
    pub allow: Vec<NetworkRule>,
    /// Denied unless allowed.
    pub deny: Vec<NetworkRule>,
    /// Headers for requests to some hosts. They allow nothing: a host that may not be reached stays so.
    pub headers: Vec<HeaderRule<S>>,
    /// How much.
    pub limits: NetworkLimits,
}

impl<S> Default for NetworkPolicy<S> {
    fn default() -> Self {
        let (allow, deny) = (Vec::new(), Vec::new());
        Self { internet: true, allow, deny, headers: Vec::new(), limits: NetworkLimits::default() }
    }
}

/// Ports and transport of a rule about names.
type Access = (Option<Transport>, Vec<PortRange>);

/// Which rules about names open their addresses together: those with the same ports and transport.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameGroups {
    /// What each group opens, by its number.
    pub(super) opens: Vec<Access>,
    /// The group of each rule of `allow` that is about a name.
    of_rule: Vec<Option<NameGroup>>,
    /// The group of the hosts that get headers.
    pub(super) of_headers: Option<NameGroup>,
}

impl<S> NetworkPolicy<S> {
    /// Nothing may be reached.
    #[must_use]
    pub fn closed() -> Self {
        Self { internet: false, ..Self::default() }
    }

    /// Whether nothing at all may be reached: what holds without any network too.
    #[must_use]
    pub fn reaches_nothing(&self) -> bool {
        !self.internet && self.allow.is_empty()
    }

    /// Refuses what is too large or contradicts itself.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        let entries: usize = self.allow.iter().chain(&self.deny).map(|rule| 1 + rule.except.len()).sum();
        if entries > RULES_MAX {
            let why = format!(
                "allow and deny hold {entries} entries, exceptions counted; at most {RULES_MAX} are accepted: use ranges and wildcards"
            );
            return Err(InvalidPolicy { at: "allow".to_owned(), why });
        }
        for (list, rules) in [("allow", &self.allow), ("deny", &self.deny)] {
            for (index, rule) in rules.iter().enumerate() {
                check_rule(rule, list == "deny").map_err(|why| InvalidPolicy { at: format!("{list}[{index}]"), why })?;
            }
        }
        if self.headers.len() > HEADER_RULES_MAX {
            let why = format!("has {} rules; at most {HEADER_RULES_MAX} are accepted", self.headers.len());
            return Err(InvalidPolicy { at: "headers".to_owned(), why });
        }
        for (index, rule) in self.headers.iter().enumerate() {
            rule.check(&format!("headers[{index}]"))?;
        }
        let groups: std::collections::HashSet<_> = self.allow.iter().filter(|rule| rule.to.is_name()).map(access).collect();
        if groups.len() > NAME_GROUPS_MAX {
            let why = format!(
                "its rules about names have {} different sets of ports; at most {NAME_GROUPS_MAX} are accepted: name the same ports \
                 in more of them",
                groups.len()
            );
            return Err(InvalidPolicy { at: "allow".to_owned(), why });
        }
        self.check_limits()
    }

    fn check_limits(&self) -> Result<(), InvalidPolicy> {
        let NetworkLimits { out_bytes_per_second, in_bytes_per_second, connections } = self.limits;
        for (field, rate) in [("outBytesPerSecond", out_bytes_per_second), ("inBytesPerSecond", in_bytes_per_second)] {
            if let Some(rate) = rate.filter(|rate| *rate < RATE_MIN) {
                let why = format!("is {rate}: at least {RATE_MIN} bytes a second; to deny everything, set internet to false");
                return Err(InvalidPolicy { at: format!("limits.{field}"), why });
            }
        }
        if connections == Some(0) {
            let why = "is 0: at least 1; to deny everything, set internet to false".to_owned();
            return Err(InvalidPolicy { at: "limits.connections".to_owned(), why });
        }
        Ok(())
    }

    /// The groups of its rules about names, numbered in the order of `allow`. What a policy has beyond [`NAME_GROUPS_MAX`] (none that
    /// was checked) is in no group, and so is not opened.
    #[must_use]
    pub fn name_groups(&self) -> NameGroups {
        let mut groups = NameGroups::default();
        let mut known: HashMap<Access, NameGroup> = HashMap::new();
        let mut numbered = |opens: &mut Vec<Access>, access: Access| {
            if let Some(group) = known.get(&access) {
                return Some(*group);
            }
            let group = u8::try_from(opens.len()).ok().filter(|_| opens.len() < NAME_GROUPS_MAX).map(NameGroup)?;
            opens.push(access.clone());
            known.insert(access, group);
            Some(group)
        };
        for rule in &self.allow {
            let group = if rule.to.is_name() { numbered(&mut groups.opens, access(rule)) } else { None };
            groups.of_rule.push(group);
        }
        // Where a rule must allow a host anyway, that rule's group is enough. One beyond the others of rules: the addresses of such
        // hosts are checked, not opened.
        if self.internet && !self.headers.is_empty() {
            groups.of_headers = u8::try_from(groups.opens.len()).ok().map(NameGroup);
            groups.opens.push((Some(Transport::Tcp), NAMED_PORTS.map(PortRange::single).to_vec()));
        }
        groups
    }

    /// The groups that an answer for this name opens; ask [`NameGroups::of`] where many names are asked for.
    #[must_use]
    pub fn groups_of(&self, name: &str) -> Vec<NameGroup> {
        self.name_groups().of(self, name)
    }

    /// What the rules about names say of a name on a port; `None` when none speaks of it.
    #[must_use]
    pub fn name_rule(&self, name: &str, transport: Transport, port: u16) -> Option<Verdict> {
        let speaks = |rule: &NetworkRule| rule.covers_name(name) && rule.covers_port(port, Some(transport));
        if self.allow.iter().any(speaks) {
            Some(Verdict::Allow)
        } else if self.deny.iter().any(speaks) {
            Some(Verdict::Deny)
        } else {
            None
        }
    }

    /// What becomes of a connection to a name, its address left aside: what no rule about names speaks of follows `internet`.
    #[must_use]
    pub fn name_verdict(&self, name: &str, transport: Transport, port: u16) -> Verdict {
        self.name_rule(name, transport, port).unwrap_or(self.otherwise())
    }

    /// What becomes of a connection that asks for `name` at an address: for a proxy that has seen both. `None`: it asks for no name.
    /// The address must be one that is really the name's, as a resolver of the host's says, for a rule about it to be of use.
    #[must_use]
    pub fn verdict(&self, floor: &Floor, name: Option<&str>, flow: &Flow) -> Verdict {
        if floor.denies(flow.address) {
            return Verdict::Deny;
        }
        let speaks = |rule: &NetworkRule| {
            rule.covers_port(flow.port, flow.transport)
                && (rule.covers_address(flow.address) || name.is_some_and(|name| rule.covers_name(name)))
        };
        if self.allow.iter().any(speaks) {
            Verdict::Allow
        } else if self.deny.iter().any(speaks) {
            Verdict::Deny
        } else {
            self.otherwise()
        }
    }

    /// Whether the name may be resolved: some connection to it may be allowed. Others look as if they did not exist, so that
    /// resolving is no way out either.
    #[must_use]
    pub fn may_resolve(&self, name: &str) -> bool {
        if self.allow.iter().any(|rule| rule.covers_name(name)) {
            return true;
        }
        let whole = |rule: &&NetworkRule| rule.ports.is_empty() && rule.transport.is_none();
        if self.deny.iter().filter(whole).any(|rule| rule.covers_name(name)) {
            return false;
        }
        // Ranges of addresses that somebody lists are reached by address; "everywhere" means names too.
        let everywhere = |rule: &NetworkRule| match rule.to {
            NetworkTarget::Any => true,
            NetworkTarget::Addresses(cidr) => cidr.is_all(),
            NetworkTarget::Name(_) => false,
        };
        let denied = |ipv4: bool| {
            let of_family = |rule: &&NetworkRule| match rule.to {
                NetworkTarget::Any => true,
                NetworkTarget::Addresses(cidr) => cidr.is_ipv4() == ipv4 && cidr.is_all(),
                NetworkTarget::Name(_) => false,
            };
            self.deny.iter().filter(whole).filter(|rule| rule.except.is_empty()).any(|rule| of_family(&rule))
        };
        self.allow.iter().any(everywhere) || (self.internet && !(denied(true) && denied(false)))
    }

    /// The headers for a request: the rule's number in `headers`, name and value. Of rules that set the same one, the first does.
    #[must_use]
    pub fn headers_for(&self, host: &str, path: &str) -> Vec<(usize, &str, &S)> {
        let mut found: Vec<(usize, &str, &S)> = Vec::new();
        for (index, rule) in self.headers.iter().enumerate().filter(|(_, rule)| rule.covers(host, path)) {
            for (name, value) in &rule.set {
                if !found.iter().any(|(_, known, _)| known.eq_ignore_ascii_case(name)) {
                    found.push((index, name.as_str(), value));
                }
            }
        }
        found
    }

    /// The same policy with other values for its headers, each made of the rule's number, the rule, the header's name and its value.
    pub fn map_headers<T, E>(
        &self,
        mut value: impl FnMut(usize, &HeaderRule<S>, &str, &S) -> Result<T, E>,
    ) -> Result<NetworkPolicy<T>, E> {
        let mut headers = Vec::with_capacity(self.headers.len());
        for (index, rule) in self.headers.iter().enumerate() {
            let set = rule.set.iter().map(|(name, old)| Ok((name.clone(), value(index, rule, name, old)?)));
            headers.push(HeaderRule {
                hosts: rule.hosts.clone(),
                paths: rule.paths.clone(),
                set: set.collect::<Result<_, E>>()?,
            });
        }
        let Self { internet, allow, deny, headers: _, limits } = self;
        Ok(NetworkPolicy { internet: *internet, allow: allow.clone(), deny: deny.clone(), headers, limits: *limits })
    }

    /// What becomes of what no rule speaks of.
    pub(super) const fn otherwise(&self) -> Verdict {
        if self.internet { Verdict::Allow } else { Verdict::Deny }
    }
}

impl NameGroups {
    /// The groups that an answer for this name opens, of the policy that they were made of: in ascending order.
    #[must_use]
    pub fn of<S>(&self, policy: &NetworkPolicy<S>, name: &str) -> Vec<NameGroup> {
        let of_rule = policy.allow.iter().zip(&self.of_rule).filter(|(rule, group)| group.is_some() && rule.covers_name(name));
        let mut found: Vec<NameGroup> = of_rule.filter_map(|(_, group)| *group).collect();
        found.extend(self.of_headers.filter(|_| policy.headers.iter().any(|rule| rule.covers_host(name))));
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn access(rule: &NetworkRule) -> Access {
    (rule.transport, rule.ports.clone())
}

fn check_rule(rule: &NetworkRule, denies: bool) -> Result<(), String> {
    if rule.except.iter().any(|target| target.is_name() != rule.to.is_name() || *target == NetworkTarget::Any) {
        return Err("except: exceptions of a name are names, exceptions of addresses are addresses".to_owned());
    }
    if rule.ports.len() > super::RULE_PORTS_MAX {
        return Err(format!("ports: {} ranges; at most {} are accepted", rule.ports.len(), super::RULE_PORTS_MAX));
    }
    if rule.ports.iter().any(|range| range.first == 0 || range.first > range.last) {
        return Err("ports: a range goes from a lower port to a higher one, from 1 to 65535".to_owned());
    }
    if rule.ports.windows(2).any(|pair| pair[0].last >= pair[1].first) {
        return Err("ports: ranges must be in order and must not overlap".to_owned());
    }
    let told = rule.ports.iter().all(|range| range.first == range.last && NAMED_PORTS.contains(&range.first));
    if denies && rule.to.is_name() && (!told || rule.transport == Some(Transport::Udp)) {
        return Err(
            "a name can be denied on all ports or on 80 and 443 over TCP, where connections say which name they mean: deny its \
             addresses, or allow only what is needed"
                .to_owned(),
        );
    }
    Ok(())
}

/// For records: policies are shared, not copied, wherever a record is.
pub(crate) mod shared {
    use super::{Arc, Deserialize, NetworkPolicy, Serialize};

    pub(crate) fn serialize<S: serde::Serializer>(policy: &Option<Arc<NetworkPolicy>>, to: S) -> Result<S::Ok, S::Error> {
        policy.as_deref().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Arc<NetworkPolicy>>, D::Error> {
        Ok(Option::<NetworkPolicy>::deserialize(from)?.map(Arc::new))
    }
}
