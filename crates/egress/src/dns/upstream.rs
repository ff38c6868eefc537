//! Asking the servers above us, over UDP and, when an answer does not fit, TCP.
//!
//! Each question goes from a fresh socket that the kernel gave a random port and that hears only the server that was asked, with a
//! random id. What does not carry the id and the question is not an answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::resolver::Failure;
use crate::settings::{EgressSettings, Upstreams};
use crate::telemetry;

/// What we say that we take over UDP: no more than crosses every network in one piece (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;
/// Wrong packets that are passed over while one waits for the right one.
const STRAY_PACKETS_MAX: usize = 32;
/// Servers of a `resolv.conf` that are used.
const SERVERS_MAX: usize = 3;
/// How often the file may be looked at.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A `resolv.conf` longer than this is not one.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Asks upstreams.
#[derive(Debug)]
pub(crate) struct Upstream {
    servers: Mutex<Servers>,
    timeout: Duration,
    tries: u32,
}

#[derive(Debug)]
struct Servers {
    known: Vec<SocketAddr>,
    file: Option<(PathBuf, Option<SystemTime>)>,
    checked: Option<Instant>,
}

impl Upstream {
    pub(crate) fn new(settings: &EgressSettings) -> Self {
        let servers = match &settings.upstreams {
            Upstreams::Servers(servers) => Servers { known: servers.clone(), file: None, checked: None },
            Upstreams::File(path) => Servers { known: Vec::new(), file: Some((path.clone(), None)), checked: None },
        };
        Self { servers: Mutex::new(servers), timeout: settings.upstream_timeout, tries: settings.upstream_tries }
    }

    /// The first answer that says that a name exists or does not.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Failure> {
        let servers = self.servers.lock().now(Instant::now());
        if servers.is_empty() {
            return Err(Failure("no DNS server is known"));
        }
        let mut last = Failure("no DNS server answered in time");
        for _ in 0..self.tries {
            for server in &servers {
                let asked = Instant::now();
                match timeout(self.timeout, exchange(*server, name, kind)).await {
                    Ok(Ok(answer)) if decided(&answer) => {
                        telemetry::upstream(asked.elapsed());
                        return Ok(answer);
                    }
                    Ok(Ok(_)) => last = Failure("the DNS server could not answer"),
                    Ok(Err(failure)) => last = failure,
                    Err(_elapsed) => {}
                }
            }
        }
        Err(last)
    }
}

impl Servers {
    /// The servers as they are now. The file is small and local; it is looked at once a second at most.
    fn now(&mut self, now: Instant) -> Vec<SocketAddr> {
        let due = self.checked.is_none_or(|checked| now.saturating_duration_since(checked) >= FILE_CHECK_INTERVAL);
        if !due {
            return self.known.clone();
        }
        self.checked = Some(now);
        if let Some((path, read)) = &mut self.file {
            let changed =
                std::fs::metadata(&*path).ok().filter(|meta| meta.len() <= FILE_BYTES_MAX).and_then(|m| m.modified().ok());
            if changed.is_some()
                && changed != *read
                && let Ok(text) = std::fs::read_to_string(&*path)
            {
                self.known = nameservers(&text);
                *read = changed;
            }
        }
        if self.known.is_empty() {
            tracing::warn!("no DNS server is known: name one in the settings or in resolv.conf");
        }
        self.known.clone()
    }
}

/// The servers that a `resolv.conf` names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    named.filter_map(server).take(SERVERS_MAX).collect()
}

/// One server: an address, with a numeric scope where it is link-local.
fn server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse().ok()?, 53)),
        Some((address, scope)) => Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope.parse().ok()?).into()),
    }
}

/// Whether the server knew: it says that the name is there, or that it is not.
fn decided(answer: &Message) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// One question to one server.
async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, Failure> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_MAX);
    question.set_edns(edns);
    let packet = question.to_vec().map_err(|_| Failure("the question cannot be written"))?;
    let answer = over_udp(server, &packet, &question).await?;
    if answer.metadata.truncation { over_tcp(server, &packet, &question).await } else { Ok(answer) }
}

async fn over_udp(server: SocketAddr, packet: &[u8], question: &Message) -> Result<Message, Failure> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let unreachable = |_: std::io::Error| Failure("the DNS server cannot be reached");
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.map_err(unreachable)?;
    socket.connect(server).await.map_err(unreachable)?;
    socket.send(packet).await.map_err(unreachable)?;
    let mut buffer = vec![0; usize::from(UDP_PAYLOAD_MAX) + 1];
    for _ in 0..STRAY_PACKETS_MAX {
        let length = socket.recv(&mut buffer).await.map_err(unreachable)?;
        if length > usize::from(UDP_PAYLOAD_MAX) {
            continue;
        }
        if let Some(answer) = parse(&buffer[..length], question) {
            return Ok(answer);
        }
    }
    Err(Failure("the DNS server sends only what does not belong to the question"))
}

async fn over_tcp(server: SocketAddr, packet: &[u8], question: &Message) -> Result<Message, Failure> {
    let broken = |_: std::io::Error| Failure("the DNS server cannot be reached over TCP");
    let length = u16::try_from(packet.len()).map_err(|_| Failure("the question is too long"))?;
    let mut stream = TcpStream::connect(server).await.map_err(broken)?;
    let framed = [&length.to_be_bytes(), packet].concat();
    stream.write_all(&framed).await.map_err(broken)?;
    // The length has 16 bits: no answer is longer than 64 KiB.
    let length = stream.read_u16().await.map_err(broken)?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(broken)?;
    let answer = parse(&buffer, question).ok_or(Failure("the DNS server's answer over TCP does not belong to the question"))?;
    if answer.metadata.truncation { Err(Failure("the DNS server's answer over TCP is cut")) } else { Ok(answer) }
}

/// An answer to exactly this question.
fn parse(packet: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::from_vec(packet).ok()?;
    let asked = question.queries.first()?;
    let [repeated] = answer.queries.as_slice() else { return None };
    let belongs = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == question.metadata.op_code
        && repeated.name() == asked.name()
        && repeated.query_type() == asked.query_type()
        && repeated.query_class() == DNSClass::IN;
    belongs.then_some(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_the_manual_says() {
        let text = "# made by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver  2001:db8::1 # second\n\
                    nameserver fe80::1%2\nnameserver nonsense\noptions ndots:5\nnameserver 192.0.2.4\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%2]:53"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut servers = Servers { known: Vec::new(), file: Some((path.clone(), None)), checked: None };
        let start = Instant::now();
        assert!(servers.now(start).is_empty(), "a file that is not there names nobody");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers.now(start + FILE_CHECK_INTERVAL), ["192.0.2.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(servers.now(start + FILE_CHECK_INTERVAL), ["192.0.2.1:53".parse().unwrap()], "not twice in a second");
        assert_eq!(servers.now(start + FILE_CHECK_INTERVAL * 2), ["192.0.2.2:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(servers.now(start + FILE_CHECK_INTERVAL * 4).len(), 1, "a file that is just being replaced changes nothing");
    }
}
