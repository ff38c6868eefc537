//! Rules of a sandbox's life: made, paused, committed, adopted, destroyed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use sandbank_agent_protocol::{Connection, Frame, RemoveFile, Request};
use sandbank_model::{Image, Layer};

use super::Subject;
use super::session::{Held, fresh_id, program, within};
use crate::{Capability, DriverError, ImportSource};

fn can(subject: &Subject, capability: Capability) -> bool {
    let can = subject.driver.capabilities().has(capability);
    if !can {
        eprintln!("skipped: the driver {} cannot do {}", subject.driver.name(), capability.as_str());
    }
    can
}

/// `create` returns when the agent answers.
pub async fn a_new_sandbox_answers(subject: &Subject) {
    let held = Held::create(subject).await;
    assert!(held.answers().await);
    held.destroy().await;
}

/// Nothing of the old one is left.
pub async fn creating_an_existing_id_replaces_it(subject: &Subject) {
    let old = Held::create(subject).await;
    old.write("/tmp/old", b"old").await.unwrap();
    let new = Held::create_from(subject, old.id, &subject.image).await.unwrap();
    assert!(new.answers().await);
    assert!(!new.has("/tmp/old").await);
    new.destroy().await;
}

/// Twice, and of an id that never was.
pub async fn destroying_is_safe_to_repeat_and_for_unknown_ids(subject: &Subject) {
    let held = Held::create(subject).await;
    held.destroy().await;
    held.destroy().await;
    within("destroy", subject.driver.destroy(fresh_id())).await.unwrap();
}

/// Everything that names it says so.
pub async fn a_destroyed_sandbox_is_gone_for_every_operation(subject: &Subject) {
    let held = Held::create(subject).await;
    held.destroy().await;
    let gone = |outcome: Result<(), DriverError>| match outcome {
        Err(DriverError::Gone { id }) => assert_eq!(id, held.id),
        Err(DriverError::Unsupported { .. }) => {}
        other => panic!("it is gone, and yet: {other:?}"),
    };
    let driver = &subject.driver;
    gone(held.open(&Request::Ping).await.map(drop));
    gone(within("pause", driver.pause(held.target())).await);
    gone(within("resume", driver.resume(held.target())).await);
    gone(within("metrics", driver.metrics(held.target())).await.map(drop));
    gone(within("commit", driver.commit(held.target(), &subject.image)).await.map(drop));
}

/// Whoever streams from it learns of its end.
pub async fn destroying_ends_open_connections(subject: &Subject) {
    if !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let (mut stream, _) = held.start(program(&["sleep", "3600"])).await.unwrap();
    held.destroy().await;
    within("the end of the stream", async { while let Ok(Some(_)) = stream.next().await {} }).await;
}

/// What one writes the other does not see.
pub async fn two_sandboxes_share_no_files(subject: &Subject) {
    let (a, b) = (Held::create(subject).await, Held::create(subject).await);
    a.write("/tmp/mine", b"a").await.unwrap();
    assert!(!b.has("/tmp/mine").await);
    b.write("/tmp/mine", b"b").await.unwrap();
    assert_eq!(a.read("/tmp/mine").await.unwrap(), b"a");
    a.destroy().await;
    b.destroy().await;
}

/// Eight at once, three times.
pub async fn many_sandboxes_are_made_and_destroyed_at_once(subject: &Subject) {
    for _ in 0..3 {
        let make = || Held::create(subject);
        let all = tokio::join!(make(), make(), make(), make(), make(), make(), make(), make());
        let all = [all.0, all.1, all.2, all.3, all.4, all.5, all.6, all.7];
        for held in &all {
            assert!(held.answers().await);
        }
        let [a, b, c, d, e, f, g, h] = &all;
        tokio::join!(a.destroy(), b.destroy(), c.destroy(), d.destroy(), e.destroy(), f.destroy(), g.destroy(), h.destroy());
    }
}

/// Idempotence.
pub async fn pausing_and_resuming_change_nothing_the_second_time(subject: &Subject) {
    if !can(subject, Capability::Pause) {
        return;
    }
    let held = Held::create(subject).await;
    let driver = &subject.driver;
    within("resume", driver.resume(held.target())).await.unwrap();
    for _ in 0..3 {
        within("pause", driver.pause(held.target())).await.unwrap();
        within("pause", driver.pause(held.target())).await.unwrap();
        within("resume", driver.resume(held.target())).await.unwrap();
        within("resume", driver.resume(held.target())).await.unwrap();
        assert!(held.answers().await);
    }
    held.destroy().await;
}

