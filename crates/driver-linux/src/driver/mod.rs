//! The driver: what the server calls.

mod adopt;
mod create;
mod destroy;
mod dial;
mod live;
mod network;
mod watch;

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sandbank_agent_protocol::{Connection, Metrics, Reply, Request};
use sandbank_driver::{
    Adopted, Capabilities, Capability, CreateRequest, Driver, DriverError, DriverEvent, ImportSource, NetworkServices, NewLayer,
    NewLayers, PortIo, Target, Traffic,
};
use sandbank_model::{DriverHandle, Image, Layer, NamedAddress, NetworkPlan, SandboxId};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::cgroup::{CgroupBase, CgroupStock};
use crate::image::{ImageStore, ImportLimits};
use crate::launch::LauncherClient;
use crate::manifest::boot_id;
use crate::network::HostNetwork;
use crate::ranges::Ranges;
use crate::remover::Remover;
use live::Live;
use network::Numbers;

/// Longest wait for the agent's first answer.
const AGENT_WAIT: Duration = Duration::from_secs(5);
/// Rest between two looks at how much every sandbox has written, where the configuration says nothing else.
const DISK_WATCH_PERIOD: Duration = Duration::from_secs(10);
/// Longest wait for an agent's counters.
const METRICS_WAIT: Duration = Duration::from_secs(2);
/// Longest wait until all processes of a sandbox stand still.
const FREEZE_WAIT: Duration = Duration::from_secs(5);
/// How long the freezer is asked without pausing between.
const FREEZE_SPIN: Duration = Duration::from_millis(2);
/// How often the freezer is asked before it is let go for a moment.
const FREEZE_TRIES_BETWEEN_THAWS: u32 = 50;
/// Events that wait to be taken. A watcher waits when the queue is full; nothing is lost.
const EVENTS_MAX: usize = 1024;
/// Tries to connect to an agent whose queue of connections is full.
const CONNECT_TRIES: u32 = 50;

/// Where and how the driver works.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// Directory for sandboxes and images. The server holds a lock on it; no two drivers may share one.
    pub data_dir: PathBuf,
    /// Program and arguments that end up in [`crate::launcher_main`].
    pub launcher_command: Vec<OsString>,
    /// Longest wait for a new sandbox's agent to answer.
    pub agent_wait: Duration,
    /// Rest between two looks at how much every sandbox has written.
    pub disk_watch_period: Duration,
    /// Whether sandboxes have a network besides loopback, where this machine lets us make one.
    pub network: bool,
    /// What a sandbox may reach whose request names the same: namespaces made ahead have it in force already.
    pub network_plan: NetworkPlan,
}

impl LinuxConfig {
    /// In `data_dir`, with the running program's hidden subcommand `launcher`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            launcher_command: vec!["/proc/self/exe".into(), "launcher".into()],
            agent_wait: AGENT_WAIT,
            disk_watch_period: DISK_WATCH_PERIOD,
            network: true,
            network_plan: NetworkPlan::closed(),
        }
    }
}

/// Sandboxes of Linux namespaces and cgroups.
#[derive(Debug)]
pub struct LinuxDriver {
    shared: Arc<Shared>,
    events: Mutex<Option<mpsc::Receiver<DriverEvent>>>,
    watchers: Vec<tokio::task::JoinHandle<()>>,
}

/// What the driver and its background tasks share.
#[derive(Debug)]
struct Shared {
    config: LinuxConfig,
    capabilities: Capabilities,
    /// `<data>/sandboxes`.
    sandboxes: PathBuf,
    /// The same, opened: short paths to the agents' sockets lead through it.
    sandboxes_fd: OwnedFd,
    cgroups: CgroupBase,
    cgroup_stock: CgroupStock,
    launcher: LauncherClient,
    images: ImageStore,
    remover: Remover,
    live: Mutex<HashMap<SandboxId, Arc<Live>>>,
    ranges: Mutex<Ranges>,
    host_network: Option<HostNetwork>,
    numbers: Mutex<Numbers>,
    events: mpsc::Sender<DriverEvent>,
    boot_id: String,
    /// Whether each sandbox has a range of user ids; else all of them have those of the server's user.
    id_ranges: bool,
    /// The server's own network namespace, where those of sandboxes can be entered.
    network_home: Option<OwnedFd>,
}

