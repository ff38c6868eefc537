//! Pause, resume, renew, expiry, release: alone and against each other.

use std::time::Duration;

use crate::support::{World, create, eventually, exec, image, pool_request};
use sandbank_control::{CreateSandbox, Detail, ErrorKind, LeaseRequest, QuotaView};
use sandbank_driver::Method;
use sandbank_model::{ExpiryAction, LeaseChange, QuotaLimits, SandboxId, State, Timeout};

fn lasting(seconds: u64, on_expiry: ExpiryAction) -> CreateSandbox {
    let timeout = Some(Timeout::After(Duration::from_secs(seconds)));
    CreateSandbox { lease: LeaseRequest { timeout, on_expiry: Some(on_expiry), ..LeaseRequest::default() }, ..create() }
}

fn idle(seconds: u64) -> CreateSandbox {
    let idle_timeout = Some(Timeout::After(Duration::from_secs(seconds)));
    CreateSandbox { lease: LeaseRequest { idle_timeout, ..LeaseRequest::default() }, ..create() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_sandbox_is_frozen_refuses_work_and_a_second_pause_and_resumes() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    assert_eq!(world.control.pause(&user, id).await.unwrap().sandbox.state, State::Paused);
    assert!(world.faults.sandboxes()[&id]);
    let again = world.control.pause(&user, id).await.unwrap_err();
    assert_eq!((again.kind, again.message.as_str()), (ErrorKind::State, "the sandbox is already paused"));
    let refused = world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::State);
    assert_eq!(refused.detail.as_deref(), Some(&Detail::State(State::Paused)));
    assert_eq!(world.control.resume(&user, id).await.unwrap().sandbox.state, State::Running);
    assert!(!world.faults.sandboxes()[&id]);
    assert_eq!(world.control.resume(&user, id).await.unwrap_err().kind, ErrorKind::State);
    assert_eq!(world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap().status.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_the_driver_refuses_changes_nothing() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.fail(Method::Pause, 1);
    assert_eq!(world.control.pause(&user, id).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(world.state(id).await, State::Running);
    world.control.pause(&user, id).await.unwrap();
    world.faults.fail(Method::Resume, 1);
    assert_eq!(world.control.resume(&user, id).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(world.agree().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_answered_at_once_repeated_without_harm_and_then_not_found() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.hang(Method::Destroy, true);
    assert_eq!(world.control.release(&user, id).await.unwrap().sandbox.state, State::Stopping);
    assert_eq!(world.control.release(&user, id).await.unwrap().sandbox.state, State::Stopping);
    let refused = world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::State);
    world.faults.hang(Method::Destroy, false);
    world.reaches(id, State::Terminated).await;
    let gone = world.control.release(&user, id).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    assert_eq!(gone.message, format!("sandbox t-t-ann/{id} not found or already terminated"));
    assert_eq!(world.control.get(&user, id).await.unwrap().sandbox.state, State::Terminated);
    assert!(world.faults.sandboxes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_destroy_is_repeated_until_it_works() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.fail(Method::Destroy, 3);
    world.control.release(&user, id).await.unwrap();
    world.reaches(id, State::Terminated).await;
    assert!(world.faults.sandboxes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_sandbox_is_never_served_and_then_does_what_its_lease_says() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    for (action, end) in
        [(ExpiryAction::Kill, State::Terminated), (ExpiryAction::Pause, State::Paused), (ExpiryAction::Keep, State::Expired)]
    {
        let id = world.control.create(&user, lasting(60, action)).await.unwrap().sandbox.id;
        world.clock.advance(Duration::from_secs(60));
        let refused = world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::State, "{}", refused.message);
        assert_ne!(world.control.get(&user, id).await.unwrap().sandbox.state, State::Running);
        world.reaches(id, end).await;
    }
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ended_into_a_pause_is_renewed_and_resumed() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.control.create(&user, lasting(5, ExpiryAction::Pause)).await.unwrap().sandbox.id;
    world.clock.advance(Duration::from_secs(5));
    world.reaches(id, State::Paused).await;
    assert_eq!(world.control.resume(&user, id).await.unwrap_err().kind, ErrorKind::State);
    let change = LeaseChange { expires: Some(Timeout::After(Duration::from_secs(100))), ..LeaseChange::default() };
    world.control.renew(&user, id, change).await.unwrap();
    assert_eq!(world.control.resume(&user, id).await.unwrap().sandbox.state, State::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn activity_moves_the_idle_clock_and_an_open_stream_holds_it() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.control.create(&user, idle(10)).await.unwrap().sandbox.id;
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(8));
        world.control.touch(&user, id).await.unwrap();
    }
    let stream = world.control.exec(&user, id, exec(&["sleep", "1000"])).await.unwrap();
    world.clock.advance(Duration::from_secs(3600));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    world.control.touch(&user, id).await.unwrap();
    drop(stream);
    world.clock.advance(Duration::from_secs(9));
    world.control.touch(&user, id).await.unwrap();
    world.clock.advance(Duration::from_secs(10));
    assert_eq!(world.control.touch(&user, id).await.unwrap_err().kind, ErrorKind::State);
    world.reaches(id, State::Terminated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_moves_the_end_and_out_of_bounds_ones_are_refused() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.control.create(&user, lasting(10, ExpiryAction::Kill)).await.unwrap().sandbox.id;
    let to = |seconds| LeaseChange { expires: Some(Timeout::After(Duration::from_secs(seconds))), ..LeaseChange::default() };
    world.control.renew(&user, id, to(100)).await.unwrap();
    world.clock.advance(Duration::from_secs(99));
    world.control.touch(&user, id).await.unwrap();
    for bad in [to(0), to(u64::MAX), LeaseChange::default()] {
        assert_eq!(world.control.renew(&user, id, bad).await.unwrap_err().kind, ErrorKind::Invalid);
    }
    world.control.renew(&user, id, to(1)).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.reaches(id, State::Terminated).await;
    assert_eq!(world.control.renew(&user, id, to(10)).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_sandbox_looks_missing_and_an_admin_may_address_it() {
    let world = World::new().await;
    let (ann, bob, admin) = (world.owner("ann").await, world.owner("bob").await, world.admin().await);
    let id = world.created(&ann).await;
    let unknown = SandboxId::from_uuid(world.control.fresh_uuid());
    for missing in [id, unknown] {
        let errors = [
            world.control.get(&bob, missing).await.unwrap_err(),
            world.control.pause(&bob, missing).await.unwrap_err(),
            world.control.release(&bob, missing).await.unwrap_err(),
            world.control.exec_collect(&bob, missing, exec(&["true"])).await.unwrap_err(),
            world.control.events(&bob, Some(missing), None, None, false, 10).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind, ErrorKind::NotFound);
            assert_eq!(error.message, format!("sandbox t-t-bob/{missing} not found or already terminated"));
        }
    }
    assert!(world.mine(&bob).await.is_empty());
    assert!(world.mine(&admin).await.is_empty(), "an admin lists its own tenant");
    assert_eq!(world.control.get(&admin, id).await.unwrap().owner.name, "t-t-ann");
    world.control.release(&admin, id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_creates_never_pass_the_quota() {
    let mut settings = crate::support::settings();
    settings.default_quota = QuotaLimits { sandboxes: Some(3), ..QuotaLimits::default() };
    let world = World::with(settings).await;
    let user = world.owner("ann").await;
    let outcomes = futures_util::future::join_all((0..10).map(|_| world.control.create(&user, create()))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
    assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(|error| error.kind == ErrorKind::Quota));
    let QuotaView { used, .. } = world.control.quota(&user).await.unwrap();
    assert_eq!(used.sandboxes, 3);
    assert_eq!(world.control.pool_create(&user, pool_request("p", 1)).await.unwrap_err().kind, ErrorKind::Quota);
    world.control.release(&user, outcomes.into_iter().find_map(Result::ok).unwrap().sandbox.id).await.unwrap();
    world.settled().await;
    world.created(&user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_pause_resume_and_expiry_may_race_and_records_stay_true() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    for round in 0..30u64 {
        let id = world.control.create(&user, lasting(10, ExpiryAction::Kill)).await.unwrap().sandbox.id;
        if round % 3 == 0 {
            world.clock.advance(Duration::from_secs(10));
        }
        let (paused, released, resumed) =
            tokio::join!(world.control.pause(&user, id), world.control.release(&user, id), world.control.resume(&user, id),);
        for error in [paused.err(), released.err(), resumed.err()].into_iter().flatten() {
            assert!(matches!(error.kind, ErrorKind::State | ErrorKind::NotFound), "{error:?}");
        }
        world.reaches(id, State::Terminated).await;
    }
    eventually("nothing is left", || async { world.faults.sandboxes().is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_makes_an_image_that_outlives_the_sandbox_and_is_kept_while_used() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let write = exec(&["sh", "-c", "echo kept > /tmp/note"]);
    world.control.exec_collect(&user, id, write).await.unwrap();
    world.control.commit(&user, id, image("mine:1")).await.unwrap();
    world.control.release(&user, id).await.unwrap();
    let again = CreateSandbox { source: sandbank_control::CreateSource::Image(image("mine:1")), ..create() };
    let copy = world.control.create(&user, again).await.unwrap().sandbox.id;
    let read = world.control.exec_collect(&user, copy, exec(&["cat", "/tmp/note"])).await.unwrap();
    assert_eq!(&read.stdout[..], b"kept\n");
    assert_eq!(world.control.image_delete(&user, &image("mine:1")).await.unwrap_err().kind, ErrorKind::Conflict);
    world.control.release(&user, copy).await.unwrap();
    world.reaches(copy, State::Terminated).await;
    world.control.image_delete(&user, &image("mine:1")).await.unwrap();
    eventually("its layers are gone", || async { world.faults.layers().is_empty() }).await;
    assert_eq!(world.control.image_get(&user, &image("mine:1")).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_races_with_expiry_of_others_gets_a_live_sandbox() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 4).await;
    for _ in 0..10 {
        let old = world.control.create(&user, lasting(1, ExpiryAction::Kill)).await.unwrap().sandbox.id;
        let advance = async { world.clock.advance(Duration::from_secs(1)) };
        let (claimed, ()) = tokio::join!(world.claim(&user, "p"), advance);
        let id = claimed.unwrap().sandbox.id;
        assert_ne!(id, old);
        world.control.exec_collect(&user, id, exec(&["true"])).await.unwrap();
        world.control.release(&user, id).await.unwrap();
        world.reaches(old, State::Terminated).await;
        world.warm(&user, "p", 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_that_cannot_pause_refuse_what_needs_it() {
    let world = World::without(&[sandbank_driver::Capability::Pause, sandbank_driver::Capability::Commit]).await;
    let user = world.owner("ann").await;
    let refused = world.control.create(&user, lasting(1, ExpiryAction::Pause)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    let id = world.control.create(&user, lasting(1, ExpiryAction::Keep)).await.unwrap().sandbox.id;
    assert_eq!(world.control.pause(&user, id).await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(world.control.commit(&user, id, image("x")).await.unwrap_err().kind, ErrorKind::Unsupported);
    world.clock.advance(Duration::from_secs(1));
    world.reaches(id, State::Expired).await;
}
