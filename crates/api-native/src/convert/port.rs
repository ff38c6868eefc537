//! Ports.

use std::time::Duration;

use sandbank_control::PortToken;
use sandbank_http::{Gateway, NamedPort, format_time};
use sandbank_model::{PublicPorts, Sandbox, SandboxId};

use super::seconds;
use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// Life of a token that says none.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Longest life of a token, seconds.
const TOKEN_LIFE_MAX: u32 = 86_400;

/// Which ports a request wants public.
pub(crate) fn public_ports(request: wire::PortAccessRequest) -> ApiResult<PublicPorts> {
    match (request.public, request.ports) {
        (true, None) => Ok(PublicPorts::All),
        (true, Some(ports)) if ports.is_empty() => {
            Err(ApiError::bad_request("ports is empty: name the public ones, leave it out to open all, or say \"public\": false"))
        }
        (true, Some(ports)) => Ok(PublicPorts::Only(ports.into_iter().collect())),
        (false, None) => Ok(PublicPorts::None),
        (false, Some(ports)) if ports.is_empty() => Ok(PublicPorts::None),
        (false, Some(_)) => Err(ApiError::bad_request("ports names the public ones: leave it out with \"public\": false")),
    }
}

/// Who may reach a sandbox's ports.
pub(crate) fn port_access_wire(sandbox: &Sandbox, gateway: &Gateway, base_url: &str) -> wire::PortAccess {
    let public = sandbox.lease.as_ref().map(|lease| &lease.ports.public);
    let (public, ports) = match public {
        None | Some(PublicPorts::None) => (false, None),
        Some(PublicPorts::Only(ports)) => (true, Some(ports.iter().copied().collect())),
        Some(PublicPorts::All) => (true, None),
    };
    // The number stands in front of the first dash, wherever else it may occur.
    let url = gateway.url(base_url, NamedPort { sandbox: sandbox.id, port: 1 });
    wire::PortAccess { public, ports, url_pattern: url.map(|url| url.replacen("://1-", "://{port}-", 1)) }
}

/// Port and life of a token that is asked for.
pub(crate) fn port_token_model(request: wire::PortTokenRequest) -> ApiResult<(Option<u16>, Duration)> {
    let wire::PortTokenRequest { port, expires_in_seconds } = request;
    let life = expires_in_seconds.map(|value| seconds("expiresInSeconds", value, TOKEN_LIFE_MAX)).transpose()?;
    Ok((port, life.unwrap_or(TOKEN_LIFE)))
}

/// A token.
pub(crate) fn port_token_wire(token: PortToken, sandbox: SandboxId, gateway: &Gateway, base_url: &str) -> wire::PortTokenResult {
    let PortToken { secret, port, expires_at } = token;
    let named = port.map(|port| NamedPort { sandbox, port });
    wire::PortTokenResult {
        url: named.and_then(|named| gateway.url(base_url, named)),
        browser_url: named.and_then(|named| gateway.browser_url(base_url, named, &secret)),
        token: secret,
        port,
        expires_at: expires_at.map(format_time).unwrap_or_default(),
    }
}
