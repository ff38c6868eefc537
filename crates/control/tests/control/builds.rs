//! Builds: order, cache, failure, cancellation, deadlines, restarts, uploads.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sandbank_control::{BuildRequest, BuildSettings, BuildSource, Caller, CreateSource, ErrorKind};
use sandbank_driver::Method;
use sandbank_model::{Build, BuildPart, BuildState, Role};

use crate::support::{World, create, eventually, exec, image, settings};

fn dockerfile(name: &str, text: &str) -> BuildRequest {
    BuildRequest {
        name: image(name),
        source: BuildSource::Dockerfile { text: text.to_owned(), args: BTreeMap::new(), target: None },
        context: None,
        timeout: None,
        cpu_millis: None,
        memory_bytes: None,
        disk_bytes: None,
        no_cache: false,
        start_command: None,
        ready_command: None,
    }
}

async fn finished(world: &World, caller: &Caller, build: &Build) -> Build {
    eventually("the build has ended", || async { world.control.build_get(caller, build.id).await.unwrap().state.has_ended() })
        .await;
    world.control.build_get(caller, build.id).await.unwrap()
}

async fn built(world: &World, caller: &Caller, request: BuildRequest) -> Build {
    let build = world.control.build_start(caller, request).await.unwrap();
    finished(world, caller, &build).await
}

async fn log_of(world: &World, caller: &Caller, build: &Build) -> Vec<String> {
    let mut logs = world.control.build_logs(caller, build.id, 0).await.unwrap();
    let mut lines = Vec::new();
    while let Some(piece) = logs.next().await {
        lines.extend(piece.lines.into_iter().map(|line| line.text));
    }
    lines
}

/// What a program writes in a sandbox of this image.
async fn run_in(world: &World, caller: &Caller, name: &str, argv: &[&str]) -> String {
    let mut request = create();
    request.source = CreateSource::Image(image(name));
    let id = world.control.create(caller, request).await.unwrap().sandbox.id;
    let output = world.control.exec_collect(caller, id, exec(argv)).await.unwrap();
    world.control.release(caller, id).await.unwrap();
    String::from_utf8(output.stdout.to_vec()).unwrap()
}

