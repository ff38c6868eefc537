//! Network policies: what is accepted, what each rule covers, and that a plan means what its policy says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use sandbank_model::{
    AddressRange, Checked, Cidr, Destination, Floor, Flow, HeaderRule, HeaderSecret, NAME_GROUPS_MAX, NameGroup, NamePattern,
    NetworkLimits, NetworkPlan, NetworkPolicy, NetworkRule, NetworkTarget, Overrides, PortRange, RULES_MAX, SandboxSpec, Sealed,
    Transport, Verdict,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn rules(texts: &[&str]) -> Vec<NetworkRule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn policy(internet: bool, allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    NetworkPolicy { internet, allow: rules(allow), deny: rules(deny), ..NetworkPolicy::default() }
}

fn tcp(address: &str, port: u16) -> Flow {
    Flow { address: ip(address), port, transport: Some(Transport::Tcp) }
}

fn udp(address: &str, port: u16) -> Flow {
    Flow { transport: Some(Transport::Udp), ..tcp(address, port) }
}

fn headers(hosts: &[&str], names: &[&str]) -> HeaderRule {
    let secret = || HeaderSecret { owner: None, sealed: Sealed(vec![1]) };
    HeaderRule {
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        paths: Vec::new(),
        set: names.iter().map(|name| ((*name).to_owned(), secret())).collect(),
    }
}

#[test]
fn a_rule_s_text_is_read_and_written_alike() {
    for (text, shown) in [
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4/32", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("Example.COM.", "example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("*.example.com:443", "*.example.com:443"),
        ("example.com:8000-8100", "example.com:8000-8100"),
        ("example.com:443,80,81", "example.com:80-81,443"),
        ("udp://10.0.0.0/8:53", "udp://10.0.0.0/8:53"),
        ("tcp://_dmarc.example.com", "tcp://_dmarc.example.com"),
        ("*", "*"),
        ("*:53", "*:53"),
    ] {
        let rule: NetworkRule = text.parse().unwrap();
        assert_eq!(rule.to_string(), shown);
        assert_eq!(shown.parse::<NetworkRule>().unwrap(), rule, "{text}");
        let kept = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<NetworkRule>(&kept).unwrap(), rule);
    }
}

#[test]
fn nonsense_is_refused_with_its_text_and_a_way_out() {
    let long_label = format!("{}.example.com", "a".repeat(64));
    let long_name = "a.".repeat(130) + "com";
    for (text, advice) in [
        ("", "a name has 1 to 253 characters"),
        ("10.0.0.0/33", "from 0 to 32"),
        ("10.0.0.0/+8", "from 0 to 32"),
        ("10.0.0.0/", "from 0 to 32"),
        ("2001:db8::/129", "from 0 to 128"),
        ("::ffff:1.2.3.4", "write 1.2.3.4"),
        ("1.2.3", "four numbers"),
        ("1.2.3.400", "four numbers"),
        ("01.2.3.4", "four numbers"),
        ("https://example.com", "write the host alone"),
        ("example.com/path", "no address or range"),
        ("bücher.example", "xn--"),
        ("a.*.example.com", "*. in front"),
        ("*example.com", "*. in front"),
        ("-a.example", "'-' at their ends"),
        ("a b.example", "letters, digits"),
        ("a..example", "1 to 63"),
        (long_label.as_str(), "1 to 63"),
        (long_name.as_str(), "1 to 253"),
        ("example.com:0", "1 to 65535"),
        ("example.com:65536", "1 to 65535"),
        ("example.com:", "1 to 65535"),
        ("example.com:+80", "1 to 65535"),
        ("example.com:90-80", "lower one comes first"),
        ("[2001:db8::1]:x", "1 to 65535"),
        ("2001:db8::1:443:x", "no address or range"),
        ("sctp://example.com", "write the host alone"),
    ] {
        let error = text.parse::<NetworkRule>().unwrap_err().to_string();
        assert!(error.contains(advice), "{text}: {error}");
        assert!(error.len() < 500, "{error}");
    }
    let many = format!("example.com:{}", vec!["1"; 65].join(","));
    assert!(many.parse::<NetworkRule>().unwrap_err().to_string().contains("at most 64"));
}

