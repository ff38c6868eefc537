//! One query of one sandbox, from bytes to bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use sandbank_model::{NamedAddress, Verdict};
use tokio::time::timeout;

use super::resolver::{self, Answer, Resolver};
use crate::name::{self, NameKind};
use crate::network::{Denied, DeniedWhy, SandboxNetwork};
use crate::telemetry;

/// Addresses stay open so much longer than the answer says: a client connects some time after it has read it.
pub(crate) const OPEN_GRACE: Duration = Duration::from_secs(5);
/// Addresses of one answer that are given on; no honest name has as many.
const ADDRESSES_MAX: usize = 64;
/// How long opening may take before the sandbox is told that the name could not be resolved.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `localhost` is good for.
const LOOPBACK_TTL_SECONDS: u32 = 300;
/// What every client takes over UDP (RFC 1035 §4.2.1), and the most that we send.
const UDP_BYTES_MIN: u16 = 512;
const UDP_BYTES_MAX: u16 = 1232;
/// Bytes of a header: with fewer there is nobody to answer.
const HEADER_BYTES: usize = 12;

/// How a reply travels, which bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// What to say, before it is put into a message.
struct Reply {
    code: ResponseCode,
    records: Vec<Record>,
    authority: Option<Record>,
    outcome: &'static str,
}

impl Reply {
    fn empty(code: ResponseCode, outcome: &'static str) -> Self {
        Self { code, records: Vec::new(), authority: None, outcome }
    }
}

/// Answers `packet`, or `None` where silence is the right answer.
pub(crate) async fn reply(
    network: &dyn SandboxNetwork,
    resolver: &Arc<Resolver>,
    packet: &[u8],
    carrier: Carrier,
) -> Option<Vec<u8>> {
    let Ok(query) = Message::from_vec(packet) else { return malformed(packet) };
    // Answering answers would let two servers talk to each other for ever.
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let reply = match sound(&query) {
        Ok(question) => answer(network, resolver, question).await,
        Err(code) => Reply::empty(code, "refused"),
    };
    telemetry::query(reply.outcome);
    encode(&query, reply, carrier)
}

/// Says that the question is not understood, to who sent at least a header.
fn malformed(packet: &[u8]) -> Option<Vec<u8>> {
    telemetry::query("refused");
    let is_query = packet.len() >= HEADER_BYTES && packet[2] & 0x80 == 0;
    let id = u16::from_be_bytes([*packet.first()?, *packet.get(1)?]);
    is_query.then(|| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()).flatten()
}

/// Says that too much is asked at once.
pub(crate) fn overloaded(packet: &[u8]) -> Option<Vec<u8>> {
    telemetry::query("dropped");
    let query = Message::from_vec(packet).ok().filter(|query| query.metadata.message_type == MessageType::Query)?;
    encode(&query, Reply::empty(ResponseCode::ServFail, "dropped"), Carrier::Udp)
}

