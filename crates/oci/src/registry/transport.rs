//! Single HTTP requests: TLS, time limits, redirects. What is worth another try is decided by the caller.
//!
//! Why not `oci-client`: it reads manifests and tokens into memory whatever their size, follows no `Retry-After`, hides the status
//! behind its errors, and keeps tokens by registry and repository only, so that one tenant's token would serve another's request.
//! What remains of a pull, two paths and a token, is small; `reqwest` and `http-auth`, which it is made of, are used here directly.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::time::timeout;

use super::settings::{Endpoint, RegistrySettings, authority_of};
use crate::{Error, Result};

const REDIRECTS_MAX: usize = 10;

/// Why a request did not give what it was for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth another try.
    Again {
        reason: String,
        /// What the server asks to wait.
        after: Option<Duration>,
        /// It was one request too many.
        limited: bool,
    },
    /// Not worth it.
    Final(Error),
}

impl Failure {
    pub(crate) fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), after: None, limited: false }
    }

    /// Says what could not be got.
    pub(crate) fn of(mut self, what: &str) -> Self {
        if let Self::Again { reason, .. } = &mut self {
            *reason = format!("{what}: {reason}");
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// One request.
pub(crate) struct Get<'a> {
    pub(crate) url: Url,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) accept: Option<&'static str>,
    /// Offset of the first byte that is wanted.
    pub(crate) from: u64,
    /// For errors: image and registry.
    pub(crate) image: &'a str,
    pub(crate) registry: &'a str,
}

pub(crate) struct Transport {
    client: Client,
    /// For hosts on loopback, which no proxy reaches for us.
    direct: Client,
    pub(crate) settings: RegistrySettings,
    /// Whether a host that may be plain speaks TLS, once known.
    tls: Mutex<HashMap<String, bool>>,
}

impl Transport {
    pub(crate) fn new(settings: RegistrySettings) -> Result<Self> {
        settings.check()?;
        let tls = tls_config(&settings)?;
        let build = |direct: bool| {
            let builder = Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(settings.connect_timeout)
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("sandbank/", env!("CARGO_PKG_VERSION")));
            let builder = if direct { builder.no_proxy() } else { builder };
            builder.build().map_err(|error| Error::Setting { setting: "client", reason: reason_of(&error.without_url()) })
        };
        Ok(Self { client: build(false)?, direct: build(true)?, settings, tls: Mutex::default() })
    }

    /// `http` or `https` for `endpoint`. A host that may be plain is asked by TLS first, so that one with a certificate is used
    /// with it.
    pub(crate) async fn scheme(&self, endpoint: &Endpoint) -> &'static str {
        match endpoint.scheme.as_deref() {
            Some("http") => return "http",
            Some(_) => return "https",
            None if !self.settings.may_be_plain(&endpoint.authority) => return "https",
            None => {}
        }
        let known = self.tls.lock().unwrap_or_else(PoisonError::into_inner).get(&endpoint.authority).copied();
        let speaks_tls = match known {
            Some(known) => known,
            None => self.speaks_tls(&endpoint.authority).await,
        };
        if speaks_tls { "https" } else { "http" }
    }

    async fn speaks_tls(&self, authority: &str) -> bool {
        let Ok(url) = Url::parse(&format!("https://{authority}/v2/")) else { return true };
        let answer = timeout(self.settings.connect_timeout, self.client_for(&url).get(url).send()).await;
        let speaks = match &answer {
            Ok(Ok(_)) => Some(true),
            // It spoke TLS and was not believed: that is the answer, not a reason to give up on TLS.
            Ok(Err(error)) if certificate_refused(error) => Some(true),
            Ok(Err(error)) if spoke_no_tls(error) => Some(false),
            _ => None,
        };
        if let Some(speaks) = speaks {
            self.tls.lock().unwrap_or_else(PoisonError::into_inner).insert(authority.to_owned(), speaks);
        }
        speaks.unwrap_or(false)
    }

    fn client_for(&self, url: &Url) -> &Client {
        if self.settings.may_be_plain(&authority_of(url)) { &self.direct } else { &self.client }
    }

    /// Sends a request and follows redirects. Credentials go to the first host only; once on HTTPS, plain HTTP is refused.
    pub(crate) async fn get(&self, get: Get<'_>) -> Result<Response, Failure> {
        let Get { mut url, mut authorization, accept, from, image, registry } = get;
        let refuse = |reason: String| Error::Redirect { image: image.to_owned(), registry: registry.to_owned(), reason };
        let mut seen = vec![url.clone()];
        loop {
            let mut request = self.client_for(&url).get(url.clone());
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let limit = self.settings.connect_timeout + self.settings.stall_timeout;
            let response = match timeout(limit, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(Failure::again(reason_of(&error.without_url()))),
                Err(_) => return Err(Failure::again(format!("no answer within {} s", limit.as_secs_f32()))),
            };
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).and_then(|to| url.join(to).ok());
            let next = next.filter(|next| ["http", "https"].contains(&next.scheme()) && next.has_host());
            let next = next.ok_or_else(|| refuse("to nowhere".to_owned()))?;
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(refuse(format!("from HTTPS to plain HTTP at {}", authority_of(&next))).into());
            }
            if seen.contains(&next) {
                return Err(refuse("in a circle".to_owned()).into());
            }
            if seen.len() > REDIRECTS_MAX {
                return Err(refuse(format!("more than {REDIRECTS_MAX} times")).into());
            }
            if next.origin() != url.origin() {
                authorization = None;
            }
            seen.push(next.clone());
            url = next;
        }
    }

    /// The body, when it has at most `limit_bytes`.
    pub(crate) async fn body(&self, mut response: Response, limit_bytes: usize) -> Result<Option<Vec<u8>>, Failure> {
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| Failure::again(reason_of(&error.without_url())))? {
                if body.len() + chunk.len() > limit_bytes {
                    return Ok(None);
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Some(body))
        };
        let limit = self.settings.document_timeout;
        timeout(limit, read).await.map_err(|_| Failure::again(format!("no whole answer within {} s", limit.as_secs_f32())))?
    }
}

