//! The server is killed and comes back.

use std::time::Duration;

use sandbank_control::{CreateSandbox, LeaseRequest, WhenEmpty};
use sandbank_driver::{Driver, Method};
use sandbank_model::{FailureReason, State, Timeout};

use crate::support::{World, claim, create, create_with, eventually, exec, pool_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lived_lives_on_and_what_is_gone_is_said() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 3).await;
    let running = world.claim(&user, "p").await.unwrap().sandbox.id;
    let paused = world.created(&user).await;
    world.control.pause(&user, paused).await.unwrap();
    let lost = world.created(&user).await;
    world.crash().await;
    world.faults.lose(lost);
    let recovery = world.start_again().await;
    assert_eq!((recovery.adopted, recovery.lost, recovery.orphans), (4, 1, 0));
    assert_eq!(world.state(running).await, State::Running);
    assert_eq!(world.state(paused).await, State::Paused);
    let record = world.control.get(&user, lost).await.unwrap().sandbox;
    assert_eq!(record.failure.as_ref().unwrap().reason, FailureReason::LostInRestart);
    assert!(world.control.exec_collect(&user, running, exec(&["true"])).await.is_ok());
    world.control.resume(&user, paused).await.unwrap();
    world.warm(&user, "p", 2).await;
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_made_and_half_destroyed_sandboxes_are_cleaned_away() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let stopping = world.created(&user).await;
    world.faults.hang(Method::Destroy, true);
    world.control.release(&user, stopping).await.unwrap();
    world.faults.hang(Method::Create, true);
    world.control.pool_create(&user, pool_request("p", 2)).await.unwrap();
    eventually("two are being made", || async { world.faults.calls().of(Method::Create) == 3 }).await;
    world.crash().await;
    world.faults.hang(Method::Destroy, false);
    world.faults.hang(Method::Create, false);
    let recovery = world.start_again().await;
    assert_eq!((recovery.adopted, recovery.cleaned), (0, 3));
    world.reaches(stopping, State::Terminated).await;
    world.warm(&user, "p", 2).await;
    world.settled().await;
    let failed: Vec<_> = world.all().await.into_iter().filter(|sandbox| sandbox.state == State::Failed).collect();
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|sandbox| sandbox.failure.as_ref().unwrap().reason == FailureReason::ProvisionFailed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_is_what_the_record_says_after_a_restart() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let (running, paused) = (world.created(&user).await, world.created(&user).await);
    world.control.pause(&user, paused).await.unwrap();
    world.crash().await;
    // As a crash between the freeze and the commit, or the commit and the thaw, leaves them.
    let driver = world.faults.restart();
    for id in [running, paused] {
        let handle = world.store_handle(id).await;
        let target = sandbank_driver::Target { id, handle: &handle };
        if id == running { driver.pause(target).await.unwrap() } else { driver.resume(target).await.unwrap() }
    }
    drop(driver);
    world.start_again().await;
    assert!(world.agree().await);
    assert!(world.control.exec_collect(&user, running, exec(&["true"])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_go_on_without_a_server_and_idle_clocks_do_not() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let after = |seconds| Some(Timeout::After(Duration::from_secs(seconds)));
    let absolute = CreateSandbox { lease: LeaseRequest { timeout: after(60), ..LeaseRequest::default() }, ..create() };
    let idle = CreateSandbox { lease: LeaseRequest { idle_timeout: after(60), ..LeaseRequest::default() }, ..create() };
    let absolute = world.control.create(&user, absolute).await.unwrap().sandbox.id;
    let idle = world.control.create(&user, idle).await.unwrap().sandbox.id;
    world.crash().await;
    world.clock.advance(Duration::from_secs(100));
    world.start_again().await;
    world.reaches(absolute, State::Terminated).await;
    world.control.touch(&user, idle).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    world.reaches(idle, State::Terminated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_ends_after_a_restart_is_still_seen() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let request = create_with(&["sh", "-c", "sleep 0.4; exit 3"]);
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    world.crash().await;
    world.start_again().await;
    eventually("its exit is recorded", || async {
        world.control.get(&user, id).await.unwrap().sandbox.exit.as_ref().is_some_and(|exit| exit.code == 3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_under_load_lose_leak_and_double_nothing() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 6).await;
    let mut answered = std::collections::BTreeSet::new();
    for round in 0..8u64 {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (control, user) = (world.control.clone(), user.clone());
                tokio::spawn(async move {
                    let mut claimed = Vec::new();
                    while let Ok(view) = control.claim(&user, claim("p", WhenEmpty::Refuse)).await {
                        claimed.push(view.sandbox.id);
                        tokio::task::yield_now().await;
                    }
                    claimed
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(round * 2)).await;
        world.crash().await;
        for task in tasks {
            for id in task.await.unwrap() {
                assert!(answered.insert(id), "{id} was handed out twice");
            }
        }
        world.start_again().await;
        for id in &answered {
            assert_eq!(world.state(*id).await, State::Running, "an answered claim survives");
        }
        let mut keep = answered.iter().copied().collect::<Vec<_>>().into_iter();
        for id in keep.by_ref().take(4) {
            world.control.release(&user, id).await.unwrap();
            answered.remove(&id);
        }
    }
    world.settled().await;
    for id in &answered {
        assert_eq!(world.state(*id).await, State::Running);
    }
}
