//! What the tests share.

pub mod client;
pub mod logs;
pub mod network;
pub mod upstream;
pub mod web;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use network::{TestDirectory, TestNetwork};
use sandbank_egress::{EgressServices, EgressSettings, EgressSockets, ProxySocket, Upstreams};
use tokio::net::{TcpListener, UdpSocket};
use upstream::{Behaviour, TestUpstream};

/// The sandbox that most tests use, and another one.
pub const SANDBOX: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
pub const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12));
/// Nobody's.
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 99));

/// Nothing in a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Running services, what they ask, and whom they serve.
pub struct World {
    pub services: EgressServices,
    pub upstream: TestUpstream,
    pub network: Arc<TestNetwork>,
    pub neighbour: Arc<TestNetwork>,
    pub directory: Arc<TestDirectory>,
    pub dns: SocketAddr,
    pub tls: SocketAddr,
    pub http: SocketAddr,
}

/// Services whose proxies connect to `port`.
pub async fn world(port: u16, change: impl FnOnce(&mut EgressSettings)) -> World {
    let upstream = TestUpstream::start().await;
    let network = Arc::new(TestNetwork::new(1));
    let neighbour = Arc::new(TestNetwork::new(2));
    let directory = Arc::new(TestDirectory::default());
    directory.set(SANDBOX, Some(Arc::clone(&network)));
    directory.set(NEIGHBOUR, Some(Arc::clone(&neighbour)));
    let mut settings = EgressSettings {
        upstreams: Upstreams::Servers(vec![upstream.address]),
        upstream_timeout: Duration::from_millis(300),
        ..EgressSettings::default()
    };
    change(&mut settings);
    let (udp, tcp) = udp_and_tcp().await;
    let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dns, tls_at, http_at) = (udp.local_addr().unwrap(), tls.local_addr().unwrap(), http.local_addr().unwrap());
    let sockets = EgressSockets {
        dns_udp: vec![udp],
        dns_tcp: vec![tcp],
        tls: vec![ProxySocket { listener: tls, port }],
        http: vec![ProxySocket { listener: http, port }],
    };
    let services = EgressServices::start(sockets, directory.clone(), settings).unwrap();
    World { services, upstream, network, neighbour, directory, dns, tls: tls_at, http: http_at }
}

/// Both sockets of a DNS server, on one port.
pub async fn udp_and_tcp() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

impl World {
    /// Lets `name` be resolved to loopback, where the web servers of the tests are; no policy speaks of it yet.
    pub fn name_at_loopback(&self, name: &str) {
        self.upstream.set(name, RecordType::A, Behaviour::addresses(name, &["127.0.0.1"], 60));
        self.upstream.set(name, RecordType::AAAA, Behaviour::Code(ResponseCode::NoError));
        self.network.rules.lock().addresses.insert(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }

    /// The same, and the sandbox may reach it.
    pub fn allow_at_loopback(&self, name: &str) {
        self.name_at_loopback(name);
        self.network.rules.lock().names.insert(name.to_owned());
    }
}

/// Waits until `check` holds.
pub async fn until(what: &str, check: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for `future`, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}
