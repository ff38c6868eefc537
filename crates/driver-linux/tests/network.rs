//! What sandboxes reach and what they do not, on the real kernel: in a network of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "network/outside.rs"]
mod outside;
mod support;

use std::net::IpAddr;
use std::time::Duration;

use outside::{Outside, in_own_network};
use sandbank_driver::{Capability, DeniedDestination, Driver, DriverEvent};
use sandbank_driver_linux::doctor::Status;
use sandbank_model::{
    AddressRange, Checked, Destination, Flow, NameGroup, NamedAddress, NetworkLimits, NetworkPlan, PlanRule, PortRange,
    Transport, Verdict,
};
use support::{Fixture, Sandbox, event_of, fresh_id, wait_until};

/// Tries to connect from inside; prints what the other side said first, or why it did not.
const CONNECT: &str = r#"
import errno, socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    print(s.recv(100).decode().strip())
except TimeoutError:
    print("timeout")
except OSError as e:
    print(errno.errorcode.get(e.errno, e))
"#;

async fn connect(fixture: &Fixture, sandbox: &Sandbox, address: impl ToString, port: u16) -> String {
    let (address, port) = (address.to_string(), port.to_string());
    let output = fixture.run(sandbox, &["python3", "-c", CONNECT, &address, &port]).await.unwrap();
    assert_eq!(output.stderr, "");
    output.stdout.trim().to_owned()
}

fn open() -> NetworkPlan {
    NetworkPlan { otherwise: Verdict::Allow, ..NetworkPlan::closed() }
}

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

fn one(address: IpAddr) -> AddressRange {
    AddressRange { first: address, last: address }
}

fn rule(verdict: Verdict, ranges: Vec<AddressRange>) -> PlanRule {
    PlanRule { to: Destination::Addresses(ranges), transport: None, ports: Vec::new(), verdict }
}

fn port(port: u16) -> PortRange {
    PortRange { first: port, last: port }
}

async fn create(fixture: &Fixture, plan: NetworkPlan) -> Sandbox {
    let mut request = fixture.request(fresh_id());
    request.network = plan;
    let id = request.id;
    let handle = fixture.driver().create(request).await.expect("a sandbox is made");
    Sandbox { id, handle }
}

async fn set(fixture: &Fixture, sandbox: &Sandbox, plan: NetworkPlan) {
    fixture.driver().set_network(sandbox.target(), plan, Vec::new()).await.unwrap();
}

#[test]
fn what_the_plan_allows_is_reached_and_nothing_else() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        far.serve(81);
        let fixture = Fixture::new().await;
        assert!(fixture.driver().capabilities().has(Capability::Network));
        let closed = create(&fixture, NetworkPlan::closed()).await;
        for address in [far.v4, far.v6] {
            assert_eq!(connect(&fixture, &closed, address, 80).await, "ECONNREFUSED", "{address}");
        }
        // The host's address is what the far side sees.
        let free = create(&fixture, open()).await;
        assert_eq!(connect(&fixture, &free, far.v4, 80).await, "203.0.113.1");
        assert_eq!(connect(&fixture, &free, far.v6, 80).await, "2001:db8:1::1");
        let some = PlanRule {
            transport: Some(Transport::Tcp),
            ports: vec![PortRange { first: 70, last: 80 }, port(90)],
            ..rule(Verdict::Allow, vec![range("203.0.113.8", "203.0.113.11"), one(far.v6)])
        };
        let narrow = create(&fixture, NetworkPlan { rules: vec![some], ..NetworkPlan::closed() }).await;
        for (address, seen) in [(far.v4, "203.0.113.1"), (far.v6, "2001:db8:1::1")] {
            assert_eq!(connect(&fixture, &narrow, address, 80).await, seen);
            assert_eq!(connect(&fixture, &narrow, address, 81).await, "ECONNREFUSED");
        }
        let not_there = rule(Verdict::Deny, vec![one(far.v4)]);
        let but = create(&fixture, NetworkPlan { rules: vec![not_there], ..open() }).await;
        assert_eq!(connect(&fixture, &but, far.v4, 80).await, "ECONNREFUSED");
        assert_eq!(connect(&fixture, &but, far.v6, 80).await, "2001:db8:1::1");
    });
}

