//! Pools and templates: their rules, and what their reconcilers do.

use std::collections::BTreeSet;
use std::time::Duration;

use sandbank_control::{Detail, ErrorKind, PoolChange, PoolRequest, TemplateRequest, TemplateSource};
use sandbank_driver::Method;
use sandbank_model::{
    Autoscaling, Counting, Overrides, PoolPhase, QuotaLimits, Role, Sizing, State, Template, TemplateId, Visibility,
    VisibilityRule,
};
use sandbank_store::{Store, Write};

use crate::support::{World, caller, eventually, image, pool_name, pool_request, template_request, template_spec};

fn sized(name: &str, replicas: u32, min: Option<u32>, max: Option<u32>) -> PoolRequest {
    PoolRequest { sizing: Sizing { replicas, min, max, counting: Counting::Total }, ..pool_request(name, 0) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_makes_no_sense_is_refused() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let autoscaling = Autoscaling { enabled: true, ..Autoscaling::default() };
    let bad = [
        sized("p", 1, Some(3), Some(2)),
        sized("p", 5, Some(1), Some(2)),
        sized("p", u32::MAX, None, None),
        PoolRequest { autoscaling, ..pool_request("p", 1) },
        PoolRequest {
            overrides: Overrides { image: Some(image("nowhere")), resource_multiplier: None, network: None },
            ..pool_request("p", 1)
        },
        PoolRequest { overrides: Overrides { image: None, resource_multiplier: Some(0), network: None }, ..pool_request("p", 1) },
        PoolRequest { driver: Some("other".into()), ..pool_request("p", 1) },
    ];
    for request in bad {
        let refused = world.control.pool_create(&user, request).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{}", refused.message);
    }
    world.control.template_create(&user, template_request("known", false)).await.unwrap();
    let request = PoolRequest { template: TemplateSource::Named(pool_name("missing")), ..pool_request("p", 1) };
    let refused = world.control.pool_create(&user, request).await.unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::Invalid, "sandbox template \"missing\" not found"));
    let Some(Detail::AvailableTemplates(known)) = refused.detail.as_deref() else { panic!("{refused:?}") };
    assert_eq!(known.len(), 1);
    world.pool(&user, "p", 1).await;
    let taken = world.control.pool_create(&user, pool_request("p", 1)).await.unwrap_err();
    assert_eq!((taken.kind, taken.message.as_str()), (ErrorKind::Conflict, "pool \"p\" already exists"));
    let nothing = world.control.pool_update(&user, &pool_name("p"), PoolChange::default()).await.unwrap_err();
    assert_eq!(nothing.kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_may_ask_for_an_api_key_of_its_tenant() {
    let world = World::new().await;
    let admin = world.admin().await;
    let keyless = caller(world.control.impersonate(admin.principal, "t", "nobody").await.unwrap());
    let request = PoolRequest { require_api_key: true, ..pool_request("p", 0) };
    let refused = world.control.pool_create(&keyless, request.clone()).await.unwrap_err();
    assert_eq!(refused.detail.as_deref(), Some(&Detail::ApiKeyRequired));
    world.control.pool_create(&world.owner("ann").await, request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_follows_its_size_and_replaces_what_was_claimed_or_died() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut request = pool_request("p", 3);
    request.sizing.counting = Counting::Warm;
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 3).await;
    let claimed = world.claim(&user, "p").await.unwrap().sandbox.id;
    world.claims_pause();
    eventually("it is refilled", || async { world.faults.sandboxes().len() == 4 }).await;
    world.warm(&user, "p", 3).await;
    let warm = world.faults.sandboxes().into_keys().find(|id| *id != claimed).unwrap();
    world.faults.end(warm, false, "gone");
    world.reaches(warm, State::Failed).await;
    world.warm(&user, "p", 3).await;
    let change = PoolChange { replicas: Some(1), ..PoolChange::default() };
    world.control.pool_update(&user, &pool_name("p"), change).await.unwrap();
    world.warm(&user, "p", 1).await;
    world.settled().await;
    assert_eq!(world.faults.sandboxes().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_creates_back_off_and_say_why() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.faults.fail(Method::Create, 1);
    world.control.pool_create(&user, pool_request("p", 1)).await.unwrap();
    eventually("the reason shows", || async {
        let view = world.control.pool_get(&user, &pool_name("p")).await.unwrap();
        view.last_error.is_some_and(|error| error.contains("told to fail")) && view.counts.failed == 1
    })
    .await;
    assert_eq!(world.faults.calls().of(Method::Create), 1, "the next try waits");
    world.clock.advance(Duration::from_secs(1));
    world.warm(&user, "p", 1).await;
    eventually("the reason is forgotten", || async {
        world.control.pool_get(&user, &pool_name("p")).await.unwrap().last_error.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_stops_growing_at_the_quota_says_so_and_goes_on_when_there_is_more() {
    let world = World::new().await;
    let (user, admin) = (world.owner("ann").await, world.admin().await);
    let limit = |sandboxes| QuotaLimits { sandboxes: Some(sandboxes), ..QuotaLimits::default() };
    world.control.pool_create(&user, pool_request("p", 4)).await.unwrap();
    world.warm(&user, "p", 4).await;
    world.control.admin_set_quota(&admin, "t-t-ann", limit(2)).await.unwrap();
    for _ in 0..4 {
        let id = world.claim(&user, "p").await.unwrap().sandbox.id;
        world.control.release(&user, id).await.unwrap();
    }
    world.warm(&user, "p", 2).await;
    eventually("the reason shows", || async {
        let view = world.control.pool_get(&user, &pool_name("p")).await.unwrap();
        view.last_error.is_some_and(|error| error.contains("quota exceeded"))
    })
    .await;
    world.control.admin_set_quota(&admin, "t-t-ann", limit(10)).await.unwrap();
    world.warm(&user, "p", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_a_quota_holds_back_grows_as_soon_as_another_sandbox_of_the_tenant_ends() {
    let mut settings = crate::support::settings();
    settings.default_quota = QuotaLimits { sandboxes: Some(2), ..QuotaLimits::default() };
    let world = World::with(settings).await;
    let user = world.owner("ann").await;
    let mut request = pool_request("p", 1);
    request.sizing.counting = Counting::Warm;
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 1).await;
    world.claim(&user, "p").await.unwrap();
    world.warm(&user, "p", 1).await;
    let outside = world.claim(&user, "p").await.unwrap().sandbox.id;
    eventually("the reason shows", || async {
        world.control.pool_get(&user, &pool_name("p")).await.unwrap().last_error.is_some()
    })
    .await;
    world.control.release(&user, outside).await.unwrap();
    world.warm(&user, "p", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_are_bounded_over_all_pools_and_slow_ones_do_not_stop_others() {
    let mut settings = crate::support::settings();
    settings.create_concurrency = 2;
    let world = World::with(settings).await;
    let user = world.owner("ann").await;
    world.faults.slow(Method::Create, Duration::from_millis(10));
    for name in ["a", "b", "c"] {
        world.control.pool_create(&user, pool_request(name, 4)).await.unwrap();
    }
    for name in ["a", "b", "c"] {
        world.warm(&user, name, 4).await;
    }
    assert!(world.faults.creates_at_once_max() <= 2);
    // Creates of one pool hang; after a while their places go to others.
    world.faults.hang(Method::Create, true);
    world.control.pool_create(&user, pool_request("hangs", 2)).await.unwrap();
    eventually("they hang", || async { world.faults.calls().of(Method::Create) == 14 }).await;
    world.control.pool_create(&user, pool_request("late", 1)).await.unwrap();
    eventually("the late one is begun", || async { world.faults.calls().of(Method::Create) >= 15 }).await;
    world.faults.hang(Method::Create, false);
    world.warm(&user, "hangs", 2).await;
    world.warm(&user, "late", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pool_keeps_its_name_until_the_last_claimed_sandbox_is_gone() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 2).await;
    let id = world.claim(&user, "p").await.unwrap().sandbox.id;
    let deleted = world.control.pool_delete(&user, &pool_name("p")).await.unwrap();
    assert_eq!(deleted.phase, PoolPhase::Terminating);
    world.control.pool_delete(&user, &pool_name("p")).await.unwrap();
    assert_eq!(world.claim(&user, "p").await.unwrap_err().kind, ErrorKind::NotFound);
    eventually("the warm one is gone", || async { world.faults.sandboxes().len() == 1 }).await;
    assert_eq!(world.control.pool_create(&user, pool_request("p", 1)).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(world.state(id).await, State::Running);
    world.control.release(&user, id).await.unwrap();
    eventually("the pool is gone", || async {
        world.control.pool_get(&user, &pool_name("p")).await.is_err_and(|error| error.kind == ErrorKind::NotFound)
    })
    .await;
    world.pool(&user, "p", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaled_pool_grows_for_claims_that_wait_and_shrinks_when_nobody_comes() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut request = sized("p", 1, Some(1), Some(4));
    request.autoscaling = Autoscaling { enabled: true, ..Autoscaling::default() };
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 1).await;
    world.claim(&user, "p").await.unwrap();
    let waiting = sandbank_control::WhenEmpty::Wait(None);
    world.control.claim(&user, crate::support::claim("p", waiting)).await.unwrap();
    let grown = world.control.pool_get(&user, &pool_name("p")).await.unwrap().pool;
    assert_eq!(grown.sizing.replicas, 2);
    assert!(grown.scaled_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_written_in_rising_versions_and_pools_follow() {
    let world = World::new().await;
    let (user, admin) = (world.owner("ann").await, world.admin().await);
    world.control.template_create(&admin, template_request("t", true)).await.unwrap();
    let again = world.control.template_create(&admin, template_request("t", true)).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::Conflict);
    let forbidden = world.control.template_create(&user, template_request("u", true)).await.unwrap_err();
    assert_eq!(forbidden.kind, ErrorKind::Forbidden);
    let request = PoolRequest { template: TemplateSource::Named(pool_name("t")), ..pool_request("p", 2) };
    world.control.pool_create(&user, request).await.unwrap();
    world.warm(&user, "p", 2).await;
    let claimed = world.claim(&user, "p").await.unwrap().sandbox.id;
    let old: BTreeSet<_> = world.faults.sandboxes().into_keys().collect();
    let mut update = TemplateRequest { version: Some("0.0.1".parse().unwrap()), ..template_request("t", true) };
    assert_eq!(world.control.template_update(&admin, update.clone()).await.unwrap_err().kind, ErrorKind::Invalid);
    update.version = Some("0.2.0".parse().unwrap());
    update.expected_generation = Some(7);
    assert_eq!(world.control.template_update(&admin, update.clone()).await.unwrap_err().kind, ErrorKind::Conflict);
    update.expected_generation = Some(1);
    update.spec.sandbox.env.insert("NEW".into(), "1".into());
    update.spec.labels.insert("from".into(), "template".into());
    world.control.template_update(&admin, update).await.unwrap();
    let pool = world.control.pool_get(&user, &pool_name("p")).await.unwrap().pool;
    assert_eq!(pool.template.as_ref().unwrap().version.to_string(), "0.2.0");
    assert_eq!((pool.revision, pool.sizing.replicas), (2, 2));
    assert_eq!(pool.labels["from"], "template");
    world.claims_pause();
    eventually("the warm one is replaced", || async {
        let now = world.faults.sandboxes();
        now.len() == 2 && now.contains_key(&claimed) && now.keys().any(|id| !old.contains(id))
    })
    .await;
    assert_eq!(world.state(claimed).await, State::Running);
    world.control.template_delete(&admin, &pool_name("t"), true).await.unwrap();
    let gone = world.control.pool_sync_template(&user, &pool_name("p")).await.unwrap_err();
    assert_eq!((gone.kind, gone.message.as_str()), (ErrorKind::NotFound, "source template \"t\" not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_that_a_template_update_did_not_get_to_follow_at_the_next_start() {
    let mut world = World::new().await;
    let (user, admin) = (world.owner("ann").await, world.admin().await);
    for (name, global) in [("own", false), ("all", true), ("anew", false), ("gone", false)] {
        let owner = if global { &admin } else { &user };
        world.control.template_create(owner, template_request(name, global)).await.unwrap();
        let request = PoolRequest { template: TemplateSource::Named(pool_name(name)), ..pool_request(name, 1) };
        world.control.pool_create(&user, request).await.unwrap();
        world.warm(&user, name, 1).await;
    }
    let tenant = user.principal.tenant;
    for name in ["anew", "gone"] {
        world.control.template_delete(&user, &pool_name(name), false).await.unwrap();
        world.control.template_create(&user, template_request(name, false)).await.unwrap();
    }
    world.crash().await;
    // As a server leaves them that ends between writing a template and moving its pools.
    for (owner, name) in [(Some(tenant), "own"), (None, "all"), (Some(tenant), "anew")] {
        let present = world.store.template_get(owner, &pool_name(name)).await.unwrap().unwrap();
        let id = TemplateId::new(present.updated_at, [name.len() as u8; 10]);
        let mut next = Template { id, version: "3.0.0".parse().unwrap(), generation: 2, ..present };
        next.spec.sandbox.env.insert("NEW".into(), "1".into());
        assert!(matches!(world.store.template_update(next, 1).await.unwrap(), Write::Updated(_)));
    }
    world.start_again().await;
    for name in ["own", "all", "anew"] {
        eventually(&format!("{name} follows and its warm one is replaced"), || async {
            let view = world.control.pool_get(&user, &pool_name(name)).await.unwrap();
            let version = view.pool.template.unwrap().version.to_string();
            version == "3.0.0" && view.pool.revision == 2 && view.counts.ready == 1 && view.counts.outdated == 0
        })
        .await;
    }
    let copy = world.control.pool_get(&user, &pool_name("gone")).await.unwrap().pool;
    assert_eq!((copy.template.unwrap().version.to_string().as_str(), copy.revision), ("0.0.1", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_takes_the_template_over_and_keeps_the_pools_own_overrides() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let missing = world.control.pool_sync_template(&user, &pool_name("p")).await.unwrap_err();
    assert_eq!((missing.kind, missing.message.as_str()), (ErrorKind::NotFound, "pool \"p\" not found"));
    world.pool(&user, "inline", 0).await;
    let inline = world.control.pool_sync_template(&user, &pool_name("inline")).await.unwrap_err();
    assert_eq!(inline.kind, ErrorKind::Invalid);
    assert_eq!(inline.message, "pool has no associated template (templateName annotation missing)");
    let mut template = template_request("t", false);
    template.spec.annotations.insert("agentbox.io/sync-source".into(), "hub".into());
    template.spec.annotations.insert("note".into(), "kept".into());
    world.control.template_create(&user, template).await.unwrap();
    let overrides = Overrides { image: None, resource_multiplier: Some(2), network: None };
    let request = PoolRequest { template: TemplateSource::Named(pool_name("t")), overrides, ..pool_request("p", 0) };
    world.control.pool_create(&user, request).await.unwrap();
    let preview = world.control.pool_sync_preview(&user, &pool_name("p")).await.unwrap();
    assert!(!preview.pool.annotations.contains_key("agentbox.io/sync-source"));
    let synced = world.control.pool_sync_template(&user, &pool_name("p")).await.unwrap().pool;
    assert_eq!(synced.annotations["note"], "kept");
    assert_eq!(synced.sandbox_spec().resources.cpu_millis, 2 * template_spec().sandbox.resources.cpu_millis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invisible_template_looks_missing() {
    let world = World::new().await;
    let (ann, admin) = (world.owner("ann").await, world.admin().await);
    let mut template = template_request("secret", true);
    let rule = VisibilityRule { team: "t".into(), users: vec!["bob".into()] };
    template.spec.visibility = Visibility { rules: vec![rule] };
    world.control.template_create(&admin, template).await.unwrap();
    assert_eq!(world.control.template_get(&ann, &pool_name("secret")).await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(world.control.template_list(&ann).await.unwrap().is_empty());
    assert!(world.control.template_get(&world.user("bob", Role::Member).await, &pool_name("secret")).await.is_ok());
    assert!(world.control.template_get(&admin, &pool_name("secret")).await.is_ok());
}
