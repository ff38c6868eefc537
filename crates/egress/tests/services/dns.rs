//! Names that sandboxes ask for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{HTTPS, PTR, SVCB, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use sandbank_egress::{Denied, DeniedWhy, EgressServices, EgressSettings, EgressSockets, Upstreams};
use sandbank_model::{NameGroup, NamedAddress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use crate::support::client::{addresses, ask, ask_tcp, connect, question, send};
use crate::support::network::{TestDirectory, TestNetwork};
use crate::support::upstream::{Behaviour, TestUpstream, address, alias, name};
use crate::support::{NEIGHBOUR, SANDBOX, STRANGER, World, soon, until, world};

/// Lets the sandbox reach `name` at `at`.
fn allow(world: &World, name: &str, at: &[&str]) {
    let mut rules = world.network.rules.lock();
    rules.names.insert(name.to_owned());
    rules.addresses.extend(at.iter().map(|text| text.parse::<IpAddr>().unwrap()));
}

fn denied(name: &str, why: DeniedWhy) -> Denied {
    Denied { name: Some(name.to_owned()), port: None, why }
}

async fn a(world: &World, name: &str) -> Message {
    ask(SANDBOX, world.dns, name, RecordType::A).await
}

#[tokio::test]
async fn an_allowed_name_is_opened_before_its_answer_arrives() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &["192.0.2.1", "192.0.2.2"]);
    world.network.rules.lock().groups.insert("api.test".to_owned(), vec![NameGroup(3), NameGroup(7)]);
    world.upstream.set("api.test", RecordType::A, Behaviour::addresses("api.test", &["192.0.2.1", "192.0.2.2"], 30));
    world.network.open_gate.forget_permits(Semaphore::MAX_PERMITS);

    let socket = UdpSocket::bind(SocketAddr::new(SANDBOX, 0)).await.unwrap();
    socket.connect(world.dns).await.unwrap();
    socket.send(&question("API.test", RecordType::A).to_vec().unwrap()).await.unwrap();
    until("the question went up", || world.upstream.asked("api.test", RecordType::A) == 1).await;
    let mut buffer = [0; 512];
    let early = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
    assert!(early.is_err(), "the answer came before the addresses were open");

    world.network.open_gate.add_permits(1);
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(addresses(&answer), ["192.0.2.1", "192.0.2.2"]);
    let ttl = answer.answers[0].ttl;
    assert!((28..=30).contains(&ttl), "{ttl}");
    let mut opened: Vec<NamedAddress> = world.network.opened.lock().clone();
    // Five seconds of grace for who connects just after.
    let life = Duration::from_secs(u64::from(ttl) + 5);
    opened.sort_by_key(|opened| (opened.group, opened.address));
    let expected: Vec<NamedAddress> = [3, 7]
        .into_iter()
        .flat_map(|group| ["192.0.2.1", "192.0.2.2"].map(|address| (NameGroup(group), address.parse().unwrap())))
        .map(|(group, address)| NamedAddress { group, address, life })
        .collect();
    assert_eq!(opened, expected);
    assert_eq!(world.network.denials(), []);
}

#[tokio::test]
async fn lives_are_kept_within_bounds() {
    let world = world(443, |_| {}).await;
    for (name, ttl, expected) in [("short.test", 0, 1), ("long.test", 86_400, 300)] {
        allow(&world, name, &["192.0.2.1"]);
        world.network.rules.lock().groups.insert(name.to_owned(), vec![NameGroup(0)]);
        world.upstream.set(name, RecordType::A, Behaviour::addresses(name, &["192.0.2.1"], ttl));
        let answer = a(&world, name).await;
        let given = answer.answers[0].ttl;
        assert!(given == expected || given == expected - 1, "{name}: {given}");
        let opened = world.network.opened.lock().pop().unwrap();
        assert_eq!(opened.life, Duration::from_secs(u64::from(given) + 5));
    }
}

