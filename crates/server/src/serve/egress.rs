//! The host's services for what leaves sandboxes, between `egress`, which knows names, and `control`, which knows policies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use sandbank_control::{ActiveNetwork, Control};
use sandbank_driver::{Driver, NetworkServices};
use sandbank_egress::{
    CertificateAuthority, Denied, Directory, EgressServices, EgressSettings, EgressSockets, HeaderName, HeaderValue,
    HeadersError, OpenError, ProxySocket, RequestTarget, SandboxNetwork, Upstreams,
};
use sandbank_model::{NameGroup, NamedAddress, SandboxId, Transport, Verdict};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::broadcast;

use crate::config::Outbound;
use crate::data_dir::DataDir;
use crate::failure::{Failure, Result};

/// Files of the certificate authority in the data directory.
const CERTIFICATE_FILE: &str = "egress-ca.pem";
const KEY_FILE: &str = "egress-ca.key";

/// Starts the services where the driver gives sandboxes a network. They end with what is returned.
pub(super) async fn start(
    control: &Control,
    driver: Arc<dyn Driver>,
    authority: CertificateAuthority,
    outbound: &Outbound,
) -> Result<Option<EgressServices>> {
    let Some(services) = driver.network_services() else { return Ok(None) };
    let sockets = sockets(&services).await?;
    let directory = Sandboxes { control: control.clone(), driver };
    let settings = settings(authority, outbound);
    let services = EgressServices::start(sockets, Arc::new(directory), settings)
        .map_err(|error| Failure::new(format!("cannot serve what leaves sandboxes: {error}")))?;
    Ok(Some(services))
}

fn settings(authority: CertificateAuthority, outbound: &Outbound) -> EgressSettings {
    let Outbound { resolvers, extra_roots_pem } = outbound.clone();
    let default = EgressSettings::default();
    let upstreams = if resolvers.is_empty() { default.upstreams } else { Upstreams::Servers(resolvers) };
    EgressSettings { upstreams, authority: Some(Arc::new(authority)), extra_roots_pem, ..EgressSettings::default() }
}

/// Cuts what is no longer allowed, as long as the services live.
pub(super) async fn follow(services: EgressServices, mut changes: broadcast::Receiver<SandboxId>) {
    loop {
        match changes.recv().await {
            Ok(id) => services.policy_changed(id),
            Err(broadcast::error::RecvError::Lagged(_)) => services.policies_changed(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// The authority that this server's sandboxes trust: made once, kept where only the server reads its key.
pub(super) fn authority(data_dir: &DataDir) -> Result<CertificateAuthority> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(format!(
            "the certificate authority for sandboxes cannot be used: {error}; remove {CERTIFICATE_FILE} and {KEY_FILE} from {} to have \
             a new one made",
            data_dir.path().display()
        ))
    };
    if let (Some(certificate), Some(key)) = (data_dir.private(CERTIFICATE_FILE)?, data_dir.private(KEY_FILE)?) {
        return CertificateAuthority::from_pem(&certificate, &key).map_err(|error| unusable(&error));
    }
    let made = CertificateAuthority::generate(SystemTime::now()).map_err(|error| unusable(&error))?;
    // The key first: a certificate without its key would be of no use.
    data_dir.keep_private(KEY_FILE, made.key_pem())?;
    data_dir.keep_private(CERTIFICATE_FILE, made.certificate_pem())?;
    Ok(made)
}

async fn sockets(services: &NetworkServices) -> Result<EgressSockets> {
    let failed = |what: &str, address: &SocketAddr, error: &io::Error| {
        Failure::new(format!("cannot listen for sandboxes' {what} at {address}: {error}; is another program there?"))
    };
    let mut sockets = EgressSockets::default();
    for address in &services.resolvers {
        let udp = UdpSocket::bind(address).await.map_err(|error| failed("name queries", address, &error))?;
        sockets.dns_udp.push(udp);
        sockets.dns_tcp.push(TcpListener::bind(address).await.map_err(|error| failed("name queries", address, &error))?);
    }
    for (addresses, proxies, port) in [(&services.http, &mut sockets.http, 80), (&services.tls, &mut sockets.tls, 443)] {
        for address in addresses {
            let listener = TcpListener::bind(address).await.map_err(|error| failed("connections", address, &error))?;
            proxies.push(ProxySocket { listener, port });
        }
    }
    Ok(sockets)
}

struct Sandboxes {
    control: Control,
    driver: Arc<dyn Driver>,
}

impl Directory for Sandboxes {
    fn sandbox_at(&self, source: IpAddr) -> Option<Arc<dyn SandboxNetwork>> {
        let id = self.driver.sandbox_at(source)?;
        let active = self.control.network_of(id)?;
        Some(Arc::new(Network { id, active, control: self.control.clone(), driver: Arc::clone(&self.driver) }))
    }
}

/// One sandbox's policy as it was when it was asked for.
struct Network {
    id: SandboxId,
    active: Arc<ActiveNetwork>,
    control: Control,
    driver: Arc<dyn Driver>,
}

#[async_trait]
impl SandboxNetwork for Network {
    fn id(&self) -> SandboxId {
        self.id
    }

    fn name_verdict(&self, name: &str, transport: Option<Transport>, port: Option<u16>) -> Verdict {
        match (transport, port) {
            (Some(transport), Some(port)) => self.active.name_verdict(name, transport, port),
            _ if self.active.may_resolve(name) => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    fn resolved_verdict(&self, name: &str, address: IpAddr, port: Option<u16>) -> Verdict {
        if self.driver.is_own_address(address) {
            return Verdict::Deny;
        }
        self.active.resolved_verdict(name, address, port)
    }

    fn address_verdict(&self, address: IpAddr, port: u16) -> Verdict {
        if self.driver.is_own_address(address) {
            return Verdict::Deny;
        }
        self.active.address_verdict(address, port)
    }

    fn names_count(&self) -> bool {
        self.active.speaks_of_names()
    }

    fn groups_of(&self, name: &str) -> Vec<NameGroup> {
        self.active.groups_of(name)
    }

    async fn open(&self, name: &str, addresses: Vec<NamedAddress>) -> std::result::Result<(), OpenError> {
        match self.control.network_open(self.id, &self.active, name, addresses).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(OpenError("the policy has changed meanwhile".to_owned())),
            Err(error) => Err(OpenError(error.message)),
        }
    }

    fn touches_headers(&self, host: &str) -> bool {
        self.active.injects_into(host)
    }

    fn headers_for(&self, target: &RequestTarget<'_>) -> std::result::Result<Vec<(HeaderName, HeaderValue)>, HeadersError> {
        let found = self.control.network_header_secrets(&self.active, target.host, target.path);
        let found = found.map_err(|error| {
            tracing::warn!(sandbox = %self.id, host = target.host, error = %error, "headers cannot be added");
            HeadersError(error.message)
        })?;
        // Both were checked when the policy was set.
        let unusable = |name: &str| HeadersError(format!("the header {name:?} cannot be sent"));
        let fields = found.iter().map(|(name, value)| {
            let field = name.parse().ok().zip(HeaderValue::from_str(value).ok());
            field.ok_or_else(|| unusable(name))
        });
        fields.collect()
    }

    fn denied(&self, denied: &Denied) {
        let name = denied.name.as_deref().unwrap_or("a connection that names nobody");
        let destination = denied.port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        self.control.network_denied(self.id, &destination);
    }
}
