//! The outside: a network of the test's own, with a host in it that is a DNS server, web servers for several names at one address,
//! and a host of a private range. It goes away with the test's process.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

// Addresses that are nobody's reserved ones: those for documentation are closed to sandboxes. Nothing leaves the test's network.

/// The host, as the outside sees it.
pub(crate) const HOST: &str = "11.22.33.1";
pub(crate) const PUBLIC: &str = "11.22.33.10";
pub(crate) const PUBLIC6: &str = "2a0f:1234:1::10";
pub(crate) const PRIVATE: &str = "10.1.2.3";
pub(crate) const RESOLVER: &str = "11.22.33.53";

/// The names that there are.
const NAMES: [(&str, &[&str]); 5] = [
    ("good.test", &[PUBLIC, PUBLIC6]),
    ("evil.test", &[PUBLIC, PUBLIC6]),
    ("api.test", &[PUBLIC]),
    ("rebind.test", &[PRIVATE]),
    ("both.test", &[PRIVATE, PUBLIC]),
];

type Job = Box<dyn FnOnce() + Send>;
type Seen = Arc<Mutex<Vec<String>>>;

/// All of it.
pub(crate) struct Outside {
    jobs: mpsc::Sender<Job>,
    /// Authority of the web servers, in PEM.
    pub(crate) root: String,
    /// Heads of requests that came.
    pub(crate) requests: Seen,
    /// Names that the DNS server was asked for.
    pub(crate) queries: Seen,
}

/// Leaves the machine's network for one with loopback only: what the calling thread starts is in it too.
fn leave_network() {
    // Deprecated because other flags can break what threads share; a network namespace is the calling thread's own.
    #[allow(deprecated)]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
    ip(&["link", "set", "lo", "up"]);
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Interfaces, addresses, routes and rules of the host.
pub(crate) fn state() -> Vec<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("iproute2 and nftables are installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    vec![said("ip", &["-br", "addr"]), said("ip", &["route"]), said("ip", &["-6", "route"]), said("nft", &["list", "ruleset"])]
}

impl Outside {
    /// Puts the calling thread into a network of its own, whose only neighbour is the outside.
    pub(crate) fn begin() -> Self {
        leave_network();
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            leave_network();
            tell.send(rustix::thread::gettid()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        let thread = told.recv().unwrap().as_raw_nonzero().to_string();
        ip(&["link", "add", "far", "type", "veth", "peer", "name", "near"]);
        ip(&["link", "set", "near", "netns", &thread]);
        ip(&["addr", "add", "11.22.33.1/24", "dev", "far"]);
        ip(&["addr", "add", "2a0f:1234:1::1/64", "dev", "far", "nodad"]);
        ip(&["link", "set", "far", "up"]);
        let (root, tls) = certificates();
        let outside = Self { jobs, root, requests: Seen::default(), queries: Seen::default() };
        outside.work(|| {
            for address in [PUBLIC, RESOLVER] {
                ip(&["addr", "add", &format!("{address}/24"), "dev", "near"]);
            }
            ip(&["addr", "add", "10.1.2.3/32", "dev", "near"]);
            ip(&["addr", "add", "2a0f:1234:1::10/64", "dev", "near", "nodad"]);
            ip(&["link", "set", "near", "up"]);
            ip(&["route", "add", "default", "via", HOST]);
            ip(&["-6", "route", "add", "default", "via", "2a0f:1234:1::1"]);
        });
        ip(&["route", "add", "10.1.2.0/24", "via", PUBLIC]);
        ip(&["route", "add", "default", "via", PUBLIC]);
        for address in [PUBLIC, PUBLIC6, PRIVATE] {
            for port in [80, 8080] {
                outside.serve(address, port, None);
            }
            outside.serve(address, 443, Some(Arc::clone(&tls)));
        }
        outside.resolve(53);
        outside.resolve(5353);
        outside
    }

    /// Does something there and waits for it.
    fn work<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(tell.send(job())))).unwrap();
        told.recv().expect("the job did not panic")
    }

    fn serve(&self, address: &str, port: u16, tls: Option<Arc<ServerConfig>>) {
        let (address, seen) = (SocketAddr::new(address.parse().unwrap(), port), Arc::clone(&self.requests));
        self.work(move || {
            let listener = TcpListener::bind(address).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (tls, seen) = (tls.clone(), Arc::clone(&seen));
                    std::thread::spawn(move || {
                        let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(30)));
                        let _ = match tls {
                            Some(tls) => answer(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream), &seen),
                            None => answer(stream, &seen),
                        };
                    });
                }
            });
        });
    }

    fn resolve(&self, port: u16) {
        let (address, seen) = (SocketAddr::new(RESOLVER.parse().unwrap(), port), Arc::clone(&self.queries));
        self.work(move || {
            let socket = UdpSocket::bind(address).unwrap();
            std::thread::spawn(move || {
                let mut room = [0; 1500];
                while let Ok((length, peer)) = socket.recv_from(&mut room) {
                    if let Ok(query) = Message::from_vec(&room[..length]) {
                        let _ = socket.send_to(&answered(&query, &seen).to_vec().unwrap(), peer);
                    }
                }
            });
        });
    }
}

fn answered(query: &Message, seen: &Seen) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    let Some(question) = query.queries.first() else { return message };
    message.add_query(question.clone());
    let asked = question.name().to_ascii().trim_end_matches('.').to_lowercase();
    seen.lock().unwrap().push(asked.clone());
    let names = HashMap::from(NAMES);
    let Some(addresses) = names.get(asked.as_str()) else {
        message.metadata.response_code = ResponseCode::NXDomain;
        return message;
    };
    for address in *addresses {
        let data = match (address.parse().unwrap(), question.query_type()) {
            (IpAddr::V4(address), RecordType::A) => RData::A(A(address)),
            (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(address)),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(question.name().clone(), 60, data));
    }
    message
}

/// One request, whose host is told back.
fn answer<S: Read + Write>(mut stream: S, seen: &Seen) -> std::io::Result<()> {
    let (mut head, mut room) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut room)? {
            0 => return Ok(()),
            length => head.extend_from_slice(&room[..length]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let host = head.lines().find_map(|line| line.to_lowercase().strip_prefix("host: ").map(str::to_owned)).unwrap_or_default();
    seen.lock().unwrap().push(head);
    let length = host.len();
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{host}").as_bytes())?;
    stream.flush()
}

/// An authority, and a server with a certificate for each name.
fn certificates() -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Outside");
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut resolver = ResolvesServerCertUsingSni::new();
    for (name, _) in NAMES {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        resolver.add(name, CertifiedKey::from_der(vec![certificate.der().clone()], der, &provider).unwrap()).unwrap();
    }
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    (root, Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(resolver))))
}

/// Whether somebody accepts connections there.
pub(crate) fn accepts(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}
