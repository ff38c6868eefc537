//! What sandboxes may reach: where it comes from, how it changes, who is told, and what survives.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sandbank_agent_protocol::{OpenMode, ReadFile, WriteFile};
use sandbank_control::{
    Caller, Claim, CreateSandbox, CreateSource, ErrorKind, Exec, Fork, HeaderValue, LeaseRequest, NetworkRequest,
    NetworkSettings, NetworkSource, NetworkTraffic, PoolChange, PoolRequest, TemplateRequest, TemplateSource, WhenEmpty,
};
use sandbank_driver::{Capability, DeniedDestination, DriverEvent, Method, Traffic};
use sandbank_model::{
    Checked, EventKind, Floor, HeaderRule, NameGroup, NamedAddress, NetworkPlan, NetworkPolicy, Role, SandboxId, State, Timeout,
    Transport, Verdict,
};

use crate::support::{World, claim, create, eventually, exec, pool_name, pool_request, settings, template_request};

fn request(internet: bool, allow: &[&str], deny: &[&str]) -> NetworkRequest {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    NetworkRequest { internet, allow: rules(allow), deny: rules(deny), ..NetworkRequest::default() }
}

fn with_header(value: HeaderValue) -> NetworkRequest {
    let hosts = vec!["api.example.com".parse().unwrap()];
    let set = [("Authorization".to_owned(), value)].into();
    NetworkRequest { headers: vec![HeaderRule { hosts, paths: vec![], set }], ..request(true, &[], &[]) }
}

fn plan(request: &NetworkRequest) -> NetworkPlan {
    request.plan(&Floor::default())
}

fn leased(network: NetworkRequest) -> LeaseRequest {
    LeaseRequest { network: Some(network), ..LeaseRequest::default() }
}

fn created_with(network: NetworkRequest) -> CreateSandbox {
    CreateSandbox { lease: leased(network), ..create() }
}

fn claim_with(pool: &str, network: NetworkRequest) -> Claim {
    Claim { lease: leased(network), ..claim(pool, WhenEmpty::Refuse) }
}

