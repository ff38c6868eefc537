//! A DNS server that does what a test says, over UDP and TCP on one port.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use super::udp_and_tcp;

/// What becomes of a question.
#[derive(Clone)]
pub enum Behaviour {
    /// These records.
    Records(Vec<Record>),
    /// Nothing but a code.
    Code(ResponseCode),
    /// Never an answer.
    Silence,
    /// An answer with another id.
    WrongId(Vec<Record>),
    /// An answer to another question.
    WrongQuestion(Vec<Record>),
    /// Two wrong answers, and then the right one.
    RightAfterWrong { wrong: Vec<Record>, right: Vec<Record> },
    /// What is no message.
    Garbage,
    /// Over UDP an answer that says that it is cut; over TCP these.
    CutThenTcp(Vec<Record>),
    /// Over UDP an answer that says that it is cut; over TCP the same.
    CutAlways,
    /// Over UDP cut; over TCP a length of 65,535 and then nothing more.
    CutThenStall,
    /// These, when the semaphore gives a permit.
    Held(Arc<Semaphore>, Vec<Record>),
}

impl Behaviour {
    pub fn addresses(name: &str, addresses: &[&str], ttl: u32) -> Self {
        Self::Records(addresses.iter().map(|text| address(name, text, ttl)).collect())
    }
}

pub fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

pub fn address(owner: &str, text: &str, ttl: u32) -> Record {
    let data = match text.parse().unwrap() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name(owner), ttl, data)
}

pub fn alias(from: &str, to: &str, ttl: u32) -> Record {
    Record::from_rdata(name(from), ttl, RData::CNAME(CNAME(name(to))))
}

type Zone = HashMap<(String, RecordType), Behaviour>;

pub struct TestUpstream {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    /// Every question that came, in order.
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
}

impl TestUpstream {
    pub async fn start() -> Self {
        let (udp, tcp) = udp_and_tcp().await;
        let upstream = Self { address: udp.local_addr().unwrap(), zone: Arc::default(), asked: Arc::default() };
        let (zone, asked) = (upstream.zone.clone(), upstream.asked.clone());
        tokio::spawn(serve_udp(Arc::new(udp), zone.clone(), asked.clone()));
        tokio::spawn(serve_tcp(tcp, zone, asked));
        upstream
    }

    pub fn set(&self, name: &str, kind: RecordType, behaviour: Behaviour) {
        self.zone.lock().insert((name.to_owned(), kind), behaviour);
    }

    /// How often this was asked.
    pub fn asked(&self, name: &str, kind: RecordType) -> usize {
        self.asked.lock().iter().filter(|(asked, of)| asked == name && *of == kind).count()
    }

    /// How often anything was asked.
    pub fn asked_in_all(&self) -> usize {
        self.asked.lock().len()
    }
}

fn behaviour(zone: &Mutex<Zone>, asked: &Mutex<Vec<(String, RecordType)>>, query: &Message) -> Behaviour {
    let question = &query.queries[0];
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let key = (name, question.query_type());
    asked.lock().push(key.clone());
    zone.lock().get(&key).cloned().unwrap_or(Behaviour::Code(ResponseCode::NXDomain))
}

fn response(query: &Message, records: &[Record]) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.add_query(query.queries[0].clone());
    message.add_answers(records.to_vec());
    message
}

fn with_wrong_id(query: &Message, records: &[Record]) -> Message {
    let mut message = response(query, records);
    message.metadata.id ^= 0x5555;
    message
}

async fn serve_udp(socket: Arc<UdpSocket>, zone: Arc<Mutex<Zone>>, asked: Arc<Mutex<Vec<(String, RecordType)>>>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let behaviour = behaviour(&zone, &asked, &query);
        let socket = Arc::clone(&socket);
        tokio::spawn(async move {
            for packet in packets(&query, behaviour).await {
                socket.send_to(&packet, from).await.unwrap();
            }
        });
    }
}

async fn packets(query: &Message, behaviour: Behaviour) -> Vec<Vec<u8>> {
    let bytes = |message: Message| message.to_vec().unwrap();
    match behaviour {
        Behaviour::Records(records) => vec![bytes(response(query, &records))],
        Behaviour::Code(code) => {
            let mut message = response(query, &[]);
            message.metadata.response_code = code;
            vec![bytes(message)]
        }
        Behaviour::Silence => Vec::new(),
        Behaviour::WrongId(records) => vec![bytes(with_wrong_id(query, &records))],
        Behaviour::WrongQuestion(records) => {
            let mut message = response(query, &records);
            message.queries = vec![Query::query(name("elsewhere.test"), RecordType::A)];
            vec![bytes(message)]
        }
        Behaviour::RightAfterWrong { wrong, right } => {
            let wrong = bytes(with_wrong_id(query, &wrong));
            vec![wrong.clone(), wrong, bytes(response(query, &right))]
        }
        Behaviour::Garbage => vec![b"not a message".to_vec()],
        Behaviour::CutThenTcp(_) | Behaviour::CutAlways | Behaviour::CutThenStall => vec![bytes(cut(query))],
        Behaviour::Held(gate, records) => {
            gate.acquire().await.unwrap().forget();
            vec![bytes(response(query, &records))]
        }
    }
}

fn cut(query: &Message) -> Message {
    let mut message = response(query, &[]);
    message.metadata.truncation = true;
    message
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>, asked: Arc<Mutex<Vec<(String, RecordType)>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer).unwrap();
        let packet = match behaviour(&zone, &asked, &query) {
            Behaviour::CutThenTcp(records) => response(&query, &records).to_vec().unwrap(),
            Behaviour::CutAlways => cut(&query).to_vec().unwrap(),
            Behaviour::CutThenStall => {
                stream.write_all(&[0xff, 0xff, 0, 0]).await.unwrap();
                tokio::spawn(async move {
                    let mut stream = stream;
                    let _ = stream.read_u8().await;
                });
                continue;
            }
            _ => panic!("nothing else is asked over TCP"),
        };
        stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
        stream.write_all(&packet).await.unwrap();
    }
}
