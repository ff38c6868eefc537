//! A plan as packet filter rules of the sandbox's own network namespace.
//!
//! Nobody inside has power over that namespace, nor raw sockets, so what is sent passes these rules. They live and end with the
//! namespace, not with the server: a sandbox keeps its plan when the server is gone, and nothing of it stays when the sandbox is.
//!
//! Where a connection may go is decided by its *original* destination, before any redirection, in whichever direction a packet
//! travels. A connection that was let through carries the mark of the plan that let it; with the next plan's mark it has to pass the
//! rules again.

use std::net::IpAddr;
use std::time::Duration;

use sandbank_model::{
    AddressRange, Checked, Destination, NameGroup, NamedAddress, NetworkPlan, PlanRule, PortRange, Transport, Verdict,
};

use sha2::{Digest as _, Sha256};

use super::netlink::Requests;
use super::nft::{Base, ESTABLISHED_OR_RELATED, Hook, Kept, Key, NEW, Rule, Side, Transaction, octets, octets_after};
use super::{Block, DNS_PORT, HTTP_PORT, TLS_PORT};

/// The table inside.
pub(super) const TABLE: &str = "sandbank";
/// Where refused connections wanted to go.
pub(super) const DENIED: [(Key, &str); 2] = [(Key::V4Port, "denied4"), (Key::V6Port, "denied6")];
/// So many destinations are remembered, for so long: what is told of refusals is bounded.
const DENIED_MAX: u32 = 64;
pub(super) const DENIED_LIFE: Duration = Duration::from_secs(60);
/// Connections of one sandbox where its plan says nothing: fewer than would fill the host's table of them.
const CONNECTIONS_MAX: u32 = 4096;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// The plan in full, in place of whatever was in force. `mark`: none that was used before; not 0, which unmarked connections have.
pub(super) fn install(plan: &NetworkPlan, named: &[NamedAddress], block: &Block, mark: u32) -> Requests {
    let mut transaction = Transaction::on(TABLE);
    transaction.fresh_table(&fingerprint(plan, block));
    write(transaction, plan, named, block, mark)
}

/// The first plan of a namespace. Nothing is removed, which the kernel would take its time for.
pub(super) fn install_first(plan: &NetworkPlan, block: &Block, mark: u32) -> Requests {
    let mut transaction = Transaction::on(TABLE);
    transaction.table(&fingerprint(plan, block));
    write(transaction, plan, &[], block, mark)
}

fn write(transaction: Transaction<'_>, plan: &NetworkPlan, named: &[NamedAddress], block: &Block, mark: u32) -> Requests {
    let mut writer = Writer { transaction, block, mark, sets: 0 };
    for (key, set) in DENIED {
        writer.transaction.set(set, key, Kept::Learned { most: DENIED_MAX, life: DENIED_LIFE });
    }
    for chain in ["pass", "refuse", "plan"] {
        writer.transaction.chain(chain, None);
    }
    let filter = |hook| Some(Base { kind: "filter", hook, priority: 0, drops: true });
    writer.transaction.chain("out", filter(Hook::Output));
    writer.transaction.chain("in", filter(Hook::Input));
    writer.transaction.chain("redirect", Some(Base { kind: "nat", hook: Hook::Output, priority: -100, drops: false }));
    writer.name_sets(plan);
    writer.base_chains(plan);
    writer.verdict_chains();
    writer.plan(plan);
    open(&mut writer.transaction, &spoken_of(plan, named));
    writer.transaction.finish()
}

/// Those in groups that the plan has.
pub(super) fn spoken_of(plan: &NetworkPlan, named: &[NamedAddress]) -> Vec<NamedAddress> {
    let known: Vec<NameGroup> = groups(plan).collect();
    named.iter().filter(|one| known.contains(&one.group)).copied().collect()
}

/// Tells plans apart: kept with the table, so that a server that comes back sees what is in force. Rules that are written otherwise by
/// another version of this program count as another plan.
pub(super) fn fingerprint(plan: &NetworkPlan, block: &Block) -> Vec<u8> {
    const RULES_VERSION: u8 = 1;
    let text = serde_json::to_vec(&(plan, block)).unwrap_or_default();
    let mut bytes = vec![RULES_VERSION];
    bytes.extend_from_slice(&Sha256::digest(&text));
    bytes
}

/// Opens addresses for names.
pub(super) fn open_names(named: &[NamedAddress]) -> Requests {
    let mut transaction = Transaction::on(TABLE);
    open(&mut transaction, named);
    transaction.finish()
}