async fn kinds(world: &World, user: &Caller, id: SandboxId) -> Vec<&'static str> {
    let events = world.control.events(user, Some(id), None, None, false, 1000).await.unwrap();
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// The driver, the directory and the answer to a question all say this.
async fn holds(world: &World, user: &Caller, id: SandboxId, expected: &NetworkRequest) {
    assert_eq!(world.faults.network(id).unwrap(), plan(expected));
    let active = world.control.network_of(id).unwrap();
    assert_eq!(*active.plan(), plan(expected));
    let shown = world.control.network_get(user, id).await.unwrap().policy;
    assert_eq!((shown.internet, &shown.allow, &shown.deny), (expected.internet, &expected.allow, &expected.deny));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_word_decides() {
    let default_policy = Arc::new(NetworkPolicy { deny: vec!["*:25".parse().unwrap()], ..NetworkPolicy::default() });
    let network = NetworkSettings { default_policy, ..NetworkSettings::default() };
    let world = World::with(sandbank_control::Settings { network, ..settings() }).await;
    let (admin, user) = (world.admin().await, world.owner("ann").await);
    let source = |id| {
        let (control, user) = (world.control.clone(), user.clone());
        async move { control.network_get(&user, id).await.unwrap().source }
    };

    let plain = world.created(&user).await;
    holds(&world, &user, plain, &request(true, &[], &["*:25"])).await;
    assert_eq!(source(plain).await, NetworkSource::Server);

    let of_tenant = request(false, &["tenant.example"], &[]);
    world.control.admin_set_network(&admin, "t-t-ann", Some(of_tenant.clone())).await.unwrap();
    eventually("the one that says nothing follows", || async { world.faults.network(plain).unwrap() == plan(&of_tenant) }).await;
    holds(&world, &user, plain, &of_tenant).await;
    assert_eq!(source(plain).await, NetworkSource::Tenant);

    let of_template = request(false, &["template.example"], &[]);
    let template = TemplateRequest { network: Some(of_template.clone()), ..template_request("t", false) };
    world.control.template_create(&user, template).await.unwrap();
    let from_template = CreateSandbox { source: CreateSource::Template(pool_name("t")), ..create() };
    let templated = world.control.create(&user, from_template.clone()).await.unwrap().sandbox.id;
    holds(&world, &user, templated, &of_template).await;
    assert_eq!(source(templated).await, NetworkSource::Template);

    let of_pool = request(false, &["pool.example"], &[]);
    let named = TemplateSource::Named(pool_name("t"));
    let pool = PoolRequest { template: named, network: Some(of_pool.clone()), ..pool_request("p", 2) };
    world.control.pool_create(&user, pool).await.unwrap();
    world.warm(&user, "p", 2).await;
    let pooled = world.claim(&user, "p").await.unwrap().sandbox.id;
    holds(&world, &user, pooled, &of_pool).await;
    assert_eq!(world.faults.calls().of(Method::SetNetwork), 1, "only the tenant's change was told: a plain claim tells nobody");

    let own = request(false, &["own.example:443"], &[]);
    let claimed = world.control.claim(&user, claim_with("p", own.clone())).await.unwrap().sandbox.id;
    holds(&world, &user, claimed, &own).await;
    assert_eq!(source(claimed).await, NetworkSource::Sandbox);
    let made = CreateSandbox { lease: leased(own.clone()), ..from_template };
    let made = world.control.create(&user, made).await.unwrap().sandbox.id;
    holds(&world, &user, made, &own).await;
    assert_eq!(world.faults.calls().of(Method::SetNetwork), 2, "one that is made has it from the beginning");

    world.control.admin_set_network(&admin, "t-t-ann", None).await.unwrap();
    let back = request(true, &[], &["*:25"]);
    eventually("the default is back", || async { world.faults.network(plain).unwrap() == plan(&back) }).await;
    holds(&world, &user, claimed, &own).await;
    holds(&world, &user, pooled, &of_pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_replaced_while_the_sandbox_runs_or_is_paused() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let first = world.control.network_of(id).unwrap();
    let next = request(false, &["*.example.com:443"], &[]);
    let view = world.control.network_update(&user, id, next.clone()).await.unwrap();
    assert_eq!((view.source, view.policy.internet), (NetworkSource::Sandbox, false));
    holds(&world, &user, id, &next).await;
    assert!(!Arc::ptr_eq(&first, &world.control.network_of(id).unwrap()));
    world.control.pause(&user, id).await.unwrap();
    let wider = request(true, &[], &["1.2.3.0/24"]);
    world.control.network_update(&user, id, wider.clone()).await.unwrap();
    holds(&world, &user, id, &wider).await;
    world.control.resume(&user, id).await.unwrap();
    holds(&world, &user, id, &wider).await;
    assert_eq!(kinds(&world, &user, id).await, ["created", "claimed", "network-changed", "paused", "network-changed", "resumed"]);
    world.control.release(&user, id).await.unwrap();
    world.reaches(id, State::Terminated).await;
    assert!(world.control.network_of(id).is_none(), "what has ended reaches nothing");
    assert_eq!(world.control.network_update(&user, id, wider).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_expired_and_foreign_sandboxes_are_not_changed() {
    let world = World::new().await;
    let (user, other) = (world.owner("ann").await, world.owner("bob").await);
    let id = world.created(&user).await;
    let closed = request(false, &[], &[]);
    for error in [
        world.control.network_update(&other, id, closed.clone()).await.unwrap_err(),
        world.control.network_get(&other, id).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    }
    world.pool(&user, "p", 1).await;
    let warm = world.store_live().await.into_iter().find(|sandbox| sandbox.state == State::Ready).unwrap().id;
    assert_eq!(world.control.network_update(&user, warm, closed.clone()).await.unwrap_err().kind, ErrorKind::State);
    let lease = LeaseRequest { timeout: Some(Timeout::After(Duration::from_secs(5))), ..LeaseRequest::default() };
    let short = world.control.create(&user, CreateSandbox { lease, ..create() }).await.unwrap().sandbox.id;
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(world.control.network_update(&user, short, closed.clone()).await.unwrap_err().kind, ErrorKind::State);
    let member = world.user("ann", Role::Owner).await;
    for error in [
        world.control.admin_set_network(&member, "t-t-ann", None).await.unwrap_err(),
        world.control.admin_set_network(&world.admin().await, "nobody", None).await.unwrap_err(),
    ] {
        assert!(matches!(error.kind, ErrorKind::Forbidden | ErrorKind::NotFound), "{error}");
    }
    assert_eq!(world.faults.calls().of(Method::SetNetwork), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_refuses_is_taken_back() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let first = request(false, &["a.example"], &[]);
    let id = world.control.create(&user, created_with(first.clone())).await.unwrap().sandbox.id;
    let next = request(true, &[], &[]);
    world.faults.fail(Method::SetNetwork, 1);
    let error = world.control.network_update(&user, id, next.clone()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("is as it was"), "{error}");
    holds(&world, &user, id, &first).await;
    // The driver refuses the old one too, for a while: it is told until it takes it.
    world.faults.fail(Method::SetNetwork, 3);
    world.control.network_update(&user, id, next.clone()).await.unwrap_err();
    eventually("the driver was told often enough", || async { world.faults.calls().of(Method::SetNetwork) >= 6 }).await;
    holds(&world, &user, id, &first).await;
    // Safe to repeat.
    world.control.network_update(&user, id, next.clone()).await.unwrap();
    holds(&world, &user, id, &next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_not_on_disk_is_not_in_force() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.disk_full.store(true, Ordering::SeqCst);
    let error = world.control.network_update(&user, id, request(false, &[], &[])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    holds(&world, &user, id, &request(true, &[], &[])).await;
    assert_eq!(world.faults.calls().of(Method::SetNetwork), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_goes_on_when_its_caller_leaves() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.hang(Method::SetNetwork, true);
    let next = request(false, &[], &[]);
    let (control, caller, asked) = (world.control.clone(), user.clone(), next.clone());
    let update = tokio::spawn(async move { control.network_update(&caller, id, asked).await });
    eventually("the driver was asked", || async { world.faults.calls().of(Method::SetNetwork) == 1 }).await;
    update.abort();
    world.faults.hang(Method::SetNetwork, false);
    eventually("it is in force", || async { world.faults.network(id).unwrap() == plan(&next) }).await;
    holds(&world, &user, id, &next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_policy_is_not_in_force_hands_nothing_out() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 1).await;
    world.faults.fail(Method::SetNetwork, 1);
    let error = world.control.claim(&user, claim_with("p", request(false, &[], &[]))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    eventually("it was given back", || async {
        world.all().await.iter().any(|sandbox| sandbox.state == State::Terminated && sandbox.lease.is_some())
    })
    .await;
    assert!(world.mine(&user).await.iter().all(|view| !view.sandbox.state.is_claimed()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_brings_every_sandbox_to_what_is_said_of_it() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let plain = world.created(&user).await;
    let own = request(false, &["own.example"], &[]);
    let said = world.control.create(&user, created_with(own.clone())).await.unwrap().sandbox.id;
    // The server dies between the record and the driver.
    let torn = world.created(&user).await;
    world.faults.hang(Method::SetNetwork, true);
    let (control, caller) = (world.control.clone(), user.clone());
    let update = tokio::spawn(async move { control.network_update(&caller, torn, request(false, &["torn.example"], &[])).await });
    eventually("the driver was asked", || async { world.faults.calls().of(Method::SetNetwork) == 1 }).await;
    world.crash().await;
    update.abort();
    world.faults.hang(Method::SetNetwork, false);
    assert_eq!(world.faults.network(torn).unwrap(), plan(&request(true, &[], &[])), "the kernel has the old one");
    // The operator changed the default meanwhile.
    world.settings.network.default_policy = Arc::new(NetworkPolicy::closed());
    let before = world.faults.calls().of(Method::SetNetwork);
    world.start_again().await;
    holds(&world, &user, plain, &request(false, &[], &[])).await;
    holds(&world, &user, said, &own).await;
    holds(&world, &user, torn, &request(false, &["torn.example"], &[])).await;
    assert_eq!(world.faults.calls().of(Method::SetNetwork) - before, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_whose_driver_refuses_at_first_loses_no_sandbox() {
    let mut world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.crash().await;
    world.settings.network.default_policy = Arc::new(NetworkPolicy::closed());
    world.faults.fail(Method::SetNetwork, 2);
    assert_eq!(world.start_again().await.adopted, 1);
    let closed = NetworkPlan::closed();
    eventually("the driver took it", || async { world.faults.network(id).unwrap() == closed }).await;
    assert_eq!(world.state(id).await, State::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_without_a_network_refuses_what_it_cannot_hold() {
    let world = World::without(&[Capability::Network]).await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    assert_eq!(world.faults.network(id).unwrap(), NetworkPlan::closed());
    assert!(world.control.network_of(id).is_none());
    let view = world.control.network_get(&user, id).await.unwrap();
    assert_eq!((view.source, view.policy.reaches_nothing()), (NetworkSource::Driver, true));
    world.pool(&user, "p", 1).await;
    let some = || request(false, &["a.example"], &[]);
    let pool = PoolRequest { network: Some(some()), ..pool_request("q", 1) };
    for error in [
        world.control.create(&user, created_with(some())).await.unwrap_err(),
        world.control.claim(&user, claim_with("p", some())).await.unwrap_err(),
        world.control.network_update(&user, id, some()).await.unwrap_err(),
        world.control.pool_create(&user, pool).await.unwrap_err(),
        world.control.fork(&user, id, Fork { count: 1, lease: leased(some()) }).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.message.contains("network"), "{error}");
    }
    // What it does by itself, and what nobody asked for, is no refusal.
    for fine in [request(false, &[], &[]), request(true, &[], &[])] {
        world.control.network_update(&user, id, fine.clone()).await.unwrap();
        world.control.create(&user, created_with(fine)).await.unwrap();
    }
    world.control.claim(&user, claim_with("p", request(false, &[], &[]))).await.unwrap();
    assert_eq!(world.control.metrics(&user, id).await.unwrap().traffic, None);
    assert_eq!(world.faults.calls().of(Method::SetNetwork), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_and_snapshots_reach_what_their_original_may() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let own = request(false, &["own.example"], &[]);
    let id = world.control.create(&user, created_with(own.clone())).await.unwrap().sandbox.id;
    let fork = |lease| Fork { count: 1, lease };
    let forked = world.control.fork(&user, id, fork(LeaseRequest::default())).await.unwrap().remove(0).unwrap().sandbox.id;
    holds(&world, &user, forked, &own).await;
    let other = request(false, &["other.example"], &[]);
    let forked = world.control.fork(&user, id, fork(leased(other.clone()))).await.unwrap().remove(0).unwrap().sandbox.id;
    holds(&world, &user, forked, &other).await;
    let snapshot = world.control.snapshot(&user, id, None).await.unwrap();
    let source = CreateSource::Snapshot(snapshot.id.to_string());
    let of_snapshot = world.control.create(&user, CreateSandbox { source, ..create() }).await.unwrap().sandbox.id;
    holds(&world, &user, of_snapshot, &own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_values_are_kept_sealed_and_open_for_their_requests_only() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let network = with_header(HeaderValue::set("Bearer hunter2".to_owned()));
    let id = world.control.create(&user, created_with(network)).await.unwrap().sandbox.id;
    let record = world.store_get(id).await.unwrap();
    let kept = serde_json::to_string(&record).unwrap();
    assert!(kept.contains("Authorization") && !kept.contains("hunter2") && !format!("{record:?}").contains("hunter2"));
    let values = |host: &str| {
        let active = world.control.network_of(id).unwrap();
        let found = world.control.network_header_secrets(&active, host, "/v1").unwrap();
        found.into_iter().map(|(name, value)| (name, value.to_string())).collect::<Vec<_>>()
    };
    let expected = vec![("Authorization".to_owned(), "Bearer hunter2".to_owned())];
    assert_eq!(values("API.example.com"), expected);
    assert!(values("evil.example.com").is_empty());
    let active = world.control.network_of(id).unwrap();
    assert!(active.injects_into("api.example.com") && !active.injects_into("example.com"));
    assert_eq!((active.plan().checked, active.groups_of("api.example.com")), (Checked::Named, vec![NameGroup(0)]));
    // Who reads a policy and writes it back keeps the values that it cannot see.
    world.control.network_update(&user, id, with_header(HeaderValue::Kept)).await.unwrap();
    assert_eq!(values("api.example.com"), expected);
    let mut elsewhere = with_header(HeaderValue::Kept);
    elsewhere.headers[0].hosts = vec!["evil.example.com".parse().unwrap()];
    let error = world.control.network_update(&user, id, elsewhere).await.unwrap_err();
    assert!(error.message.starts_with("network.headers[0].set.Authorization: there is no value to keep"), "{error}");
    assert_eq!(values("api.example.com"), expected);
    let error = world.control.create(&user, created_with(with_header(HeaderValue::Kept))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_of_the_installation_lends_its_headers_to_every_tenant() {
    let world = World::new().await;
    let (admin, user) = (world.admin().await, world.owner("ann").await);
    let network = Some(with_header(HeaderValue::set("k".to_owned())));
    world.control.template_create(&admin, TemplateRequest { network, ..template_request("t", true) }).await.unwrap();
    let network = Some(with_header(HeaderValue::Kept));
    world.control.template_update(&admin, TemplateRequest { network, ..template_request("t", true) }).await.unwrap();
    let from_template = CreateSandbox { source: CreateSource::Template(pool_name("t")), ..create() };
    let id = world.control.create(&user, from_template).await.unwrap().sandbox.id;
    let active = world.control.network_of(id).unwrap();
    let found = world.control.network_header_secrets(&active, "api.example.com", "/").unwrap();
    assert_eq!(found[0].1.as_str(), "k");
    // A tenant's value in somebody else's record opens for nobody.
    let mine = world.control.create(&user, created_with(with_header(HeaderValue::set("mine".to_owned())))).await.unwrap();
    let policy = mine.sandbox.lease.as_ref().unwrap().network.clone().unwrap();
    let other = world.owner("bob").await;
    let theirs = world.created(&other).await;
    let mut record = world.store_get(theirs).await.unwrap();
    record.spec.network = Some(policy);
    record.generation += 1;
    let event = sandbank_model::Event {
        seq: sandbank_model::EventSeq(0),
        at: record.created_at,
        tenant: record.tenant,
        sandbox: Some(theirs),
        pool: None,
        kind: EventKind::NetworkChanged,
        actor: sandbank_model::Actor::system(),
    };
    let expected = record.generation - 1;
    sandbank_store::Store::sandbox_update(&*world.store, record, expected, event).await.unwrap();
    let mut world = world;
    world.crash().await;
    world.start_again().await;
    let active = world.control.network_of(theirs).unwrap();
    let error = world.control.network_header_secrets(&active, "api.example.com", "/").unwrap_err();
    assert!(error.message.contains("somebody else") && !error.message.contains("mine"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_policies_are_refused_with_the_entry_s_name() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let many = NetworkRequest { allow: vec!["1.2.3.4".parse().unwrap(); 4097], ..request(true, &[], &[]) };
    for (network, place) in [
        (request(true, &[], &["a.example", "b.example:22"]), "network.deny[1]: "),
        (many, "network.allow: "),
        (with_header(HeaderValue::set(String::new())), "network.headers[0].set.Authorization: "),
        (with_header(HeaderValue::set("a\r\nHost: b".to_owned())), "network.headers[0].set.Authorization: "),
        (with_header(HeaderValue::set("x".repeat(2049))), "network.headers[0].set.Authorization: "),
    ] {
        let error = world.control.create(&user, created_with(network)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.starts_with(place), "{error}");
    }
    assert!(world.all().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_opened_for_the_policy_that_they_were_asked_for() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let own = request(false, &["a.example:443", "b.example:80"], &[]);
    let id = world.control.create(&user, created_with(own)).await.unwrap().sandbox.id;
    let active = world.control.network_of(id).unwrap();
    assert!(active.may_resolve("a.example") && !active.may_resolve("c.example"));
    let address: IpAddr = "20.0.0.1".parse().unwrap();
    let opened = |group| vec![NamedAddress { group, address, life: Duration::from_secs(60) }];
    let group = active.groups_of("b.example")[0];
    assert!(world.control.network_open(id, &active, "api.example.com", opened(group)).await.unwrap());
    assert_eq!(world.faults.opened(id), opened(NameGroup(1)));
    // Under the next policy the same number means other ports.
    world.control.network_update(&user, id, request(false, &["c.example", "d.example:22"], &[])).await.unwrap();
    assert!(!world.control.network_open(id, &active, "api.example.com", opened(group)).await.unwrap());
    assert!(world.faults.opened(id).is_empty(), "and a name that it does not allow is closed");
    let now = world.control.network_of(id).unwrap();
    assert_eq!(now.resolved_verdict("c.example", address, Some(443)), Verdict::Allow);
    assert_eq!(now.resolved_verdict("a.example", address, Some(443)), Verdict::Deny);
    assert_eq!(now.name_verdict("d.example", Transport::Tcp, 443), Verdict::Deny);
    assert_eq!(now.address_verdict(address, 443), Verdict::Deny);
    let private: IpAddr = "10.0.0.1".parse().unwrap();
    assert_eq!(now.resolved_verdict("c.example", private, None), Verdict::Deny, "a public name for a private address");
    assert_eq!(now.resolved_verdict("c.example", private, Some(443)), Verdict::Deny);
    assert!(now.speaks_of_names());
    assert!(
        !world.control.network_open(SandboxId::new(world.control.now(), [9; 10]), &now, "api.example.com", vec![]).await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_connections_are_told_now_and_then() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let deny = |from: u8, count: u8| {
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let destinations = (from..from + count).map(|n| DeniedDestination { address: address(n), port: 22 }).collect();
        world.faults.emit(DriverEvent::Denied { id, destinations });
    };
    let told = || async {
        let events = world.control.events(&user, Some(id), None, None, false, 1000).await.unwrap();
        let denied = events.into_iter().filter_map(|event| match event.kind {
            EventKind::NetworkDenied { destinations, count } => Some((destinations, count)),
            _ => None,
        });
        denied.collect::<Vec<_>>()
    };
    deny(1, 1);
    eventually("the first is told at once", || async { told().await == [(vec!["10.0.0.1:22".to_owned()], 1)] }).await;
    for _ in 0..10 {
        deny(10, 20);
    }
    for _ in 0..1000 {
        world.control.network_denied(id, "evil.example:443");
    }
    assert_eq!(told().await.len(), 1, "the next ones wait");
    // What the driver said may be heard only while the clock goes on.
    eventually("the rest is told together", || async {
        world.clock.advance(Duration::from_secs(10));
        told().await.iter().map(|(_, count)| count).sum::<u64>() == 1201
    })
    .await;
    let all = told().await;
    // Never more than what was heard at different times: the driver's ten, and the two others.
    assert!(all.len() <= 12 && all.iter().all(|(destinations, _)| destinations.len() <= 16), "{all:?}");
    // One that nobody knows is not remembered.
    world.control.network_denied(SandboxId::new(world.control.now(), [8; 10]), "evil.example:443");
    world.faults.emit(DriverEvent::Denied {
        id: SandboxId::new(world.control.now(), [9; 10]),
        destinations: vec![DeniedDestination { address: IpAddr::from([10, 0, 0, 1]), port: 1 }],
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_connections_that_cannot_be_recorded_are_recorded_later() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.disk_full.store(true, Ordering::SeqCst);
    world.control.network_denied(id, "evil.example:443");
    eventually("it was tried", || async { world.refused_writes.load(Ordering::SeqCst) > 0 }).await;
    world.disk_full.store(false, Ordering::SeqCst);
    eventually("it is told", || async {
        world.clock.advance(Duration::from_secs(10));
        kinds(&world, &user, id).await.contains(&"network-denied")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_of_the_network() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.faults.traffic(id, Traffic { in_bytes: 7, out_bytes: 9 });
    let metrics = world.control.metrics(&user, id).await.unwrap();
    assert_eq!(metrics.traffic, Some(NetworkTraffic { in_bytes: 7, out_bytes: 9 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_s_policy_is_changed_for_its_next_sandboxes() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let (first, next) = (request(false, &["a.example"], &[]), request(false, &["b.example"], &[]));
    let pool = PoolRequest { network: Some(first.clone()), ..pool_request("p", 2) };
    world.control.pool_create(&user, pool).await.unwrap();
    world.warm(&user, "p", 2).await;
    let claimed = world.claim(&user, "p").await.unwrap().sandbox.id;
    let change = PoolChange { network: Some(Some(next.clone())), ..PoolChange::default() };
    world.control.pool_update(&user, &pool_name("p"), change).await.unwrap();
    world.claims_pause();
    let warm = || async {
        let live = world.store_live().await;
        let warm: Vec<_> = live.into_iter().filter(|sandbox| sandbox.state == State::Ready).collect();
        warm.iter().map(|sandbox| world.faults.network(sandbox.id)).collect::<Vec<_>>()
    };
    eventually("the warm one was replaced", || async { warm().await == [Some(plan(&next))] }).await;
    holds(&world, &user, claimed, &first).await;
    let change = PoolChange { network: Some(None), ..PoolChange::default() };
    world.control.pool_update(&user, &pool_name("p"), change).await.unwrap();
    world.claims_pause();
    eventually("it is the default", || async { warm().await == [Some(plan(&request(true, &[], &[])))] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_waits_for_a_change_that_is_under_way() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.control.create(&user, created_with(request(false, &["a.example:443"], &[]))).await.unwrap().sandbox.id;
    let before = world.control.network_of(id).unwrap();
    world.faults.hang(Method::SetNetwork, true);
    let (control, caller) = (world.control.clone(), user.clone());
    let update = tokio::spawn(async move { control.network_update(&caller, id, request(false, &["b.example:22"], &[])).await });
    eventually("the driver was asked", || async { world.faults.calls().of(Method::SetNetwork) == 1 }).await;
    // The next policy is known already, and not in force: its groups mean nothing to the driver yet.
    let next = world.control.network_of(id).unwrap();
    let named = |name: &str| {
        vec![NamedAddress { group: next.groups_of(name)[0], address: "20.0.0.1".parse().unwrap(), life: Duration::from_secs(9) }]
    };
    {
        let early = world.control.network_open(id, &next, "b.example", named("b.example"));
        tokio::pin!(early);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut early).await.is_err());
        assert!(world.faults.opened(id).is_empty());
        world.faults.hang(Method::SetNetwork, false);
        assert!(early.await.unwrap());
    }
    update.await.unwrap().unwrap();
    assert!(!world.control.network_open(id, &before, "b.example", named("b.example")).await.unwrap());
    assert_eq!(world.faults.opened(id).len(), 1);
}

const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nb3Vycw==\n-----END CERTIFICATE-----\n";
const ROOTS: &str = "-----BEGIN CERTIFICATE-----\nb3RoZXJz\n-----END CERTIFICATE-----\n";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

async fn with_authority() -> World {
    let network = NetworkSettings { authority_pem: Some(AUTHORITY.into()), ..NetworkSettings::default() };
    World::with(sandbank_control::Settings { network, ..settings() }).await
}

async fn content(world: &World, user: &Caller, id: SandboxId, path: &str) -> Option<String> {
    let read = ReadFile { path: path.to_owned(), user: None, offset: 0, length: None };
    let mut reader = match world.control.file_read(user, id, read).await {
        Err(error) if error.kind == ErrorKind::NotFound => return None,
        read => read.unwrap(),
    };
    let mut content = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        content.extend_from_slice(&piece);
    }
    Some(String::from_utf8(content).unwrap())
}

async fn put(world: &World, user: &Caller, id: SandboxId, path: &str, content: impl Into<bytes::Bytes>) {
    let write = WriteFile { path: path.to_owned(), user: None, mode: None, open: OpenMode::Replace };
    let mut writer = world.control.file_write(user, id, write).await.unwrap();
    writer.write(content.into()).await.unwrap();
    writer.finish().await.unwrap();
}

/// What a program inside has as its value of this variable.
async fn variable(world: &World, user: &Caller, id: SandboxId, name: &str, own: Option<&str>) -> Option<String> {
    let env = own.map(|own| (name.to_owned(), own.to_owned())).into_iter().collect();
    let exec = Exec { env, ..exec(&["env"]) };
    let output = world.control.exec_collect(user, id, exec).await.unwrap();
    let text = String::from_utf8(output.stdout.to_vec()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn set_header() -> NetworkRequest {
    with_header(HeaderValue::set("Bearer one".to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gets_headers_trusts_the_authority_from_the_beginning() {
    let world = with_authority().await;
    let user = world.owner("ann").await;
    world.pool(&user, "p", 1).await;
    let made = world.control.create(&user, created_with(set_header())).await.unwrap().sandbox.id;
    let claimed = world.control.claim(&user, claim_with("p", set_header())).await.unwrap().sandbox.id;
    for id in [made, claimed] {
        assert_eq!(content(&world, &user, id, "/etc/sandbank/ca.pem").await.as_deref(), Some(AUTHORITY));
        assert!(content(&world, &user, id, BUNDLE).await.unwrap().contains(AUTHORITY));
        assert_eq!(variable(&world, &user, id, "NODE_EXTRA_CA_CERTS", None).await.as_deref(), Some("/etc/sandbank/ca.pem"));
        // A bundle with nothing else in it takes nobody's own roots away.
        assert_eq!(variable(&world, &user, id, "SSL_CERT_FILE", None).await, None);
    }
    let plain = world.created(&user).await;
    assert_eq!(content(&world, &user, plain, "/etc/sandbank/ca.pem").await, None);
    assert_eq!(content(&world, &user, plain, BUNDLE).await, None);
    assert_eq!(variable(&world, &user, plain, "NODE_EXTRA_CA_CERTS", None).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_joins_the_image_s_roots_once() {
    let mut world = with_authority().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    put(&world, &user, id, BUNDLE, ROOTS).await;
    for _ in 0..2 {
        world.control.network_update(&user, id, set_header()).await.unwrap();
    }
    world.crash().await;
    world.start_again().await;
    let found = variable(&world, &user, id, "SSL_CERT_FILE", None).await;
    assert_eq!(found.as_deref(), Some(BUNDLE), "after a restart too");
    let bundle = content(&world, &user, id, BUNDLE).await.unwrap();
    assert!(bundle.starts_with(ROOTS), "{bundle}");
    assert_eq!(bundle.matches(AUTHORITY).count(), 1, "{bundle}");
    assert_eq!(variable(&world, &user, id, "SSL_CERT_FILE", Some("/mine")).await.as_deref(), Some("/mine"));
    world.control.network_update(&user, id, request(true, &[], &[])).await.unwrap();
    assert_eq!(variable(&world, &user, id, "SSL_CERT_FILE", None).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_sandbox_trusts_the_authority_when_it_is_resumed() {
    let world = with_authority().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    world.control.pause(&user, id).await.unwrap();
    world.control.network_update(&user, id, set_header()).await.unwrap();
    world.control.resume(&user, id).await.unwrap();
    assert_eq!(content(&world, &user, id, "/etc/sandbank/ca.pem").await.as_deref(), Some(AUTHORITY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_nobody_inside_would_trust_are_refused() {
    let world = with_authority().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    put(&world, &user, id, BUNDLE, vec![b'x'; 5 * 1024 * 1024]).await;
    let before = request(true, &[], &[]);
    let error = world.control.network_update(&user, id, set_header()).await.unwrap_err();
    assert!(error.message.contains("certificate authority") && error.message.contains("is as it was"), "{error}");
    holds(&world, &user, id, &before).await;
    put(&world, &user, id, BUNDLE, ROOTS).await;
    put(&world, &user, id, "/etc/sandbank", "in the way").await;
    world.control.network_update(&user, id, set_header()).await.unwrap_err();
    holds(&world, &user, id, &before).await;

    let blind = World::without(&[Capability::Files]).await;
    let user = blind.owner("ann").await;
    let error = blind.control.create(&user, created_with(set_header())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
}