#[tokio::test]
async fn what_cannot_be_opened_is_not_answered() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &["192.0.2.1"]);
    world.network.rules.lock().groups.insert("api.test".to_owned(), vec![NameGroup(0)]);
    world.network.rules.lock().open_fails = true;
    world.upstream.set("api.test", RecordType::A, Behaviour::addresses("api.test", &["192.0.2.1"], 30));
    let answer = a(&world, "api.test").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(addresses(&answer), [""; 0]);
}

#[tokio::test]
async fn a_denied_name_is_not_even_asked_for() {
    let world = world(443, |_| {}).await;
    let answer = a(&world, "secret-data.evil.test").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.metadata.recursion_available);
    assert_eq!(world.upstream.asked_in_all(), 0, "a name is a way to send data out");
    assert_eq!(world.network.denials(), [denied("secret-data.evil.test", DeniedWhy::Policy)]);
}

#[tokio::test]
async fn policies_go_by_the_source_address() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &["192.0.2.1"]);
    world.upstream.set("api.test", RecordType::A, Behaviour::addresses("api.test", &["192.0.2.1"], 30));
    assert_eq!(addresses(&a(&world, "api.test").await), ["192.0.2.1"]);
    let other = ask(NEIGHBOUR, world.dns, "api.test", RecordType::A).await;
    assert_eq!(other.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(world.neighbour.denials().len(), 1);

    let stranger = UdpSocket::bind(SocketAddr::new(STRANGER, 0)).await.unwrap();
    stranger.send_to(&question("api.test", RecordType::A).to_vec().unwrap(), world.dns).await.unwrap();
    let mut buffer = [0; 512];
    let heard = tokio::time::timeout(Duration::from_millis(200), stranger.recv(&mut buffer)).await;
    assert!(heard.is_err(), "who is nobody hears nothing");
    let mut stream = connect(STRANGER, world.dns).await;
    assert_eq!(soon(stream.read(&mut buffer)).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_public_name_does_not_lead_inside() {
    let world = world(443, |_| {}).await;
    allow(&world, "rebound.test", &["192.0.2.1"]);
    world.network.rules.lock().groups.insert("rebound.test".to_owned(), vec![NameGroup(0)]);
    let mixed = Behaviour::addresses("rebound.test", &["10.0.0.1", "192.0.2.1", "169.254.169.254"], 30);
    world.upstream.set("rebound.test", RecordType::A, mixed);
    assert_eq!(addresses(&a(&world, "rebound.test").await), ["192.0.2.1"], "only what it may stand for");
    assert_eq!(world.network.opened.lock().len(), 1);

    let mapped = Behaviour::addresses("rebound.test", &["::ffff:10.0.0.1"], 30);
    world.upstream.set("rebound.test", RecordType::AAAA, mapped);
    let answer = ask(SANDBOX, world.dns, "rebound.test", RecordType::AAAA).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    let inside = DeniedWhy::Address("10.0.0.1".parse().unwrap());
    assert_eq!(world.network.denials(), [denied("rebound.test", inside)]);

    allow(&world, "alias.test", &[]);
    let records = vec![alias("alias.test", "inside.corp.test", 30), address("inside.corp.test", "10.0.0.2", 30)];
    world.upstream.set("alias.test", RecordType::A, Behaviour::Records(records));
    let answer = a(&world, "alias.test").await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    let inside = DeniedWhy::Address("10.0.0.2".parse().unwrap());
    assert_eq!(world.network.denials().last(), Some(&denied("alias.test", inside)));
}

#[tokio::test]
async fn an_alias_is_followed_for_the_name_that_was_asked() {
    let world = world(443, |_| {}).await;
    allow(&world, "www.test", &["192.0.2.1", "192.0.2.66"]);
    world.network.rules.lock().groups.insert("www.test".to_owned(), vec![NameGroup(1)]);
    let records = vec![
        alias("www.test", "cdn.test", 30),
        address("cdn.test", "192.0.2.1", 60),
        // What nobody asked for is not opened.
        address("stranger.test", "192.0.2.66", 60),
    ];
    world.upstream.set("www.test", RecordType::A, Behaviour::Records(records));
    let answer = a(&world, "www.test").await;
    assert_eq!(addresses(&answer), ["192.0.2.1"]);
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
    let opened: Vec<IpAddr> = world.network.opened.lock().iter().map(|opened| opened.address).collect();
    assert_eq!(opened, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn lying_upstreams_are_not_believed() {
    let world = world(443, |_| {}).await;
    let lie = || vec![address("api.test", "192.0.2.66", 30)];
    allow(&world, "api.test", &["192.0.2.1", "192.0.2.66"]);
    for behaviour in [
        Behaviour::WrongId(lie()),
        Behaviour::WrongQuestion(lie()),
        Behaviour::Garbage,
        Behaviour::Silence,
        Behaviour::Code(ResponseCode::ServFail),
        Behaviour::Code(ResponseCode::Refused),
        Behaviour::CutAlways,
        Behaviour::CutThenStall,
    ] {
        world.upstream.set("api.test", RecordType::A, behaviour);
        let answer = a(&world, "api.test").await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::ServFail, 0));
    }
    let right = vec![address("api.test", "192.0.2.1", 30)];
    world.upstream.set("api.test", RecordType::A, Behaviour::RightAfterWrong { wrong: lie(), right });
    assert_eq!(addresses(&a(&world, "api.test").await), ["192.0.2.1"], "failures are not remembered");
}

#[tokio::test]
async fn a_second_upstream_answers_for_the_first() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let first = silent.local_addr().unwrap();
    let world = world(443, |settings| {
        let sandbank_egress::Upstreams::Servers(servers) = &mut settings.upstreams else { unreachable!() };
        servers.insert(0, first);
    })
    .await;
    allow(&world, "api.test", &["192.0.2.1"]);
    world.upstream.set("api.test", RecordType::A, Behaviour::addresses("api.test", &["192.0.2.1"], 30));
    assert_eq!(addresses(&a(&world, "api.test").await), ["192.0.2.1"]);
}

#[tokio::test]
async fn long_answers_come_over_tcp() {
    let world = world(443, |_| {}).await;
    let many: Vec<String> = (0..50).map(|last| format!("2001:db8::{last:x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    allow(&world, "many.test", &many);
    let records = many.iter().map(|text| address("many.test", text, 30)).collect();
    world.upstream.set("many.test", RecordType::AAAA, Behaviour::CutThenTcp(records));
    let cut = ask(SANDBOX, world.dns, "many.test", RecordType::AAAA).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut stream = connect(SANDBOX, world.dns).await;
    let whole = ask_tcp(&mut stream, "many.test", RecordType::AAAA).await;
    assert_eq!(addresses(&whole).len(), 50);
    assert_eq!(world.upstream.asked("many.test", RecordType::AAAA), 2, "cut and whole, and then from memory");
    let again = ask_tcp(&mut stream, "many.test", RecordType::AAAA).await;
    assert_eq!(addresses(&again).len(), 50, "one connection, many questions");
}

#[tokio::test]
async fn a_huge_answer_opens_a_bounded_number_of_addresses() {
    let world = world(443, |_| {}).await;
    let many: Vec<String> = (0..2000).map(|last| format!("192.0.{}.{}", last / 250, last % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    allow(&world, "huge.test", &many);
    world.network.rules.lock().groups.insert("huge.test".to_owned(), vec![NameGroup(0)]);
    let records = many.iter().map(|text| address("huge.test", text, 30)).collect();
    world.upstream.set("huge.test", RecordType::A, Behaviour::CutThenTcp(records));
    let answer = a(&world, "huge.test").await;
    assert_eq!((addresses(&answer).len(), answer.metadata.truncation), (64, false));
    assert_eq!(world.network.opened.lock().len(), 64);
}

#[tokio::test]
async fn a_question_is_asked_once_however_many_wait() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &["192.0.2.1"]);
    let gate = Arc::new(Semaphore::new(0));
    let records = vec![address("api.test", "192.0.2.1", 30)];
    world.upstream.set("api.test", RecordType::A, Behaviour::Held(Arc::clone(&gate), records));
    let asking: Vec<_> = (0..20).map(|_| tokio::spawn(ask(SANDBOX, world.dns, "api.test", RecordType::A))).collect();
    until("the question went up", || world.upstream.asked("api.test", RecordType::A) >= 1).await;
    gate.add_permits(100);
    for answer in asking {
        assert_eq!(addresses(&soon(answer).await.unwrap()), ["192.0.2.1"]);
    }
    // Once, or twice if the first try was given up while the gate was closed.
    assert!(world.upstream.asked("api.test", RecordType::A) <= 2);
    let before = world.upstream.asked_in_all();
    assert_eq!(addresses(&a(&world, "api.test").await), ["192.0.2.1"]);
    assert_eq!(world.upstream.asked_in_all(), before, "from memory");
}

#[tokio::test]
async fn answers_are_forgotten_when_their_life_ends() {
    let world = world(443, |_| {}).await;
    allow(&world, "moved.test", &["192.0.2.1", "192.0.2.2"]);
    world.upstream.set("moved.test", RecordType::A, Behaviour::addresses("moved.test", &["192.0.2.1"], 1));
    assert_eq!(addresses(&a(&world, "moved.test").await), ["192.0.2.1"]);
    world.upstream.set("moved.test", RecordType::A, Behaviour::addresses("moved.test", &["192.0.2.2"], 1));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while addresses(&a(&world, "moved.test").await) != ["192.0.2.2"] {
        assert!(tokio::time::Instant::now() < deadline, "the old answer is still given");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_is_said_of_names_that_are_not_public() {
    let world = world(443, |_| {}).await;
    {
        let mut rules = world.network.rules.lock();
        for name in ["localhost", "a.localhost", "printer", "printer.local"] {
            rules.names.insert(name.to_owned());
        }
    }
    assert_eq!(addresses(&a(&world, "localhost").await), ["127.0.0.1"]);
    assert_eq!(addresses(&ask(SANDBOX, world.dns, "a.localhost", RecordType::AAAA).await), ["::1"]);
    for local in ["printer", "printer.local"] {
        assert_eq!(a(&world, local).await.metadata.response_code, ResponseCode::NXDomain, "{local}");
    }
    assert_eq!(world.upstream.asked_in_all(), 0);
}

#[tokio::test]
async fn names_of_inside_addresses_stay_with_the_host() {
    let world = world(443, |_| {}).await;
    for name in ["1.0.0.10.in-addr.arpa", "1.2.0.192.in-addr.arpa"] {
        allow(&world, name, &["192.0.2.1"]);
        let data = RData::PTR(PTR(self::name("box.test")));
        let record = Record::from_rdata(self::name(name), 30, data);
        world.upstream.set(name, RecordType::PTR, Behaviour::Records(vec![record]));
    }
    let inside = ask(SANDBOX, world.dns, "1.0.0.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(inside.metadata.response_code, ResponseCode::NXDomain);
    let outside = ask(SANDBOX, world.dns, "1.2.0.192.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(outside.answers.len(), 1);
}

#[tokio::test]
async fn harmless_types_pass_and_others_do_not() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &[]);
    let text = Record::from_rdata(name("api.test"), 30, RData::TXT(TXT::new(vec!["v=1".to_owned()])));
    world.upstream.set("api.test", RecordType::TXT, Behaviour::Records(vec![text]));
    assert_eq!(ask(SANDBOX, world.dns, "api.test", RecordType::TXT).await.answers.len(), 1);
    let asked = world.upstream.asked_in_all();
    for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::NULL, RecordType::Unknown(65_280)] {
        let answer = ask(SANDBOX, world.dns, "api.test", kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{kind}");
    }
    assert_eq!(world.upstream.asked_in_all(), asked);
}

#[tokio::test]
async fn records_that_lead_around_the_checks_are_withheld() {
    let world = world(443, |_| {}).await;
    allow(&world, "api.test", &[]);
    let service = SVCB::new(1, name("api.test"), Vec::new());
    let record = Record::from_rdata(name("api.test"), 30, RData::HTTPS(HTTPS(service)));
    world.upstream.set("api.test", RecordType::HTTPS, Behaviour::Records(vec![record]));
    assert_eq!(ask(SANDBOX, world.dns, "api.test", RecordType::HTTPS).await.answers.len(), 1);
    world.network.rules.lock().names_count = true;
    let answer = ask(SANDBOX, world.dns, "api.test", RecordType::HTTPS).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
}

#[tokio::test]
async fn bad_queries_are_told_so() {
    let world = world(443, |_| {}).await;
    let mut garbage = question("api.test", RecordType::A).to_vec().unwrap();
    garbage.truncate(20);
    assert_eq!(send(SANDBOX, world.dns, &garbage).await.metadata.response_code, ResponseCode::FormErr);

    let mut two = question("api.test", RecordType::A);
    two.add_query(Query::query(name("other.test"), RecordType::A));
    assert_eq!(send(SANDBOX, world.dns, &two.to_vec().unwrap()).await.metadata.response_code, ResponseCode::FormErr);

    let mut update = question("api.test", RecordType::A);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(send(SANDBOX, world.dns, &update.to_vec().unwrap()).await.metadata.response_code, ResponseCode::NotImp);

    let mut strange = Message::query();
    strange.add_query(Query::query(hickory_proto::rr::Name::from_labels([&b"a b"[..], b"test"]).unwrap(), RecordType::A));
    assert_eq!(send(SANDBOX, world.dns, &strange.to_vec().unwrap()).await.metadata.response_code, ResponseCode::NXDomain);

    let socket = UdpSocket::bind(SocketAddr::new(SANDBOX, 0)).await.unwrap();
    let mut answer = question("api.test", RecordType::A);
    answer = answer.into_response();
    socket.send_to(&answer.to_vec().unwrap(), world.dns).await.unwrap();
    socket.send_to(b"x", world.dns).await.unwrap();
    let mut buffer = [0; 512];
    let heard = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
    assert!(heard.is_err(), "an answer is not answered, and neither is half a header");
}

#[tokio::test]
async fn a_flood_of_one_sandbox_is_dropped_and_its_neighbour_is_served() {
    let world = world(443, |settings| {
        settings.limits.queries_per_second = 1;
        settings.limits.queries_burst = 5;
    })
    .await;
    let socket = UdpSocket::bind(SocketAddr::new(SANDBOX, 0)).await.unwrap();
    let packet = question("flood.test", RecordType::A).to_vec().unwrap();
    for _ in 0..200 {
        socket.send_to(&packet, world.dns).await.unwrap();
    }
    let mut answered = 0;
    let mut buffer = [0; 512];
    while tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await.is_ok() {
        answered += 1;
    }
    assert!((5..=8).contains(&answered), "{answered}");
    let neighbour = ask(NEIGHBOUR, world.dns, "flood.test", RecordType::A).await;
    assert_eq!(neighbour.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn questions_in_flight_are_bounded() {
    let world = world(443, |settings| settings.limits.queries_in_flight = 2).await;
    let gate = Arc::new(Semaphore::new(0));
    for name in ["a.test", "b.test", "c.test"] {
        allow(&world, name, &[]);
        world.upstream.set(name, RecordType::A, Behaviour::Held(Arc::clone(&gate), Vec::new()));
    }
    let held: Vec<_> =
        ["a.test", "b.test"].map(|name| tokio::spawn(ask(SANDBOX, world.dns, name, RecordType::A))).into_iter().collect();
    until("both are asked", || {
        world.upstream.asked("a.test", RecordType::A) > 0 && world.upstream.asked("b.test", RecordType::A) > 0
    })
    .await;
    assert_eq!(a(&world, "c.test").await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.upstream.asked("c.test", RecordType::A), 0);
    gate.add_permits(100);
    for task in held {
        assert_eq!(soon(task).await.unwrap().metadata.response_code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn dns_connections_are_bounded_and_end_when_idle() {
    let world = world(443, |settings| {
        settings.limits.dns_connections = 2;
        settings.dns_idle_timeout = Duration::from_millis(300);
    })
    .await;
    let mut first = connect(SANDBOX, world.dns).await;
    let mut second = connect(SANDBOX, world.dns).await;
    for stream in [&mut first, &mut second] {
        assert_eq!(ask_tcp(stream, "denied.test", RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
    }
    let mut third = connect(SANDBOX, world.dns).await;
    assert_eq!(soon(third.read(&mut [0; 1])).await.unwrap_or(0), 0, "one too many");
    // Half a question is silence too.
    first.write_all(&[0, 50, 1, 2]).await.unwrap();
    for stream in [&mut first, &mut second] {
        assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0, "idle");
    }
}

#[tokio::test]
async fn a_dns_connection_does_not_outlive_its_sandbox() {
    let world = world(443, |_| {}).await;
    let mut stream = connect(SANDBOX, world.dns).await;
    ask_tcp(&mut stream, "denied.test", RecordType::A).await;
    // Its address is given to another one.
    world.directory.set(SANDBOX, Some(Arc::clone(&world.neighbour)));
    let packet = question("denied.test", RecordType::A).to_vec().unwrap();
    stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
    assert_eq!(world.neighbour.denials(), []);
}

#[tokio::test]
async fn a_shutdown_closes_the_sockets() {
    let world = world(443, |_| {}).await;
    a(&world, "denied.test").await;
    soon(world.services.shutdown()).await;
    UdpSocket::bind(world.dns).await.expect("the address is free again");
}

#[tokio::test]
async fn mangled_queries_do_no_harm() {
    let world = world(443, |settings| {
        settings.limits.queries_per_second = 1_000_000;
        settings.limits.queries_burst = 1_000_000;
    })
    .await;
    let good = question("allowed.test", RecordType::A).to_vec().unwrap();
    let socket = UdpSocket::bind(SocketAddr::new(SANDBOX, 0)).await.unwrap();
    // A fixed sequence (Knuth's MMIX generator), so that a failure comes again.
    let mut state = 7_u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..5000 {
        let mut packet = good.clone();
        for _ in 0..=next(6) {
            let at = next(packet.len());
            packet[at] = u8::try_from(next(256)).unwrap();
        }
        packet.truncate(1 + next(packet.len()));
        socket.send_to(&packet, world.dns).await.unwrap();
    }
    allow(&world, "api.test", &["192.0.2.1"]);
    world.upstream.set("api.test", RecordType::A, Behaviour::addresses("api.test", &["192.0.2.1"], 30));
    let mut stream = connect(SANDBOX, world.dns).await;
    assert_eq!(addresses(&ask_tcp(&mut stream, "api.test", RecordType::A).await), ["192.0.2.1"]);
}

#[tokio::test]
async fn sandboxes_are_known_by_ipv6_too() {
    let Ok(udp) = UdpSocket::bind("[::1]:0").await else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let upstream = TestUpstream::start().await;
    let network = Arc::new(TestNetwork::new(6));
    let directory = Arc::new(TestDirectory::default());
    directory.set("::1".parse().unwrap(), Some(Arc::clone(&network)));
    let settings = EgressSettings { upstreams: Upstreams::Servers(vec![upstream.address]), ..EgressSettings::default() };
    let at = udp.local_addr().unwrap();
    let sockets = EgressSockets { dns_udp: vec![udp], ..EgressSockets::default() };
    let _services = EgressServices::start(sockets, directory, settings).unwrap();
    network.rules.lock().names.insert("six.test".to_owned());
    network.rules.lock().addresses.insert("2001:db8::1".parse().unwrap());
    upstream.set("six.test", RecordType::AAAA, Behaviour::addresses("six.test", &["2001:db8::1"], 30));
    let answer = ask("::1".parse().unwrap(), at, "six.test", RecordType::AAAA).await;
    assert_eq!(addresses(&answer), ["2001:db8::1"]);
}
