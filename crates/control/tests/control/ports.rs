//! Who may reach a port, for how long, and what counts as use.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sandbank_control::{CreateSandbox, ErrorKind, LeaseRequest, PortVisitor};
use sandbank_driver::Responder;
use sandbank_model::{PublicPorts, SandboxId, State, Timeout};
use tokio::io::AsyncReadExt;

use crate::support::{World, create};

const PORT: u16 = 7;

fn idle(seconds: u64) -> CreateSandbox {
    let idle_timeout = Some(Timeout::After(Duration::from_secs(seconds)));
    CreateSandbox { lease: LeaseRequest { idle_timeout, ..LeaseRequest::default() }, ..create() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_holds_the_idle_clock_and_a_kept_connection_does_not() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.control.create(&user, idle(10)).await.unwrap().sandbox.id;
    world.faults.respond(PORT, Responder::Silent);
    let pass = world.control.port_admit(PortVisitor::Caller(&user), id, PORT).await.unwrap();
    let stream = world.control.port_connect(&pass).await.unwrap();
    world.clock.advance(Duration::from_secs(3600));
    world.control.touch(&user, id).await.unwrap();
    world.clock.advance(Duration::from_secs(3600));
    drop(pass);
    // Dropping the pass was use; the connection that is still open is none.
    world.clock.advance(Duration::from_secs(9));
    assert_eq!(world.control.get(&user, id).await.unwrap().sandbox.state, State::Running);
    world.clock.advance(Duration::from_secs(1));
    world.reaches(id, State::Terminated).await;
    // The stream ends with it, and whoever keeps it is told.
    let (mut io, end) = stream.into_parts();
    tokio::time::timeout(Duration::from_secs(10), end.ended()).await.expect("the end is told");
    let read = tokio::time::timeout(Duration::from_secs(10), io.read(&mut [0])).await.expect("the bytes end");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_outlive_a_restart_and_end_by_time_revocation_and_with_the_sandbox() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let hour = Some(Duration::from_secs(3600));
    let one = world.control.port_token(&user, id, Some(PORT), hour).await.unwrap().secret;
    let endless = world.control.port_token(&user, id, None, None).await.unwrap();
    assert_eq!((endless.port, endless.expires_at), (None, None));
    let debug = format!("{endless:?} {:?}", PortVisitor::Token(&one));
    assert!(!debug.contains("sbpt_"), "{debug}");
    world.crash().await;
    world.start_again().await;
    let admitted = async |secret: &str, port| world.control.port_admit(PortVisitor::Token(secret), id, port).await.map(drop);
    admitted(&one, PORT).await.unwrap();
    admitted(&endless.secret, 9).await.unwrap();
    assert_eq!(admitted(&one, 9).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    world.clock.advance(Duration::from_secs(3599));
    admitted(&one, PORT).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    assert!(admitted(&one, PORT).await.unwrap_err().message.contains("expired"));
    admitted(&endless.secret, PORT).await.unwrap();
    world.control.port_tokens_revoke(&user, id).await.unwrap();
    assert!(admitted(&endless.secret, PORT).await.unwrap_err().message.contains("revoked"));
    let fresh = world.control.port_token(&user, id, None, None).await.unwrap().secret;
    admitted(&fresh, PORT).await.unwrap();
    world.control.release(&user, id).await.unwrap();
    world.reaches(id, State::Terminated).await;
    assert_eq!(admitted(&fresh, PORT).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.control.port_token(&user, id, None, None).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_can_open_ports_and_a_warm_one_has_none() {
    let world = World::new().await;
    let (user, other) = (world.owner("ann").await, world.owner("bob").await);
    let public_ports = PublicPorts::Only([PORT].into());
    let request = CreateSandbox { lease: LeaseRequest { public_ports, ..LeaseRequest::default() }, ..create() };
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    world.control.port_admit(PortVisitor::Anyone, id, PORT).await.unwrap();
    let refused = world.control.port_admit(PortVisitor::Anyone, id, 8).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated);
    let strange = world.control.port_admit(PortVisitor::Caller(&other), id, PORT).await.unwrap_err();
    assert_eq!(strange.kind, ErrorKind::NotFound);
    for refused in [
        world.control.port_access_set(&other, id, PublicPorts::All).await.map(drop),
        world.control.port_tokens_revoke(&other, id).await.map(drop),
        world.control.port_token(&other, id, None, None).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind, ErrorKind::NotFound);
    }
    let many = LeaseRequest { public_ports: PublicPorts::Only((1..=101).collect()), ..LeaseRequest::default() };
    let refused = world.control.create(&user, CreateSandbox { lease: many, ..create() }).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_connections_is_told_when_a_sandbox_pauses_or_ends() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let told: Arc<Mutex<Vec<SandboxId>>> = Arc::default();
    let heard = Arc::clone(&told);
    let closer: Arc<dyn Fn(SandboxId) + Send + Sync> = Arc::new(move |id| heard.lock().push(id));
    world.control.on_ports_closed(&closer);
    world.control.pause(&user, id).await.unwrap();
    assert_eq!(std::mem::take(&mut *told.lock()), [id]);
    assert_eq!(world.control.port_admit(PortVisitor::Caller(&user), id, PORT).await.unwrap_err().kind, ErrorKind::State);
    world.control.resume(&user, id).await.unwrap();
    assert_eq!(*told.lock(), []);
    world.control.release(&user, id).await.unwrap();
    assert!(told.lock().contains(&id));
    drop(closer);
    let last = told.lock().len();
    let other = world.created(&user).await;
    world.control.pause(&user, other).await.unwrap();
    assert!(!told.lock()[last..].contains(&other), "whoever is gone is told no more");
}
