//! The fake keeps the contract of every driver, and does what goes wrong when told to.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use sandbank_agent_protocol::{ClientError, Frame, FrameError, Reply, Request};
use sandbank_driver::contract::{self, Held, Subject, within};
use sandbank_driver::{AgentFault, Capability, Driver, DriverError, DriverEvent, FakeDriver, FakeFaults, Method, Responder};
use sandbank_model::{Image, ImageConfig, ImageSource, Timestamp};

fn image() -> Image {
    Image {
        name: "host".parse().unwrap(),
        tenant: None,
        layers: Vec::new(),
        on_host: true,
        config: ImageConfig::default(),
        source: ImageSource::Host,
        created_at: Timestamp::default(),
    }
}

fn subject_of(driver: FakeDriver) -> (Subject, FakeFaults) {
    let faults = driver.faults();
    (Subject { driver: Arc::new(driver), image: image(), guard: Box::new(()) }, faults)
}

async fn make() -> Option<Subject> {
    Some(subject_of(FakeDriver::new()).0)
}

sandbank_driver::driver_contract!(make);

#[tokio::test]
async fn each_missing_capability_is_refused() {
    for capability in Capability::ALL {
        let (subject, _) = subject_of(FakeDriver::new().without(&[capability]));
        contract::what_is_not_supported_is_refused_by_name(&subject).await;
    }
}

#[tokio::test]
async fn failures_are_as_many_as_told_and_calls_are_counted() {
    let (subject, faults) = subject_of(FakeDriver::new());
    faults.fail(Method::Create, 2);
    for expected in [false, false, true] {
        let made = Held::create_from(&subject, "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071".parse().unwrap(), &subject.image).await;
        assert_eq!(made.is_ok(), expected, "{made:?}");
    }
    assert_eq!((faults.calls().of(Method::Create), faults.calls().total()), (3, 3));
}

#[tokio::test]
async fn a_hanging_create_goes_on_when_released_and_leaves_nothing_when_cancelled() {
    let (subject, faults) = subject_of(FakeDriver::new());
    faults.hang(Method::Create, true);
    let cancelled = tokio::time::timeout(Duration::from_millis(20), Held::create(&subject)).await;
    assert!(cancelled.is_err());
    assert!(faults.sandboxes().is_empty());
    let (held, ()) = tokio::join!(Held::create(&subject), async { faults.hang(Method::Create, false) });
    assert_eq!(faults.sandboxes().into_keys().collect::<Vec<_>>(), [held.id]);
    assert_eq!((faults.calls().of(Method::Create), faults.creates_at_once_max()), (2, 1));
}

#[tokio::test]
async fn agents_misbehave_as_told() {
    let (subject, faults) = subject_of(FakeDriver::new());
    let held = Held::create(&subject).await;
    faults.agent(held.id, AgentFault::Hang);
    let mut connection = held.open(&Request::Ping).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), connection.next()).await.is_err());
    faults.agent(held.id, AgentFault::Garbage);
    assert!(matches!(held.ask(&Request::Ping).await, Err(DriverError::Agent(ClientError::Frame(FrameError::TooLong { .. })))));
    faults.agent(held.id, AgentFault::Die);
    assert!(matches!(held.ask(&Request::Ping).await, Err(DriverError::Agent(ClientError::Frame(_)))));
    faults.agent(held.id, AgentFault::OutOfTurn);
    assert_eq!(held.ask(&Request::Ping).await.unwrap(), Reply::StillRunning);
    faults.agent(held.id, AgentFault::None);
    assert!(held.answers().await);
}

#[tokio::test]
async fn what_ends_by_itself_is_told_and_what_is_lost_is_found_out_at_adoption() {
    let (subject, faults) = subject_of(FakeDriver::new());
    let mut events = subject.driver.events().unwrap();
    let (ended, lost, kept) = (Held::create(&subject).await, Held::create(&subject).await, Held::create(&subject).await);
    faults.end(ended.id, true, "out of memory");
    let event = within("the event", events.recv()).await;
    assert_eq!(event, Some(DriverEvent::Ended { id: ended.id, out_of_memory: true, detail: "out of memory".to_owned() }));
    faults.lose(lost.id);
    let restarted = faults.restart();
    let known = [&ended, &lost, &kept].map(|held| (held.id, Some(held.handle.clone()))).to_vec();
    let adopted = restarted.adopt(known).await.unwrap();
    assert_eq!(adopted.alive.into_keys().collect::<Vec<_>>(), [kept.id]);
    assert_eq!(adopted.gone.len(), 2);
}

#[tokio::test]
async fn registered_ports_answer() {
    let (subject, faults) = subject_of(FakeDriver::new());
    faults.respond(7, Responder::Echo);
    faults.respond(80, Responder::Http { status: 204, body: String::new() });
    let held = Held::create(&subject).await;
    let mut echo = held.open(&Request::Dial { port: 7 }).await.unwrap();
    assert_eq!(echo.reply("Done").await.unwrap(), Reply::Done);
    echo.send_data("hello".into()).await.unwrap();
    assert_eq!(within("the echo", echo.next()).await.unwrap(), Some(Frame::Data("hello".into())));
    echo.send_end().await.unwrap();
    assert_eq!(within("the end", echo.next()).await.unwrap(), Some(Frame::End));
    let mut http = held.open(&Request::Dial { port: 80 }).await.unwrap();
    http.reply("Done").await.unwrap();
    http.send_data("GET / HTTP/1.1\r\n\r\n".into()).await.unwrap();
    let answer = within("the answer", http.next()).await.unwrap();
    assert!(matches!(&answer, Some(Frame::Data(head)) if head.starts_with(b"HTTP/1.1 204")), "{answer:?}");
}
