//! What the caller decides.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::authority::CertificateAuthority;

/// How the services work. [`EgressSettings::default`] suits a production host but has no authority: hosts whose TLS would have to
/// be ended for the sake of a header are refused without one.
#[derive(Debug, Clone)]
pub struct EgressSettings {
    /// Who answers what we do not know.
    pub upstreams: Upstreams,
    /// How long one try at one upstream may take.
    pub upstream_timeout: Duration,
    /// How often each upstream is tried.
    pub upstream_tries: u32,
    /// Signs the certificates that the proxy shows where it ends TLS. Sandboxes must trust it.
    pub authority: Option<Arc<CertificateAuthority>>,
    /// Certificates in PEM that are trusted beside those of the system when the proxy speaks TLS to the outside.
    pub extra_roots_pem: Vec<u8>,
    /// How long a client may take for its TLS greeting, and then for the rest of the handshake.
    pub greeting_timeout: Duration,
    /// How long a client may take to send a request's header, with the time that an HTTP/1 connection waits for the next request.
    pub header_timeout: Duration,
    /// How long one address of a name may take to answer.
    pub dial_timeout: Duration,
    /// How long all addresses of a name together may take, with their resolution.
    pub dial_total_timeout: Duration,
    /// How long a connection may be silent in both directions.
    pub idle_timeout: Duration,
    /// How long a DNS connection may be silent.
    pub dns_idle_timeout: Duration,
    /// How much.
    pub limits: EgressLimits,
}

impl Default for EgressSettings {
    fn default() -> Self {
        Self {
            upstreams: Upstreams::File(PathBuf::from("/etc/resolv.conf")),
            upstream_timeout: Duration::from_secs(2),
            upstream_tries: 2,
            authority: None,
            extra_roots_pem: Vec::new(),
            greeting_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(3),
            dial_total_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            dns_idle_timeout: Duration::from_secs(10),
            limits: EgressLimits::default(),
        }
    }
}

/// Which DNS servers are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These, in this order.
    Servers(Vec<SocketAddr>),
    /// Those that this `resolv.conf` names (`resolv.conf(5)`). It is read again when it changed.
    File(PathBuf),
}

/// Most of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimits {
    /// DNS queries a second that one sandbox may send over a longer time.
    pub queries_per_second: u32,
    /// DNS queries that one sandbox may send at once.
    pub queries_burst: u32,
    /// DNS queries of one sandbox that are being answered.
    pub queries_in_flight: usize,
    /// DNS queries of all sandboxes that are being answered.
    pub queries_in_flight_total: usize,
    /// DNS connections of one sandbox.
    pub dns_connections: usize,
    /// Proxied connections of one sandbox.
    pub connections: usize,
    /// Connections of all sandboxes, of both kinds.
    pub connections_total: usize,
    /// Answers that the resolver remembers.
    pub answers_remembered: usize,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            queries_per_second: 200,
            queries_burst: 400,
            queries_in_flight: 64,
            queries_in_flight_total: 2048,
            dns_connections: 8,
            connections: 512,
            connections_total: 8192,
            answers_remembered: 8192,
        }
    }
}