impl LinuxDriver {
    /// Starts the driver and its launcher. Sandboxes of an earlier server live on untouched until [`Driver::adopt`].
    ///
    /// # Errors
    /// When the data directory cannot be used or the launcher does not start.
    pub async fn start(config: LinuxConfig) -> Result<Self, DriverError> {
        let sandboxes = private_dir(&config.data_dir.join("sandboxes"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sandboxes_fd = rustix::fs::open(&sandboxes, flags, Mode::empty())
            .map_err(|errno| failed(format!("open {}", sandboxes.display()), errno))?;
        spread_over_disk(&sandboxes);
        raise_open_files();
        let mut cgroups = CgroupBase::detect(&instance_name(&sandboxes));
        cgroups.prepare();
        adopt::note_cgroup_directories(&config.data_dir, &cgroups.directories())?;
        let images = ImageStore::open(&config.data_dir)?;
        let host_network = network::host(&config, &instance_name(&sandboxes));
        let launcher = LauncherClient::new(
            config.launcher_command.clone(),
            config.data_dir.join("launcher.lock"),
            sandboxes.clone(),
            cgroups.directories(),
            host_network.as_ref().map(|host| network::order(host, &config)),
        );
        launcher.settle().await?;
        let trash = private_dir(&config.data_dir.join("trash"))?;
        let remover =
            Remover::start(trash, images.graft_targets()).map_err(|error| failed("start removing", io_errno(&error)))?;
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let id_ranges = has_id_ranges();
        let shared = Arc::new(Shared {
            capabilities: capabilities(&cgroups, host_network.is_some()),
            config,
            sandboxes,
            sandboxes_fd,
            cgroups,
            cgroup_stock: CgroupStock::default(),
            launcher,
            images,
            remover,
            live: Mutex::default(),
            ranges: Mutex::default(),
            host_network,
            numbers: Mutex::default(),
            events: sender,
            boot_id: boot_id(),
            id_ranges,
            network_home: dial::own_namespace(id_ranges),
        });
        let watchers = watch::start(&shared);
        Ok(Self { shared, events: Mutex::new(Some(receiver)), watchers })
    }

    /// Pid of the launcher, while one runs.
    pub async fn launcher_pid(&self) -> Option<u32> {
        self.shared.launcher.pid().await
    }
}

impl Drop for LinuxDriver {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.abort();
        }
        self.shared.tidy_up();
    }
}

/// Makes a directory that only its owner may enter: sandboxes' files keep their set-user-id bits.
fn private_dir(path: &Path) -> Result<PathBuf, DriverError> {
    let step = || format!("make {}", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed(step(), io_errno(&error)))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(|error| failed(step(), io_errno(&error)))?;
    path.canonicalize().map_err(|error| failed(step(), io_errno(&error)))
}

/// Asks ext4 to spread sandboxes over the disk as it does with top-level directories. Packed together, each new file of a sandbox
/// searches past all inodes that were freed in the same block group in the last minute (ext4 without a journal), which at some
/// hundred sandboxes a second takes longer than everything else. Other file systems do without.
fn spread_over_disk(sandboxes: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(dir) = rustix::fs::open(sandboxes, flags, Mode::empty())
        && let Ok(now) = rustix::fs::ioctl_getflags(&dir)
    {
        let _ = rustix::fs::ioctl_setflags(&dir, now | rustix::fs::IFlags::TOPDIR);
    }
}

/// Whether sandboxes can have ranges of user ids of their own: root with its rights, in a user namespace that has those ids.
fn has_id_ranges() -> bool {
    let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN | rustix::thread::CapabilitySet::SETUID)
    });
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>() == Ok(vec![0, 0, u64::from(u32::MAX)]);
    rustix::process::geteuid().is_root() && capable && whole
}

