//! Claims: who gets a sandbox, and what happens when there is none.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{World, claim, eventually, image, pool_name, pool_request};
use sandbank_control::{Claim, Detail, ErrorKind, ImageImport, LeaseRequest, PoolChange, WhenEmpty};
use sandbank_driver::Method;
use sandbank_model::{Counting, Role, Sizing, State, Timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_takes_a_warm_sandbox_and_calls_no_driver() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 2).await;
    let before = world.faults.calls();
    let view = world.claim(&user, "p").await.unwrap();
    assert_eq!(view.sandbox.state, State::Running);
    assert_eq!(view.sandbox.lease.as_ref().unwrap().holder, "t-t-ann");
    assert_eq!(view.owner.name, "t-t-ann");
    assert_eq!(world.faults.calls(), before, "a claim must not touch the driver");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_claims_for_the_last_sandbox_exactly_one_gets_it() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    for claims in [2usize, 7, 64] {
        let name = format!("p{claims}");
        world.pool(&user, &name, 1).await;
        let racing = (0..claims).map(|_| world.claim(&user, &name));
        let outcomes = futures_util::future::join_all(racing).await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1);
        let refused = outcomes.into_iter().find_map(Result::err).unwrap();
        assert_eq!(refused.kind, ErrorKind::NoCapacity);
        assert!(refused.message.starts_with("no idle sandboxes available in the pool"), "{}", refused.message);
        assert!(matches!(refused.detail.as_deref(), Some(Detail::PoolStatus(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_pool_and_anothers_pool_look_the_same_and_name_what_there_is() {
    let world = World::new().await;
    let (ann, bob) = (world.owner("ann").await, world.owner("bob").await);
    world.pool(&ann, "hers", 1).await;
    world.pool(&bob, "his", 1).await;
    let missing = world.claim(&bob, "nothing").await.unwrap_err();
    let others = world.claim(&bob, "hers").await.unwrap_err();
    assert_eq!((missing.kind, others.kind), (ErrorKind::NotFound, ErrorKind::NotFound));
    assert_eq!(others.message, "sandbox pool t-t-bob/hers not found");
    let Some(Detail::AvailablePools(pools)) = others.detail.as_deref() else { panic!("{others:?}") };
    assert_eq!(pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["his"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_claim_gets_the_next_warm_sandbox() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.faults.hang(Method::Create, true);
    world.control.pool_create(&user, pool_request("p", 3)).await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (control, user) = (world.control.clone(), user.clone());
            tokio::spawn(async move { control.claim(&user, claim("p", WhenEmpty::Wait(None))).await })
        })
        .collect();
    eventually("three creates hang", || async { world.faults.calls().of(Method::Create) == 3 }).await;
    world.faults.hang(Method::Create, false);
    let mut ids = BTreeSet::new();
    for claim in waiting {
        ids.insert(claim.await.unwrap().unwrap().sandbox.id);
    }
    assert_eq!(ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_over_is_refused_with_the_pools_status() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.control.pool_create(&user, pool_request("p", 0)).await.unwrap();
    let late = world.control.claim(&user, claim("p", WhenEmpty::Wait(Some(Duration::from_millis(30))))).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::NoCapacity);
    assert!(matches!(late.detail.as_deref(), Some(Detail::PoolStatus(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once() {
    let mut settings = crate::support::settings();
    settings.waiting_claims_max = 0;
    let world = World::with(settings).await;
    let user = world.owner("ann").await;
    world.control.pool_create(&user, pool_request("p", 0)).await.unwrap();
    let refused = world.control.claim(&user, claim("p", WhenEmpty::Wait(None))).await.unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::NoCapacity, "scheduler queue is full, try again later"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_wait_are_woken_when_their_pool_grows_and_told_when_it_goes() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    for name in ["grows", "goes"] {
        world.control.pool_create(&user, pool_request(name, 0)).await.unwrap();
    }
    let wait = |name: &'static str| {
        let (control, user) = (world.control.clone(), user.clone());
        tokio::spawn(async move { control.claim(&user, claim(name, WhenEmpty::Wait(None))).await })
    };
    let (first, second) = (wait("grows"), wait("goes"));
    let change = PoolChange { replicas: Some(1), ..PoolChange::default() };
    world.control.pool_update(&user, &pool_name("grows"), change).await.unwrap();
    world.control.pool_delete(&user, &pool_name("goes")).await.unwrap();
    assert!(first.await.unwrap().is_ok());
    assert_eq!(second.await.unwrap().unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_client_leaves_at_any_moment_leaves_nothing_claimed() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 4).await;
    for round in 0..40u64 {
        let when_empty = if round % 2 == 0 { WhenEmpty::Wait(None) } else { WhenEmpty::Create };
        let claiming = world.control.claim(&user, claim("p", when_empty));
        if let Ok(done) = tokio::time::timeout(Duration::from_micros(round * 30), claiming).await {
            world.control.release(&user, done.unwrap().sandbox.id).await.unwrap();
        }
    }
    eventually("nothing is claimed", || async {
        world.all().await.iter().all(|sandbox| !sandbox.state.is_claimed()) && world.agree().await
    })
    .await;
    world.warm(&user, "p", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_pool_creates_on_demand_up_to_its_max() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut request = pool_request("p", 0);
    request.sizing = Sizing { replicas: 0, min: None, max: Some(2), counting: Counting::Warm };
    world.control.pool_create(&user, request).await.unwrap();
    let racing = (0..6).map(|_| world.control.claim(&user, claim("p", WhenEmpty::Create)));
    let outcomes = futures_util::future::join_all(racing).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    assert!(outcomes.into_iter().filter_map(Result::err).all(|error| error.kind == ErrorKind::NoCapacity));
    assert_eq!(world.faults.sandboxes().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_another_image_is_made_on_demand() {
    let world = World::new().await;
    let (user, admin) = (world.owner("ann").await, world.admin().await);
    let dir = tempfile::tempdir().unwrap();
    let import = ImageImport { name: Some(image("other")), path: dir.path().to_owned(), reference: None, global: true };
    let other = world.control.image_import(&admin, import).await.unwrap();
    world.pool(&user, "p", 1).await;
    let same = Claim { image: Some(image("base")), ..claim("p", WhenEmpty::Refuse) };
    let warm = world.control.claim(&user, same).await.unwrap();
    assert_eq!(warm.sandbox.spec.image, image("host"));
    let different = Claim { image: Some(image("other")), ..claim("p", WhenEmpty::Refuse) };
    let made = world.control.claim(&user, different).await.unwrap();
    assert_eq!(made.sandbox.image.as_ref().unwrap().layers, other.layers);
    assert_eq!(made.sandbox.pool_name, Some(pool_name("p")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_requests_out_of_bounds_are_refused_before_anything_is_claimed() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 1).await;
    let big = "x".repeat(300 * 1024);
    let bad = [
        LeaseRequest { timeout: Some(Timeout::After(Duration::ZERO)), ..LeaseRequest::default() },
        LeaseRequest { timeout: Some(Timeout::After(Timeout::LONGEST * 2)), ..LeaseRequest::default() },
        LeaseRequest { idle_timeout: Some(Timeout::After(Duration::MAX)), ..LeaseRequest::default() },
        LeaseRequest { metadata: [("key".to_owned(), big.clone())].into(), ..LeaseRequest::default() },
        LeaseRequest { metadata: [("bad key".to_owned(), String::new())].into(), ..LeaseRequest::default() },
        LeaseRequest { env: [("A".to_owned(), big)].into(), ..LeaseRequest::default() },
        LeaseRequest { env: [("A=B".to_owned(), String::new())].into(), ..LeaseRequest::default() },
    ];
    for lease in bad {
        let refused = world.control.claim(&user, Claim { lease, ..claim("p", WhenEmpty::Refuse) }).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{}", refused.message);
    }
    assert!(world.mine(&user).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_key_claims_and_uses_but_changes_nothing() {
    let world = World::new().await;
    let owner = world.owner("ann").await;
    let app = world.user("ann", Role::Application).await;
    world.pool(&owner, "p", 1).await;
    let claimed = world.claim(&app, "p").await.unwrap();
    world.control.exec_collect(&app, claimed.sandbox.id, crate::support::exec(&["true"])).await.unwrap();
    let refused = world.control.pool_create(&app, pool_request("q", 1)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Forbidden);
    assert!(refused.message.contains("needs the role member"), "{}", refused.message);
    let refused = world.control.template_create(&app, crate::support::template_request("x", false)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Forbidden);
    let refused = world.control.pool_delete(&app, &pool_name("p")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Forbidden);
}
