//! What a sandbox leaves to the next one: directories and cgroups, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::process::{Pid, Signal, kill_process};
use sandbank_driver::Driver as _;
use sandbank_driver_linux::LinuxDriver;
use support::{Fixture, Sandbox, can_run, manifest, skeletons, spare_groups, wait_until};

const MIB: u64 = 1024 * 1024;
/// Most sets of cgroup directories, and most sandbox directories, that are kept.
const GROUPS_MAX: usize = 16;
const SKELETONS_MAX: usize = 64;

impl Fixture {
    fn dir(&self, sandbox: &Sandbox) -> PathBuf {
        self.data.path().join("sandboxes").join(sandbox.id.to_string())
    }

    fn group(&self, sandbox: &Sandbox, controller: &str) -> PathBuf {
        PathBuf::from(manifest(self.data.path(), sandbox.id)["cgroups"][controller].as_str().unwrap())
    }

    async fn destroy(&self, sandbox: &Sandbox) {
        self.driver().destroy(sandbox.id).await.unwrap();
    }

    /// Creates until a sandbox is in the directory with this inode: it is at hand a moment after it looks so.
    async fn create_in(&self, inode: u64) -> Sandbox {
        for _ in 0..20 {
            let sandbox = self.create().await;
            if self.dir(&sandbox).metadata().unwrap().ino() == inode {
                return sandbox;
            }
        }
        panic!("no sandbox was made in the directory of the one before");
    }

    async fn wait_for_skeletons(&self, count: usize) {
        let found = || skeletons(self.data.path());
        wait_until("directories are kept", || found().len() == count, || format!("{:?}", found())).await;
    }
}

