//! Installing packages inside a sandbox, from the indexes that this machine is configured for. The only tests that leave the machine;
//! without such an index they say so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpStream, ToSocketAddrs as _};
use std::process::Command;
use std::time::Duration;

use support::{Server, can_run};

/// Longest wait for an index to accept a connection.
const REACH: Duration = Duration::from_secs(5);

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn host_of(url: &str) -> Option<String> {
    let host = url.split("://").nth(1)?.split(['/', ':']).next()?;
    (!host.is_empty()).then(|| host.to_owned())
}

/// The hosts that pip speaks to: the configured index, else those that it has built in.
fn pip_hosts() -> Vec<String> {
    let configured = said("/usr/bin/python3", &["-m", "pip", "config", "get", "global.index-url"]);
    if let Some(host) = configured.as_deref().and_then(host_of) {
        return vec![host];
    }
    let script = "from pip._internal.models.index import PyPI; print(PyPI.netloc, PyPI.file_storage_domain)";
    let built_in = said("/usr/bin/python3", &["-c", script]).unwrap_or_default();
    built_in.split_whitespace().map(str::to_owned).collect()
}

/// The addresses of hosts that can all be reached from here by HTTPS; says why not when they cannot.
fn reachable(what: &str, hosts: &[String]) -> Option<BTreeSet<IpAddr>> {
    let mut all = BTreeSet::new();
    for host in hosts {
        let addresses: Vec<_> = (host.as_str(), 443).to_socket_addrs().into_iter().flatten().collect();
        if !addresses.iter().any(|address| TcpStream::connect_timeout(address, REACH).is_ok()) {
            eprintln!("skipped: the package index of {what} cannot be reached from this machine");
            return None;
        }
        all.extend(addresses.iter().map(std::net::SocketAddr::ip));
    }
    if all.is_empty() {
        eprintln!("skipped: this machine knows no package index of {what}");
        return None;
    }
    Some(all)
}

/// A server whose policies may allow these addresses: a mirror may be in a private range. Nothing else is allowed but the hosts, by name.
fn server(addresses: &BTreeSet<IpAddr>, hosts: &[String]) -> Server {
    let allowed: Vec<String> = hosts.iter().map(|host| format!("{host}:443")).collect();
    Server::start_with(&format!(
        "[network]\nallow_private = {:?}\n[network.default_policy]\ninternet = false\nallow = {allowed:?}\n",
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    ))
}

#[test]
fn pip_installs_a_package_by_a_policy_of_names() {
    if !can_run() {
        return;
    }
    let hosts = pip_hosts();
    let Some(addresses) = reachable("pip", &hosts) else { return };
    let server = server(&addresses, &hosts);
    server.pool("base", 1);
    let script = "python3 -m pip install --quiet --target /tmp/packages six 2>&1 && \
                  PYTHONPATH=/tmp/packages python3 -c 'import six; print(\"has six\", six.__file__)'";
    let done = server.words(&["run", "base", "--", "sh", "-c", script]).ok();
    assert!(done.contains("has six /tmp/packages/six.py"), "{done}");
    server.finish();
}

#[test]
fn npm_installs_a_package_by_a_policy_of_names() {
    if !can_run() {
        return;
    }
    let hosts: Vec<String> = said("npm", &["config", "get", "registry"]).as_deref().and_then(host_of).into_iter().collect();
    let Some(addresses) = reachable("npm", &hosts) else { return };
    if !["/usr/bin/npm", "/bin/npm"].iter().any(|path| std::path::Path::new(path).exists()) {
        eprintln!("skipped: npm is not among this machine's system programs, so not in the image host");
        return;
    }
    let server = server(&addresses, &hosts);
    server.pool("base", 1);
    let script = "cd /tmp && npm install --no-audit --no-fund left-pad >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }; \
                  node -e 'console.log(\"has\", require(\"left-pad\")(7, 3, \"0\"))'";
    let done = server.words(&["run", "base", "--", "sh", "-c", script]).ok();
    assert!(done.contains("has 007"), "{done}");
    server.finish();
}
