//! Web servers of the outside.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The authority of the outside: not the proxy's own.
pub struct Outside {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Outside {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), pem: certificate.pem() }
    }

    /// A server with a certificate for each name.
    pub fn config(&self, names: &[&str], alpn: &[&str]) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut resolver = ResolvesServerCertUsingSni::new();
        for name in names {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec![(*name).to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
            let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let certified = CertifiedKey::from_der(vec![certificate.der().clone()], der, &provider).unwrap();
            resolver.add(name, certified).unwrap();
        }
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A request as a server got it.
#[derive(Debug, Clone)]
pub struct Received {
    pub version: Version,
    pub method: String,
    pub path: String,
    /// From the `Host` field or the authority.
    pub host: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The server name of the TLS connection.
    pub server_name: Option<String>,
}

/// A server that remembers its requests and answers with a short text.
pub struct Web {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<Received>>>,
    pub connections: Arc<Mutex<usize>>,
}

impl Web {
    pub async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self { address: listener.local_addr().unwrap(), received: Arc::default(), connections: Arc::default() };
        let (received, connections) = (Arc::clone(&web.received), Arc::clone(&web.connections));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *connections.lock() += 1;
                let (received, tls) = (Arc::clone(&received), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, received, None).await,
                        Some(config) => {
                            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
                            let name = stream.get_ref().1.server_name().map(str::to_owned);
                            serve(stream, received, name).await;
                        }
                    }
                });
            }
        });
        web
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    received: Arc<Mutex<Vec<Received>>>,
    server_name: Option<String>,
) {
    let service = service_fn(move |request| respond(request, Arc::clone(&received), server_name.clone()));
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<Received>>>,
    server_name: Option<String>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let field = parts.headers.get(header::HOST).map(|value| value.to_str().unwrap().to_owned());
    let host = field.or_else(|| parts.uri.authority().map(ToString::to_string)).unwrap_or_default();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = format!("{} at {host}\n", parts.uri.path());
    received.lock().push(Received {
        version: parts.version,
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        host,
        headers: parts.headers,
        body,
        server_name,
    });
    Ok(Response::builder().header("x-backend", "as it was").body(Full::new(Bytes::from(text))).unwrap())
}
