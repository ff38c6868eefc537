//! A program inside a sandbox.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{RData, RecordType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::soon;
use super::upstream::name;

pub async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    soon(socket.connect(to)).await.unwrap()
}

pub fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

/// Asks over UDP with room for long answers.
pub async fn ask(from: IpAddr, server: SocketAddr, text: &str, kind: RecordType) -> Message {
    let mut question = question(text, kind);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    question.set_edns(edns);
    send(from, server, &question.to_vec().unwrap()).await
}

/// Sends one packet and reads the reply.
pub async fn send(from: IpAddr, server: SocketAddr, packet: &[u8]) -> Message {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = [0; 4096];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

/// Asks over a TCP connection.
pub async fn ask_tcp(stream: &mut TcpStream, text: &str, kind: RecordType) -> Message {
    let packet = question(text, kind).to_vec().unwrap();
    stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    let length = soon(stream.read_u16()).await.unwrap();
    let mut buffer = vec![0; usize::from(length)];
    soon(stream.read_exact(&mut buffer)).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// The addresses in an answer, as texts.
pub fn addresses(message: &Message) -> Vec<String> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0.to_string()),
        RData::AAAA(address) => Some(address.0.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

pub fn connector(roots_pem: &str, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Speaks TLS with `name` through the proxy.
pub async fn tls(
    from: IpAddr,
    proxy: SocketAddr,
    name: &str,
    roots_pem: &str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = connect(from, proxy).await;
    soon(connector(roots_pem, alpn).connect(ServerName::try_from(name.to_owned()).unwrap(), stream)).await
}

/// Writes `request` and reads to the end.
pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is cut ends the answer too.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Writes `request` and reads one answer with a `Content-Length`.
pub async fn one(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if let Some((header, body)) = text.split_once("\r\n\r\n") {
            let length = header.lines().find_map(|line| line.strip_prefix("content-length:"));
            if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
                return String::from_utf8(answer).unwrap();
            }
        }
        let mut buffer = [0; 4096];
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "the connection ended after {text:?}");
        answer.extend_from_slice(&buffer[..read]);
    }
}

/// Reads what comes first.
pub async fn read_some(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut buffer = [0; 4096];
    let read = soon(stream.read(&mut buffer)).await.unwrap();
    assert!(read > 0, "the connection ended");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}