fn tar_of(files: &[(&str, &str, u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

async fn upload(world: &World, caller: &Caller, archive: &[u8]) -> sandbank_control::Result<String> {
    let mut writer = world.control.context_begin(caller).await?;
    for piece in archive.chunks(700) {
        writer.write(Bytes::copy_from_slice(piece)).await?;
    }
    Ok(writer.finish(None).await?.id)
}

const STEPS: &str = "FROM host\nENV A=1\nRUN echo one > /one\nENV A=2\nWORKDIR /srv/app\nRUN echo $A > two && pwd\nUSER user\nCMD [\"cat\", \"two\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_run_in_order_and_the_image_has_their_configuration() {
    let world = World::new().await;
    let owner = world.owner("u").await;
    let build = built(&world, &owner, dockerfile("made:1", STEPS)).await;
    assert_eq!(build.failure, None);
    assert_eq!((build.state, build.steps.total, build.steps.done, build.steps.cached), (BuildState::Ready, 7, 7, 0));
    let made = world.control.image_get(&owner, &image("made:1")).await.unwrap();
    assert_eq!((made.layers.len(), made.on_host), (3, true), "a layer for each RUN and for the new directory");
    assert_eq!(made.config.workdir.as_deref(), Some("/srv/app"));
    assert_eq!(made.config.user.as_deref(), Some("user"));
    assert_eq!(made.config.command, ["cat", "two"]);
    let log = log_of(&world, &owner, &build).await;
    assert!(log.contains(&"RUN echo one > /one".to_owned()), "{log:?}");
    assert!(log.contains(&"/srv/app".to_owned()), "{log:?}");
    assert_eq!(run_in(&world, &owner, "made:1", &["cat", "/one"]).await, "one\n");
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_not_change_comes_from_the_cache_of_the_tenant() {
    let world = World::new().await;
    let (owner, other) = (world.owner("u").await, world.owner("v").await);
    built(&world, &owner, dockerfile("made:1", STEPS)).await;
    let commits = world.faults.calls().of(Method::Commit);
    let again = built(&world, &owner, dockerfile("made:2", STEPS)).await;
    assert_eq!((again.state, again.steps.cached), (BuildState::Ready, 3));
    assert_eq!(world.faults.calls().of(Method::Commit), commits, "nothing was executed");
    let layers = |name: &'static str| async { world.control.image_get(&owner, &image(name)).await.unwrap().layers };
    assert_eq!(layers("made:1").await, layers("made:2").await);
    let changed = STEPS.replace("A=2", "A=3");
    assert_eq!(built(&world, &owner, dockerfile("made:3", &changed)).await.steps.cached, 2, "only what the change concerns");
    let fresh = BuildRequest { no_cache: true, ..dockerfile("made:4", STEPS) };
    assert_eq!(built(&world, &owner, fresh).await.steps.cached, 0);
    assert_eq!(built(&world, &other, dockerfile("made:1", STEPS)).await.steps.cached, 0, "another tenant's is its own");
    assert!(world.control.build_cache_clear(&owner).await.unwrap() >= 3);
    assert_eq!(built(&world, &owner, dockerfile("made:5", STEPS)).await.steps.cached, 0);
    assert!(matches!(world.control.build_get(&other, again.id).await, Err(error) if error.kind == ErrorKind::NotFound));
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_step_says_which_and_why_and_makes_no_image() {
    let world = World::new().await;
    let owner = world.owner("u").await;
    let text = "FROM host\nRUN true\nRUN echo before; echo the reason >&2; exit 7\nRUN true\n";
    let build = built(&world, &owner, dockerfile("made:1", text)).await;
    let failure = build.failure.clone().unwrap();
    assert_eq!((build.state, failure.part, build.steps.done), (BuildState::Error, BuildPart::Step(2), 1));
    assert!(failure.message.contains("code 7") && failure.message.contains("the reason"), "{}", failure.message);
    assert_eq!(world.control.image_get(&owner, &image("made:1")).await.unwrap_err().kind, ErrorKind::NotFound);
    eventually("its sandbox is gone", || async { world.store_live().await.is_empty() }).await;
    world.settled().await;
    // What went well before is there for the next try.
    let next = built(&world, &owner, dockerfile("made:1", "FROM host\nRUN true\nRUN echo\n")).await;
    assert_eq!((next.state, next.steps.cached), (BuildState::Ready, 1));
    let missing = built(&world, &owner, dockerfile("made:1", "FROM absent:1\n")).await;
    assert_eq!(missing.failure.unwrap().part, BuildPart::Base);
    let refused = world.control.build_start(&owner, dockerfile("made:1", "FROM host\nVOLUME /x\n")).await.unwrap_err();
    assert!(refused.message.contains("line 2") && refused.message.contains("VOLUME"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_build_and_one_beyond_its_time_leave_nothing() {
    let world = World::new().await;
    let owner = world.owner("u").await;
    let slow = dockerfile("made:1", "FROM host\nRUN sleep 1000\n");
    let build = world.control.build_start(&owner, slow.clone()).await.unwrap();
    let running = || async { world.store_live().await.first().is_some_and(|sandbox| sandbox.lease.is_some()) };
    eventually("its sandbox runs", running).await;
    let shown = &world.store_live().await[0];
    assert_eq!(shown.lease.as_ref().map(|lease| lease.metadata["sandbank.build"].clone()), Some(build.id.to_string()));
    let cancelled = world.control.build_cancel(&owner, build.id).await.unwrap();
    assert_eq!(cancelled.state, BuildState::Cancelled);
    world.clock.advance(Duration::from_secs(1));
    let late = BuildRequest { timeout: Some(Duration::from_millis(100)), ..slow };
    let late = built(&world, &owner, late).await;
    assert!(late.failure.unwrap().message.contains("longer than"));
    assert_eq!(late.state, BuildState::Error);
    eventually("its sandboxes are gone", || async { world.store_live().await.is_empty() }).await;
    world.settled().await;
    assert_eq!(world.control.build_cancel(&owner, build.id).await.unwrap().state, BuildState::Cancelled);
    let listed = world.control.build_list(&owner, 0, 10).await.unwrap();
    assert_eq!((listed.total, listed.items[0].id), (2, late.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_builds_run_and_so_many_wait() {
    let builds = BuildSettings { concurrency: 1, per_tenant_max: 2, ..BuildSettings::default() };
    let world = World::with(sandbank_control::Settings { builds, ..settings() }).await;
    let owner = world.owner("u").await;
    let slow = dockerfile("made:1", "FROM host\nRUN sleep 1000\n");
    let first = world.control.build_start(&owner, slow.clone()).await.unwrap();
    eventually("it runs", || async { world.control.build_get(&owner, first.id).await.unwrap().state == BuildState::Building })
        .await;
    let second = world.control.build_start(&owner, dockerfile("made:2", "FROM host\nRUN true\n")).await.unwrap();
    assert_eq!(second.state, BuildState::Waiting);
    let third = world.control.build_start(&owner, slow).await.unwrap_err();
    assert_eq!(third.kind, ErrorKind::NoCapacity);
    world.control.build_cancel(&owner, first.id).await.unwrap();
    assert_eq!(finished(&world, &owner, &second).await.state, BuildState::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_a_build_that_ran_has_failed_and_its_sandbox_is_gone() {
    let mut world = World::new().await;
    let owner = world.owner("u").await;
    let done = built(&world, &owner, dockerfile("made:1", STEPS)).await;
    let build = world.control.build_start(&owner, dockerfile("made:2", &format!("{STEPS}RUN sleep 1000\n"))).await.unwrap();
    eventually("its sandbox is there", || async { world.store_live().await.len() == 1 }).await;
    world.crash().await;
    world.start_again().await;
    let after = world.control.build_get(&owner, build.id).await.unwrap();
    assert_eq!(after.state, BuildState::Error);
    assert!(after.failure.unwrap().message.contains("restarted"));
    assert_eq!(world.control.build_get(&owner, done.id).await.unwrap(), done);
    assert!(log_of(&world, &owner, &done).await.contains(&"RUN echo one > /one".to_owned()));
    eventually("its sandbox is gone", || async { world.store_live().await.is_empty() }).await;
    world.settled().await;
    let again = built(&world, &owner, dockerfile("made:3", STEPS)).await;
    assert_eq!(again.steps.cached, 3, "what was built is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_from_an_upload_and_from_another_stage() {
    let world = World::new().await;
    let owner = world.owner("u").await;
    let archive = tar_of(&[("a.txt", "alpha", 0o600), ("dir/b.txt", "beta", 0o755), ("dir/sub/c.txt", "gamma", 0o644)]);
    let context = upload(&world, &owner, &archive).await.unwrap();
    assert!(world.control.context_exists(&owner, &context).await.unwrap());
    let text = "FROM host AS first\nCOPY a.txt /in/renamed\nCOPY dir /in/dir/\nCOPY *.txt dir/*.txt /in/both/\nFROM host\n\
                COPY --from=first /in /out\nRUN cat /out/renamed /out/dir/b.txt /out/dir/sub/c.txt /out/both/b.txt\n";
    let request = |name, context: &str| BuildRequest { context: Some(context.to_owned()), ..dockerfile(name, text) };
    let build = built(&world, &owner, request("made:1", &context)).await;
    assert_eq!(build.failure, None);
    let log = log_of(&world, &owner, &build).await;
    assert!(log.contains(&"alphabetagammabeta".to_owned()), "{log:?}");
    assert_eq!(built(&world, &owner, request("made:2", &context)).await.steps.cached, 5);
    // The same files in another archive are the same files; other content is not.
    let same =
        tar_of(&[("dir/sub/c.txt", "gamma", 0o644), ("dir/b.txt", "beta", 0o755), ("a.txt", "alpha", 0o600), ("new", "", 0o644)]);
    let same = upload(&world, &owner, &same).await.unwrap();
    assert_eq!(built(&world, &owner, request("made:3", &same)).await.steps.cached, 5);
    let other = tar_of(&[("a.txt", "other", 0o600), ("dir/b.txt", "beta", 0o755), ("dir/sub/c.txt", "gamma", 0o644)]);
    let other = upload(&world, &owner, &other).await.unwrap();
    assert_eq!(built(&world, &owner, request("made:4", &other)).await.steps.cached, 0);
    let none = built(&world, &owner, dockerfile("made:5", text)).await.failure.unwrap();
    assert!(none.message.contains("nothing was uploaded"), "{}", none.message);
    let text = "FROM host\nCOPY absent /x\n";
    let absent = built(&world, &owner, BuildRequest { context: Some(context), ..dockerfile("made:6", text) }).await;
    assert!(absent.failure.unwrap().message.contains("absent"));
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_could_do_harm_is_refused() {
    let builds = BuildSettings { context_bytes_max: 100_000, ..BuildSettings::default() };
    let world = World::with(sandbank_control::Settings { builds, ..settings() }).await;
    let owner = world.owner("u").await;
    let refused = |archive: Vec<u8>| {
        let (world, owner) = (&world, &owner);
        async move { upload(world, owner, &archive).await.unwrap_err().to_string() }
    };
    for path in ["../up", "/etc/passwd", "a/../../b"] {
        let error = refused(tar_of(&[(path, "x", 0o644)])).await;
        assert!(error.contains("refused"), "{error}");
    }
    assert!(refused(tar_of(&[("a", "", 0o644), ("a/b", "", 0o644)])).await.contains("no directory"));
    assert!(refused(vec![7; 4000]).await.contains("no tar archive"));
    let mut cut = tar_of(&[("a", &"x".repeat(5000), 0o644)]);
    cut.truncate(2000);
    assert!(!refused(cut).await.is_empty());
    assert!(refused(vec![0; 200_000]).await.contains("more than"));
    // A small archive that unpacks to a large one.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packed, &vec![0; 1_000_000]).unwrap();
    assert!(refused(packed.finish().unwrap()).await.contains("more than"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &tar_of(&[("a", "x", 0o644)])).unwrap();
    let id = upload(&world, &owner, &packed.finish().unwrap()).await.unwrap();
    let reader = world.user("r", Role::Application).await;
    assert_eq!(world.control.context_begin(&reader).await.unwrap_err().kind, ErrorKind::Forbidden);
    let stranger = world.owner("w").await;
    assert!(!world.control.context_exists(&stranger, &id).await.unwrap(), "another tenant's looks missing");
    assert!(world.control.context_exists(&owner, "../../etc").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_command_runs_until_the_ready_command_succeeds() {
    let world = World::new().await;
    let owner = world.owner("u").await;
    let request = |start: &str, ready: &str| BuildRequest {
        start_command: Some(start.to_owned()),
        ready_command: Some(ready.to_owned()),
        ..dockerfile("made:1", "FROM host\nRUN true\n")
    };
    let build = built(&world, &owner, request("echo up > /up; sleep 1000", "cat /up")).await;
    assert_eq!(build.failure, None);
    assert_eq!(run_in(&world, &owner, "made:1", &["cat", "/up"]).await, "up\n");
    let config = world.control.image_get(&owner, &image("made:1")).await.unwrap().config;
    assert_eq!(config.command[2], "echo up > /up; sleep 1000");
    let failed = built(&world, &owner, request("exit 3", "false")).await.failure.unwrap();
    assert_eq!(failed.part, BuildPart::Finalize);
    assert!(failed.message.contains("code 3"), "{}", failed.message);
}