/// The one question of a query that we answer at all.
fn sound(query: &Message) -> Result<&Query, ResponseCode> {
    if query.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    let [question] = query.queries.as_slice() else { return Err(ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN || !passed(question.query_type()) {
        return Err(ResponseCode::Refused);
    }
    Ok(question)
}

/// Types that clients ask for and that carry nothing but what they say. `ANY` and zone transfers are for other uses.
fn passed(kind: RecordType) -> bool {
    use RecordType::{A, AAAA, CAA, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, SVCB, TXT};
    matches!(kind, A | AAAA | CNAME | MX | TXT | SRV | NS | PTR | SOA | CAA | HTTPS | SVCB)
}

async fn answer(network: &dyn SandboxNetwork, resolver: &Arc<Resolver>, question: &Query) -> Reply {
    let kind = question.query_type();
    let Some(name) = name::canonical(&question.name().to_ascii()) else {
        return Reply::empty(ResponseCode::NXDomain, "refused");
    };
    match name::kind(&name) {
        NameKind::Loopback => return loopback(question),
        NameKind::Local => return Reply::empty(ResponseCode::NXDomain, "refused"),
        NameKind::Public => {}
    }
    if network.name_verdict(&name, None, None) == Verdict::Deny {
        network.denied(&Denied { name: Some(name), port: None, why: DeniedWhy::Policy });
        return Reply::empty(ResponseCode::NXDomain, "denied");
    }
    if is_inside_address(network, question, &name) {
        return Reply::empty(ResponseCode::NXDomain, "refused");
    }
    // They name addresses and keys that would let a client hide whom it talks to.
    if matches!(kind, RecordType::HTTPS | RecordType::SVCB) && network.names_count() {
        return Reply::empty(ResponseCode::NoError, "answered");
    }
    match resolver.look_up(&name, kind).await {
        Ok(answer) => checked(network, &name, kind, &answer).await,
        Err(failure) => {
            tracing::debug!(%name, %failure, "a name could not be resolved");
            Reply::empty(ResponseCode::ServFail, "failed")
        }
    }
}

/// The name of an address that the sandbox may not reach: what the host's network calls its machines stays there (RFC 6303).
fn is_inside_address(network: &dyn SandboxNetwork, question: &Query, name: &str) -> bool {
    let address = question.name().parse_arpa_name();
    address.is_ok_and(|net| network.resolved_verdict(name, net.addr(), None) == Verdict::Deny)
}

fn loopback(question: &Query) -> Reply {
    let data = match question.query_type() {
        RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        _ => None,
    };
    let record = data.map(|data| Record::from_rdata(question.name().clone(), LOOPBACK_TTL_SECONDS, data));
    Reply { records: record.into_iter().collect(), ..Reply::empty(ResponseCode::NoError, "answered") }
}

/// Applies the policy to what a name resolved to, and opens what is left.
async fn checked(network: &dyn SandboxNetwork, name: &str, kind: RecordType, answer: &Answer) -> Reply {
    let life = answer.life(Instant::now());
    let ttl = u32::try_from(life.as_secs()).unwrap_or(u32::MAX);
    let mut kept = Vec::new();
    let mut addresses = Vec::new();
    let mut refused = None;
    for record in &answer.records {
        if let Some(address) = resolver::address(&record.data) {
            if network.resolved_verdict(name, address, None) == Verdict::Deny {
                refused = Some(address);
                continue;
            }
            if addresses.len() == ADDRESSES_MAX {
                continue;
            }
            addresses.push(address);
        }
        let mut record = record.clone();
        record.ttl = ttl;
        kept.push(record);
    }
    if let (Some(address), true) = (refused, addresses.is_empty()) {
        network.denied(&Denied { name: Some(name.to_owned()), port: None, why: DeniedWhy::Address(address) });
        // Not that the name is not there: some clients would then not take its addresses of the other family either.
        return Reply::empty(ResponseCode::NoError, "denied");
    }
    if matches!(kind, RecordType::A | RecordType::AAAA) && !open(network, name, &addresses, life).await {
        return Reply::empty(ResponseCode::ServFail, "failed");
    }
    let authority = answer.authority.clone().filter(|_| kept.is_empty()).map(|mut record| {
        record.ttl = ttl;
        record
    });
    Reply { code: answer.code, records: kept, authority, outcome: "answered" }
}

/// Has the addresses opened for the groups of the name. `false`: they are not open, and the answer must not leave.
async fn open(network: &dyn SandboxNetwork, name: &str, addresses: &[IpAddr], life: Duration) -> bool {
    let groups = if addresses.is_empty() { Vec::new() } else { network.groups_of(name) };
    if groups.is_empty() {
        return true;
    }
    let life = life + OPEN_GRACE;
    let each = |group| addresses.iter().map(move |address| NamedAddress { group, address: *address, life });
    match timeout(OPEN_TIMEOUT, network.open(name, groups.into_iter().flat_map(each).collect())).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(sandbox = %network.id(), %name, %error, "addresses of a name could not be opened");
            false
        }
        Err(_elapsed) => {
            tracing::warn!(sandbox = %network.id(), %name, "opening the addresses of a name took too long");
            false
        }
    }
}

/// Writes a reply; one that does not fit is cut, so that the client comes again over TCP.
fn encode(query: &Message, reply: Reply, carrier: Carrier) -> Option<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.authoritative = false;
    message.metadata.authentic_data = false;
    message.metadata.recursion_available = true;
    message.metadata.response_code = reply.code;
    message.add_queries(query.queries.iter().take(1).cloned());
    message.add_answers(reply.records);
    message.add_authorities(reply.authority);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        message.set_edns(edns);
    }
    let room = match carrier {
        Carrier::Tcp => u16::MAX,
        Carrier::Udp => query.max_payload().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
    };
    if let Ok(packet) = message.to_vec()
        && packet.len() <= usize::from(room)
    {
        return Some(packet);
    }
    message.answers.clear();
    message.authorities.clear();
    match carrier {
        Carrier::Udp => message.metadata.truncation = true,
        Carrier::Tcp => message.metadata.response_code = ResponseCode::ServFail,
    }
    message.to_vec().ok()
}