/// Whether cgroups are kept here: those of cgroup v2 never are.
fn keeps_groups(fixture: &Fixture, sandbox: &Sandbox) -> bool {
    let groups = &manifest(fixture.data.path(), sandbox.id)["cgroups"];
    let kept = groups["unified"].is_null() && !groups["pids"].is_null() && !groups["memory"].is_null();
    if !kept {
        eprintln!("skipped: cgroups are kept only where the controllers are in cgroup v1");
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_in_the_directory_of_another_finds_nothing_of_it() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let first = fixture.create().await;
    let fresh = fixture.shell(&first, "stat -c '%a %u %g' / /usr; ls -A / /usr").await.stdout;
    let script = "mkdir -p /deep/er /usr/deep/er && echo x > /deep/er/file && echo x > /usr/deep/er/file && rm -rf /srv /usr/games \
                  && chown 1000:1000 / /usr && chmod 1777 / && chmod 700 /usr && mkfifo /pipe && chmod 0 /deep";
    let changed = fixture.shell(&first, script).await;
    assert_eq!(changed.code(), Some(0), "{changed:?}");
    for upper in ["upper", "grafts/usr/upper"] {
        rustix::fs::setxattr(fixture.dir(&first).join(upper), "user.mark", b"first", XattrFlags::empty()).unwrap();
    }
    let inode = fixture.dir(&first).metadata().unwrap().ino();
    fixture.destroy(&first).await;
    fixture.wait_for_skeletons(1).await;

    let second = fixture.create_in(inode).await;

    assert_eq!(fixture.shell(&second, "stat -c '%a %u %g' / /usr; ls -A / /usr").await.stdout, fresh);
    for upper in ["upper", "grafts/usr/upper"] {
        let mark = rustix::fs::getxattr(fixture.dir(&second).join(upper), "user.mark", &mut [0; 16][..]);
        assert_eq!(mark, Err(rustix::io::Errno::NODATA), "{upper}");
    }
    let leave = fixture.shell(&second, "echo x > /usr/second && cat /usr/second").await;
    assert_eq!(leave.stdout, "x\n", "{leave:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_vanished_or_was_tampered_with_is_made_anew() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let made = [fixture.create().await, fixture.create().await, fixture.create().await];
    for sandbox in &made {
        fixture.destroy(sandbox).await;
    }
    fixture.wait_for_skeletons(3).await;
    let kept = skeletons(fixture.data.path());
    std::fs::remove_dir_all(&kept[0]).unwrap();
    // Of another shape: one graft more, one less.
    std::fs::create_dir_all(kept[1].join("grafts/other/work")).unwrap();
    std::fs::remove_dir_all(kept[2].join("grafts")).unwrap();
    for _ in 0..3 {
        let sandbox = fixture.create().await;
        assert_eq!(fixture.shell(&sandbox, "echo x > /usr/made && cat /usr/made").await.stdout, "x\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_directory_in_a_kept_one_is_never_used() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let first = fixture.create().await;
    fixture.destroy(&first).await;
    fixture.wait_for_skeletons(1).await;
    let kept = skeletons(fixture.data.path()).remove(0);
    std::fs::create_dir_all(kept.join("upper/planted")).unwrap();
    // Those that are made before it is at hand have directories of their own.
    let mut tries = 0..20;
    while fixture.create_with(|_| {}).await.is_ok() {
        tries.next().expect("the directory is used in time");
    }
    let second = fixture.create().await;
    assert_ne!(fixture.shell(&second, "ls -d /planted").await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cgroups_of_a_paused_and_crowded_sandbox_serve_the_next_one_as_new() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let limits = |spec: &mut sandbank_model::SandboxSpec| spec.resources.pids = 32;
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 60 > /dev/null 2>&1 & i=$((i+1)); done";
    let first = fixture.create_with(limits).await.unwrap();
    if !keeps_groups(&fixture, &first) {
        return;
    }
    fixture.shell(&first, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    assert!(fixture.shell(&first, bomb).await.stderr.contains("fork"));
    let used = fixture.driver().metrics(first.target()).await.unwrap().cpu_used_us;
    let inode = fixture.group(&first, "pids").metadata().unwrap().ino();
    fixture.driver().pause(first.target()).await.unwrap();
    let groups_of_first = fixture.group(&first, "pids");
    fixture.destroy(&first).await;

    // Other limits get other directories.
    let other = fixture.create().await;
    assert_ne!(fixture.group(&other, "pids").metadata().unwrap().ino(), inode);
    let second = fixture.create_with(limits).await.unwrap();

    // The memory of that many processes may be given back late; then the directories were not kept.
    if fixture.group(&second, "pids").metadata().unwrap().ino() != inode {
        eprintln!("the directories were not kept");
    }
    assert!(!groups_of_first.exists(), "what the first one's manifest names is gone");
    fixture.ping(&second).await.unwrap();
    let metrics = fixture.driver().metrics(second.target()).await.unwrap();
    assert!(metrics.cpu_used_us < used / 2 && metrics.pids <= 4 && metrics.oom_kills == 0, "{metrics:?}, before {used} us");
    assert!(fixture.shell(&second, bomb).await.stderr.contains("fork"), "its own limit holds");
    assert!(fixture.driver().metrics(second.target()).await.unwrap().pids <= 32);
    // Destroying the first one again does not touch who has its directories now.
    fixture.destroy(&first).await;
    fixture.ping(&second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_cgroups_that_another_sandbox_had() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let first = fixture.create_with(|spec| spec.resources.memory_bytes = 64 * MIB).await.unwrap();
    if !keeps_groups(&fixture, &first) {
        return;
    }
    let inode = fixture.group(&first, "memory").metadata().unwrap().ino();
    fixture.destroy(&first).await;
    let second = fixture.create_with(|spec| spec.resources.memory_bytes = 64 * MIB).await.unwrap();
    assert_eq!(fixture.group(&second, "memory").metadata().unwrap().ino(), inode, "it has the directories of the first");
    let output = fixture.shell(&second, "head -c 400m /dev/zero | tail -c 400m | wc -c; echo on").await;
    assert!(output.stdout.ends_with("on\n"), "{output:?}");
    assert!(fixture.driver().metrics(second.target()).await.unwrap().oom_kills >= 1);
    fixture.destroy(&second).await;

    // Its counter cannot be set back, so the third one has none of it.
    let third = fixture.create_with(|spec| spec.resources.memory_bytes = 64 * MIB).await.unwrap();
    let metrics = fixture.driver().metrics(third.target()).await.unwrap();
    assert_eq!(metrics.oom_kills, 0);
    assert!(metrics.memory_used_bytes < 16 * MIB, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_sandbox_keeps_cgroups_that_another_had_before() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let first = fixture.create().await;
    fixture.destroy(&first).await;
    let second = fixture.create().await;
    fixture.restart().await;
    let adopted = fixture.driver().adopt(vec![(second.id, None)]).await.unwrap();
    assert!(adopted.alive.contains_key(&second.id), "{adopted:?}");
    fixture.ping(&second).await.unwrap();
    assert_eq!(fixture.shell(&second, "echo on").await.stdout, "on\n");
    fixture.destroy(&second).await;
    assert_eq!(spare_groups(fixture.data.path()), Vec::<PathBuf>::new(), "what an earlier server made is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_bounded_and_goes_with_the_server() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let mut made = Vec::new();
    for _ in 0..SKELETONS_MAX + 4 {
        made.push(fixture.create().await);
    }
    for sandbox in &made {
        fixture.destroy(sandbox).await;
    }
    let data = fixture.data.path().to_owned();
    fixture.wait_for_skeletons(SKELETONS_MAX).await;
    fixture.census().await;
    let bases = support::cgroup_bases(&data);
    assert!(spare_groups(&data).len() <= GROUPS_MAX * bases.len(), "{:?}", spare_groups(&data));
    fixture.driver = None;
    wait_until("no cgroup is left", || bases.iter().all(|base| !base.exists()), || format!("{bases:?}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_leaves_nothing_that_was_kept() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (kept, gone) = (fixture.create().await, fixture.create().await);
    fixture.destroy(&gone).await;
    fixture.wait_for_skeletons(1).await;
    let data = fixture.data.path().to_owned();
    // Nothing of it is dropped, as when it is killed; nor does its launcher get to tidy up.
    let killed = fixture.driver.take().unwrap();
    let launcher = killed.launcher_pid().await.unwrap();
    std::mem::forget(killed);
    kill_process(Pid::from_raw(i32::try_from(launcher).unwrap()).unwrap(), Signal::KILL).unwrap();
    let own_groups = spare_groups(&data);

    fixture.driver = Some(LinuxDriver::start(support::config(&data)).await.unwrap());
    let adopted = fixture.driver().adopt(vec![(kept.id, None)]).await.unwrap();

    assert!(adopted.alive.contains_key(&kept.id) && adopted.orphans.is_empty(), "{adopted:?}");
    assert_eq!(spare_groups(&data), Vec::<PathBuf>::new(), "of {own_groups:?}");
    fixture.ping(&kept).await.unwrap();
    fixture.destroy(&kept).await;
    assert_eq!(fixture.census().await.directories, Vec::<PathBuf>::new());
    assert!(skeletons(&data).len() <= 2);
}
