//! What sandboxes reach, end to end: the real server, the real kernel, real programs inside, in a network of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "network/outside.rs"]
mod outside;
mod support;

use std::net::TcpListener;

use outside::{HOST, Outside, PRIVATE, PUBLIC, PUBLIC6, RESOLVER, state};
use serde_json::json;
use support::{Server, can_run, http, wait_for};

/// Asks for a page: scheme, where to connect, port, the name in the TLS greeting, the request's `Host`, a root to trust (`-`: what
/// programs trust by default). Prints what came back, or what stood in the way.
const FETCH: &str = r#"
import errno, socket, ssl, sys
scheme, to, port, name, host, root = sys.argv[1:7]
try:
    s = socket.create_connection((to, int(port)), 5)
    if scheme == "https":
        context = ssl.create_default_context(cadata=None if root == "-" else root)
        s = context.wrap_socket(s, server_hostname=name)
    s.sendall(f"GET /v1/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    said = b""
    while piece := s.recv(65536):
        said += piece
    head, _, body = said.decode().partition("\r\n\r\n")
    print(head.split(" ")[1] if head else "nothing", body.strip() if head.split(" ")[1:2] == ["200"] else "")
except socket.gaierror as e:
    print("no such name" if e.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else e)
except ssl.SSLError as e:
    print("tls:", e.reason)
except TimeoutError:
    print("timeout")
except OSError as e:
    print(errno.errorcode.get(e.errno, e))
"#;

/// A test's server, pool and outside.
struct World {
    outside: Outside,
    before: Vec<String>,
    server: Server,
    _files: tempfile::TempDir,
}

impl World {
    /// `None` where this machine can run no sandboxes.
    fn new(more: &str) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let outside = Outside::begin();
        let files = tempfile::tempdir().unwrap();
        let root = files.path().join("root.pem");
        std::fs::write(&root, &outside.root).unwrap();
        let before = state();
        let configuration = format!("[network]\nresolvers = [\"{RESOLVER}:53\"]\nextra_roots = {root:?}\n{more}");
        let server = Server::start_with(&configuration);
        server.pool("base", 2);
        Some(Self { outside, before, server, _files: files })
    }

    fn python(&self, id: &str, script: &str, arguments: &[&str]) -> String {
        let words = [&["exec", id, "--", "python3", "-c", script], arguments].concat();
        self.server.words(&words).ok().trim().to_owned()
    }

    fn fetch(&self, id: &str, scheme: &str, to: &str, port: u16, name: &str, host: &str) -> String {
        self.python(id, FETCH, &[scheme, to, &port.to_string(), name, host, &self.outside.root])
    }

    /// In clear, at this port.
    fn http(&self, id: &str, to: &str, port: u16) -> String {
        self.fetch(id, "http", to, port, to, to)
    }

    /// As any program would.
    fn https(&self, id: &str, name: &str) -> String {
        self.fetch(id, "https", name, 443, name, name)
    }

    fn set(&self, id: &str, policy: &serde_json::Value) {
        let said = self.server.feed(&["network", "set", id, "--file", "-"], policy.to_string().as_bytes());
        said.ok();
    }

    fn told(&self, id: &str, what: &str) {
        wait_for(&format!("an event with {what:?}"), || {
            self.server.words(&["events", id, "--json"]).stdout.contains(what).then_some(())
        });
    }

    /// Nothing of the server's is left in the network.
    fn finish(self) {
        self.server.finish();
        wait_for("the network to be as before", || {
            let now = state();
            (now == self.before).then_some(())
        });
    }
}

#[test]
fn the_internet_is_reached_and_nothing_that_is_near() {
    let Some(world) = World::new("") else { return };
    let (a, b) = (world.server.claim("base"), world.server.claim("base"));
    assert_eq!(world.http(&a, "good.test", 8080), "200 good.test");
    assert_eq!(world.https(&a, "good.test"), "200 good.test");
    assert_eq!(world.http(&a, PUBLIC, 80), "200 11.22.33.10");
    assert_eq!(world.http(&a, PUBLIC6, 80), "200 2a0f:1234:1::10");
    let listener = TcpListener::bind("[::]:4444").unwrap();
    assert!(outside::accepts("11.22.33.1:4444"));
    let inside = "import socket\ns = socket.create_server(('', 4444), family=socket.AF_INET6, dualstack_ipv6=True)\nimport time\n\
                  while True: s.accept()";
    let mut serving = world.server.command(["exec", &b, "--", "python3", "-c", inside]).spawn().unwrap();
    let own = wait_for("the other sandbox to listen", || {
        let look = "import socket; socket.create_connection(('127.0.0.1', 4444))";
        let listens = world.server.words(&["exec", &b, "--", "python3", "-c", look]).code == 0;
        listens.then(|| world.server.words(&["exec", &b, "--", "hostname", "-I"]).ok())
    });
    let others: Vec<&str> = own.split_whitespace().collect();
    assert_eq!(others.len(), 2, "{own}");
    let port = world.server.address().rsplit_once(':').unwrap().1.parse().unwrap();
    for (to, port) in [(PRIVATE, 80), (HOST, 4444), ("2a0f:1234:1::1", 4444), (others[0], 4444), (others[1], 4444), (HOST, port)]
    {
        assert_eq!(world.http(&a, to, port), "ECONNREFUSED", "{to} {port}");
    }
    assert_eq!(world.http(&a, "169.254.169.254", 80), "ECONNREFUSED", "a cloud's metadata");
    drop(listener);
    serving.kill().unwrap();
    serving.wait().unwrap();
    world.told(&a, &format!("{PRIVATE}:80"));
    world.finish();
}

