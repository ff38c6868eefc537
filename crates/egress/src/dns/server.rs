//! The sockets that sandboxes send their queries to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_model::SandboxId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{self, Carrier};
use crate::limits::{Place, SandboxUsage};
use crate::network::SandboxNetwork;
use crate::services::Shared;
use crate::telemetry;

/// A query longer than this is not one.
const QUERY_BYTES_MAX: usize = 4096;
/// How long to rest when the system has no descriptor or memory for the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers queries until the services stop.
pub(crate) async fn serve_udp(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUERY_BYTES_MAX + 1];
    loop {
        let (length, source) = tokio::select! {
            () = shared.stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error for an earlier reply.
                Err(_) => continue,
            },
        };
        match admit(&shared, source, &buffer[..length]) {
            Admission::Answer(network, place) => {
                let (shared, socket, packet) = (Arc::clone(&shared), Arc::clone(&socket), buffer[..length].to_vec());
                shared.clone().spawn(async move {
                    let _place = place;
                    if let Some(reply) = answer::reply(&*network, &shared.resolver, &packet, Carrier::Udp).await {
                        send(&socket, &reply, source);
                    }
                });
            }
            Admission::Say(reply) => send(&socket, &reply, source),
            Admission::Ignore => {}
        }
    }
}

enum Admission {
    Answer(Arc<dyn SandboxNetwork>, Place),
    Say(Vec<u8>),
    Ignore,
}

fn admit(shared: &Shared, source: SocketAddr, packet: &[u8]) -> Admission {
    let Some((network, usage)) = shared.sandbox(source.ip()).filter(|_| packet.len() <= QUERY_BYTES_MAX) else {
        telemetry::query("dropped");
        return Admission::Ignore;
    };
    // Silence is what a flood costs us least, and an honest client asks again.
    if !shared.usage.query_allowed(&usage, Instant::now()) {
        telemetry::query("dropped");
        return Admission::Ignore;
    }
    match shared.usage.query_place(&usage) {
        Some(place) => Admission::Answer(network, place),
        None => answer::overloaded(packet).map_or(Admission::Ignore, Admission::Say),
    }
}

/// A reply that the socket cannot take now is lost, as the network may lose it: the client asks again.
fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.try_send_to(reply, to)
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::debug!(%error, "a DNS reply could not be sent");
    }
}

/// Answers connections until the services stop.
pub(crate) async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    while let Some((stream, source)) = shared.accept(&listener, ACCEPT_PAUSE).await {
        let Some((network, usage)) = shared.sandbox(source.ip()) else { continue };
        let Some(place) = shared.usage.dns_connection_place(&usage) else {
            telemetry::query("dropped");
            continue;
        };
        let shared = Arc::clone(&shared);
        shared.clone().spawn(async move {
            let _place = place;
            let connection = Connection { shared, source: source.ip(), id: network.id(), usage, stream };
            if let Err(error) = connection.serve().await {
                tracing::debug!(%error, "a DNS connection ended");
            }
        });
    }
}

struct Connection {
    shared: Arc<Shared>,
    source: IpAddr,
    id: SandboxId,
    usage: Arc<SandboxUsage>,
    stream: TcpStream,
}

impl Connection {
    /// One query after the other (RFC 7766), until the client is silent for too long.
    async fn serve(mut self) -> io::Result<()> {
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        let idle = self.shared.settings.dns_idle_timeout;
        loop {
            let length = match timeout(idle, self.stream.read_u16()).await? {
                Ok(length) => usize::from(length),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            if length > QUERY_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the query is too long"));
            }
            timeout(idle, self.stream.read_exact(&mut buffer[..length])).await??;
            let Some(reply) = self.reply(&buffer[..length]).await else { return Ok(()) };
            let size = u16::try_from(reply.len()).map_err(|_| io::Error::other("the answer is too long"))?;
            timeout(idle, self.stream.write_all(&[&size.to_be_bytes(), reply.as_slice()].concat())).await??;
        }
    }

    /// Asks again whose address it is: a connection may outlive its sandbox.
    async fn reply(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let (network, _) = self.shared.sandbox(self.source).filter(|(network, _)| network.id() == self.id)?;
        if !self.shared.usage.query_allowed(&self.usage, Instant::now()) {
            telemetry::query("dropped");
            return None;
        }
        let Some(_place) = self.shared.usage.query_place(&self.usage) else { return answer::overloaded(packet) };
        answer::reply(&*network, &self.shared.resolver, packet, Carrier::Tcp).await
    }
}
