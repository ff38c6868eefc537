//! Port tokens: leave to reach one port, or all, of one sandbox until a time. Nothing is kept of them: a token is its own
//! content, sealed under the server's key (see `secrets`), so it outlives a restart of the server and nobody can make one.
//! Revoking raises the generation in the sandbox's record, which every token names.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sandbank_model::{SandboxId, Sealed, Timestamp};

use super::access::{access_of, refused};
use super::check_port;
use crate::control::{Control, Inner};
use crate::secrets::Purpose;
use crate::types::{Caller, Id};
use crate::{Error, Result};

/// What tokens begin with, so that people and scanners of leaked secrets know one when they see it.
const PREFIX: &str = "sbpt_";
/// Sealed for this and nothing else.
const PURPOSE: Purpose<'static> = Purpose { kind: "port-token", tenant: None, name: "" };
/// Sandbox (16 bytes), port or 0 (2), generation (4), end in milliseconds or `u64::MAX` (8); big-endian.
const CONTENT_LEN: usize = 30;
/// Longest text that is taken for a token at all.
const TEXT_MAX: usize = 200;

/// A token and what it opens.
#[derive(Clone)]
pub struct PortToken {
    /// The token: `sbpt_` and URL-safe characters. A secret.
    pub secret: String,
    /// Its port; `None`: all.
    pub port: Option<u16>,
    /// When it ends; `None`: with the sandbox.
    pub expires_at: Option<Timestamp>,
}

impl std::fmt::Debug for PortToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortToken").field("port", &self.port).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Control {
    /// A token for `port` (`None`: all ports) of a sandbox, for `life` (`None`: until the sandbox ends or its tokens are revoked).
    pub async fn port_token(&self, caller: &Caller, id: Id, port: Option<u16>, life: Option<Duration>) -> Result<PortToken> {
        port.map_or(Ok(()), check_port)?;
        let inner = &self.inner;
        let sandbox = inner.sandbox_of(caller, id).await?;
        if !sandbox.state.is_claimed() {
            return Err(crate::sandboxes::not_found(caller, id));
        }
        let expires_at = life.map(|life| inner.now().plus(life));
        let secret = inner.port_token_seal(id, port, access_of(&sandbox).token_generation, expires_at)?;
        Ok(PortToken { secret, port, expires_at })
    }

    /// When a token ends, if it is one for this port and still good: for how long a browser should keep it. `None` inside: with the
    /// sandbox.
    pub fn port_token_end(&self, secret: &str, id: Id, port: u16) -> Result<Option<Timestamp>> {
        let content = self.inner.port_token_content(secret)?;
        self.inner.port_token_check(&content, id, port)?;
        Ok(content.expires_at)
    }
}

struct Content {
    sandbox: SandboxId,
    port: Option<u16>,
    generation: u32,
    expires_at: Option<Timestamp>,
}

impl Content {
    fn encode(&self) -> [u8; CONTENT_LEN] {
        let mut bytes = [0; CONTENT_LEN];
        bytes[..16].copy_from_slice(self.sandbox.uuid().as_bytes());
        bytes[16..18].copy_from_slice(&self.port.unwrap_or(0).to_be_bytes());
        bytes[18..22].copy_from_slice(&self.generation.to_be_bytes());
        bytes[22..].copy_from_slice(&self.expires_at.map_or(u64::MAX, Timestamp::as_millis).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (sandbox, rest) = bytes.split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let end = u64::from_be_bytes(rest.try_into().ok()?);
        Some(Self {
            sandbox: SandboxId::from_uuid(uuid::Uuid::from_bytes(*sandbox)),
            port: Some(u16::from_be_bytes(*port)).filter(|port| *port > 0),
            generation: u32::from_be_bytes(*generation),
            expires_at: (end != u64::MAX).then(|| Timestamp::from_millis(end)),
        })
    }
}

impl Inner {
    fn port_token_seal(
        &self,
        sandbox: SandboxId,
        port: Option<u16>,
        generation: u32,
        expires_at: Option<Timestamp>,
    ) -> Result<String> {
        let content = Content { sandbox, port, generation, expires_at };
        let Sealed(bytes) = self.seal(&PURPOSE, &content.encode())?;
        Ok(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    fn port_token_content(&self, text: &str) -> Result<Content> {
        let wrong = || refused("this is not a port token of this server");
        let encoded = text.strip_prefix(PREFIX).filter(|text| text.len() <= TEXT_MAX).ok_or_else(wrong)?;
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(encoded).map(Sealed).map_err(|_| wrong())?;
        let content = self.sealer.open(&PURPOSE, &sealed).map_err(|error| refused(&format!("the port token {error}")))?;
        Content::decode(&content).ok_or_else(wrong)
    }

    fn port_token_check(&self, content: &Content, id: SandboxId, port: u16) -> std::result::Result<(), Error> {
        if content.sandbox != id {
            return Err(refused("the port token is for another sandbox"));
        }
        if content.port.is_some_and(|only| only != port) {
            return Err(refused("the port token is for another port"));
        }
        if content.expires_at.is_some_and(|end| end <= self.now()) {
            return Err(refused("the port token has expired: ask the sandbox's owner for another"));
        }
        Ok(())
    }

    /// The generation of a token that opens this port now, as far as the token itself tells.
    pub(super) fn port_token_open(&self, text: &str, id: SandboxId, port: u16) -> Result<u32> {
        let content = self.port_token_content(text)?;
        self.port_token_check(&content, id, port)?;
        Ok(content.generation)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn content_comes_back_as_it_went() {
        let id = SandboxId::from_uuid(uuid::Uuid::from_bytes([7; 16]));
        for (port, end) in [(None, None), (Some(8000), Some(Timestamp::from_millis(5))), (Some(u16::MAX), None)] {
            let content = Content { sandbox: id, port, generation: 9, expires_at: end };
            let back = Content::decode(&content.encode()).unwrap();
            assert_eq!((back.sandbox, back.port, back.generation, back.expires_at), (id, port, 9, end));
        }
        assert!(Content::decode(&[0; CONTENT_LEN - 1]).is_none());
        assert!(Content::decode(&[0; CONTENT_LEN + 1]).is_none());
    }
}