#[test]
fn an_allowed_name_is_all_that_is_reached() {
    let Some(world) = World::new("") else { return };
    let id = world.server.claim("base --no-internet --allow good.test:443 --allow rebind.test --allow both.test:443");
    assert_eq!(world.http(&id, PUBLIC, 443), "ECONNREFUSED", "nobody asked for its name yet");
    assert_eq!(world.https(&id, "good.test"), "200 good.test");
    // Another name at the same address.
    assert_eq!(world.https(&id, "evil.test"), "no such name");
    assert_eq!(world.fetch(&id, "https", PUBLIC, 443, "evil.test", "good.test"), "tls: TLSV1_ALERT_ACCESS_DENIED");
    assert_eq!(world.fetch(&id, "http", PUBLIC, 80, "", "evil.test"), "ECONNREFUSED");
    for port in [80, 8080, 22] {
        assert_eq!(world.http(&id, "good.test", port), "ECONNREFUSED", "{port}");
    }
    // A name that turns into an address of the inside.
    assert_eq!(world.https(&id, "rebind.test"), "no such name");
    assert_eq!(world.http(&id, PRIVATE, 80), "ECONNREFUSED");
    assert_eq!(world.https(&id, "both.test"), "200 both.test");
    for name in ["evil.test", "secret-data.attacker.test"] {
        assert_eq!(world.http(&id, name, 80), "no such name");
    }
    let asked = world.outside.queries.lock().unwrap().clone();
    assert!(asked.iter().all(|name| ["good.test", "rebind.test", "both.test"].contains(&name.as_str())), "{asked:?}");
    world.told(&id, "evil.test");
    world.finish();
}

#[test]
fn in_clear_every_request_is_for_an_allowed_host() {
    let Some(world) = World::new("") else { return };
    let id = world.server.claim("base --no-internet --allow good.test:80");
    assert_eq!(world.http(&id, "good.test", 80), "200 good.test");
    assert_eq!(world.fetch(&id, "http", "good.test", 80, "", "evil.test"), "403");
    let connect = "import socket; s = socket.create_connection(('good.test', 80), 5)\n\
                   s.sendall(b'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test:443\\r\\n\\r\\n')\n\
                   print(s.recv(100).split()[1].decode())";
    assert_eq!(world.python(&id, connect, &[]), "400");
    let two = "import socket; s = socket.create_connection(('good.test', 80), 5)\n\
               s.sendall(b'GET / HTTP/1.1\\r\\nHost: good.test\\r\\nHost: evil.test\\r\\n\\r\\n')\n\
               print(s.recv(100).split()[1].decode())";
    assert_eq!(world.python(&id, two, &[]), "400");
    let requests = world.outside.requests.lock().unwrap().join("\n");
    assert!(!requests.contains("evil.test"), "{requests}");
    world.finish();
}

#[test]
fn dns_goes_to_our_resolver_and_to_no_other() {
    let Some(world) = World::new("") else { return };
    let id = world.server.claim("base --no-internet --allow good.test:443");
    // A query for evil.test; prints the answer's code, or why there is none.
    let ask = "import errno, socket, struct, sys\n\
               kind, to, port, name = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]\n\
               q = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(l)]) + l.encode() for l in name.split('.'))\n\
               q += b'\\0\\0\\x01\\0\\x01'\n\
               try:\n\
               \x20   s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)\n\
               \x20   s.settimeout(5); s.connect((to, port))\n\
               \x20   s.sendall(struct.pack('>H', len(q)) + q if kind == 'tcp' else q)\n\
               \x20   r = s.recv(600); r = r[2:] if kind == 'tcp' else r\n\
               \x20   print(r[3] & 15)\n\
               except TimeoutError: print('timeout')\n\
               except OSError as e: print(errno.errorcode[e.errno])";
    for kind in ["udp", "tcp"] {
        // Whichever server is asked, ours answers: NXDOMAIN for one, an answer for the other.
        assert_eq!(world.python(&id, ask, &[kind, RESOLVER, "53", "evil.test"]), "3", "{kind}");
        assert_eq!(world.python(&id, ask, &[kind, "9.9.9.9", "53", "good.test"]), "0", "{kind}");
        let refused = world.python(&id, ask, &[kind, RESOLVER, "5353", "evil.test"]);
        assert!(["ECONNREFUSED", "EPERM"].contains(&refused.as_str()), "{kind}: {refused}");
    }
    let asked = world.outside.queries.lock().unwrap().clone();
    assert!(!asked.contains(&"evil.test".to_owned()), "{asked:?}");
    world.finish();
}