#[test]
fn the_host_other_sandboxes_and_forged_addresses_are_out_of_reach() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        let fixture = Fixture::new().await;
        let services = fixture.driver().network_services().unwrap();
        let (a, b) = (create(&fixture, open()).await, create(&fixture, open()).await);
        for (address, own) in [("203.0.113.1", true), ("2001:db8:1::1", true), ("127.9.9.9", true), ("203.0.113.10", false)] {
            assert_eq!(fixture.driver().is_own_address(address.parse().unwrap()), own, "{address}");
        }
        assert!(!fixture.driver().is_own_address("198.51.100.1".parse().unwrap()), "there is no route there");
        // The host listens everywhere, and so does the other sandbox.
        let host = std::net::TcpListener::bind("[::]:4444").unwrap();
        let script = "nohup python3 -m http.server 4444 --bind :: >/dev/null 2>&1 & \
                      until python3 -c \"import socket; socket.create_connection(('::1', 4444))\" 2>/dev/null; do sleep 0.05; done; \
                      hostname -I";
        let others = fixture.shell(&b, script).await;
        let others: Vec<&str> = others.stdout.split_whitespace().collect();
        assert_eq!(others.len(), 2, "{others:?}");
        let gateways: Vec<String> = services.resolvers.iter().map(|socket| socket.ip().to_string()).collect();
        let hosts = ["203.0.113.1".to_owned(), "2001:db8:1::1".to_owned()].into_iter().chain(gateways);
        let targets: Vec<String> = hosts.chain(others.iter().map(|text| (*text).to_owned())).collect();
        for target in targets {
            let said = connect(&fixture, &a, &target, 4444).await;
            assert_eq!(said, "ECONNREFUSED", "{target}");
        }
        drop(host);
        assert_eq!(fixture.driver().sandbox_at(others[0].parse().unwrap()), Some(b.id));
        assert_eq!(fixture.driver().sandbox_at(others[1].parse().unwrap()), Some(b.id));
        assert_eq!(fixture.driver().sandbox_at("203.0.113.10".parse().unwrap()), None);
        // Root inside has no power over its network, and no raw sockets.
        let refusals = ["PermissionError", "Cannot assign requested address", "Address family not supported"];
        for (what, script) in [
            ("raw socket", "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)"),
            ("packet socket", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
            ("another address", "import socket; s = socket.socket(); s.setsockopt(0, 19, 1); s.bind(('10.1.2.3', 0))"),
        ] {
            let output = fixture.run(&a, &["python3", "-c", script]).await.unwrap();
            assert!(refusals.iter().any(|refusal| output.stderr.contains(refusal)), "{what}: {output:?}");
        }
    });
}

