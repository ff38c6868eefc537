//! Connections to the outside for requests that the proxy has read. They belong to one connection of one sandbox and are never
//! shared with another: what is said on one cannot leak into another's.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sandbank_model::Verdict;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::dial::{DialError, dial};
use super::refusal::Refusal;
use crate::name::Host;
use crate::network::{SandboxNetwork, Scheme};
use crate::services::EgressError;
use crate::settings::EgressSettings;

/// Connections that wait for the next request, for one connection of a sandbox.
const IDLE_MAX: usize = 4;
/// Bytes of one header block from outside.
const HEADER_BYTES_MAX: u32 = 256 * 1024;
/// Bytes that may be on their way in from outside before the sandbox has read what came: for one stream, and for all.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes that wait to be sent, for one stream.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an HTTP/1 connection that are read ahead.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// HTTP/2 connections to the outside are asked so often whether they are alive.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// How the proxy speaks TLS to the outside.
pub(crate) struct Outside {
    one: TlsConnector,
    two_or_one: TlsConnector,
}

impl Outside {
    pub(crate) fn new(settings: &EgressSettings) -> Result<Self, EgressError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let extra: Vec<_> = CertificateDer::pem_slice_iter(&settings.extra_roots_pem).collect();
        if extra.is_empty() && !settings.extra_roots_pem.is_empty() {
            return Err(EgressError::ExtraRoots("there is no certificate in them".to_owned()));
        }
        for certificate in extra {
            let certificate = certificate.map_err(|error| EgressError::ExtraRoots(error.to_string()))?;
            roots.add(certificate).map_err(|error| EgressError::ExtraRoots(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| EgressError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let one = TlsConnector::from(Arc::new(config.clone()));
        config.alpn_protocols.insert(0, b"h2".to_vec());
        Ok(Self { one, two_or_one: TlsConnector::from(Arc::new(config)) })
    }
}

type One = http1::SendRequest<Incoming>;
type Two = http2::SendRequest<Incoming>;

/// A way to send requests.
enum Sender {
    One(One),
    Two(Two),
}

struct Idle {
    host: Host,
    address: IpAddr,
    sender: One,
}

/// The connections to the outside that one connection of a sandbox uses.
pub(super) struct Backends {
    connection: Arc<Connection>,
    scheme: Scheme,
    idle: Mutex<Vec<Idle>>,
    /// Held while it is made, so that many requests at once make one.
    two: tokio::sync::Mutex<Together>,
}

/// Whether requests can share a connection, and which.
enum Together {
    Unknown,
    Never,
    Yes(Host, IpAddr, Two),
}

impl Backends {
    pub(super) fn new(connection: &Arc<Connection>, scheme: Scheme) -> Arc<Self> {
        Arc::new(Self {
            connection: Arc::clone(connection),
            scheme,
            idle: Mutex::new(Vec::new()),
            two: tokio::sync::Mutex::new(Together::Unknown),
        })
    }

    /// Sends a request to an allowed host.
    pub(super) async fn send(
        self: &Arc<Self>,
        network: &dyn SandboxNetwork,
        host: &Host,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Refusal> {
        let broken = || Refusal::Broken { host: host.text() };
        // A request that came over HTTP/2 may go out over it; one that came over HTTP/1 may want to switch protocols.
        let may_share = self.scheme == Scheme::Https && request.version() == Version::HTTP_2;
        if may_share && let Some(mut two) = self.shared(network, host).await? {
            let request = for_two(request).ok_or_else(broken)?;
            return two.send_request(request).await.map_err(|_| broken());
        }
        request = for_one(request).ok_or_else(broken)?;
        while let Some(mut idle) = self.take_idle(network, host) {
            match idle.sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep(host.clone(), idle.address, idle.sender);
                    return Ok(response);
                }
                // It went away before it took anything of the request: another one can.
                Err(mut error) => request = error.take_message().ok_or_else(broken)?,
            }
        }
        let dialled = self.dial(network, host, false).await.map_err(|error| Refusal::Dial { host: host.text(), error })?;
        let (Sender::One(mut sender), address) = dialled else { return Err(broken()) };
        let response = sender.send_request(request).await.map_err(|_| broken())?;
        self.keep(host.clone(), address, sender);
        Ok(response)
    }

    /// The connection that all requests share, if the host speaks HTTP/2.
    async fn shared(self: &Arc<Self>, network: &dyn SandboxNetwork, host: &Host) -> Result<Option<Two>, Refusal> {
        let mut shared = self.two.lock().await;
        match &*shared {
            Together::Never => return Ok(None),
            Together::Yes(known, address, two) if known == host && !two.is_closed() && self.good(network, host, *address) => {
                return Ok(Some(two.clone()));
            }
            Together::Yes(..) | Together::Unknown => {}
        }
        match self.dial(network, host, true).await.map_err(|error| Refusal::Dial { host: host.text(), error })? {
            (Sender::Two(two), address) => {
                *shared = Together::Yes(host.clone(), address, two.clone());
                Ok(Some(two))
            }
            (Sender::One(mut sender), address) => {
                *shared = Together::Never;
                // This request is the first to use it.
                if sender.ready().await.is_ok() {
                    self.put_idle(Idle { host: host.clone(), address, sender });
                }
                Ok(None)
            }
        }
    }

    /// Whether what the host was found at may still be reached.
    fn good(&self, network: &dyn SandboxNetwork, host: &Host, address: IpAddr) -> bool {
        match host {
            Host::Name(name) => network.resolved_verdict(name, address, Some(self.connection.port)) == Verdict::Allow,
            Host::Address(_) => true,
        }
    }

    fn take_idle(&self, network: &dyn SandboxNetwork, host: &Host) -> Option<Idle> {
        let mut idle = self.idle.lock();
        idle.retain(|idle| idle.host == *host && !idle.sender.is_closed() && self.good(network, host, idle.address));
        let ready = idle.iter().position(|idle| idle.sender.is_ready())?;
        Some(idle.swap_remove(ready))
    }

    /// Keeps a connection for the next request once its answer is read.
    fn keep(self: &Arc<Self>, host: Host, address: IpAddr, mut sender: One) {
        let this = Arc::clone(self);
        self.connection.spawn(async move {
            if sender.ready().await.is_ok() {
                this.put_idle(Idle { host, address, sender });
            }
        });
    }

    fn put_idle(&self, idle: Idle) {
        let mut all = self.idle.lock();
        if all.len() < IDLE_MAX {
            all.push(idle);
        }
    }

    async fn dial(&self, network: &dyn SandboxNetwork, host: &Host, two: bool) -> Result<(Sender, IpAddr), DialError> {
        let (stream, address) = dial(&self.connection, network, host).await?;
        let sender = match self.scheme {
            Scheme::Http => Sender::One(self.start_one(stream).await?),
            Scheme::Https => self.start_tls(host, stream, two).await?,
        };
        Ok((sender, address))
    }

    async fn start_tls(&self, host: &Host, stream: TcpStream, two: bool) -> Result<Sender, DialError> {
        let shared = &self.connection.shared;
        let connector = if two { &shared.outside.two_or_one } else { &shared.outside.one };
        let name = ServerName::try_from(host.text()).map_err(|error| DialError::Tls(error.to_string()))?;
        let handshake = timeout(shared.settings.dial_total_timeout, connector.connect(name, stream));
        let stream = match handshake.await {
            Ok(connected) => connected.map_err(|error| DialError::Tls(error.to_string()))?,
            Err(_elapsed) => return Err(DialError::Slow),
        };
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return self.start_one(stream).await.map(Sender::One);
        }
        let mut builder = http2::Builder::new(Tasks(Arc::clone(&self.connection)));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_send_buf_size(SEND_BYTES_MAX)
            .keep_alive_interval(PING_INTERVAL);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(greeting)?;
        self.connection.spawn(async move {
            let _ = driver.await;
        });
        Ok(Sender::Two(sender))
    }

    async fn start_one(
        &self,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Result<One, DialError> {
        let mut builder = http1::Builder::new();
        builder.preserve_header_case(true).max_buf_size(READ_AHEAD_BYTES);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(greeting)?;
        self.connection.spawn(async move {
            let _ = driver.with_upgrades().await;
        });
        Ok(sender)
    }
}

fn greeting(_: hyper::Error) -> DialError {
    DialError::Unreachable(std::io::ErrorKind::ConnectionAborted)
}

/// Runs hyper's own tasks so that they end with the connection.
#[derive(Clone)]
pub(super) struct Tasks(pub(super) Arc<Connection>);

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// In origin form, with a `Host` field.
fn for_one(mut request: Request<Incoming>) -> Option<Request<Incoming>> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().remove(header::TE);
    request.headers().contains_key(header::HOST).then_some(request)
}

/// With the host in the URI, where HTTP/2 has it.
fn for_two(mut request: Request<Incoming>) -> Option<Request<Incoming>> {
    let host = request.headers_mut().remove(header::HOST)?;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(UriScheme::HTTPS);
    parts.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = Version::HTTP_2;
    Some(request)
}