#[test]
fn a_secret_is_seen_outside_and_never_inside() {
    const SECRET: &str = "Bearer hunter2-never-inside";
    let Some(world) = World::new("[log]\nlevel = \"debug\"\n") else { return };
    let id = world.server.claim("base");
    let rule = json!({"hosts": ["api.test"], "paths": ["/v1"], "set": {"Authorization": SECRET}});
    world.set(&id, &json!({"internet": false, "allow": ["api.test:443", "good.test:443"], "headers": [rule]}));
    // Python's own choice of roots has the server's authority now.
    let plain = |name: &str| world.python(&id, FETCH, &["https", name, "443", name, name, "-"]);
    assert_eq!(plain("api.test"), "200 api.test");
    let seen = world.outside.requests.lock().unwrap().join("\n");
    assert!(seen.contains(SECRET), "{seen}");
    world.outside.requests.lock().unwrap().clear();
    // A host without headers keeps its own certificate, and gets none.
    assert_eq!(world.https(&id, "good.test"), "200 good.test");
    let seen = world.outside.requests.lock().unwrap().join("\n");
    assert!(seen.contains("good.test") && !seen.contains("hunter2"), "{seen}");
    assert!(plain("good.test").starts_with("tls: CERTIFICATE_VERIFY_FAILED"));
    // Through what a program of another family uses.
    let curl = world.server.words(&[
        "exec",
        &id,
        "--",
        "sh",
        "-c",
        "command -v curl >/dev/null || exit 9; curl -sS https://api.test/v1/y",
    ]);
    assert!(curl.code == 9 || curl.clone().ok().contains("api.test"), "{curl:?}");
    // The distribution's own tool builds the bundle again, and keeps it.
    let rebuilt = world.server.words(&[
        "exec",
        &id,
        "--",
        "sh",
        "-c",
        "command -v update-ca-certificates >/dev/null || exit 9; update-ca-certificates",
    ]);
    assert!(rebuilt.code == 9 || rebuilt.code == 0, "{rebuilt:?}");
    assert_eq!(plain("api.test"), "200 api.test");
    // Only a part of it in the search, so that the search does not find itself.
    let search = "for d in /etc /home /root /tmp /var/lib /usr/local /run; do grep -rIl 'hunter2-never' $d 2>/dev/null; done; \
                  cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep 'hunter2-never'; true";
    let search = search.replace("hunter2-never", "hunter2[-]never");
    assert_eq!(world.server.words(&["exec", &id, "--", "sh", "-c", &search]).ok(), "");
    // Those made of it are no different.
    let fork = world.server.words(&["fork", &id]).ok().trim().to_owned();
    world.outside.requests.lock().unwrap().clear();
    assert_eq!(world.python(&fork, FETCH, &["https", "api.test", "443", "api.test", "api.test", "-"]), "200 api.test");
    assert!(world.outside.requests.lock().unwrap().join("\n").contains(SECRET));
    let shown = world.server.words(&["network", "show", &id, "--json"]).ok();
    assert!(shown.contains("isSet") && !shown.contains("hunter2"), "{shown}");
    assert!(!world.server.log().contains("hunter2"));
    let kept = std::fs::read(world.server.data().join("sandbank.db")).unwrap();
    assert!(!kept.windows(7).any(|piece| piece == b"hunter2"), "the database holds it in clear");
    world.finish();
}