#[test]
fn a_wildcard_covers_all_below_and_not_itself() {
    let wild: NamePattern = "*.example.com".parse().unwrap();
    for name in ["a.example.com", "A.B.Example.Com.", "*.example.com"] {
        assert!(wild.covers(name), "{name}");
    }
    for name in ["example.com", ".example.com", "xexample.com", "example.com.evil.net", "", ".", "a.example.comm"] {
        assert!(!wild.covers(name), "{name}");
    }
    let one: NamePattern = "example.com".parse().unwrap();
    assert!(one.covers("EXAMPLE.com.") && !one.covers("a.example.com") && !one.covers("example.com.."));
}

#[test]
fn the_floor_is_what_nobody_reaches_from_outside() {
    let floor = Floor::default();
    for denied in [
        "0.0.0.0",
        "10.255.0.1",
        "100.100.100.200",
        "127.0.0.53",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "198.19.255.255",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "2001::1",
        "2001:db8::1",
        "2002:0808:0808::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "5f00::1",
    ] {
        assert!(floor.denies(ip(denied)), "{denied}");
    }
    for open in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "172.32.0.0", "223.255.255.255", "2606:4700::1111", "2a00::1", "2003::1"]
    {
        assert!(!floor.denies(ip(open)), "{open}");
    }
}