#[test]
fn a_plan_changes_while_the_sandbox_runs() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        let fixture = Fixture::new().await;
        let sandbox = create(&fixture, open()).await;
        // One that talks and one that only waits, over both families.
        let script = format!(
            "cat > /tmp/hold.py <<'END'\n\
             import socket, sys, time\n\
             s = socket.create_connection((sys.argv[1], 80))\n\
             s.recv(100)\n\
             print('connected', flush=True)\n\
             try:\n\
             \x20   print('got', s.recv(100), flush=True)\n\
             except OSError as e:\n\
             \x20   print('ended', e.errno, flush=True)\n\
             END\n\
             for a in {} {}; do python3 /tmp/hold.py $a > /tmp/$a & done; \
             until [ $(cat /tmp/{} /tmp/{} | grep -c connected) = 2 ]; do sleep 0.05; done",
            far.v4, far.v6, far.v4, far.v6
        );
        assert_eq!(fixture.shell(&sandbox, &script).await.code(), Some(0));
        // What stays allowed goes on; what does not ends, though nobody inside sends anything.
        let only_v6 = NetworkPlan { rules: vec![rule(Verdict::Allow, vec![one(far.v6)])], ..NetworkPlan::closed() };
        set(&fixture, &sandbox, only_v6).await;
        assert_eq!(connect(&fixture, &sandbox, far.v4, 80).await, "ECONNREFUSED");
        assert_eq!(connect(&fixture, &sandbox, far.v6, 80).await, "2001:db8:1::1");
        let told =
            fixture.shell(&sandbox, &format!("until grep ended /tmp/{}; do sleep 0.05; done; cat /tmp/{}", far.v4, far.v6)).await;
        assert_eq!(told.stdout, "ended 103\nconnected\n");
        set(&fixture, &sandbox, NetworkPlan::closed()).await;
        let told = fixture.shell(&sandbox, &format!("until grep ended /tmp/{}; do sleep 0.05; done", far.v6)).await;
        assert_eq!(told.stdout, "ended 103\n");
        set(&fixture, &sandbox, open()).await;
        assert_eq!(connect(&fixture, &sandbox, far.v4, 80).await, "203.0.113.1");
    });
}

#[test]
fn names_are_open_for_as_long_as_their_answer_lives() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(8080);
        let fixture = Fixture::new().await;
        let group = NameGroup(0);
        let names = PlanRule { to: Destination::Named(group), transport: None, ports: vec![port(8080)], verdict: Verdict::Allow };
        let plan = NetworkPlan { rules: vec![names], checked: Checked::Named, ..NetworkPlan::closed() };
        let sandbox = create(&fixture, plan.clone()).await;
        let open = |address, millis| NamedAddress { group, address, life: Duration::from_millis(millis) };
        assert_eq!(connect(&fixture, &sandbox, far.v4, 8080).await, "ECONNREFUSED");
        fixture.driver().open_names(sandbox.id, vec![open(far.v4, 60_000), open(far.v6, 400)]).await.unwrap();
        assert_eq!(connect(&fixture, &sandbox, far.v4, 8080).await, "203.0.113.1");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while connect(&fixture, &sandbox, far.v6, 8080).await != "ECONNREFUSED" {
            assert!(std::time::Instant::now() < deadline, "the answer lives on");
        }
        // Answered again, it lives again, and a shorter life takes the place of a longer one.
        fixture.driver().open_names(sandbox.id, vec![open(far.v4, 300), open(far.v6, 60_000)]).await.unwrap();
        assert_eq!(connect(&fixture, &sandbox, far.v6, 8080).await, "2001:db8:1::1");
        while connect(&fixture, &sandbox, far.v4, 8080).await != "ECONNREFUSED" {
            assert!(std::time::Instant::now() < deadline, "the answer lives on");
        }
        // Groups that the plan does not know are no error: another plan may have come meanwhile.
        let stranger = NamedAddress { group: NameGroup(9), address: far.v4, life: Duration::from_secs(9) };
        fixture.driver().open_names(sandbox.id, vec![stranger]).await.unwrap();
        // The same plan again, as after a restart of the server, closes nothing.
        fixture.driver().set_network(sandbox.target(), plan.clone(), Vec::new()).await.unwrap();
        assert_eq!(connect(&fixture, &sandbox, far.v6, 8080).await, "2001:db8:1::1");
        // A new plan takes along what is named with it.
        set(&fixture, &sandbox, NetworkPlan::closed()).await;
        fixture.driver().set_network(sandbox.target(), plan, vec![open(far.v4, 60_000)]).await.unwrap();
        assert_eq!(connect(&fixture, &sandbox, far.v4, 8080).await, "203.0.113.1");
        assert_eq!(connect(&fixture, &sandbox, far.v6, 8080).await, "ECONNREFUSED");
    });
}