/// Reads until nothing has come for a while; panics when it never stops.
async fn drain(stream: &mut Connection) {
    let mut bytes = 0;
    while let Ok(frame) = tokio::time::timeout(Duration::from_millis(300), stream.next()).await {
        bytes += frame.unwrap().map_or(0, |frame| frame.body().len());
        assert!(bytes < 64 * 1024 * 1024, "a paused process goes on writing");
    }
}

/// A process that writes without end writes nothing while its sandbox is paused.
pub async fn a_paused_process_makes_no_progress_and_goes_on_afterwards(subject: &Subject) {
    if !can(subject, Capability::Pause) || !can(subject, Capability::Exec) {
        return;
    }
    let held = Held::create(subject).await;
    let (mut stream, _) = held.start(program(&["yes"])).await.unwrap();
    let first = within("output", stream.next()).await.unwrap();
    assert!(matches!(first, Some(Frame::Output(..))), "{first:?}");
    within("pause", subject.driver.pause(held.target())).await.unwrap();
    // What was under way arrives; then silence, for as long again as it took to notice it.
    drain(&mut stream).await;
    let silence = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(silence.is_err(), "a paused process wrote {silence:?}");
    within("resume", subject.driver.resume(held.target())).await.unwrap();
    let after = within("output after the pause", stream.next()).await.unwrap();
    assert!(matches!(after, Some(Frame::Output(..))), "{after:?}");
    held.destroy().await;
}

/// Frozen processes die too.
pub async fn a_paused_sandbox_can_be_destroyed(subject: &Subject) {
    if !can(subject, Capability::Pause) {
        return;
    }
    let held = Held::create(subject).await;
    within("pause", subject.driver.pause(held.target())).await.unwrap();
    held.destroy().await;
    assert!(matches!(held.open(&Request::Ping).await, Err(DriverError::Gone { .. })));
}

/// The refusal names the image.
pub async fn an_image_with_missing_layers_is_refused_and_leaves_nothing(subject: &Subject) {
    let layers = vec![Layer { id: "0000-no-such-layer".to_owned(), size_bytes: 1 }];
    let broken = Image { layers, name: "broken".parse().unwrap(), ..subject.image.clone() };
    let id = fresh_id();
    let refused = Held::create_from(subject, id, &broken).await.expect_err("the layer is missing");
    assert!(matches!(&refused, DriverError::ImageMissing { image, .. } if image == "broken"), "{refused:?}");
    let adopted = within("adopt", subject.driver.adopt(Vec::new())).await.unwrap();
    assert!(!adopted.orphans.contains(&id), "a failed create leaves nothing");
}

/// Alive, frozen, gone, orphaned.
pub async fn adopting_tells_alive_from_gone_and_destroys_orphans(subject: &Subject) {
    let driver = &subject.driver;
    let (running, frozen, orphan) = (Held::create(subject).await, Held::create(subject).await, Held::create(subject).await);
    let gone = Held::create(subject).await;
    gone.destroy().await;
    let pauses = can(subject, Capability::Pause);
    if pauses {
        within("pause", driver.pause(frozen.target())).await.unwrap();
    }
    let never = fresh_id();
    let known = [&running, &frozen, &gone].map(|held| (held.id, Some(held.handle.clone())));
    let known = known.into_iter().chain([(never, None)]).collect();
    let adopted = within("adopt", driver.adopt(known)).await.unwrap();
    let alive: Vec<_> = adopted.alive.iter().map(|(id, frozen)| (*id, *frozen)).collect();
    let mut expected = vec![(running.id, false), (frozen.id, pauses)];
    expected.sort_unstable();
    assert_eq!(alive, expected);
    assert_eq!(adopted.gone.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([gone.id, never]));
    assert_eq!(adopted.orphans, [orphan.id]);
    assert!(matches!(orphan.open(&Request::Ping).await, Err(DriverError::Gone { .. })));
    assert!(running.answers().await);
    if pauses {
        within("resume", driver.resume(frozen.target())).await.unwrap();
    }
    assert!(frozen.answers().await);
    running.destroy().await;
    frozen.destroy().await;
}

async fn commit(subject: &Subject, held: &Held<'_>, name: &str) -> Image {
    let made = within("commit", subject.driver.commit(held.target(), &subject.image)).await.unwrap();
    Image {
        name: name.parse().unwrap(),
        layers: made.layers,
        on_host: made.on_host,
        config: made.config,
        ..subject.image.clone()
    }
}

