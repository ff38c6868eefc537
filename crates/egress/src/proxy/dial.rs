//! Connecting from the host to where a sandbox may go.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sandbank_model::Verdict;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use crate::name::{self, Host, NameKind};
use crate::network::{DeniedWhy, SandboxNetwork};

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The next address is tried when the one before has said nothing for so long (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the sandbox's network policy does not allow it, or the address that it stands for")]
    Denied,
    #[error("the name could not be resolved")]
    Unresolved,
    #[error("the name has no address")]
    NoAddress,
    #[error("it could not be reached: {0}")]
    Unreachable(io::ErrorKind),
    #[error("it did not answer in time")]
    Slow,
    #[error("TLS with it failed: {0}")]
    Tls(String),
}

/// A connection to an allowed host. Whether the host is allowed was asked before; whether its addresses are is asked here.
pub(super) async fn dial(
    connection: &Connection,
    network: &dyn SandboxNetwork,
    host: &Host,
) -> Result<(TcpStream, IpAddr), DialError> {
    let settings = &connection.shared.settings;
    let dialled = async {
        let addresses = addresses(connection, network, host).await?;
        let stream = race(&addresses, connection.port, settings.dial_timeout).await?;
        let address = stream.peer_addr().map_err(|error| DialError::Unreachable(error.kind()))?.ip();
        let _ = stream.set_nodelay(true);
        // The policy may have changed meanwhile. From here on a change finds the connection in the list.
        if connection.reaches(host, address) { Ok((stream, address)) } else { Err(DialError::Denied) }
    };
    timeout(settings.dial_total_timeout, dialled).await.map_err(|_elapsed| DialError::Slow)?
}

async fn addresses(connection: &Connection, network: &dyn SandboxNetwork, host: &Host) -> Result<Vec<IpAddr>, DialError> {
    let name = match host {
        Host::Address(address) => return Ok(vec![*address]),
        Host::Name(name) => name,
    };
    // Ours is not the sandbox's localhost, and our neighbours are not its.
    if name::kind(name) != NameKind::Public {
        return Err(DialError::NoAddress);
    }
    let found = connection.shared.resolver.addresses(name).await.map_err(|failure| {
        tracing::debug!(%name, %failure, "a name could not be resolved");
        DialError::Unresolved
    })?;
    let allowed = |address: &&IpAddr| network.resolved_verdict(name, **address, Some(connection.port)) == Verdict::Allow;
    let kept: Vec<IpAddr> = found.iter().filter(allowed).copied().collect();
    match (kept.is_empty(), found.first()) {
        (true, None) => Err(DialError::NoAddress),
        (true, Some(refused)) => {
            connection.denied(network, Some(host), DeniedWhy::Address(*refused));
            Err(DialError::Denied)
        }
        (false, _) => Ok(by_turns(&kept)),
    }
}

/// Both families by turns, so that one that does not work here costs little.
fn by_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut six = addresses.iter().filter(|address| address.is_ipv6());
    let mut four = addresses.iter().filter(|address| address.is_ipv4());
    let mut ordered = Vec::new();
    while ordered.len() < ADDRESSES_MAX {
        let before = ordered.len();
        ordered.extend(six.next());
        ordered.extend(four.next());
        if ordered.len() == before {
            break;
        }
    }
    ordered
}

/// The first address that answers, each with a head start over the next.
async fn race(addresses: &[IpAddr], port: u16, limit: Duration) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.iter();
    let mut running = FuturesUnordered::new();
    let mut last = DialError::NoAddress;
    loop {
        let next = waiting.next();
        running.extend(next.map(|address| connect(SocketAddr::new(*address, port), limit)));
        let head_start = async {
            match next {
                Some(_) => sleep(HEAD_START).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            first = running.next() => match first {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = head_start => {}
        }
    }
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
    let attempt = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A peer that is gone without a word is found out although nothing is sent.
        socket.set_keepalive(true)?;
        socket.connect(address).await
    };
    match timeout(limit, attempt).await {
        Ok(connected) => connected.map_err(|error| DialError::Unreachable(error.kind())),
        Err(_elapsed) => Err(DialError::Slow),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use tokio::net::TcpListener;

    use super::*;

    fn parsed(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let mixed = parsed(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]);
        assert_eq!(by_turns(&mixed), parsed(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]));
        let many: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(by_turns(&many).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn an_address_that_refuses_leads_to_the_next() {
        let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = race(&parsed(&["127.0.0.2", "127.0.0.3"]), port, Duration::from_secs(3)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        let error = race(&parsed(&["127.0.0.2"]), port, Duration::from_secs(3)).await.unwrap_err();
        assert!(matches!(error, DialError::Unreachable(io::ErrorKind::ConnectionRefused)), "{error}");
    }
}
