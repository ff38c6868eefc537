//! The life of sandboxes through the driver, on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sandbank_driver::{Driver, DriverError, DriverEvent};
use sandbank_driver_linux::{LinuxConfig, LinuxDriver};
use support::{Fixture, can_run, event_of, fresh_id, host_pid, wait_until};

const MIB: u64 = 1024 * 1024;

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_answers_runs_programs_and_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let warm_up = fixture.create().await;
    fixture.driver().destroy(warm_up.id).await.unwrap();
    let before = fixture.census().await;
    let sandbox = fixture.create().await;
    fixture.ping(&sandbox).await.unwrap();
    let output = fixture.run(&sandbox, &["true"]).await.unwrap();
    assert_eq!(output.code(), Some(0), "{output:?}");
    fixture.driver().destroy(sandbox.id).await.unwrap();
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_somebody_else_outside() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    let output = fixture.shell(&sandbox, "id -u; echo x > /root/made; stat -c %u:%g /root/made /usr/bin/env /").await;
    assert_eq!(output.stdout, "0\n0:0\n0:0\n0:0\n", "{output:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", host_pid(fixture.data.path(), sandbox.id))).unwrap();
    let uid: u32 =
        status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap().split('\t').next().unwrap().parse().unwrap();
    assert!((0x1000_0000..=0x6FFF_FFFF).contains(&uid), "{uid}");
    // On disk the file has the owner seen inside, so that a commit need not change any.
    let made = fixture.data.path().join("sandboxes").join(sandbox.id.to_string()).join("upper/root/made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(made).unwrap()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_are_only_its_own_processes_host_name_and_interfaces() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create_with(|spec| spec.hostname = Some("box-7".to_owned())).await.unwrap();
    let script = "hostname; ls -d /proc/[0-9]* | wc -l; ls /sys/class/net; cat /proc/1/comm";
    let output = fixture.shell(&sandbox, script).await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], "box-7", "{output:?}");
    // The agent, the shell, ls and wc.
    assert!(lines[1].parse::<u32>().unwrap() <= 4, "{output:?}");
    assert_eq!(lines[2..4], ["eth0", "lo"], "{output:?}");
    let other = fixture.create().await;
    let default = fixture.shell(&other, "hostname").await;
    assert_eq!(default.stdout.trim(), &other.id.uuid().simple().to_string()[20..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn usr_is_writable_inside_and_the_hosts_files_stay_as_they_are() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.create().await, fixture.create().await);
    let output = fixture.shell(&one, "echo new > /usr/bin/sandbank-new && rm /usr/bin/env && cat /usr/bin/sandbank-new").await;
    assert_eq!((output.code(), output.stdout.as_str()), (Some(0), "new\n"), "{output:?}");
    assert!(!std::path::Path::new("/usr/bin/sandbank-new").exists());
    assert!(std::path::Path::new("/usr/bin/env").exists());
    let output = fixture.shell(&other, "test -x /usr/bin/env && test ! -e /usr/bin/sandbank-new").await;
    assert_eq!(output.code(), Some(0), "{output:?}");
    let upper = fixture.data.path().join("sandboxes").join(one.id.to_string()).join("grafts/usr/upper/bin/sandbank-new");
    assert_eq!(std::fs::read_to_string(upper).unwrap(), "new\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_shared_memory_terminals_and_low_ports_work() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    let script = "set -e; echo a > /dev/null; head -c 4 /dev/urandom | wc -c; echo s > /dev/shm/s; cat /dev/shm/s
        test -c /dev/ptmx; stat -c %u /dev/null; ls -ld /dev/shm | cut -c1-10";
    let output = fixture.shell(&sandbox, script).await;
    assert_eq!(output.stdout, "4\ns\n0\ndrwxrwxrwt\n", "{output:?}");
    let listen =
        "import socket; s = socket.create_server(('127.0.0.1', 80)); socket.create_connection(('127.0.0.1', 80)); print('ok')";
    if std::path::Path::new("/usr/bin/python3").exists() {
        let output = fixture.run(&sandbox, &["/usr/bin/python3", "-c", listen]).await.unwrap();
        assert_eq!(output.stdout, "ok\n", "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_stops_a_counter_and_resume_lets_it_go_on() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    let script =
        "(i=0; while :; do i=$((i+1)); echo $i > /root/count.new; mv /root/count.new /root/count; done) > /dev/null 2>&1 &";
    fixture.shell(&sandbox, script).await;
    let file = fixture.data.path().join("sandboxes").join(sandbox.id.to_string()).join("upper/root/count");
    let count = || std::fs::read_to_string(&file).unwrap_or_default().trim().parse::<u64>().unwrap_or(0);
    wait_until("the counter counts", || count() > 10, || format!("{}", count())).await;
    fixture.driver().pause(sandbox.target()).await.unwrap();
    fixture.driver().pause(sandbox.target()).await.unwrap();
    let at_pause = count();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(count(), at_pause, "it counted on while frozen");
    fixture.driver().resume(sandbox.target()).await.unwrap();
    fixture.driver().resume(sandbox.target()).await.unwrap();
    wait_until("the counter goes on", || count() > at_pause, || format!("{}", count())).await;
    // And a frozen one can be destroyed.
    fixture.driver().pause(sandbox.target()).await.unwrap();
    fixture.driver().destroy(sandbox.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_eats_memory_is_killed_alone_and_told_of() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let mut events = fixture.driver().events().unwrap();
    assert!(fixture.driver().events().is_none());
    let sandbox = fixture.create_with(|spec| spec.resources.memory_bytes = 64 * MIB).await.unwrap();
    let output = fixture.shell(&sandbox, "head -c 400m /dev/zero | tail -c 400m | wc -c; echo on").await;
    assert!(output.stdout.ends_with("on\n"), "{output:?}");
    assert_eq!(event_of(&mut events, sandbox.id).await, DriverEvent::OutOfMemory { id: sandbox.id });
    fixture.ping(&sandbox).await.unwrap();
    let metrics = fixture.driver().metrics(sandbox.target()).await.unwrap();
    assert!(metrics.oom_kills >= 1 && metrics.memory_limit_bytes == 64 * MIB, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_more_than_the_limit_is_told_of_once() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let config = LinuxConfig { disk_watch_period: Duration::from_millis(50), ..support::config(data.path()) };
    let fixture = Fixture { driver: Some(LinuxDriver::start(config).await.unwrap()), data };
    let mut events = fixture.driver().events().unwrap();
    let modest = fixture.create_with(|spec| spec.resources.disk_bytes = 64 * MIB).await.unwrap();
    let greedy = fixture.create_with(|spec| spec.resources.disk_bytes = 8 * MIB).await.unwrap();
    // Reserved blocks count, and take hardly any processor time. No file alone can be larger than the limit.
    let script = "fallocate -l 6M /root/one && fallocate -l 6M /usr/other";
    for sandbox in [&modest, &greedy] {
        let output = fixture.shell(sandbox, script).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
    }
    let too_large = fixture.shell(&greedy, "fallocate -l 9M /root/too-large").await;
    assert!(too_large.stderr.contains("File size limit exceeded"), "{too_large:?}");
    let told = event_of(&mut events, greedy.id).await;
    assert!(matches!(told, DriverEvent::DiskLimit { used_bytes: 12_582_912.., limit_bytes: 8_388_608, .. }), "{told:?}");
    // Only one of them has an event, and that one has only one: the next ones are of the ends that follow.
    kill(host_pid(fixture.data.path(), modest.id));
    assert!(matches!(event_of(&mut events, modest.id).await, DriverEvent::Ended { .. }));
    kill(host_pid(fixture.data.path(), greedy.id));
    assert!(matches!(event_of(&mut events, greedy.id).await, DriverEvent::Ended { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_hits_the_limit_of_processes_and_the_agent_still_answers() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create_with(|spec| spec.resources.pids = 32).await.unwrap();
    let script = "i=0; while [ $i -lt 100 ]; do sleep 60 > /dev/null 2>&1 & i=$((i+1)); done";
    let output = fixture.shell(&sandbox, script).await;
    assert!(output.stderr.contains("fork"), "{output:?}");
    fixture.ping(&sandbox).await.unwrap();
    let metrics = fixture.driver().metrics(sandbox.target()).await.unwrap();
    assert!(metrics.pids <= 32 && metrics.pids_limit == 32, "{metrics:?}");
    fixture.driver().destroy(sandbox.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_spared_when_memory_runs_out_does_not_spare_its_sandboxes() {
    const OWN: &str = "/proc/self/oom_score_adj";
    if !can_run() {
        return;
    }
    let before = std::fs::read_to_string(OWN).unwrap();
    if std::fs::write(OWN, "-300").is_err() {
        eprintln!("skipped: this user may not be spared");
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    std::fs::write(OWN, before.trim()).unwrap();
    let first = format!("/proc/{}/oom_score_adj", host_pid(fixture.data.path(), sandbox.id));
    assert_eq!(std::fs::read_to_string(first).unwrap(), "0\n");
    let output = fixture.shell(&sandbox, "echo -200 > /proc/self/oom_score_adj").await;
    assert_ne!(output.code(), Some(0), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_first_process_is_told_and_leaves_something_to_destroy() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let mut events = fixture.driver().events().unwrap();
    let before = fixture.census().await;
    let sandbox = fixture.create().await;
    kill(host_pid(fixture.data.path(), sandbox.id));
    let event = event_of(&mut events, sandbox.id).await;
    assert!(matches!(event, DriverEvent::Ended { out_of_memory: false, .. }), "{event:?}");
    assert!(matches!(fixture.ping(&sandbox).await, Err(DriverError::Gone { .. })));
    fixture.driver().destroy(sandbox.id).await.unwrap();
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_nobody_waits_for_any_more_leaves_nothing() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let before = fixture.census().await;
    for wait_us in [0, 300, 1000, 3000, 10_000] {
        // One that is made in time is destroyed like any other.
        let id = fresh_id();
        let create = fixture.driver().create(fixture.request(id));
        if let Ok(made) = tokio::time::timeout(Duration::from_micros(wait_us), create).await {
            made.unwrap();
            fixture.driver().destroy(id).await.unwrap();
        }
    }
    // The launcher takes one order after another: when this one is made the others have been begun, however slow the machine.
    let last = fixture.create().await;
    fixture.driver().destroy(last.id).await.unwrap();
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_at_its_start_fails_the_creation_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    const ROUNDS: usize = 20;
    let fixture = Fixture::new().await;
    let before = fixture.census().await;
    let (stop, data) = (Arc::new(AtomicBool::new(false)), fixture.data.path().to_owned());
    let stopped = Arc::clone(&stop);
    let killer = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            for pid in support::pids_inside(&data) {
                // It may be gone already.
                let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
            }
        }
    });
    let mut refused = 0;
    for _ in 0..ROUNDS {
        match fixture.create_with(|_| {}).await {
            // It was killed only after it had answered.
            Ok(sandbox) => fixture.driver().destroy(sandbox.id).await.unwrap(),
            Err(error) => {
                assert!(!matches!(error, DriverError::Invalid { .. } | DriverError::TimedOut { .. }), "{error:?}");
                refused += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    killer.join().unwrap();
    assert!(refused > 0, "no agent was killed in time");
    fixture.expect_back_to(&before).await;
    fixture.create().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_is_destroyed_and_said_to_have_hung() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let config = LinuxConfig { agent_wait: Duration::ZERO, ..support::config(data.path()) };
    let fixture = Fixture { driver: Some(LinuxDriver::start(config).await.unwrap()), data };
    let before = fixture.census().await;
    // On a busy machine an agent may have answered before anybody looked.
    for _ in 0..50 {
        match fixture.create_with(|_| {}).await {
            Err(refused) => {
                assert!(matches!(refused, DriverError::TimedOut { what: "the agent", .. }), "{refused:?}");
                return fixture.expect_back_to(&before).await;
            }
            Ok(made) => fixture.driver().destroy(made.id).await.unwrap(),
        }
    }
    panic!("no agent was ever waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_gone_is_said_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let before = fixture.census().await;
    let mut request = fixture.request(fresh_id());
    request.image.layers.push(sandbank_model::Layer { id: "commit-gone".to_owned(), size_bytes: 1 });
    assert!(matches!(fixture.driver().create(request).await, Err(DriverError::ImageMissing { .. })));
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_twice_or_what_was_never_made_is_no_error() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    fixture.driver().destroy(fresh_id()).await.unwrap();
    let sandbox = fixture.create().await;
    fixture.driver().destroy(sandbox.id).await.unwrap();
    fixture.driver().destroy(sandbox.id).await.unwrap();
    assert!(matches!(fixture.ping(&sandbox).await, Err(DriverError::Gone { .. })));
    assert!(matches!(fixture.driver().pause(sandbox.target()).await, Err(DriverError::Gone { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn making_an_id_that_exists_replaces_the_old_sandbox() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    fixture.shell(&sandbox, "echo old > /root/old").await;
    let old = host_pid(fixture.data.path(), sandbox.id);
    fixture.driver().create(fixture.request(sandbox.id)).await.unwrap();
    assert_ne!(host_pid(fixture.data.path(), sandbox.id), old);
    assert_ne!(fixture.shell(&sandbox, "cat /root/old").await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sandboxes_are_made_and_destroyed_at_the_same_time() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let before = fixture.census().await;
    let made = futures(24, |_| fixture.create()).await;
    let mut uids: Vec<u64> =
        made.iter().map(|sandbox| support::manifest(fixture.data.path(), sandbox.id)["range"].as_u64().unwrap()).collect();
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), made.len(), "each has a range of user ids of its own");
    futures(made.len(), |index| fixture.driver().destroy(made[index].id)).await.into_iter().for_each(|done| done.unwrap());
    fixture.expect_back_to(&before).await;
}

/// Runs `count` futures at once.
async fn futures<T, F: Future<Output = T>>(count: usize, make: impl Fn(usize) -> F) -> Vec<T> {
    let mut waiting: Vec<_> = (0..count).map(|index| Some(Box::pin(make(index)))).collect();
    let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in waiting.iter_mut().zip(&mut done) {
            if let Some(polled) = future
                && let std::task::Poll::Ready(value) = polled.as_mut().poll(context)
            {
                *done = Some(value);
                *future = None;
            }
        }
        if waiting.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().map(Option::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_driver_adopts_the_known_and_destroys_the_unknown() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (kept, frozen, unknown, dead) =
        (fixture.create().await, fixture.create().await, fixture.create().await, fixture.create().await);
    fixture.shell(&kept, "echo mine > /root/mine").await;
    fixture.driver().pause(frozen.target()).await.unwrap();
    fixture.restart().await;
    kill(host_pid(fixture.data.path(), dead.id));
    let never = fresh_id();
    let known = [kept.id, frozen.id, dead.id, never].map(|id| (id, None)).to_vec();
    let adopted = fixture.driver().adopt(known).await.unwrap();
    assert_eq!(adopted.alive.into_iter().collect::<Vec<_>>(), sorted([(kept.id, false), (frozen.id, true)]));
    assert_eq!(adopted.gone.into_keys().collect::<Vec<_>>(), sorted([dead.id, never]));
    assert_eq!(adopted.orphans, [unknown.id]);
    assert_eq!(fixture.shell(&kept, "cat /root/mine").await.stdout, "mine\n");
    fixture.driver().resume(frozen.target()).await.unwrap();
    fixture.ping(&frozen).await.unwrap();
    assert_eq!(fixture.census().await.directories.len(), 2);
    // Its end is noticed by the driver that adopted it.
    let mut events = fixture.driver().events().unwrap();
    kill(host_pid(fixture.data.path(), kept.id));
    assert!(matches!(event_of(&mut events, kept.id).await, DriverEvent::Ended { .. }));
}

fn sorted<T: Ord, const N: usize>(mut list: [T; N]) -> Vec<T> {
    list.sort();
    list.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_launcher_again_and_again_loses_and_leaks_nothing() {
    if !can_run() {
        return;
    }
    const ROUNDS: u64 = 25;
    let fixture = Fixture::new().await;
    let steady = fixture.create().await;
    let before = fixture.census().await;
    for round in 0..ROUNDS {
        let creates = futures(6, |_| fixture.create_with(|_| {}));
        let kill_it = async {
            tokio::time::sleep(Duration::from_micros(400 * round)).await;
            if let Some(pid) = fixture.driver().launcher_pid().await {
                // It may have just ended by an earlier kill.
                let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
            }
        };
        let (made, ()) = tokio::join!(creates, kill_it);
        for sandbox in made {
            let sandbox = sandbox.expect("a create outlives one death of the launcher");
            fixture.ping(&sandbox).await.unwrap();
            fixture.driver().destroy(sandbox.id).await.unwrap();
        }
    }
    fixture.ping(&steady).await.unwrap();
    fixture.expect_back_to(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_program_can_be_neither_read_nor_traced_from_inside() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    for path in ["/proc/1/exe", "/proc/1/mem", "/proc/1/environ", "/proc/1/fd/3", "/proc/1/maps"] {
        let output = fixture.shell(&sandbox, &format!("head -c 1 {path}")).await;
        assert_ne!(output.code(), Some(0), "{path}: {output:?}");
        assert_eq!(output.stdout, "", "{path}");
    }
}

#[test]
fn without_root_a_sandbox_is_made_in_an_unprivileged_user_namespace() {
    if !can_run() {
        return;
    }
    support::run_as_nobody("a_life_without_root").unwrap_or_else(|output| panic!("{output}"));
}

/// Run by the test above as a user without rights.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test as a user without rights"]
async fn a_life_without_root() {
    assert!(!rustix::process::geteuid().is_root());
    let mut fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    let output =
        fixture.shell(&sandbox, "id -u; echo x > /root/made; cat /root/made; hostname; ls -d /proc/[0-9]* | wc -l").await;
    assert!(output.stdout.starts_with("0\nx\n"), "{output:?}");
    let output = fixture.shell(&sandbox, "mount -t tmpfs none /mnt || mount -t tmpfs none /tmp").await;
    assert_ne!(output.code(), Some(0), "{output:?}");
    let capabilities = fixture.driver().capabilities();
    assert!(!capabilities.has(sandbank_driver::Capability::MemoryLimit), "{capabilities:?}");
    fixture.restart().await;
    let adopted = fixture.driver().adopt(vec![(sandbox.id, None)]).await.unwrap();
    assert!(adopted.alive.contains_key(&sandbox.id), "{adopted:?}");
    fixture.ping(&sandbox).await.unwrap();
    fixture.driver().destroy(sandbox.id).await.unwrap();
    assert_eq!(fixture.census().await.processes, Vec::<String>::new());
}