#[test]
fn resolvers_and_what_is_looked_at_end_at_the_host() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        for port in [80, 443, 8080] {
            far.serve(port);
        }
        let fixture = Fixture::new().await;
        let services = fixture.driver().network_services().unwrap();
        // Each service tells who it is and who is there.
        for (name, sockets) in [("http", &services.http), ("tls", &services.tls), ("dns", &services.resolvers)] {
            for socket in sockets {
                let listener = tokio::net::TcpListener::bind(socket).await.unwrap();
                tokio::spawn(async move {
                    while let Ok((mut stream, peer)) = listener.accept().await {
                        let text = format!("{name} {}\n", peer.ip());
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await;
                    }
                });
            }
        }
        let dns = tokio::net::UdpSocket::bind(services.resolvers[0]).await.unwrap();
        tokio::spawn(async move {
            let mut room = [0; 512];
            while let Ok((length, peer)) = dns.recv_from(&mut room).await {
                let _ = dns.send_to(&room[..length], peer).await;
            }
        });
        let group = NameGroup(3);
        let names = PlanRule { to: Destination::Named(group), transport: None, ports: Vec::new(), verdict: Verdict::Allow };
        let plan = NetworkPlan { rules: vec![names], checked: Checked::Named, ..NetworkPlan::closed() };
        let sandbox = create(&fixture, plan.clone()).await;
        let own: Vec<String> =
            fixture.shell(&sandbox, "hostname -I").await.stdout.split_whitespace().map(str::to_owned).collect();
        let named = [far.v4, far.v6].map(|address| NamedAddress { group, address, life: Duration::from_secs(60) });
        assert_eq!(connect(&fixture, &sandbox, far.v4, 443).await, "ECONNREFUSED");
        fixture.driver().open_names(sandbox.id, named.to_vec()).await.unwrap();
        for (address, own) in [(far.v4, &own[0]), (far.v6, &own[1])] {
            assert_eq!(connect(&fixture, &sandbox, address, 443).await, format!("tls {own}"));
            assert_eq!(connect(&fixture, &sandbox, address, 80).await, format!("http {own}"));
            assert_ne!(connect(&fixture, &sandbox, address, 8080).await, "ECONNREFUSED");
            // Whichever resolver is asked.
            assert_eq!(connect(&fixture, &sandbox, address, 53).await, format!("dns {own}"));
        }
        let ask = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); \
                   s.connect(('9.9.9.9', 53)); s.send(b'who'); print(s.recv(100).decode())";
        assert_eq!(fixture.run(&sandbox, &["python3", "-c", ask]).await.unwrap().stdout, "who\n");
        // What is open for a name is looked at, also where a rule allows its address.
        let plain = rule(Verdict::Allow, vec![one(far.v4)]);
        let mixed = NetworkPlan { rules: vec![plain.clone(), plan.rules[0].clone()], ..plan };
        fixture.driver().set_network(sandbox.target(), mixed.clone(), named.to_vec()).await.unwrap();
        assert_eq!(connect(&fixture, &sandbox, far.v4, 443).await, format!("tls {}", own[0]));
        assert_eq!(connect(&fixture, &sandbox, far.v6, 443).await, format!("tls {}", own[1]));
        // Of all others, those that no rule speaks of.
        let all = NetworkPlan { checked: Checked::All, otherwise: Verdict::Allow, rules: mixed.rules[..1].to_vec(), ..mixed };
        set(&fixture, &sandbox, all).await;
        assert_eq!(connect(&fixture, &sandbox, far.v4, 443).await, "203.0.113.1");
        assert_eq!(connect(&fixture, &sandbox, far.v6, 443).await, format!("tls {}", own[1]));
        let all = NetworkPlan { rules: vec![rule(Verdict::Deny, vec![one(far.v6)])], checked: Checked::All, ..open() };
        set(&fixture, &sandbox, all).await;
        assert_eq!(connect(&fixture, &sandbox, far.v4, 80).await, format!("http {}", own[0]));
        assert_eq!(connect(&fixture, &sandbox, far.v6, 80).await, "ECONNREFUSED");
    });
}

