//! What leaves sandboxes by name: a resolver and a checking proxy that the host runs for all of them.
//!
//! A sandbox cannot send from another's address, so the source address of a query or a connection says whose it is; everything
//! else that comes from inside is hostile until parsed. The resolver answers only names that the sandbox's policy allows, and has
//! their addresses opened before the answer leaves. The proxy takes the connections that the kernel redirects, reads the name that
//! they ask for (TLS server name, HTTP `Host`), resolves that name itself and connects from the host: where the sandbox meant to
//! go does not count. It can also add header fields to requests, so that code inside uses a key that it cannot read.
//!
//! Nothing here knows policies or drivers: [`Directory`] and [`SandboxNetwork`] are what the rest of the server implements.
//! All of it is user space on sockets that the caller has bound, without privileges.

mod authority;
mod dns;
mod limits;
mod name;
mod network;
mod proxy;
mod services;
mod settings;
mod telemetry;

pub use authority::{AuthorityError, CertificateAuthority};
pub use hickory_proto::rr::RecordType;
pub use http::{HeaderName, HeaderValue};
pub use network::{Denied, DeniedWhy, Directory, HeadersError, OpenError, RequestTarget, SandboxNetwork, Scheme};
pub use services::{EgressError, EgressServices, EgressSockets, ProxySocket};
pub use settings::{EgressLimits, EgressSettings, Upstreams};