#[test]
fn an_operator_takes_ranges_out_of_the_floor() {
    let floor = Floor::new(&["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap(), "8.0.0.0/8".parse().unwrap()]);
    for open in ["10.1.0.0", "10.1.255.255", "fd00:1::5", "8.8.8.8"] {
        assert!(!floor.denies(ip(open)), "{open}");
    }
    for denied in ["10.0.255.255", "10.2.0.0", "fd00:2::", "fd00:0:ffff::", "169.254.169.254"] {
        assert!(floor.denies(ip(denied)), "{denied}");
    }
    // Taking all out leaves nothing, and a closed policy is closed all the same.
    let none = Floor::new(&["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    assert!(none.ranges().is_empty() && !none.denies(ip("127.0.0.1")));
    let plan = policy(false, &[], &[]).plan(&none);
    assert_eq!(plan, NetworkPlan::closed());
}

#[test]
fn a_plan_is_short_where_a_policy_is_simple() {
    let floor = Floor::default();
    assert_eq!(NetworkPolicy::<HeaderSecret>::closed().plan(&floor), NetworkPlan::closed());
    let open = NetworkPolicy::<HeaderSecret>::default().plan(&floor);
    assert_eq!((open.rules.len(), open.otherwise, open.checked), (1, Verdict::Allow, Checked::Nothing));
    let limited = NetworkLimits { connections: Some(7), ..NetworkLimits::default() };
    assert_eq!(NetworkPolicy { limits: limited, ..policy(true, &[], &[]) }.plan(&floor).limits, limited);
}

#[test]
fn rules_with_the_same_ports_share_a_group() {
    let mine = policy(false, &["a.com:443", "b.com", "*.c.com:443", "1.2.3.4", "udp://d.com:443"], &[]);
    assert_eq!(mine.groups_of("a.com"), vec![NameGroup(0)]);
    assert_eq!(mine.groups_of("B.com."), vec![NameGroup(1)]);
    assert_eq!(mine.groups_of("x.y.c.com"), vec![NameGroup(0)]);
    assert_eq!(mine.groups_of("d.com"), vec![NameGroup(2)]);
    assert!(mine.groups_of("evil.com").is_empty());
    let plan = mine.plan(&Floor::default());
    assert_eq!(plan.checked, Checked::Named);
    let opened = |group: u8, flow: Flow| plan.verdict(&[NameGroup(group)], &flow);
    assert_eq!(opened(0, tcp("9.9.9.9", 443)), Verdict::Allow);
    assert_eq!(opened(0, tcp("9.9.9.9", 80)), Verdict::Deny);
    assert_eq!(opened(0, udp("9.9.9.9", 443)), Verdict::Deny, "QUIC would hide the name");
    assert_eq!(opened(1, udp("9.9.9.9", 443)), Verdict::Deny);
    assert_eq!(opened(1, udp("9.9.9.9", 5000)), Verdict::Allow);
    assert_eq!(opened(1, Flow { transport: None, ..tcp("9.9.9.9", 0) }), Verdict::Allow);
    assert_eq!(opened(2, udp("9.9.9.9", 443)), Verdict::Allow, "somebody asked for it by name");
    assert_eq!(opened(2, tcp("127.0.0.1", 443)), Verdict::Deny, "an answer never opens the floor");
}

#[test]
fn exceptions_keep_the_order_of_other_dialects_lists() {
    let mut mine = policy(false, &["*.example.com", "20.0.0.0/8", "*:8080"], &[]);
    mine.allow[0].except = vec!["evil.example.com".parse().unwrap(), "*.bad.example.com".parse().unwrap()];
    mine.allow[1].except = vec!["20.1.0.0/16".parse().unwrap()];
    mine.allow[2].except = vec!["30.0.0.0/8".parse().unwrap()];
    mine.check().unwrap();
    assert!(mine.groups_of("evil.example.com").is_empty() && mine.groups_of("a.bad.example.com").is_empty());
    assert!(!mine.may_resolve("evil.example.com") || mine.allow[2].to == NetworkTarget::Any);
    assert_eq!(mine.groups_of("bad.example.com"), vec![NameGroup(0)]);
    let plan = mine.plan(&Floor::default());
    assert_eq!(plan.verdict(&[], &tcp("20.2.0.1", 1)), Verdict::Allow);
    assert_eq!(plan.verdict(&[], &tcp("20.1.0.1", 1)), Verdict::Deny);
    assert_eq!(plan.verdict(&[], &tcp("20.1.0.1", 8080)), Verdict::Allow);
    assert_eq!(plan.verdict(&[], &tcp("30.1.0.1", 8080)), Verdict::Deny);
    for wrong in ["20.0.0.0/16", "*"] {
        mine.allow[0].except = vec![wrong.parse().unwrap()];
        assert!(mine.check().unwrap_err().to_string().starts_with("allow[0]: except:"), "{wrong}");
    }
}

#[test]
fn denied_names_are_looked_for_in_every_connection() {
    let floor = Floor::default();
    let mine = policy(true, &["good.evil.com"], &["*.evil.com"]);
    mine.check().unwrap();
    let plan = mine.plan(&floor);
    assert_eq!(plan.checked, Checked::All);
    assert_eq!(plan.verdict(&[], &udp("9.9.9.9", 443)), Verdict::Deny, "QUIC would hide the name");
    assert_eq!(plan.verdict(&[], &tcp("9.9.9.9", 443)), Verdict::Allow);
    let asked = |name: &str| mine.verdict(&floor, Some(name), &tcp("9.9.9.9", 443));
    assert_eq!(
        (asked("a.evil.com"), asked("good.evil.com"), asked("other.org")),
        (Verdict::Deny, Verdict::Allow, Verdict::Allow)
    );
    assert_eq!(mine.verdict(&floor, Some("good.evil.com"), &tcp("10.0.0.1", 443)), Verdict::Deny);
    assert_eq!(mine.name_verdict("a.evil.com", Transport::Tcp, 443), Verdict::Deny);
    assert_eq!(mine.name_rule("other.org", Transport::Tcp, 443), None);
    assert!(!mine.may_resolve("a.evil.com") && mine.may_resolve("good.evil.com") && mine.may_resolve("other.org"));
    // What nobody could enforce is not promised.
    for wrong in ["evil.com:22", "evil.com:443-444", "udp://evil.com"] {
        let error = policy(true, &[], &[wrong]).check().unwrap_err().to_string();
        assert!(error.starts_with("deny[0]: a name can be denied on all ports"), "{error}");
    }
    policy(true, &[], &["evil.com:80,443", "tcp://evil.org"]).check().unwrap();
    // Without the internet nothing is left for such a rule to deny.
    assert_eq!(policy(false, &[], &["evil.com"]).plan(&floor).checked, Checked::Nothing);
}

#[test]
fn names_are_resolved_when_they_may_be_reached() {
    for (mine, name, may) in [
        (policy(true, &[], &[]), "x.org", true),
        (policy(false, &[], &[]), "x.org", false),
        (policy(false, &["a.com"], &[]), "a.com", true),
        (policy(false, &["a.com"], &[]), "x.org", false),
        (policy(false, &["1.2.3.4"], &[]), "x.org", false),
        (policy(false, &["*:443"], &[]), "x.org", true),
        (policy(false, &["0.0.0.0/0"], &[]), "x.org", true),
        (policy(true, &["a.com"], &["*"]), "x.org", false),
        (policy(true, &["a.com"], &["0.0.0.0/0", "::/0"]), "x.org", false),
        (policy(true, &["a.com"], &["0.0.0.0/0"]), "x.org", true),
        (policy(true, &[], &["*:25"]), "x.org", true),
        (policy(true, &[], &["evil.com:443"]), "evil.com", true),
    ] {
        assert_eq!(mine.may_resolve(name), may, "{mine:?} {name}");
    }
}

#[test]
fn headers_open_nothing_and_are_seen_by_the_proxy() {
    let floor = Floor::default();
    let with = |mine: NetworkPolicy| NetworkPolicy { headers: vec![headers(&["api.com"], &["Authorization"])], ..mine };
    let open = with(policy(true, &[], &["9.9.9.0/24"]));
    let plan = open.plan(&floor);
    assert_eq!((plan.checked, open.groups_of("api.com")), (Checked::Named, vec![NameGroup(0)]));
    assert!(plan.rules.iter().any(|rule| rule.to == Destination::Named(NameGroup(0)) && rule.verdict == Verdict::Allow));
    assert_eq!(plan.verdict(&[NameGroup(0)], &tcp("8.8.8.8", 443)), Verdict::Allow);
    assert_eq!(plan.verdict(&[NameGroup(0)], &tcp("9.9.9.9", 443)), Verdict::Deny, "what is denied stays so");
    let closed = with(policy(false, &["a.com"], &[]));
    assert!(closed.groups_of("api.com").is_empty());
    assert_eq!(with(policy(false, &["api.com"], &[])).groups_of("api.com"), vec![NameGroup(0)]);
    assert_eq!(with(policy(false, &["8.0.0.0/8"], &[])).plan(&floor).checked, Checked::Named);
    assert_eq!(with(policy(false, &["8.0.0.0/8:22"], &[])).plan(&floor).checked, Checked::Named);
}

#[test]
fn headers_follow_host_and_path() {
    let mut rule = headers(&["api.com", "*.api.com"], &["Authorization", "X-Team"]);
    let plain = headers(&["*.api.com"], &["authorization", "X-Other"]);
    rule.paths = vec!["/v1".into(), "/public/".into(), "/draft*".into()];
    let mine = NetworkPolicy { headers: vec![rule, plain], ..policy(true, &[], &[]) };
    mine.check().unwrap();
    let names = |host: &str, path: &str| -> Vec<(usize, String)> {
        mine.headers_for(host, path).into_iter().map(|(index, name, _)| (index, name.to_owned())).collect()
    };
    let first = vec![(0, "Authorization".to_owned()), (0, "X-Team".to_owned())];
    for path in ["/v1", "/v1/", "/v1/models", "/public/", "/public/x", "/draft", "/drafts/1"] {
        assert_eq!(names("API.com.", path), first, "{path}");
    }
    for path in
        ["/", "/v10", "/public", "/v1/../admin", "/v1/%2e%2e/admin", "/v1//admin", "/v1/..%2Fadmin", "/v1\\..", "/v1/.", "v1"]
    {
        assert_eq!(names("api.com", path), vec![], "{path}");
    }
    assert_eq!(names("x.api.com", "/v1").len(), 3, "the first rule's Authorization, and X-Other of the second");
    assert_eq!(names("x.api.com", "/other"), vec![(1, "X-Other".to_owned()), (1, "authorization".to_owned())]);
    assert!(names("api.com.evil.net", "/v1").is_empty());
}

#[test]
fn header_rules_have_bounds() {
    let error = |rule: HeaderRule| {
        let mine = NetworkPolicy { headers: vec![headers(&["ok.com"], &["A"]), rule], ..policy(true, &[], &[]) };
        mine.check().unwrap_err().to_string()
    };
    let long_host = format!("{}.{}.com", "a".repeat(63), "b".repeat(63));
    assert!(error(headers(&[], &["A"])).starts_with("headers[1].hosts: "));
    assert!(error(headers(&["a.com"; 11], &["A"])).starts_with("headers[1].hosts: "));
    assert!(error(headers(&[&long_host], &["A"])).starts_with("headers[1].hosts[0]: has 131 characters"));
    assert!(error(headers(&["a.com"], &[])).starts_with("headers[1].set: "));
    for name in ["Host", "content-length", "Transfer-Encoding", "connection", "TE", "Proxy-Authorization"] {
        assert!(error(headers(&["a.com"], &[name])).contains("cannot be set"), "{name}");
    }
    for name in ["", "a b", "a:b", "ä", "a\r\nb", &"a".repeat(65)] {
        assert!(error(headers(&["a.com"], &[name])).contains("1 to 64 letters"), "{name:?}");
    }
    assert!(error(headers(&["a.com"], &["X-A", "x-a"])).contains("set twice"));
    let many: Vec<String> = (0..21).map(|n| format!("X-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(error(headers(&["a.com"], &many)).contains("1 to 20 headers"));
    for path in ["v1", "/a?b", "/a/../b", "/a b", "/a*b"] {
        let rule = HeaderRule { paths: vec!["/".into(), path.into()], ..headers(&["a.com"], &["A"]) };
        assert!(error(rule).starts_with("headers[1].paths[1]: "), "{path}");
    }
    let mine = NetworkPolicy { headers: vec![headers(&["a.com"], &["A"]); 11], ..policy(true, &[], &[]) };
    assert!(mine.check().unwrap_err().to_string().starts_with("headers: has 11 rules"));
}

#[test]
fn policies_have_bounds() {
    let one: NetworkRule = "1.2.3.4".parse().unwrap();
    let mut mine = NetworkPolicy { allow: vec![one; RULES_MAX], ..policy(true, &[], &[]) };
    mine.check().unwrap();
    mine.deny = rules(&["1.2.3.4"]);
    assert!(mine.check().unwrap_err().to_string().contains("at most 4096"));
    let groups = |count: u16| -> NetworkPolicy {
        let allow = (1..=count).map(|port| format!("a.com:{port}").parse().unwrap()).collect();
        NetworkPolicy { allow, ..policy(false, &[], &[]) }
    };
    groups(u16::try_from(NAME_GROUPS_MAX).unwrap()).check().unwrap();
    assert!(groups(201).check().unwrap_err().to_string().starts_with("allow: "));
    // One that nobody checked opens less, not more.
    let plan = groups(300).plan(&Floor::default());
    assert_eq!(plan.rules.iter().filter(|rule| matches!(rule.to, Destination::Named(_))).count(), NAME_GROUPS_MAX);
    let with = |limits| NetworkPolicy { limits, ..policy(true, &[], &[]) };
    let slow = with(NetworkLimits { in_bytes_per_second: Some(1), ..NetworkLimits::default() });
    assert!(slow.check().unwrap_err().to_string().starts_with("limits.inBytesPerSecond"));
    let none = with(NetworkLimits { connections: Some(0), ..NetworkLimits::default() });
    assert!(none.check().unwrap_err().to_string().starts_with("limits.connections"));
}

#[test]
fn a_record_without_a_policy_reads_as_before() {
    let read: NetworkPolicy = serde_json::from_str("{}").unwrap();
    assert_eq!(read, NetworkPolicy::default());
    let mine = NetworkPolicy { headers: vec![headers(&["a.com"], &["A"])], ..policy(false, &["*.b.com:443"], &["10.0.0.0/8"]) };
    let kept = serde_json::to_string(&mine).unwrap();
    assert_eq!(serde_json::from_str::<NetworkPolicy>(&kept).unwrap(), mine);
    assert!(!format!("{mine:?}").contains("[1]"), "a sealed value does not show");
}

// Addresses from few neighbourhoods, so that rules meet them: public ones, and some of the floor.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..4, 0u8..4).prop_map(|(a, b)| IpAddr::from([20, 0, a, b])),
        (0u8..2).prop_map(|a| IpAddr::from([10, 0, 0, a])),
        (0u16..4).prop_map(|a| IpAddr::from([0x2a00, 0, 0, 0, 0, 0, 0, a])),
        (0u16..2).prop_map(|a| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, a])),
    ]
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (address(), 0u8..=8).prop_map(|(address, short)| {
        let full = if address.is_ipv4() { 32 } else { 128 };
        // Mostly a few addresses, sometimes all.
        Cidr::new(address, if short == 8 { 0 } else { full - short / 2 }).unwrap()
    })
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a.com", "b.a.com", "c.b.a.com", "d.org"]).prop_map(str::to_owned)
}

fn pattern() -> impl Strategy<Value = NetworkTarget> {
    (name(), any::<bool>()).prop_map(|(name, wild)| format!("{}{name}", if wild { "*." } else { "" }).parse().unwrap())
}

fn ports() -> impl Strategy<Value = Vec<PortRange>> {
    prop_oneof![
        3 => Just(vec![]),
        2 => prop::sample::select(vec![80, 443, 444]).prop_map(|port| vec![PortRange::single(port)]),
        1 => Just(vec![PortRange { first: 80, last: 443 }]),
    ]
}

fn transport() -> impl Strategy<Value = Option<Transport>> {
    prop::sample::select(vec![None, None, Some(Transport::Tcp), Some(Transport::Udp)])
}

fn rule() -> impl Strategy<Value = NetworkRule> {
    let address = || cidr().prop_map(NetworkTarget::Addresses);
    let addresses = (prop_oneof![8 => address(), 1 => Just(NetworkTarget::Any)], prop::collection::vec(address(), 0..2));
    let names = (pattern(), prop::collection::vec(pattern(), 0..2));
    (prop_oneof![addresses.boxed(), names.boxed()], ports(), transport())
        .prop_map(|((to, except), ports, transport)| NetworkRule { except, transport, ..NetworkRule::to(to) }.on_ports(ports))
}

fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
    let lists = (prop::collection::vec(rule(), 0..6), prop::collection::vec(rule(), 0..6));
    (any::<bool>(), lists, any::<bool>()).prop_map(|(internet, (allow, deny), with_headers)| NetworkPolicy {
        internet,
        allow,
        deny,
        headers: if with_headers { vec![headers(&["*.a.com"], &["A"])] } else { Vec::new() },
        limits: NetworkLimits::default(),
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    let port = prop::sample::select(vec![22, 80, 200, 443, 444]);
    (address(), port, prop::sample::select(vec![None, Some(Transport::Tcp), Some(Transport::Udp)]))
        .prop_map(|(address, port, transport)| Flow { address, port: if transport.is_some() { port } else { 0 }, transport })
}

/// A policy read line by line, with nothing of how plans are made.
fn naive(mine: &NetworkPolicy, names: &[String], flow: &Flow) -> Verdict {
    let private = match flow.address {
        IpAddr::V4(four) => four.octets()[0] == 10,
        IpAddr::V6(six) => six.segments()[0] == 0xfd00,
    };
    if private {
        return Verdict::Deny;
    }
    let in_cidr = |cidr: &Cidr| match (cidr.first(), cidr.last(), flow.address) {
        (IpAddr::V4(low), IpAddr::V4(high), IpAddr::V4(at)) => (u32::from(low)..=u32::from(high)).contains(&u32::from(at)),
        (IpAddr::V6(low), IpAddr::V6(high), IpAddr::V6(at)) => (u128::from(low)..=u128::from(high)).contains(&u128::from(at)),
        _ => false,
    };
    let meets = |target: &NetworkTarget, name: Option<&str>| match (target, name) {
        (NetworkTarget::Any, None) => true,
        (NetworkTarget::Addresses(cidr), None) => in_cidr(cidr),
        (NetworkTarget::Name(_), Some(name)) => {
            let text = target.to_string();
            text.strip_prefix('*').map_or(text == name, |tail| name.ends_with(tail))
        }
        _ => false,
    };
    let speaks = |rule: &NetworkRule, name: Option<&str>| {
        let quic = flow.transport == Some(Transport::Udp) && flow.port == 443;
        meets(&rule.to, name)
            && !rule.except.iter().any(|target| meets(target, name))
            && rule.transport.is_none_or(|transport| flow.transport == Some(transport))
            && (rule.ports.is_empty()
                || (flow.transport.is_some() && rule.ports.iter().any(|range| (range.first..=range.last).contains(&flow.port))))
            && !(name.is_some() && rule.transport.is_none() && quic)
    };
    let named = |rule: &NetworkRule| names.iter().any(|name| speaks(rule, Some(name)));
    if mine.allow.iter().any(|rule| speaks(rule, None) || named(rule)) {
        return Verdict::Allow;
    }
    let quic = flow.transport == Some(Transport::Udp) && flow.port == 443;
    let over_tcp = |rule: &NetworkRule| {
        let flow = Flow { transport: Some(Transport::Tcp), ..*flow };
        rule.transport.is_none() && names.iter().any(|name| rule.covers_name(name)) && rule.covers_port(flow.port, flow.transport)
    };
    if mine.deny.iter().any(|rule| speaks(rule, None)) || (quic && mine.allow.iter().any(over_tcp)) {
        return Verdict::Deny;
    }
    let hidden = quic && mine.deny.iter().any(|rule| rule.to.is_name());
    if mine.internet && !hidden { Verdict::Allow } else { Verdict::Deny }
}

fn well_formed(ranges: &[AddressRange]) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(four) => u128::from(u32::from(four)),
        IpAddr::V6(six) => u128::from(six),
    };
    let ordered = ranges.iter().all(|range| range.first.is_ipv4() == range.last.is_ipv4() && range.first <= range.last);
    let apart = ranges.windows(2).all(|pair| {
        if pair[0].last.is_ipv4() == pair[1].first.is_ipv4() {
            number(pair[0].last) + 1 < number(pair[1].first)
        } else {
            pair[0].last.is_ipv4()
        }
    });
    ordered && apart && !ranges.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_means_what_its_policy_says(mine in any_policy(), flow in flow(), names in prop::collection::vec(name(), 0..3)) {
        let plan = mine.plan(&Floor::default());
        let mut opened: Vec<NameGroup> = names.iter().flat_map(|name| mine.groups_of(name)).collect();
        opened.sort_unstable();
        opened.dedup();
        prop_assert_eq!(plan.verdict(&opened, &flow), naive(&mine, &names, &flow), "{:?}", plan);
    }

    #[test]
    fn a_plan_s_ranges_are_in_order(mine in any_policy()) {
        let plan = mine.plan(&Floor::default());
        for rule in &plan.rules {
            if let Destination::Addresses(ranges) = &rule.to {
                prop_assert!(well_formed(ranges), "{:?}", ranges);
            }
            prop_assert!(rule.ports.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        }
    }

    #[test]
    fn no_list_opens_the_floor(mine in any_policy(), flow in flow(), groups in prop::collection::vec(0u8..10, 0..4)) {
        let floor = Floor::default();
        if floor.denies(flow.address) {
            let opened: Vec<NameGroup> = groups.into_iter().map(NameGroup).collect();
            prop_assert_eq!(mine.plan(&floor).verdict(&opened, &flow), Verdict::Deny);
            prop_assert_eq!(mine.verdict(&floor, Some("a.com"), &flow), Verdict::Deny);
        }
    }

    #[test]
    fn the_proxy_agrees_with_the_rules(mine in any_policy(), flow in flow(), name in name()) {
        // What the proxy is asked: one connection, one name, resolved by ourselves.
        let flow = Flow { transport: Some(Transport::Tcp), ..flow };
        let names = std::slice::from_ref(&name);
        let found = mine.verdict(&Floor::default(), Some(&name), &flow);
        let denied = mine.name_rule(&name, Transport::Tcp, flow.port) == Some(Verdict::Deny);
        let read = naive(&mine, names, &flow);
        let by_address = naive(&mine, &[], &flow);
        if denied && !mine.allow.iter().any(|rule| rule.covers_address(flow.address) && rule.covers_port(flow.port, flow.transport)) {
            prop_assert_eq!(found, Verdict::Deny);
        } else {
            prop_assert_eq!(found, read, "by address {:?}", by_address);
        }
    }

    #[test]
    fn parsing_never_panics_and_is_stable(text in "\\PC{0,40}") {
        if let Ok(rule) = text.parse::<NetworkRule>() {
            prop_assert_eq!(rule.to_string().parse::<NetworkRule>().unwrap(), rule);
        }
    }

    #[test]
    fn rules_read_back_what_they_write(mut rule in rule()) {
        rule.except.clear();
        prop_assert_eq!(rule.to_string().parse::<NetworkRule>().unwrap(), rule);
    }
}

#[test]
fn headers_by_name_keep_their_values() {
    let mine = NetworkPolicy { headers: vec![headers(&["a.com"], &["A", "B"])], ..policy(true, &["a.com"], &[]) };
    let told: NetworkPolicy<String> =
        mine.map_headers(|index, rule, name, _| Ok::<_, ()>(format!("{index} {} {name}", rule.hosts_text()))).unwrap();
    let expected = BTreeMap::from([("A".to_owned(), "0 a.com A".to_owned()), ("B".to_owned(), "0 a.com B".to_owned())]);
    assert_eq!(told.headers[0].set, expected);
    assert_eq!(told.allow, mine.allow);
}

#[test]
fn records_of_before_there_were_policies_are_read() {
    let mut spec = SandboxSpec::of_image("host".parse().unwrap());
    let mut kept = serde_json::to_value(&spec).unwrap();
    assert!(kept.as_object_mut().unwrap().remove("network").is_some());
    assert_eq!(serde_json::from_value::<SandboxSpec>(kept).unwrap(), spec);
    spec.network = Some(Arc::new(policy(false, &["a.com"], &[])));
    assert_eq!(serde_json::from_value::<SandboxSpec>(serde_json::to_value(&spec).unwrap()).unwrap(), spec);
    let overrides: Overrides = serde_json::from_str(r#"{"image": null, "resource_multiplier": 2}"#).unwrap();
    assert_eq!(overrides.network, None);
}
