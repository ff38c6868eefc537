//! Snapshots and forks.

use std::time::Duration;

use crate::support::{World, create, eventually, exec, image, pool_request, settings, template_spec};
use sandbank_control::{Caller, Control, CreateSandbox, CreateSource, ErrorKind, Fork, LeaseRequest, QuotaView, TemplateSource};
use sandbank_driver::Method;
use sandbank_model::{EventKind, QuotaLimits, SandboxId, SnapshotName, State};

fn name(text: &str) -> Option<SnapshotName> {
    Some(text.parse().unwrap())
}

fn of_snapshot(id_or_name: &str) -> CreateSandbox {
    CreateSandbox { source: CreateSource::Snapshot(id_or_name.to_owned()), ..create() }
}

async fn write(world: &World, user: &Caller, id: SandboxId, text: &str) {
    let script = format!("echo {text} > /tmp/note");
    world.control.exec_collect(user, id, exec(&["sh", "-c", &script])).await.unwrap();
}

async fn note(control: &Control, user: &Caller, id: SandboxId) -> String {
    let read = control.exec_collect(user, id, exec(&["cat", "/tmp/note"])).await.unwrap();
    String::from_utf8(read.stdout.to_vec()).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_what_the_file_system_was_then() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    write(&world, &user, id, "before").await;
    let snapshot = world.control.snapshot(&user, id, name("work")).await.unwrap();
    write(&world, &user, id, "after").await;
    assert_eq!(note(&world.control, &user, id).await, "after", "the original goes on");
    for text in [snapshot.id.to_string().as_str(), "work", "work:latest"] {
        let copy = world.control.create(&user, of_snapshot(text)).await.unwrap().sandbox;
        assert_eq!(note(&world.control, &user, copy.id).await, "before");
        // As an image too, hence in pools and templates.
        let source = CreateSource::Image(image(text));
        let other = world.control.create(&user, CreateSandbox { source, ..create() }).await.unwrap().sandbox;
        assert_eq!(note(&world.control, &user, other.id).await, "before");
    }
    let events = world.control.events(&user, Some(id), None, None, false, 100).await.unwrap();
    assert!(events.iter().any(|event| event.kind == EventKind::Snapshotted(snapshot.id)), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_of_a_snapshot_is_what_the_original_was_unless_the_request_says_otherwise() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut request = create();
    request.changes.memory_bytes = Some(99 << 20);
    request.changes.workdir = Some("/tmp".to_owned());
    request.lease.env.insert("SECRET".to_owned(), "of the lease".to_owned());
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    world.control.snapshot(&user, id, name("s")).await.unwrap();
    let mut again = of_snapshot("s");
    again.changes.workdir = Some("/".to_owned());
    let copy = world.control.create(&user, again).await.unwrap().sandbox;
    assert_eq!(copy.spec.resources.memory_bytes, 99 << 20);
    assert_eq!(copy.spec.workdir.as_deref(), Some("/"));
    assert!(!copy.spec.env.contains_key("SECRET"), "what a holder put in is not kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_use_is_kept_and_its_layers_go_with_it() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let snapshot = world.control.snapshot(&user, id, name("s")).await.unwrap();
    world.control.release(&user, id).await.unwrap();
    let copy = world.control.create(&user, of_snapshot("s")).await.unwrap().sandbox.id;
    let refused = world.control.snapshot_delete(&user, "s").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message.contains(&format!("sandbox {copy}")), "{}", refused.message);
    world.control.release(&user, copy).await.unwrap();
    world.reaches(copy, State::Terminated).await;
    let mut pool = pool_request("p", 1);
    let mut template = template_spec();
    template.sandbox.image = image("s");
    pool.template = TemplateSource::Inline(Box::new(template));
    world.control.pool_create(&user, pool).await.unwrap();
    let refused = world.control.snapshot_delete(&user, &snapshot.id.to_string()).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains('p'), "{}", refused.message);
    world.warm(&user, "p", 1).await;
    world.control.pool_delete(&user, &"p".parse().unwrap()).await.unwrap();
    eventually("the pool's sandbox is gone", || async { world.faults.sandboxes().is_empty() }).await;
    eventually("the snapshot can go", || async { world.control.snapshot_delete(&user, "s").await.is_ok() }).await;
    eventually("its layers are gone", || async { world.faults.layers().is_empty() }).await;
    assert_eq!(world.control.snapshot_get(&user, "s").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.control.create(&user, of_snapshot("s")).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_a_name_is_not_what_a_pool_of_another_one_means() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let (kept, spare) =
        (world.control.snapshot(&user, id, None).await.unwrap(), world.control.snapshot(&user, id, None).await.unwrap());
    let mut pool = pool_request("p", 1);
    let mut template = template_spec();
    template.sandbox.image = kept.image.name.clone();
    pool.template = TemplateSource::Inline(Box::new(template));
    world.control.pool_create(&user, pool).await.unwrap();
    world.control.snapshot_delete(&user, &spare.id.to_string()).await.unwrap();
    let refused = world.control.snapshot_delete(&user, &kept.id.to_string()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_their_tenants_and_a_name_goes_to_the_newest() {
    let world = World::new().await;
    let (ann, bob) = (world.owner("ann").await, world.owner("bob").await);
    let id = world.created(&ann).await;
    let first = world.control.snapshot(&ann, id, name("s:1")).await.unwrap();
    world.clock.advance(Duration::from_millis(1));
    let second = world.control.snapshot(&ann, id, name("s:1")).await.unwrap();
    assert_eq!(world.control.snapshot_get(&ann, "s:1").await.unwrap().id, second.id);
    assert_eq!(world.control.snapshot_get(&ann, &first.id.to_string()).await.unwrap().name, None);
    let listed = world.control.snapshot_list(&ann, Some(id), 0, 10).await.unwrap();
    assert_eq!((listed.total, listed.items[0].id, listed.items[1].id), (2, second.id, first.id));
    for text in ["s:1", &first.id.to_string()] {
        assert_eq!(world.control.snapshot_get(&bob, text).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(world.control.snapshot_delete(&bob, text).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(world.control.create(&bob, of_snapshot(text)).await.unwrap_err().kind, ErrorKind::NotFound);
    }
    assert_eq!(world.control.snapshot(&bob, id, None).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.control.fork(&bob, id, forks(1)).await.unwrap_err().kind, ErrorKind::NotFound);
}

fn forks(count: u32) -> Fork {
    Fork { count, lease: LeaseRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_have_the_originals_files_and_words_and_live_apart() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let mut request = create();
    request.lease.metadata.insert("task".to_owned(), "7".to_owned());
    request.lease.env.insert("TOKEN".to_owned(), "t".to_owned());
    let id = world.control.create(&user, request).await.unwrap().sandbox.id;
    write(&world, &user, id, "common").await;
    let commits = world.faults.calls().of(Method::Commit);
    let mut asked = forks(3);
    asked.lease.env.insert("MORE".to_owned(), "m".to_owned());
    let made = world.control.fork(&user, id, asked).await.unwrap();
    assert_eq!(world.faults.calls().of(Method::Commit), commits + 1, "however many, once");
    let made: Vec<_> = made.into_iter().map(|fork| fork.unwrap().sandbox).collect();
    assert_eq!(made.len(), 3);
    for (number, fork) in made.iter().enumerate() {
        let lease = fork.lease.as_ref().unwrap();
        assert_eq!(lease.metadata["task"], "7");
        assert_eq!((lease.env["TOKEN"].as_str(), lease.env["MORE"].as_str()), ("t", "m"));
        assert_eq!(note(&world.control, &user, fork.id).await, "common");
        write(&world, &user, fork.id, &format!("own{number}")).await;
    }
    for (number, fork) in made.iter().enumerate() {
        assert_eq!(note(&world.control, &user, fork.id).await, format!("own{number}"));
    }
    assert_eq!(note(&world.control, &user, id).await, "common");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_beyond_the_quota_fail_alone() {
    let mut settings = settings();
    settings.default_quota = QuotaLimits { sandboxes: Some(3), ..QuotaLimits::default() };
    let world = World::with(settings).await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    let made = world.control.fork(&user, id, forks(4)).await.unwrap();
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (2, 2));
    assert!(bad.into_iter().all(|error| error.is_err_and(|error| error.kind == ErrorKind::Quota)));
    let quota: QuotaView = world.control.quota(&user).await.unwrap();
    assert_eq!(quota.used.sandboxes, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_snapshotted_or_forked_is_refused() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let id = world.created(&user).await;
    for count in [0, 101] {
        let refused = world.control.fork(&user, id, forks(count)).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Invalid && refused.message.contains(&count.to_string()), "{refused:?}");
    }
    world.control.pause(&user, id).await.unwrap();
    let paused = world.control.snapshot(&user, id, None).await.unwrap();
    assert_eq!(world.control.snapshot_get(&user, &paused.id.to_string()).await.unwrap(), paused);
    world.control.release(&user, id).await.unwrap();
    world.reaches(id, State::Terminated).await;
    assert_eq!(world.control.snapshot(&user, id, None).await.unwrap_err().kind, ErrorKind::State);
    assert_eq!(world.control.fork(&user, id, forks(1)).await.unwrap_err().kind, ErrorKind::State);
    let without = World::without(&[sandbank_driver::Capability::Commit]).await;
    let user = without.owner("ann").await;
    let id = without.created(&user).await;
    assert_eq!(without.control.snapshot(&user, id, None).await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(without.control.fork(&user, id, forks(1)).await.unwrap_err().kind, ErrorKind::Unsupported);
}
