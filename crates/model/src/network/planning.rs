//! From a policy to the plan that a driver enforces, and what a plan means.

use std::collections::HashMap;

use super::ranges::AddressSet;
use super::{
    Checked, Destination, Floor, Flow, NameGroup, NameGroups, NetworkPlan, NetworkPolicy, NetworkRule, NetworkTarget, PlanRule,
    PortRange, Transport, Verdict,
};

const HTTPS: u16 = 443;

impl<S> NetworkPolicy<S> {
    /// What a driver enforces. Nothing is left to decide but which addresses were answered for which names, and what the host's proxy
    /// sees in the connections that are [`Checked`].
    #[must_use]
    pub fn plan(&self, floor: &Floor) -> NetworkPlan {
        let groups = self.name_groups();
        let mut rules = vec![plan_rule(Destination::Addresses(floor.ranges()), (None, Vec::new()), Verdict::Deny)];
        address_rules(&self.allow, Verdict::Allow, &mut rules);
        name_rules(&groups, &mut rules);
        address_rules(&self.deny, Verdict::Deny, &mut rules);
        let names_denied = self.internet && self.deny.iter().any(|rule| rule.to.is_name());
        if names_denied {
            // Over QUIC nobody on the way sees which name is meant; without it, programs use TCP.
            rules.push(plan_rule(Destination::Anywhere, quic(), Verdict::Deny));
        }
        if let Some(group) = groups.of_headers {
            // Behind `deny`, since headers open nothing: it only tells whose connections the proxy looks at.
            let access = groups.opens.get(usize::from(group.0)).cloned().unwrap_or_default();
            rules.push(plan_rule(Destination::Named(group), access, Verdict::Allow));
        }
        let otherwise = self.otherwise();
        rules.retain(|rule| !matches!(&rule.to, Destination::Addresses(ranges) if ranges.is_empty()));
        while rules.last().is_some_and(|rule| rule.verdict == otherwise && !matches!(rule.to, Destination::Named(_))) {
            rules.pop();
        }
        NetworkPlan { rules, otherwise, checked: self.checked(names_denied), limits: self.limits }
    }

    fn checked(&self, names_denied: bool) -> Checked {
        if names_denied {
            Checked::All
        } else if !self.headers.is_empty() || self.allow.iter().any(|rule| rule.to.is_name()) {
            Checked::Named
        } else {
            Checked::Nothing
        }
    }
}

type Access = (Option<Transport>, Vec<PortRange>);

fn quic() -> Access {
    (Some(Transport::Udp), vec![PortRange::single(HTTPS)])
}

fn plan_rule(to: Destination, (transport, ports): Access, verdict: Verdict) -> PlanRule {
    PlanRule { to, transport, ports, verdict }
}

fn covers(ports: &[PortRange], port: u16) -> bool {
    ports.is_empty() || ports.iter().any(|range| range.first <= port && port <= range.last)
}

/// What the groups open. Those that name their transport come first: of the others, QUIC is denied.
fn name_rules(groups: &NameGroups, out: &mut Vec<PlanRule>) {
    let numbered = groups.opens.iter().zip(0u8..).map(|(access, number)| (NameGroup(number), access));
    let numbered: Vec<_> = numbered.filter(|(group, _)| groups.of_headers != Some(*group)).collect();
    for (group, access) in numbered.iter().filter(|(_, access)| access.0.is_some()) {
        out.push(plan_rule(Destination::Named(*group), (*access).clone(), Verdict::Allow));
    }
    for (group, access) in numbered.iter().filter(|(_, access)| access.0.is_none()) {
        if covers(&access.1, HTTPS) {
            out.push(plan_rule(Destination::Named(*group), quic(), Verdict::Deny));
        }
        out.push(plan_rule(Destination::Named(*group), (*access).clone(), Verdict::Allow));
    }
}

/// Rules about addresses, those with the same ports and transport together, in the order in which such first appear.
fn address_rules(rules: &[NetworkRule], verdict: Verdict, out: &mut Vec<PlanRule>) {
    let mut order: Vec<Access> = Vec::new();
    let mut grouped: HashMap<Access, Vec<&NetworkRule>> = HashMap::new();
    for rule in rules.iter().filter(|rule| !rule.to.is_name()) {
        let access: Access = (rule.transport, rule.ports.clone());
        grouped
            .entry(access.clone())
            .or_insert_with(|| {
                order.push(access);
                Vec::new()
            })
            .push(rule);
    }
    for access in order {
        let Some(rules) = grouped.remove(&access) else { continue };
        let to = destination(&rules);
        out.push(plan_rule(to, access, verdict));
    }
}

fn destination(rules: &[&NetworkRule]) -> Destination {
    if rules.iter().any(|rule| rule.to == NetworkTarget::Any && rule.except.is_empty()) {
        return Destination::Anywhere;
    }
    let plain = rules.iter().filter(|rule| rule.except.is_empty());
    let together = plain.filter_map(|rule| match &rule.to {
        NetworkTarget::Addresses(cidr) => Some(cidr),
        NetworkTarget::Any | NetworkTarget::Name(_) => None,
    });
    let mut set = AddressSet::of(together);
    for rule in rules.iter().filter(|rule| !rule.except.is_empty()) {
        set = set.union(addresses(std::slice::from_ref(&rule.to)).minus(&addresses(&rule.except)));
    }
    Destination::Addresses(set.ranges())
}

fn addresses(targets: &[NetworkTarget]) -> AddressSet {
    let mut cidrs = Vec::with_capacity(targets.len());
    for target in targets {
        match target {
            NetworkTarget::Addresses(cidr) => cidrs.push(*cidr),
            NetworkTarget::Any => cidrs.extend(super::target::everywhere()),
            NetworkTarget::Name(_) => {}
        }
    }
    AddressSet::of(&cidrs)
}

impl NetworkPlan {
    /// What becomes of a packet to an address that is open for these groups of names: what a driver's rules in the kernel must say.
    /// Of what is [`Checked`], the proxy decides once more.
    #[must_use]
    pub fn verdict(&self, opened: &[NameGroup], flow: &Flow) -> Verdict {
        let speaks = |rule: &&PlanRule| {
            let there = match &rule.to {
                Destination::Anywhere => true,
                Destination::Addresses(ranges) => ranges.iter().any(|range| {
                    range.first.is_ipv4() == flow.address.is_ipv4() && range.first <= flow.address && flow.address <= range.last
                }),
                Destination::Named(group) => opened.contains(group),
            };
            there
                && (rule.transport.is_none() || rule.transport == flow.transport)
                && (rule.ports.is_empty() || (flow.transport.is_some() && covers(&rule.ports, flow.port)))
        };
        self.rules.iter().find(speaks).map_or(self.otherwise, |rule| rule.verdict)
    }
}