fn open(transaction: &mut Transaction<'_>, named: &[NamedAddress]) {
    for one in named {
        transaction.renew_address(&name_set(one.group, one.address.is_ipv4()), one.address, one.life);
    }
}

fn groups(plan: &NetworkPlan) -> impl Iterator<Item = NameGroup> {
    plan.rules.iter().filter_map(|rule| match rule.to {
        Destination::Named(group) => Some(group),
        _ => None,
    })
}

fn name_set(group: NameGroup, v4: bool) -> String {
    format!("names{}-{}", group.0, if v4 { 4 } else { 6 })
}

const fn address_key(v4: bool) -> Key {
    if v4 { Key::V4 } else { Key::V6 }
}

struct Writer<'a> {
    transaction: Transaction<'a>,
    block: &'a Block,
    mark: u32,
    /// Sets of ranges made so far: their names.
    sets: u32,
}

impl Writer<'_> {
    fn name_sets(&mut self, plan: &NetworkPlan) {
        let mut all: Vec<NameGroup> = groups(plan).collect();
        all.sort_unstable();
        all.dedup();
        for group in all {
            for v4 in [true, false] {
                self.transaction.set(&name_set(group, v4), address_key(v4), Kept::ForATime);
            }
        }
    }

    fn base_chains(&mut self, plan: &NetworkPlan) {
        let (mark, limits) = (self.mark, plan.limits);
        self.transaction.rule("redirect", |rule| rule.out_by_loopback().leave());
        self.transaction.rule("out", |rule| rule.out_by_loopback().accept());
        self.transaction.rule("in", |rule| rule.in_by_loopback().accept());
        for chain in ["out", "in"] {
            self.transaction.rule(chain, |rule| rule.state(ESTABLISHED_OR_RELATED).marked(mark).accept());
        }
        // Nobody outside begins a connection: ports inside are reached by the loopback interface.
        self.transaction.rule("in", |rule| rule.state(NEW).drop());
        let connections = limits.connections.unwrap_or(CONNECTIONS_MAX);
        self.transaction.rule("out", |rule| rule.state(NEW).more_connections_than(connections).go_to("refuse"));
        for chain in ["out", "in"] {
            self.transaction.rule(chain, |rule| rule.jump("plan"));
        }
    }

    fn verdict_chains(&mut self) {
        let mark = self.mark;
        self.transaction.rule("pass", |rule| rule.mark(mark).accept());
        for (key, set) in DENIED {
            self.transaction.rule("refuse", |rule| rule.note_destination(key, set));
        }
        self.transaction.rule("refuse", |rule| rule.protocol(TCP).reset());
        self.transaction.rule("refuse", |rule| rule.forbid());
    }

    fn plan(&mut self, plan: &NetworkPlan) {
        self.services();
        self.redirect_names(plan);
        for rule in &plan.rules {
            let chain = if rule.verdict == Verdict::Allow { "pass" } else { "refuse" };
            self.rule(rule, "plan", |rule| rule.go_to(chain));
            // An address that a rule speaks of is judged by it, whatever name is asked for there.
            if plan.checked == Checked::All && !matches!(rule.to, Destination::Named(_)) {
                self.rule(rule, "redirect", |rule| rule.leave());
            }
        }
        if plan.checked == Checked::All && plan.otherwise == Verdict::Allow {
            self.redirect_web();
        }
        let chain = if plan.otherwise == Verdict::Allow { "pass" } else { "refuse" };
        self.transaction.rule("plan", |rule| rule.go_to(chain));
    }

    /// Whatever asks a resolver asks ours. What is redirected there, or to the proxy, may pass.
    fn services(&mut self) {
        for gateway in self.block.gateways() {
            for protocol in [UDP, TCP] {
                self.transaction.rule("redirect", |rule| {
                    rule.is_v4(gateway.is_ipv4()).protocol(protocol).port_is(53).redirect_to(gateway, DNS_PORT);
                });
                self.transaction.rule("plan", |rule| {
                    rule.address(Side::Destination, gateway).protocol(protocol).port_is(DNS_PORT).go_to("pass");
                });
                // Answers.
                self.transaction.rule("plan", |rule| {
                    rule.address(Side::Source, gateway).original_protocol(protocol).original_ports(53, 53).go_to("pass");
                });
            }
        }
    }

    /// Web connections to what is open for a name are looked at, whichever rule lets them through: the rules of the plan judge by where a
    /// connection wanted to go, so redirecting one that they refuse opens nothing.
    fn redirect_names(&mut self, plan: &NetworkPlan) {
        if plan.checked == Checked::Nothing {
            return;
        }
        for rule in plan.rules.iter().filter(|rule| matches!(rule.to, Destination::Named(_)) && rule.verdict == Verdict::Allow) {
            for (port, to) in [(80, HTTP_PORT), (443, TLS_PORT)] {
                let fits = rule.ports.is_empty() || rule.ports.iter().any(|range| (range.first..=range.last).contains(&port));
                if fits && rule.transport != Some(Transport::Udp) {
                    let ports = vec![PortRange::single(port)];
                    let only = PlanRule { transport: Some(Transport::Tcp), ports, ..rule.clone() };
                    for gateway in self.block.gateways() {
                        self.rule_of(&only, "redirect", gateway.is_ipv4(), |rule| rule.redirect_to(gateway, to));
                    }
                }
            }
        }
    }

    /// Whatever no rule speaks of.
    fn redirect_web(&mut self) {
        for gateway in self.block.gateways() {
            for (port, to) in [(80, HTTP_PORT), (443, TLS_PORT)] {
                self.transaction.rule("redirect", |rule| {
                    rule.is_v4(gateway.is_ipv4()).protocol(TCP).port_is(port).redirect_to(gateway, to);
                });
            }
        }
    }

    /// A rule of the plan as rules of a chain, with what happens at their end.
    fn rule(&mut self, rule: &PlanRule, chain: &str, then: impl Fn(&mut Rule<'_, '_>)) {
        let families: &[bool] = if matches!(rule.to, Destination::Anywhere) { &[true] } else { &[true, false] };
        for v4 in families {
            self.rule_of(rule, chain, *v4, &then);
        }
    }

    fn rule_of(&mut self, rule: &PlanRule, chain: &str, v4: bool, then: impl Fn(&mut Rule<'_, '_>)) {
        let set = match &rule.to {
            Destination::Anywhere => None,
            Destination::Named(group) => Some(name_set(*group, v4)),
            Destination::Addresses(ranges) => match self.address_set(ranges, v4) {
                Some(set) => Some(set),
                None => return,
            },
        };
        let ports = self.ports(&rule.ports);
        let protocols: &[Option<u8>] = match (rule.transport, &ports) {
            (Some(Transport::Tcp), _) => &[Some(TCP)],
            (Some(Transport::Udp), _) => &[Some(UDP)],
            (None, Ports::All) => &[None],
            (None, _) => &[Some(TCP), Some(UDP)],
        };
        for protocol in protocols {
            self.transaction.rule(chain, |rule| {
                if let Some(set) = &set {
                    rule.original_destination_in(address_key(v4), set);
                }
                if let Some(protocol) = protocol {
                    rule.original_protocol(*protocol);
                }
                match &ports {
                    Ports::All => {}
                    Ports::One(range) => {
                        rule.original_ports(range.first, range.last);
                    }
                    Ports::Set(set) => {
                        rule.original_port_in(set);
                    }
                }
                then(rule);
            });
        }
    }

    /// A set of the ranges of one family; `None` when there are none.
    fn address_set(&mut self, ranges: &[AddressRange], v4: bool) -> Option<String> {
        let of_family = || ranges.iter().filter(|range| range.first.is_ipv4() == v4);
        of_family().next()?;
        let name = self.next_set();
        self.transaction.set(&name, address_key(v4), Kept::Ranges);
        self.transaction.add_ranges(&name, of_family().map(|range| (octets(range.first), octets_after(range.last))));
        Some(name)
    }

    fn ports(&mut self, ranges: &[PortRange]) -> Ports {
        match ranges {
            [] => Ports::All,
            [one] => Ports::One(*one),
            several => {
                let name = self.next_set();
                self.transaction.set(&name, Key::Port, Kept::Ranges);
                let bytes = |port: u16| port.to_be_bytes().to_vec();
                let ranges = several.iter().map(|range| (bytes(range.first), range.last.checked_add(1).map(bytes)));
                self.transaction.add_ranges(&name, ranges);
                Ports::Set(name)
            }
        }
    }

    fn next_set(&mut self) -> String {
        self.sets += 1;
        format!("set{}", self.sets)
    }
}

enum Ports {
    All,
    One(PortRange),
    Set(String),
}

/// The destination that a refused connection's element stands for: address, then port.
pub(super) fn read_denied(key: Key, bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let size = if key == Key::V4Port { 4 } else { 16 };
    let address = super::link::to_address(bytes.get(..size)?)?;
    let port = bytes.get(size..size + 2)?;
    Some((address, u16::from_be_bytes([port[0], port[1]])))
}
