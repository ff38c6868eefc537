//! What stands behind control fails: the disk is full, the machine is out of something, the driver hangs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sandbank_control::{CreateSandbox, ErrorKind, LeaseRequest};
use sandbank_driver::{DriverEvent, Method};
use sandbank_model::{FailureReason, State, Timeout};

use crate::support::{World, create, eventually, exec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_must_be_remembered_changes_nothing_and_passes() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 2).await;
    let (held, paused) = (world.claim(&user, "p").await.unwrap().sandbox.id, world.created(&user).await);
    world.control.pause(&user, paused).await.unwrap();
    world.settled().await;
    let before = world.all().await;
    world.disk_full.store(true, Ordering::SeqCst);
    let refused = [
        world.claim(&user, "p").await.unwrap_err(),
        world.control.create(&user, create()).await.unwrap_err(),
        world.control.pause(&user, held).await.unwrap_err(),
        world.control.resume(&user, paused).await.unwrap_err(),
        world.control.release(&user, held).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("disk"), "{}", error.message);
    }
    assert!(world.control.exec_collect(&user, held, exec(&["true"])).await.is_ok(), "what runs goes on");
    assert!(world.agree().await, "a refused pause or resume is undone");
    assert_eq!(world.all().await, before);
    world.disk_full.store(false, Ordering::SeqCst);
    world.control.release(&user, held).await.unwrap();
    world.reaches(held, State::Terminated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_whose_record_cannot_be_finished_is_destroyed_and_recorded_when_it_can_be() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.faults.hang(Method::Create, true);
    let (control, caller) = (world.control.clone(), user.clone());
    let creating = tokio::spawn(async move { control.create(&caller, create()).await });
    eventually("the driver makes it", || async { world.faults.calls().of(Method::Create) == 1 }).await;
    world.disk_full.store(true, Ordering::SeqCst);
    world.faults.hang(Method::Create, false);
    assert_eq!(creating.await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    eventually("it is destroyed", || async { world.faults.sandboxes().is_empty() }).await;
    world.disk_full.store(false, Ordering::SeqCst);
    eventually("its failure is recorded", || async { world.all().await.iter().all(|sandbox| sandbox.state == State::Failed) })
        .await;
    assert_eq!(world.control.quota(&user).await.unwrap().used.sandboxes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_sandboxes_while_nothing_can_be_recorded_is_recorded_later() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let (greedy, dead) = (world.created(&user).await, world.created(&user).await);
    world.disk_full.store(true, Ordering::SeqCst);
    world.faults.emit(DriverEvent::DiskLimit { id: greedy, used_bytes: 2, limit_bytes: 1 });
    world.faults.end(dead, false, "killed");
    eventually("it was tried", || async { world.refused_writes.load(Ordering::SeqCst) > 0 }).await;
    world.disk_full.store(false, Ordering::SeqCst);
    for (id, reason) in [(greedy, FailureReason::DiskLimit), (dead, FailureReason::AgentDied)] {
        world.reaches(id, State::Failed).await;
        assert_eq!(world.store_get(id).await.unwrap().failure.unwrap().reason, reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_that_cannot_be_recorded_still_serves_nobody_and_happens_later() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let lease = LeaseRequest { timeout: Some(Timeout::After(Duration::from_secs(5))), ..LeaseRequest::default() };
    let id = world.control.create(&user, CreateSandbox { lease, ..create() }).await.unwrap().sandbox.id;
    world.disk_full.store(true, Ordering::SeqCst);
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err().kind, ErrorKind::State);
    eventually("the expiry was tried", || async {
        world.clock.advance(Duration::from_secs(1));
        world.control.get(&user, id).await.unwrap().sandbox.state == State::Stopping
    })
    .await;
    assert_eq!(world.state(id).await, State::Running);
    world.disk_full.store(false, Ordering::SeqCst);
    eventually("it is gone", || async {
        world.clock.advance(Duration::from_secs(2));
        world.state(id).await == State::Terminated
    })
    .await;
}
