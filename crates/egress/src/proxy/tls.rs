//! Connections to TLS ports: passed on unread, or ended here where header fields are to be added.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::Connection;
use super::stream::{Replayed, splice};
use super::{dial, hello, request};
use crate::name::{self, Host};
use crate::network::DeniedWhy;

/// The fatal alert `access_denied` (RFC 8446 §6) in a record, so that the client says more than "connection reset".
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// The fatal alert `internal_error`: the name is allowed, but not to be had.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// Serves one connection; says what became of it.
pub(super) async fn serve<S>(connection: &Arc<Connection>, mut stream: S) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hello = match hello::read(&mut stream, connection.shared.settings.greeting_timeout).await {
        Ok(hello) => hello,
        Err(error) => {
            tracing::debug!(%error, "a TLS connection was not started");
            return "failed";
        }
    };
    let Some(network) = connection.network() else { return "unknown" };
    let Some(name) = hello.server_name.as_deref().and_then(name::canonical) else {
        connection.denied(&*network, None, DeniedWhy::NoServerName);
        return end(stream, ACCESS_DENIED, "denied").await;
    };
    let host = Host::Name(name);
    if !connection.allows(&*network, &host) {
        return end(stream, ACCESS_DENIED, "denied").await;
    }
    if let Host::Name(name) = &host
        && network.touches_headers(name)
    {
        return terminate(connection, Replayed::new(hello.bytes, stream), name).await;
    }
    match dial::dial(connection, &*network, &host).await {
        Ok((mut outside, _)) => {
            if outside.write_all(&hello.bytes).await.is_err() {
                return "failed";
            }
            // How a connection between two strangers breaks is theirs to know.
            let _ = splice(stream, outside).await;
            "passed"
        }
        Err(dial::DialError::Denied) => end(stream, ACCESS_DENIED, "denied").await,
        Err(error) => {
            tracing::debug!(host = %host.text(), %error, "a TLS connection could not be passed on");
            end(stream, INTERNAL_ERROR, "failed").await
        }
    }
}

/// Says why in the only words that a TLS client reads before it knows whom it talks to.
async fn end(mut stream: impl AsyncWrite + Unpin, alert: [u8; 7], outcome: &'static str) -> &'static str {
    let _ = stream.write_all(&alert).await;
    let _ = stream.shutdown().await;
    outcome
}

/// Is the host in front of the sandbox, and serves what it asks.
async fn terminate<S>(connection: &Arc<Connection>, stream: Replayed<S>, name: &str) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = match connection.shared.settings.authority.as_ref().map(|authority| authority.server_config(name)) {
        Some(Ok(config)) => config,
        Some(Err(error)) => {
            tracing::debug!(%name, %error, "header fields cannot be added: no certificate for the name");
            return end(stream, INTERNAL_ERROR, "failed").await;
        }
        None => {
            // Once: a sandbox can make it happen as often as it likes.
            if !connection.shared.authority_missed.swap(true, Ordering::Relaxed) {
                tracing::warn!(%name, "header fields cannot be added: the egress proxy has no certificate authority");
            }
            return end(stream, INTERNAL_ERROR, "failed").await;
        }
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    match timeout(connection.shared.settings.greeting_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            request::serve_ended(connection, stream, name, two).await
        }
        Ok(Err(error)) => {
            tracing::debug!(%name, %error, "the sandbox's TLS with the proxy failed: it may not trust its authority");
            "failed"
        }
        Err(_elapsed) => "failed",
    }
}
