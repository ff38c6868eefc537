//! What this crate needs from the rest of the server.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use sandbank_model::{NameGroup, NamedAddress, SandboxId, Transport, Verdict};

/// Who has which address.
pub trait Directory: Send + Sync + 'static {
    /// The network of the sandbox that has `source` now. It is asked for each query, connection and request, and again when a
    /// policy changed, so it must be cheap and must not block; an answer may be a snapshot.
    fn sandbox_at(&self, source: IpAddr) -> Option<Arc<dyn SandboxNetwork>>;
}

/// What one sandbox may reach.
///
/// Names are given in lower case, as ASCII, without a dot at the end: `api.example.com`. Only [`open`](Self::open) may wait.
#[async_trait]
pub trait SandboxNetwork: Send + Sync {
    /// Whose network this is.
    fn id(&self) -> SandboxId;

    /// Whether `name` may be reached by `transport` at `port`. Without them the question is whether any port of the name may be
    /// reached by anything: only such names are resolved.
    fn name_verdict(&self, name: &str, transport: Option<Transport>, port: Option<u16>) -> Verdict;

    /// Whether `name` may stand for `address`. A name of the outside that answers an address of a private range is refused here,
    /// unless the operator or a rule that names the address allows it. Without a port: whether it may for any.
    fn resolved_verdict(&self, name: &str, address: IpAddr, port: Option<u16>) -> Verdict;

    /// Whether the bare address may be reached by TCP at `port`, as the plan decides it: for requests whose host is an address.
    fn address_verdict(&self, address: IpAddr, port: u16) -> Verdict;

    /// Whether any rule speaks of names. Records that would lead around the checks (`HTTPS`, `SVCB`) are then not answered.
    fn names_count(&self) -> bool;

    /// The groups of names that `name` belongs to: its addresses are opened for these.
    fn groups_of(&self, name: &str) -> Vec<NameGroup>;

    /// Opens addresses that were answered for `name`. When it returns they are in force: the answer leaves after it.
    ///
    /// # Errors
    /// The addresses are not open; the sandbox is told that the name could not be resolved.
    async fn open(&self, name: &str, addresses: Vec<NamedAddress>) -> Result<(), OpenError>;

    /// Whether header fields are added to requests for `host`. Its TLS connections are then ended at the proxy.
    fn touches_headers(&self, host: &str) -> bool;

    /// The header fields to add to one request. They replace fields of the same name that the sandbox sent. The values are
    /// secrets: they are marked as sensitive before use and are never logged.
    ///
    /// # Errors
    /// A value cannot be had: the request must not go out without it.
    fn headers_for(&self, target: &RequestTarget<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, HeadersError>;

    /// Something was refused by the policy. It is called once for each refusal: whoever makes events of them limits their rate.
    fn denied(&self, denied: &Denied);
}

/// Where an HTTP request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTarget<'a> {
    /// In clear or not: most secrets should not travel in clear.
    pub scheme: Scheme,
    /// The name or address.
    pub host: &'a str,
    /// The port on the outside.
    pub port: u16,
    /// The path as the sandbox sent it, without the query. Nothing is resolved in it: `/v1/../admin` and `%2e%2e` stand as they
    /// are, and a rule that goes by paths must not take them for what they look like.
    pub path: &'a str,
}

/// How an HTTP request travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

/// What was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The name or address that was asked for; `None`: none was named.
    pub name: Option<String>,
    /// The port on the outside; `None`: it was only to be resolved.
    pub port: Option<u16>,
    /// Why.
    pub why: DeniedWhy,
}

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedWhy {
    /// No rule allows the name or address.
    Policy,
    /// The name is allowed, but stands for an address that is not.
    Address(IpAddr),
    /// A TLS connection did not say which name it is for.
    NoServerName,
    /// A request inside a connection for one name was for another, which is returned here.
    OtherHost,
}

/// Header fields that the policy adds could not be had. The text must not show any of them.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct HeadersError(pub String);

/// Addresses could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);