/// Files that were made, changed and removed; also in a second generation, and after unused layers were removed.
pub async fn a_committed_file_is_in_what_is_made_from_it(subject: &Subject) {
    if !can(subject, Capability::Commit) || !can(subject, Capability::Files) {
        return;
    }
    let first = Held::create(subject).await;
    first.write("/home/user/kept", b"one").await.unwrap();
    first.write("/home/user/dropped", b"two").await.unwrap();
    let image = commit(subject, &first, "first").await;
    first.destroy().await;
    let second = Held::create_from(subject, fresh_id(), &image).await.unwrap();
    assert_eq!(second.read("/home/user/kept").await.unwrap(), b"one");
    second.write("/home/user/kept", b"changed").await.unwrap();
    let remove = RemoveFile { path: "/home/user/dropped".to_owned(), user: None, recursive: false };
    second.ask(&Request::Remove(remove)).await.unwrap();
    let made = within("commit", subject.driver.commit(second.target(), &image)).await.unwrap();
    let third_image = Image { layers: made.layers, on_host: made.on_host, ..image };
    second.destroy().await;
    let used = third_image.layers.iter().map(|layer| layer.id.clone()).collect();
    within("retain", subject.driver.retain_layers(used)).await.unwrap();
    let third = Held::create_from(subject, fresh_id(), &third_image).await.unwrap();
    assert_eq!(third.read("/home/user/kept").await.unwrap(), b"changed");
    assert!(!third.has("/home/user/dropped").await, "what was removed stays removed");
    third.destroy().await;
    within("retain", subject.driver.retain_layers(Vec::new())).await.unwrap();
    within("retain", subject.driver.retain_layers(Vec::new())).await.unwrap();
    let refused = Held::create_from(subject, fresh_id(), &third_image).await;
    assert!(matches!(refused, Err(DriverError::ImageMissing { .. })), "{refused:?}");
}

/// The sandbox goes on, and what it writes later is not in the image.
pub async fn a_commit_leaves_its_sandbox_running_and_unchanged(subject: &Subject) {
    if !can(subject, Capability::Commit) {
        return;
    }
    let held = Held::create(subject).await;
    held.write("/tmp/before", b"before").await.unwrap();
    let image = commit(subject, &held, "snapshot").await;
    assert!(held.answers().await);
    held.write("/tmp/after", b"after").await.unwrap();
    held.write("/tmp/before", b"changed").await.unwrap();
    let copy = Held::create_from(subject, fresh_id(), &image).await.unwrap();
    assert!(!copy.has("/tmp/after").await);
    assert_eq!(copy.read("/tmp/before").await.unwrap(), b"before");
    copy.destroy().await;
    held.destroy().await;
    within("retain", subject.driver.retain_layers(Vec::new())).await.unwrap();
}

/// A source that is not there.
pub async fn importing_nonsense_is_refused(subject: &Subject) {
    if !can(subject, Capability::ImportImage) {
        return;
    }
    let nowhere = PathBuf::from("/nonexistent/rootfs");
    for source in [ImportSource::Archive(nowhere.clone()), ImportSource::Directory(nowhere)] {
        let refused = within("import", subject.driver.import_image(source)).await;
        assert!(matches!(refused, Err(DriverError::Invalid { .. })), "{refused:?}");
    }
}

/// Never a silent success.
pub async fn what_is_not_supported_is_refused_by_name(subject: &Subject) {
    let held = Held::create(subject).await;
    let driver = &subject.driver;
    let start = Request::Start(Box::new(program(&["true"])));
    let outcomes = [
        (Capability::Pause, within("pause", driver.pause(held.target())).await),
        (Capability::Pause, within("resume", driver.resume(held.target())).await),
        (Capability::Metrics, within("metrics", driver.metrics(held.target())).await.map(drop)),
        (Capability::Exec, held.open(&start).await.map(drop)),
        (Capability::Files, held.write("/tmp/x", b"x").await.map(drop)),
        (Capability::Ports, held.open(&Request::Dial { port: 1 }).await.map(drop)),
        (Capability::Commit, within("commit", driver.commit(held.target(), &subject.image)).await.map(drop)),
    ];
    for (capability, outcome) in outcomes {
        let refused = matches!(&outcome, Err(DriverError::Unsupported { capability: named }) if *named == capability);
        assert_eq!(refused, !driver.capabilities().has(capability), "{capability:?}: {outcome:?}");
    }
    held.destroy().await;
    within("retain", driver.retain_layers(Vec::new())).await.unwrap();
}

/// There is one listener.
pub async fn events_can_be_taken_once(subject: &Subject) {
    let first = subject.driver.events();
    assert!(first.is_some());
    assert!(subject.driver.events().is_none());
}