#[test]
fn a_policy_changes_at_once_and_outlives_the_server() {
    let Some(mut world) = World::new("") else { return };
    let id = world.server.claim("base");
    assert_eq!(world.http(&id, PUBLIC, 8080), "200 11.22.33.10");
    world.server.words(&["network", "set", &id, "--no-internet", "--allow", PUBLIC6, "--allow", "good.test:443"]).ok();
    assert_eq!(world.http(&id, PUBLIC, 8080), "ECONNREFUSED");
    assert_eq!(world.http(&id, PUBLIC6, 8080), "200 2a0f:1234:1::10");
    world.told(&id, "network-changed");
    world.told(&id, &format!("{PUBLIC}:8080"));
    let (address, key) = (world.server.address(), world.server.key());
    let metrics = http(&address, &key, "GET", &format!("/v1/sandboxes/{id}/metrics"), "").unwrap().1;
    for field in ["networkInBytes", "networkOutBytes"] {
        assert!(metrics["metrics"][field].as_u64().is_some_and(|bytes| bytes > 100), "{metrics}");
    }
    // What goes on while nobody serves.
    let watch = format!(
        "import socket, time\n\
         def way(to):\n\
         \x20   try: socket.create_connection((to, 8080), 3); return 'open'\n\
         \x20   except OSError: return 'closed'\n\
         import os\n\
         while not os.path.exists('/tmp/stop'):\n\
         \x20   open('/tmp/ways.new', 'a').write(way('{PUBLIC6}') + ' ' + way('{PUBLIC}') + '\\n'); time.sleep(0.05)"
    );
    let mut watching =
        world.server.command(["exec", &id, "--", "sh", "-c", "python3 -c \"$0\" >/dev/null 2>&1 &", &watch]).spawn().unwrap();
    watching.wait().unwrap();
    wait_for("the program to look", || {
        (world.server.words(&["exec", &id, "--", "test", "-s", "/tmp/ways.new"]).code == 0).then_some(())
    });
    world.server.kill();
    std::thread::sleep(std::time::Duration::from_millis(500));
    world.server.start_again();
    let seen = world.server.words(&["exec", &id, "--", "sh", "-c", "touch /tmp/stop; sort /tmp/ways.new | uniq -c"]).ok();
    let lines: Vec<&str> = seen.lines().map(str::trim).collect();
    assert!(lines.len() == 1 && lines[0].ends_with("open closed"), "{seen}");
    let looks: u32 = lines[0].split(' ').next().unwrap().parse().unwrap();
    assert!(looks >= 5, "{seen}");
    assert_eq!(world.https(&id, "good.test"), "200 good.test");
    assert_eq!(world.https(&id, "evil.test"), "no such name");
    world.finish();
}

#[test]
fn without_a_network_there_is_loopback_only() {
    let Some(world) = World::new("enabled = false\n") else { return };
    let id = world.server.claim("base");
    let links =
        world.server.words(&["exec", &id, "--", "sh", "-c", "ls /sys/class/net; tail -n +3 /proc/net/dev | cut -d: -f1"]).ok();
    assert!(links.split_whitespace().all(|link| link == "lo"), "{links}");
    assert_eq!(world.http(&id, PUBLIC, 80), "ENETUNREACH");
    let said = world.server.json(&format!("network show {id}"));
    assert_eq!(said["source"], "driver", "{said}");
    let refused = world.server.words(&["network", "set", &id, "--no-internet", "--allow", "good.test"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert_eq!(state(), world.before);
    world.finish();
}

#[test]
fn who_scans_floods_and_hoards_hurts_nobody_else() {
    let Some(world) = World::new("") else { return };
    let (bad, good) = (world.server.claim("base"), world.server.claim("base"));
    let limited = json!({"internet": true, "limits": {"connections": 50}});
    world.set(&bad, &limited);
    let hoard = "import socket, sys\nheld, refused = [], 0\nfor i in range(5000):\n    s = socket.socket(); s.settimeout(5)\n\
                 \x20   try: s.connect((sys.argv[1], 8080)); held.append(s) if len(held) < 400 else s.close()\n\
                 \x20   except OSError: refused += 1; s.close()\nprint(len(held) <= 50 and refused >= 4900, len(held), refused)";
    let said = world.python(&bad, hoard, &[PUBLIC]);
    assert!(said.starts_with("True"), "{said}");
    let flood = "import itertools, socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False)\n\
                 u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.setblocking(False)\n\
                 for i in range(30000):\n\
                 \x20   try: s.sendto(b'x' * 1000, ('11.22.33.10', 9))\n\
                 \x20   except OSError: pass\n\
                 \x20   try: u.sendto(b'x', (f'10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}', 80))\n\
                 \x20   except OSError: pass\nprint('done')";
    let mut flooding = world.server.command(["exec", &bad, "--", "python3", "-c", flood]).spawn().unwrap();
    for _ in 0..5 {
        assert_eq!(world.https(&good, "good.test"), "200 good.test");
        assert_eq!(world.http(&good, PUBLIC6, 8080), "200 2a0f:1234:1::10");
    }
    assert!(flooding.wait().unwrap().success());
    let events = world.server.words(&["events", &bad, "--json", "--last", "500"]).ok();
    let denied = events.lines().filter(|line| line.contains("network-denied")).count();
    assert!(denied <= 30, "{denied} events of refused connections");
    world.finish();
}