#[test]
fn refused_connections_are_told_and_traffic_is_counted() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        let fixture = Fixture::new().await;
        let mut events = fixture.driver().events().unwrap();
        let deny = rule(Verdict::Deny, vec![one(far.v6)]);
        let sandbox = create(&fixture, NetworkPlan { rules: vec![deny], ..open() }).await;
        for _ in 0..3 {
            assert_eq!(connect(&fixture, &sandbox, far.v6, 80).await, "ECONNREFUSED");
        }
        assert_eq!(connect(&fixture, &sandbox, far.v6, 4000).await, "ECONNREFUSED");
        let told = event_of(&mut events, sandbox.id).await;
        let expected = [80, 4000].map(|port| DeniedDestination { address: far.v6, port });
        assert_eq!(told, DriverEvent::Denied { id: sandbox.id, destinations: expected.to_vec() });
        let before = fixture.driver().traffic(sandbox.target()).await.unwrap();
        let send = "import socket; s = socket.create_connection(('203.0.113.10', 80)); s.sendall(b'x' * 1000000); \
                    s.shutdown(1)\nwhile s.recv(65536): pass";
        assert_eq!(fixture.run(&sandbox, &["python3", "-c", send]).await.unwrap().code(), Some(0));
        let after = fixture.driver().traffic(sandbox.target()).await.unwrap();
        for (before, after) in [(before.in_bytes, after.in_bytes), (before.out_bytes, after.out_bytes)] {
            assert!((1_000_000..1_500_000).contains(&(after - before)), "{before} {after}");
        }
    });
}

#[test]
fn limits_hold() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        let fixture = Fixture::new().await;
        let limits = NetworkLimits { connections: Some(20), ..NetworkLimits::default() };
        let sandbox = create(&fixture, NetworkPlan { limits, ..open() }).await;
        let many = "import socket, errno\nheld = []\nfor i in range(200):\n    try:\n        held.append(socket.create_connection(\
                    ('203.0.113.10', 80), 5))\n    except ConnectionRefusedError: pass\nprint(len(held))";
        let held: u32 = fixture.run(&sandbox, &["python3", "-c", many]).await.unwrap().stdout.trim().parse().unwrap();
        assert!((15..=20).contains(&held), "{held} connections");
        let limits = NetworkLimits { out_bytes_per_second: Some(2_000_000), ..NetworkLimits::default() };
        let slow = create(&fixture, NetworkPlan { limits, ..open() }).await;
        let send = "import socket, threading, time; s = socket.create_connection(('203.0.113.10', 80)); t = time.monotonic()\n\
                    def send():\n    s.sendall(b'x' * 6000000); s.shutdown(1)\n\
                    threading.Thread(target=send).start()\nwhile s.recv(65536): pass\nprint(time.monotonic() - t)";
        let took: f64 = fixture.run(&slow, &["python3", "-c", send]).await.unwrap().stdout.trim().parse().unwrap();
        // 6 MB at 2 MB/s, less what waits in buffers.
        assert!((1.5..10.0).contains(&took), "{took} s");
        let limits = NetworkLimits { in_bytes_per_second: Some(2_000_000), ..NetworkLimits::default() };
        set(&fixture, &slow, NetworkPlan { limits, ..open() }).await;
        let took: f64 = fixture.run(&slow, &["python3", "-c", send]).await.unwrap().stdout.trim().parse().unwrap();
        assert!((1.5..10.0).contains(&took), "{took} s");
    });
}

