//! What the tests of the real driver share: a driver in a directory of its own, processes inside, and a look for leaks.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbank_agent_protocol::{ExitStatus, Frame, Reply, Request, StartProcess, Stream};
use sandbank_driver::{CreateRequest, Driver, DriverError, DriverEvent, Target};
use sandbank_driver_linux::{LinuxConfig, LinuxDriver};
use sandbank_model::{DriverHandle, Image, ImageName, ImageSource, NetworkPlan, SandboxId, SandboxSpec, Timestamp};
use tokio::sync::mpsc;

/// Longest wait for anything that should happen soon.
pub const SOON: Duration = Duration::from_secs(20);

/// Whether this machine can run the test; says why when not.
pub fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: making sandboxes with their own user ids needs root");
    }
    root
}

/// Runs one ignored test of this binary as a user without any rights; its output when it failed.
pub fn run_as_nobody(test: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    // The test binary and the launcher may lie where nobody else may look.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (binary, launcher) = (place.path().join("test"), place.path().join("launcher"));
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_sandbank-launcher"), &launcher).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("TMPDIR", place.path())
        .env("SANDBANK_TEST_LAUNCHER", &launcher)
        .current_dir(place.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() && text.contains("1 passed") { Ok(()) } else { Err(text) }
}

/// A driver in a fresh data directory. Dropping it destroys what is left.
pub struct Fixture {
    pub driver: Option<LinuxDriver>,
    pub data: tempfile::TempDir,
}

pub fn config(data: &Path) -> LinuxConfig {
    let launcher = std::env::var_os("SANDBANK_TEST_LAUNCHER").unwrap_or_else(|| env!("CARGO_BIN_EXE_sandbank-launcher").into());
    LinuxConfig { launcher_command: vec![launcher], ..LinuxConfig::new(data) }
}

impl Fixture {
    pub async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let driver = LinuxDriver::start(config(data.path())).await.expect("the driver starts");
        Self { driver: Some(driver), data }
    }

    pub fn driver(&self) -> &LinuxDriver {
        self.driver.as_ref().expect("the driver runs")
    }

    /// Drops the driver as a server that ends does, and starts another on the same data.
    pub async fn restart(&mut self) {
        self.driver = None;
        self.driver = Some(LinuxDriver::start(config(self.data.path())).await.expect("the driver starts again"));
    }

    pub async fn create(&self) -> Sandbox {
        self.create_with(|_| {}).await.expect("a sandbox is made")
    }

    pub async fn create_with(&self, change: impl FnOnce(&mut SandboxSpec)) -> Result<Sandbox, DriverError> {
        let mut request = self.request(fresh_id());
        change(&mut request.spec);
        let id = request.id;
        let handle = self.driver().create(request).await?;
        Ok(Sandbox { id, handle })
    }

    pub fn request(&self, id: SandboxId) -> CreateRequest {
        let built_in = self.driver().builtin_image().unwrap();
        let name: ImageName = "host".parse().unwrap();
        let image = Image {
            name: name.clone(),
            tenant: None,
            layers: built_in.layers,
            on_host: built_in.on_host,
            config: built_in.config,
            source: ImageSource::Host,
            created_at: Timestamp::from_millis(0),
        };
        CreateRequest { id, spec: SandboxSpec::of_image(name), image, network: NetworkPlan::closed() }
    }

    /// A shell script inside, as root; its output and how it ended.
    pub async fn shell(&self, sandbox: &Sandbox, script: &str) -> Output {
        self.run(sandbox, &["/bin/sh", "-c", script]).await.expect("the process runs")
    }

    pub async fn run(&self, sandbox: &Sandbox, argv: &[&str]) -> Result<Output, DriverError> {
        let start = StartProcess {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            deadline_ms: Some(15_000),
            ..StartProcess::default()
        };
        let mut connection = self.driver().open(sandbox.target(), &Request::Start(Box::new(start))).await?;
        let mut output = Output::default();
        loop {
            match tokio::time::timeout(SOON, connection.next()).await.expect("the agent answers in time")? {
                Some(Frame::Output(Stream::Stdout, bytes)) => output.stdout.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Frame::Output(_, bytes)) => output.stderr.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Frame::Message(body)) => match Frame::parse::<Reply>(&body).expect("a reply") {
                    Reply::Exited(exit) => {
                        output.exit = Some(exit);
                        return Ok(output);
                    }
                    Reply::Error(error) => return Err(sandbank_agent_protocol::ClientError::Refused(error).into()),
                    _ => {}
                },
                Some(_) => {}
                None => panic!("the agent closed before the process ended"),
            }
        }
    }

    pub async fn ping(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        let mut connection = self.driver().open(sandbox.target(), &Request::Ping).await?;
        match tokio::time::timeout(SOON, connection.reply("a pong")).await.expect("the agent answers in time")? {
            Reply::Pong { .. } => Ok(()),
            other => panic!("instead of a pong: {other:?}"),
        }
    }

    /// What is there, once what was destroyed before has been removed.
    pub async fn census(&self) -> Census {
        wait_until("the trash is empty", || trash(self.data.path()).is_empty(), String::new).await;
        Census::take(self.data.path())
    }

    /// Waits until nothing is there that was not in `before`.
    pub async fn expect_back_to(&self, before: &Census) {
        wait_until(
            "everything is back where it was",
            || Census::take(self.data.path()) == *before,
            || format!("{:#?}\ninstead of\n{before:#?}", Census::take(self.data.path())),
        )
        .await;
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.driver = None;
        // What a failed test left: its processes, then its cgroups. The directory goes with the TempDir.
        let bases = cgroup_bases(self.data.path());
        for base in &bases {
            for group in subdirectories(base) {
                let _ = std::fs::write(group.join("freezer.state"), "THAWED");
                for pid in std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                    if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
        }
        forget_network(&bases);
        let deadline = Instant::now() + Duration::from_secs(5);
        while (bases.iter().any(|base| base.is_dir()) || !trash(self.data.path()).is_empty()) && Instant::now() < deadline {
            for base in &bases {
                for group in subdirectories(base) {
                    let _ = std::fs::remove_dir(group);
                }
                let _ = std::fs::remove_dir(base);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Takes back what a driver leaves on the host as long as it has sandboxes: the gateway's addresses and the table of rules.
fn forget_network(bases: &[PathBuf]) {
    let Some(server) = bases.first().and_then(|base| base.file_name()).map(|name| name.to_string_lossy().into_owned()) else {
        return;
    };
    let name = &server[..6];
    let run = |program: &str, arguments: &[&str]| std::process::Command::new(program).args(arguments).output();
    let listed = run("ip", &["-oneline", "address", "show", "label", &format!("lo:sbk{name}")]);
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let Some(v4) = listed.split_whitespace().find(|word| word.ends_with("/32")) else { return };
    // The block's number is in both: see `network::Block` of the driver.
    let octets: Vec<u32> = v4.trim_end_matches("/32").split('.').filter_map(|octet| octet.parse().ok()).collect();
    let block = (octets[1] - 208) << 2 | octets[2] >> 6;
    let v6 = if block == 0 { "fd73:616e:6462::1/128".to_owned() } else { format!("fd73:616e:6462:{block:x}::1/128") };
    for address in [v4, &v6] {
        let _ = run("ip", &["address", "delete", address, "dev", "lo"]);
    }
    let _ = run("nft", &["delete", "table", "inet", &format!("sandbank-{name}")]);
}

pub struct Sandbox {
    pub id: SandboxId,
    pub handle: DriverHandle,
}

impl Sandbox {
    pub fn target(&self) -> Target<'_> {
        Target { id: self.id, handle: &self.handle }
    }
}

#[derive(Debug, Default)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit: Option<ExitStatus>,
}

impl Output {
    pub fn code(&self) -> Option<i32> {
        self.exit.and_then(|exit| exit.code)
    }
}

pub fn fresh_id() -> SandboxId {
    let mut random = [0; 10];
    getrandom::fill(&mut random).unwrap();
    SandboxId::new(Timestamp::from_millis(1_700_000_000_000), random)
}

/// What exists because of one data directory, but for what is kept, empty, for the next sandboxes: see [`spare_groups`] and
/// [`skeletons`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    pub processes: Vec<String>,
    pub cgroups: Vec<PathBuf>,
    pub directories: Vec<PathBuf>,
    pub mounts: usize,
    pub descriptors: usize,
}

impl Census {
    pub fn take(data: &Path) -> Self {
        let bases = cgroup_bases(data);
        let cgroups: Vec<PathBuf> = bases.iter().flat_map(|base| subdirectories(base)).filter(|group| !is_spare(group)).collect();
        let instance = bases.first().and_then(|base| base.file_name()).map(|name| name.to_string_lossy().into_owned());
        Self {
            processes: instance.map(|instance| processes_of(&instance)).unwrap_or_default(),
            cgroups,
            directories: subdirectories(&data.join("sandboxes")).into_iter().chain(trash(data)).collect(),
            mounts: std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

fn processes_of(instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && groups.contains(instance) {
            found.push(name);
        }
    }
    found.sort();
    found
}

/// Processes in the sandboxes of one data directory, as the host numbers them.
pub fn pids_inside(data: &Path) -> Vec<u32> {
    let groups = cgroup_bases(data).into_iter().flat_map(|base| subdirectories(&base));
    let lists = groups.map(|group| std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default());
    lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

pub fn cgroup_bases(data: &Path) -> Vec<PathBuf> {
    std::fs::read(data.join("cgroups.json")).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// cgroup directories kept for the next sandboxes, or used by those that got them.
pub fn spare_groups(data: &Path) -> Vec<PathBuf> {
    cgroup_bases(data).iter().flat_map(|base| subdirectories(base)).filter(|group| is_spare(group)).collect()
}

fn is_spare(group: &Path) -> bool {
    group.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-"))
}

/// Emptied directories kept for the next sandboxes.
pub fn skeletons(data: &Path) -> Vec<PathBuf> {
    all_trash(data).into_iter().filter(|dir| is_skeleton(dir)).collect()
}

/// What was destroyed and is not yet removed.
fn trash(data: &Path) -> Vec<PathBuf> {
    all_trash(data).into_iter().filter(|dir| !is_skeleton(dir)).collect()
}

fn all_trash(data: &Path) -> Vec<PathBuf> {
    subdirectories(&data.join("trash")).iter().flat_map(|bucket| subdirectories(bucket)).collect()
}

/// Whether nothing but empty `work` directories is left.
fn is_skeleton(dir: &Path) -> bool {
    let overlays = subdirectories(&dir.join("grafts"));
    // Of a sandbox that ended before it had all of them, not every directory is there.
    let stripped = |dir: &Path| {
        !dir.join("upper").exists() && std::fs::read_dir(dir.join("work")).map_or(true, |mut work| work.next().is_none())
    };
    let files = ["agent.sock", "manifest.json"];
    stripped(dir) && overlays.iter().all(|overlay| stripped(overlay)) && files.iter().all(|file| !dir.join(file).exists())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Waits for a state.
pub async fn wait_until(what: &str, mut reached: impl FnMut() -> bool, told: impl Fn() -> String) {
    let deadline = Instant::now() + SOON;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}; {}", told());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The next event about a sandbox.
pub async fn event_of(events: &mut mpsc::Receiver<DriverEvent>, wanted: SandboxId) -> DriverEvent {
    loop {
        let event = tokio::time::timeout(SOON, events.recv()).await.expect("an event comes in time").expect("the driver runs");
        let id = match &event {
            DriverEvent::Ended { id, .. }
            | DriverEvent::OutOfMemory { id }
            | DriverEvent::DiskLimit { id, .. }
            | DriverEvent::Denied { id, .. } => *id,
        };
        if id == wanted {
            return event;
        }
    }
}

/// What the sandbox's manifest says.
pub fn manifest(data: &Path, id: SandboxId) -> BTreeMap<String, serde_json::Value> {
    let text = std::fs::read(data.join("sandboxes").join(id.to_string()).join("manifest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Pid of its first process as the host sees it.
pub fn host_pid(data: &Path, id: SandboxId) -> u32 {
    manifest(data, id)["pid"].as_u64().unwrap() as u32
}