/// Any status but success, as a failure.
pub(crate) fn failure_of(response: &Response, image: &str, registry: &str, what: &str, anonymous: bool) -> Failure {
    let (image, registry, status) = (image.to_owned(), registry.to_owned(), response.status());
    let after = || {
        let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    };
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized { image, registry, anonymous }.into(),
        StatusCode::FORBIDDEN => Error::Forbidden { image, registry }.into(),
        StatusCode::NOT_FOUND => Error::NotFound { image, registry, what: what.to_owned() }.into(),
        StatusCode::TOO_MANY_REQUESTS => {
            Failure::Again { reason: "too many requests (status 429)".to_owned(), after: after(), limited: true }
        }
        _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Failure::Again { reason: format!("it answers status {}", status.as_u16()), after: after(), limited: false }
        }
        _ => Error::Status { image, registry, status: status.as_u16() }.into(),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn tls_config(settings: &RegistrySettings) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    // A machine without certificates of its own still reaches plain and private registries; others say what is missing.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in &settings.ca_files {
        let wrong = |reason: String| Error::Setting { setting: "ca_files", reason: format!("{}: {reason}", path.display()) };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
        let mut count = 0;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(wrong("no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Setting { setting: "tls", reason: error.to_string() })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The innermost reasons of an error: "connection refused" rather than "error sending request".
pub(crate) fn reason_of(error: &reqwest::Error) -> String {
    if certificate_refused(error) {
        let inner = rustls_error(error).map(ToString::to_string).unwrap_or_default();
        return format!("its certificate is not trusted ({inner}); add its authority to the registry setting ca_files");
    }
    let reason = reasons(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    if error.is_timeout() { "timed out while connecting".to_owned() } else { reason }
}

/// An error's reasons, outermost first. What an I/O error wraps is one too, though its `source` passes over it.
fn reasons<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |reason: &&'a (dyn std::error::Error + 'static)| {
        let reason: &'a (dyn std::error::Error + 'static) = *reason;
        match reason.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => reason.source(),
        }
    })
}

fn rustls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    reasons(error).find_map(|reason| reason.downcast_ref())
}

fn certificate_refused(error: &reqwest::Error) -> bool {
    matches!(rustls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// It answered the TLS greeting with something else, or hung up on it.
fn spoke_no_tls(error: &reqwest::Error) -> bool {
    let hung_up = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
    let kind = |reason: &(dyn std::error::Error + 'static)| reason.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    rustls_error(error).is_some() || reasons(error).filter_map(kind).any(|kind| hung_up.contains(&kind))
}