#[test]
fn nothing_of_a_network_is_left_and_a_restart_finds_it() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        let before = state();
        let mut fixture = Fixture::new().await;
        let only = NetworkPlan { rules: vec![rule(Verdict::Allow, vec![one(far.v4)])], ..NetworkPlan::closed() };
        let sandbox = create(&fixture, only).await;
        let services = fixture.driver().network_services();
        fixture.driver = None;
        // Nobody serves; the sandbox's plan holds, and the next server has the same addresses.
        fixture.restart().await;
        let adopted = fixture.driver().adopt(vec![(sandbox.id, Some(sandbox.handle.clone()))]).await.unwrap();
        assert!(adopted.alive.contains_key(&sandbox.id), "{adopted:?}");
        assert_eq!(fixture.driver().network_services(), services);
        assert_eq!(connect(&fixture, &sandbox, far.v4, 80).await, "203.0.113.1");
        assert_eq!(connect(&fixture, &sandbox, far.v6, 80).await, "ECONNREFUSED");
        let address = fixture.shell(&sandbox, "hostname -I").await.stdout;
        let address: IpAddr = address.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(fixture.driver().sandbox_at(address), Some(sandbox.id));
        fixture.driver().destroy(sandbox.id).await.unwrap();
        assert_eq!(fixture.driver().sandbox_at(address), None);
        fixture.driver = None;
        wait_until("the network is as before", || state() == before, || format!("{:#?}\ninstead of\n{before:#?}", state())).await;
    });
}

/// Connects to each `address port` of its input; prints 1 where it could and 0 where it was refused.
const CONNECT_ALL: &str = r#"
import socket, sys
for line in sys.argv[1].split(','):
    address, port = line.split(' ')
    try:
        socket.create_connection((address, int(port)), 5).close()
        print(1, end='')
    except ConnectionRefusedError:
        print(0, end='')
"#;

/// A sequence that is the same in each run: splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of 32 addresses of a family that the far host answers for.
    fn address(&mut self, v4: bool) -> IpAddr {
        let last = 16 + self.below(32);
        let text = if v4 { format!("203.0.113.{last}") } else { format!("2001:db8:1::{last:x}") };
        text.parse().unwrap()
    }

    fn port(&mut self) -> u16 {
        [80, 443, 1000][self.below(3) as usize]
    }

    fn rule(&mut self) -> PlanRule {
        let to = match self.below(8) {
            0 => Destination::Anywhere,
            1 | 2 => Destination::Named(NameGroup(self.below(3) as u8)),
            _ => {
                let mut ranges = Vec::new();
                for v4 in [true, false] {
                    let (a, b) = (self.address(v4), self.address(v4));
                    if !self.one_in(3) {
                        ranges.push(AddressRange { first: a.min(b), last: a.max(b) });
                    }
                }
                Destination::Addresses(ranges)
            }
        };
        let transport = [None, Some(Transport::Tcp), Some(Transport::Udp)][self.below(3) as usize];
        let mut ports: Vec<PortRange> = (0..self.below(3)).map(|_| port(self.port())).collect();
        ports.sort_unstable();
        ports.dedup();
        if self.one_in(4) {
            ports = vec![PortRange { first: 81, last: 999 }];
        }
        let verdict = if self.one_in(2) { Verdict::Allow } else { Verdict::Deny };
        PlanRule { to, transport, ports, verdict }
    }
}