/// Every sandbox takes a pidfd, every operation a socket.
fn raise_open_files() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

/// A name for the cgroups of this data directory, so that two servers on one machine keep apart.
fn instance_name(sandboxes: &Path) -> String {
    use sha2::{Digest as _, Sha256};
    use std::os::unix::ffi::OsStrExt as _;
    Sha256::digest(sandboxes.as_os_str().as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn capabilities(cgroups: &CgroupBase, network: bool) -> Capabilities {
    use Capability::{Commit, CpuLimit, DiskLimit, Exec, Files, ImportImage, MemoryLimit, Metrics, Pause, PidsLimit, Ports};
    let enforced = [(Pause, "freezer"), (Commit, "freezer"), (MemoryLimit, "memory"), (PidsLimit, "pids"), (CpuLimit, "cpu")];
    let enforced = enforced.into_iter().filter(|(_, controller)| cgroups.enforces(controller)).map(|(capability, _)| capability);
    let network = network.then_some(Capability::Network);
    Capabilities::of([Exec, Files, Ports, Metrics, ImportImage, DiskLimit].into_iter().chain(enforced).chain(network))
}

/// A failed step. What the machine ran out of is said as such.
fn failed(step: impl Into<String>, errno: Errno) -> DriverError {
    let step = step.into();
    let what = match errno {
        Errno::NOSPC if step.starts_with("clone ") => "namespaces (see /proc/sys/user/max_*_namespaces)",
        Errno::NOSPC | Errno::DQUOT => "disk space",
        Errno::MFILE | Errno::NFILE => "file descriptors",
        Errno::AGAIN => "processes",
        Errno::NOMEM => "memory",
        _ => return DriverError::Failed { step, detail: errno.to_string() },
    };
    DriverError::Exhausted { what, detail: format!("failed to {step}: {errno}") }
}

fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Shared {
    /// Takes back what the machine keeps for sandboxes, where there are none. Safe to repeat.
    fn tidy_up(&self) {
        for live in self.live().values() {
            live.stop_watching();
        }
        if let Some(network) = self.host_network.as_ref().filter(|_| self.live().is_empty()) {
            network.release();
        }
        self.cgroup_stock.close();
        self.cgroups.remove_empty();
    }

    fn live(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: SandboxId) -> Result<Arc<Live>, DriverError> {
        self.live().get(&id).cloned().ok_or(DriverError::Gone { id })
    }

    /// Connects to an agent. The path leads through an open directory, since socket paths have at most 107 bytes (unix(7)).
    async fn connect(&self, id: SandboxId) -> Result<UnixStream, DriverError> {
        let path = format!("/proc/self/fd/{}/{id}/agent.sock", self.sandboxes_fd.as_raw_fd());
        let mut tries = 0;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries < CONNECT_TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => match io_errno(&error) {
                    Errno::NOENT | Errno::CONNREFUSED => return Err(DriverError::Gone { id }),
                    errno => return Err(failed("connect to the agent", errno)),
                },
            }
        }
    }

    /// Asks one thing that has one answer.
    async fn ask(&self, id: SandboxId, request: &Request, expected: &'static str) -> Result<Reply, DriverError> {
        let stream = self.connect(id).await?;
        let mut connection = Connection::begin(stream, request).await?;
        Ok(connection.reply(expected).await?)
    }

    async fn ping(&self, id: SandboxId, wait: Duration) -> Result<(), DriverError> {
        match tokio::time::timeout(wait, self.ask(id, &Request::Ping, "a pong")).await {
            Ok(Ok(Reply::Pong { .. })) => Ok(()),
            Ok(Ok(_)) => Err(sandbank_agent_protocol::ClientError::OutOfTurn { expected: "a pong" }.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DriverError::TimedOut { what: "the agent", waited_ms: millis(wait) }),
        }
    }

    /// Freezes all processes and waits until they stand still. A v1 freezer can miss processes that are just being made; being
    /// asked again, or let go for a moment, it gets them.
    async fn freeze(&self, live: &Live) -> Result<(), DriverError> {
        let step = |errno| failed("freeze the sandbox", errno);
        let began = tokio::time::Instant::now();
        for attempt in 1u32.. {
            live.cgroups.set_frozen(true).map_err(step)?;
            if live.cgroups.is_frozen().map_err(step)? {
                break;
            }
            let waited = began.elapsed();
            if waited >= FREEZE_WAIT {
                let _ = live.cgroups.set_frozen(false);
                return Err(DriverError::TimedOut { what: "the freezer", waited_ms: millis(FREEZE_WAIT) });
            }
            if waited < FREEZE_SPIN {
                // The processes inside need a processor to stand still.
                std::thread::yield_now();
                tokio::task::yield_now().await;
                continue;
            }
            if attempt % FREEZE_TRIES_BETWEEN_THAWS == 0 {
                live.cgroups.set_frozen(false).map_err(step)?;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        live.set_frozen(true);
        Ok(())
    }

    fn thaw(&self, live: &Live) -> Result<(), DriverError> {
        live.cgroups.set_frozen(false).map_err(|errno| failed("thaw the sandbox", errno))?;
        live.set_frozen(false);
        Ok(())
    }

    /// Makes a layer while all processes stand still. Where nothing can be frozen, commit is refused.
    async fn commit(&self, live: &Live, image: Image) -> Result<NewLayers, DriverError> {
        self.capabilities.require(Capability::Commit)?;
        let was_frozen = live.is_frozen();
        self.freeze(live).await?;
        let (images, dir) = (self.images.clone(), self.sandboxes.join(live.id.to_string()));
        let result = blocking("commit the sandbox", move || images.commit(&dir, &image)).await;
        if !was_frozen {
            self.thaw(live)?;
        }
        result
    }

    async fn metrics(&self, live: &Live) -> Metrics {
        // A frozen agent cannot answer, and a broken one must not hide what the host knows.
        let inside = if live.is_frozen() {
            Metrics::default()
        } else {
            match tokio::time::timeout(METRICS_WAIT, self.ask(live.id, &Request::Metrics, "counters")).await {
                Ok(Ok(Reply::Metrics(metrics))) => metrics,
                _ => Metrics::default(),
            }
        };
        let host = live.cgroups.stats();
        let or = |host: u64, inside: u64| if host > 0 { host } else { inside };
        Metrics {
            cpu_used_us: or(host.cpu_used_us, inside.cpu_used_us),
            cpu_limit_millis: live.limits.cpu_millis,
            memory_used_bytes: or(host.memory_used_bytes, inside.memory_used_bytes),
            memory_cache_bytes: or(host.memory_cache_bytes, inside.memory_cache_bytes),
            memory_limit_bytes: live.limits.memory_bytes,
            disk_used_bytes: live.disk_used(),
            disk_limit_bytes: live.limits.disk_bytes,
            pids: if host.pids > 0 { host.pids } else { inside.pids },
            pids_limit: live.limits.pids,
            oom_kills: host.oom_kills,
            agent_bytes: inside.agent_bytes,
        }
    }
}

#[async_trait]
impl Driver for LinuxDriver {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn create(&self, request: CreateRequest) -> Result<DriverHandle, DriverError> {
        self.shared.create(request).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        self.shared.destroy(id).await
    }

    async fn pause(&self, target: Target<'_>) -> Result<(), DriverError> {
        let live = self.shared.get(target.id)?;
        self.shared.capabilities.require(Capability::Pause)?;
        self.shared.freeze(&live).await
    }

    async fn resume(&self, target: Target<'_>) -> Result<(), DriverError> {
        let live = self.shared.get(target.id)?;
        self.shared.capabilities.require(Capability::Pause)?;
        self.shared.thaw(&live)
    }

    async fn open(&self, target: Target<'_>, request: &Request) -> Result<Connection, DriverError> {
        self.shared.get(target.id)?;
        let stream = self.shared.connect(target.id).await?;
        Ok(Connection::begin(stream, request).await?)
    }

    async fn metrics(&self, target: Target<'_>) -> Result<Metrics, DriverError> {
        let live = self.shared.get(target.id)?;
        Ok(self.shared.metrics(&live).await)
    }

    async fn adopt(&self, known: Vec<(SandboxId, Option<DriverHandle>)>) -> Result<Adopted, DriverError> {
        self.shared.adopt(known).await
    }

    async fn set_network(&self, target: Target<'_>, plan: NetworkPlan, named: Vec<NamedAddress>) -> Result<(), DriverError> {
        let live = self.shared.get(target.id)?;
        self.shared.set_network(&live, plan, named).await
    }

    async fn open_names(&self, id: SandboxId, addresses: Vec<NamedAddress>) -> Result<(), DriverError> {
        self.shared.open_names(id, &addresses)
    }

    fn network_services(&self) -> Option<NetworkServices> {
        self.shared.network_services()
    }

    fn sandbox_at(&self, source: IpAddr) -> Option<SandboxId> {
        self.shared.sandbox_at(source)
    }

    fn is_own_address(&self, address: IpAddr) -> bool {
        HostNetwork::is_own_address(address)
    }

    async fn traffic(&self, target: Target<'_>) -> Result<Traffic, DriverError> {
        self.shared.traffic(&*self.shared.get(target.id)?)
    }

    async fn dial(&self, target: Target<'_>, port: u16) -> Option<std::io::Result<Box<dyn PortIo>>> {
        let home = self.shared.network_home.as_ref()?;
        let live = self.shared.get(target.id).ok()?;
        dial::dial(home.as_fd(), &live, port).await
    }

    async fn close(&self) {
        self.shared.tidy_up();
    }

    fn events(&self) -> Option<mpsc::Receiver<DriverEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn builtin_image(&self) -> Option<NewLayers> {
        Some(self.shared.images.builtin_image())
    }

    async fn find_layer(&self, diff_id: &str) -> Result<Option<Layer>, DriverError> {
        Ok(self.shared.images.find_layer(diff_id))
    }

    async fn add_layer(&self, layer: NewLayer) -> Result<Layer, DriverError> {
        let images = self.shared.images.clone();
        let add = move || images.add_layer(&layer.diff_id, layer.archive, &ImportLimits::default());
        blocking("unpack a layer", add).await
    }

    fn read_layer(&self, layer: &Layer) -> Result<Box<dyn std::io::Read + Send>, DriverError> {
        Ok(Box::new(self.shared.images.read_layer(layer)?))
    }

    async fn import_image(&self, source: ImportSource) -> Result<NewLayers, DriverError> {
        let images = self.shared.images.clone();
        blocking("import the image", move || images.import(&source, &ImportLimits::default())).await
    }

    async fn commit(&self, target: Target<'_>, image: &Image) -> Result<NewLayers, DriverError> {
        let live = self.shared.get(target.id)?;
        self.shared.commit(&live, image.clone()).await
    }

    async fn list_layers(&self) -> Result<Vec<Layer>, DriverError> {
        let images = self.shared.images.clone();
        blocking("list layers", move || images.list_layers()).await
    }

    async fn release_layers(&self, ids: Vec<String>) -> Result<(), DriverError> {
        self.shared.images.release_layers(&ids);
        Ok(())
    }

    async fn retain_layers(&self, used: Vec<String>) -> Result<(), DriverError> {
        let images = self.shared.images.clone();
        let in_use: Vec<String> = self.shared.live().values().flat_map(|live| live.layers.iter().cloned()).collect();
        blocking("remove layers", move || images.retain_layers(&used, &in_use)).await
    }
}

/// Runs what waits for the disk where that harms nobody.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    action: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::task::spawn_blocking(action).await {
        Ok(result) => result,
        Err(error) => Err(DriverError::Failed { step: step.to_owned(), detail: error.to_string() }),
    }
}