#[test]
fn the_kernel_reads_plans_as_the_model_does() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.work(|| {
            for (v4, v6) in [("203.0.113.16/28", "2001:db8:1::10/124"), ("203.0.113.32/28", "2001:db8:1::20/124")] {
                outside::ip(&["route", "add", "local", v4, "dev", "lo"]);
                outside::ip(&["-6", "route", "add", "local", v6, "dev", "lo"]);
            }
        });
        far.serve_anywhere(&[80, 443, 1000]);
        outside::ip(&["route", "add", "203.0.113.0/26", "via", &far.v4.to_string()]);
        outside::ip(&["-6", "route", "add", "2001:db8:1::/122", "via", &far.v6.to_string()]);
        let fixture = Fixture::new().await;
        let sandbox = create(&fixture, NetworkPlan::closed()).await;
        let mut chance = Chance(7);
        for round in 0..40 {
            let rules = (0..chance.below(7)).map(|_| chance.rule()).collect();
            let otherwise = if chance.one_in(2) { Verdict::Allow } else { Verdict::Deny };
            let plan = NetworkPlan { rules, otherwise, ..NetworkPlan::closed() };
            let life = Duration::from_secs(600);
            let mut named: Vec<NamedAddress> = Vec::new();
            for group in (0..3).map(NameGroup) {
                named.extend((0..8).map(|n| NamedAddress { group, address: chance.address(n % 2 == 0), life }));
            }
            fixture.driver().set_network(sandbox.target(), plan.clone(), named.clone()).await.unwrap();
            let flows: Vec<Flow> = (0..40)
                .map(|n| Flow { address: chance.address(n % 2 == 0), port: chance.port(), transport: Some(Transport::Tcp) })
                .collect();
            let expected: String = flows
                .iter()
                .map(|flow| {
                    let of = named.iter().filter(|one| one.address == flow.address).map(|one| one.group);
                    if plan.verdict(&of.collect::<Vec<_>>(), flow) == Verdict::Allow { '1' } else { '0' }
                })
                .collect();
            let asked: Vec<String> = flows.iter().map(|flow| format!("{} {}", flow.address, flow.port)).collect();
            let output = fixture.run(&sandbox, &["python3", "-c", CONNECT_ALL, &asked.join(",")]).await.unwrap();
            assert_eq!(output.stdout, expected, "round {round}: {plan:#?}\nasked {asked:?}\n{}", output.stderr);
        }
    });
}

#[test]
fn the_doctor_sees_a_firewall_in_the_way() {
    in_own_network(|| async {
        let found = || {
            let checks = sandbank_driver_linux::doctor::checks(std::path::Path::new("/tmp"));
            checks.into_iter().find(|check| check.name == "network").expect("the network is checked")
        };
        assert_eq!(found().status, Status::Ok, "{:?}", found());
        let nft = |rules: &str| {
            assert!(std::process::Command::new("nft").arg(rules).status().unwrap().success(), "{rules}");
        };
        nft("add table ip wall; add chain ip wall pass { type filter hook forward priority 0; policy drop; }");
        assert_eq!(found().status, Status::Degraded);
        assert!(found().found.contains("chain pass of table wall"), "{:?}", found());
        nft("add chain ip wall pass { policy accept; }");
        assert_eq!(found().status, Status::Ok);
    });
}

#[test]
fn a_host_without_ipv6_gives_sandboxes_ipv4_alone() {
    in_own_network(|| async {
        let far = Outside::new("far", "203.0.113.10", "2001:db8:1::10");
        far.serve(80);
        for interface in ["all", "default", "lo"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1").unwrap();
        }
        let fixture = Fixture::new().await;
        assert!(fixture.driver().network_services().unwrap().resolvers.iter().all(std::net::SocketAddr::is_ipv4));
        let sandbox = create(&fixture, open()).await;
        assert_eq!(connect(&fixture, &sandbox, far.v4, 80).await, "203.0.113.1");
        assert_eq!(connect(&fixture, &sandbox, far.v6, 80).await, "ENETUNREACH");
        assert_eq!(fixture.shell(&sandbox, "hostname -I | wc -w").await.stdout.trim(), "1");
    });
}

/// Interfaces, addresses, routes and rules of the host.
fn state() -> Vec<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().expect("iproute2 and nftables are installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    vec![said("ip", &["-br", "addr"]), said("ip", &["route"]), said("ip", &["-6", "route"]), said("nft", &["list", "ruleset"])]
}
