//! The port to whatever keeps sandboxes.
//!
//! A driver makes, pauses, resumes, commits and destroys sandboxes and opens operations inside them. It decides nothing: what
//! is made, for whom and for how long is `control`'s. Everything it is asked to do is safe to ask again.

pub mod contract;
mod fake;

pub use fake::{AgentFault, Calls, FakeDriver, FakeFaults, Method, Responder};

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use sandbank_agent_protocol::{ClientError, Connection, Metrics, Request};
use sandbank_model::{DriverHandle, Image, ImageConfig, Layer, NamedAddress, NetworkPlan, SandboxId, SandboxSpec};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// What a driver can do. What it cannot is refused with [`DriverError::Unsupported`], never silently skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Freeze and thaw.
    Pause,
    /// Processes inside.
    Exec,
    /// Files inside.
    Files,
    /// Ports inside.
    Ports,
    /// Counters.
    Metrics,
    /// The file system as an image.
    Commit,
    /// Import root filesystems.
    ImportImage,
    /// Enforce the memory limit.
    MemoryLimit,
    /// Enforce the CPU limit.
    CpuLimit,
    /// Enforce the limit of processes.
    PidsLimit,
    /// Enforce the disk limit.
    DiskLimit,
    /// Connections to the outside, as far as a plan allows them.
    Network,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Pause,
        Self::Exec,
        Self::Files,
        Self::Ports,
        Self::Metrics,
        Self::Commit,
        Self::ImportImage,
        Self::MemoryLimit,
        Self::CpuLimit,
        Self::PidsLimit,
        Self::DiskLimit,
        Self::Network,
    ];

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Exec => "exec",
            Self::Files => "files",
            Self::Ports => "ports",
            Self::Metrics => "metrics",
            Self::Commit => "commit",
            Self::ImportImage => "image import",
            Self::MemoryLimit => "memory limit",
            Self::CpuLimit => "cpu limit",
            Self::PidsLimit => "pids limit",
            Self::DiskLimit => "disk limit",
            Self::Network => "network",
        }
    }
}

/// A set of capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// Exactly these.
    #[must_use]
    pub fn of(list: impl IntoIterator<Item = Capability>) -> Self {
        Self(list.into_iter().collect())
    }

    /// Whether it is among them.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }

    /// Refuses what is not among them.
    pub fn require(&self, capability: Capability) -> Result<(), DriverError> {
        if self.has(capability) { Ok(()) } else { Err(DriverError::Unsupported { capability }) }
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// This driver, on this machine, cannot do that.
    #[error("this driver cannot do {}", .capability.as_str())]
    Unsupported {
        /// What.
        capability: Capability,
    },
    /// There is no such sandbox (any more).
    #[error("sandbox {id} does not exist on this machine")]
    Gone {
        /// Which.
        id: SandboxId,
    },
    /// The image is not there, or its layers are not.
    #[error("image {image} is not on this machine: {detail}")]
    ImageMissing {
        /// Which.
        image: String,
        /// What exactly is missing.
        detail: String,
    },
    /// What was handed in cannot be used: an archive that is broken or escapes its directory.
    #[error("{what}")]
    Invalid {
        /// For people.
        what: String,
    },
    /// The machine has not enough of something.
    #[error("the machine is out of {what}: {detail}")]
    Exhausted {
        /// "disk space", "processes", "memory", "file descriptors", "user id ranges".
        what: &'static str,
        /// For people.
        detail: String,
    },
    /// It did not answer in time.
    #[error("{what} did not answer within {waited_ms} ms")]
    TimedOut {
        /// "the agent", "the launcher".
        what: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The agent refused the operation, died or talked nonsense.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Anything else, with the step that failed.
    #[error("{step}: {detail}")]
    Failed {
        /// What was being done: "mount the root file system".
        step: String,
        /// What the kernel or the peer said.
        detail: String,
    },
}

/// A sandbox to make.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its id.
    pub id: SandboxId,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// The image that `spec.image` resolved to.
    pub image: Image,
    /// What it may reach. A driver without [`Capability::Network`] makes sandboxes that reach nothing and leaves this alone.
    pub network: NetworkPlan,
}

/// A sandbox that exists: its id and the driver's own note on it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Id.
    pub id: SandboxId,
    /// The note that `create` returned.
    pub handle: &'a DriverHandle,
}

/// A sandbox that ended, or something inside that the host should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverEvent {
    /// Its first process ended although nobody asked.
    Ended {
        /// Which.
        id: SandboxId,
        /// The kernel killed it for want of memory.
        out_of_memory: bool,
        /// For people.
        detail: String,
    },
    /// A process inside was killed for want of memory, the sandbox lives.
    OutOfMemory {
        /// Which.
        id: SandboxId,
    },
    /// It has written more than its disk limit.
    DiskLimit {
        /// Which.
        id: SandboxId,
        /// Bytes written.
        used_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Its connections were refused, as its plan says. Told at most once for each destination in a while.
    Denied {
        /// Which.
        id: SandboxId,
        /// Where they wanted to go.
        destinations: Vec<DeniedDestination>,
    },
}

/// Where a connection wanted to go that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeniedDestination {
    /// Address.
    pub address: IpAddr,
    /// Port; 0 for what has no ports.
    pub port: u16,
}

/// Bytes that crossed a sandbox's network interface since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Into the sandbox.
    pub in_bytes: u64,
    /// Out of it.
    pub out_bytes: u64,
}

/// Where the host's own services for sandboxes listen: reached from inside every sandbox, and from nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkServices {
    /// Addresses of the resolver, UDP and TCP port 53; each sandbox's `/etc/resolv.conf` names them.
    pub resolvers: Vec<SocketAddr>,
    /// Where connections to port 80 arrive that are [checked](sandbank_model::Checked).
    pub http: Vec<SocketAddr>,
    /// Where connections to port 443 arrive that are checked.
    pub tls: Vec<SocketAddr>,
}

/// A byte stream to a port inside a sandbox. Shutting its writing side down is a half close.
pub trait PortIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PortIo for T {}

/// What `adopt` found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Alive and answering; the value says whether it is frozen.
    pub alive: BTreeMap<SandboxId, bool>,
    /// Known to the caller but gone, with the reason.
    pub gone: BTreeMap<SandboxId, String>,
    /// Not known to the caller; destroyed.
    pub orphans: Vec<SandboxId>,
}

/// Where an image is imported from, on the server's own file system.
#[derive(Debug, Clone)]
pub enum ImportSource {
    /// A tar archive of a root filesystem, plain or compressed with gzip.
    Archive(std::path::PathBuf),
    /// A directory holding a root filesystem.
    Directory(std::path::PathBuf),
}

/// A layer of an image from elsewhere, on its way into the driver's store.
pub struct NewLayer {
    /// `sha256:` and 64 hexadecimal digits of the archive: what it is kept by, and checked against.
    pub diff_id: String,
    /// The layer's tar archive without compression, with whiteouts as the OCI image specification writes them. Read on a thread
    /// that may wait; whoever gives up lets it fail.
    pub archive: Box<dyn std::io::Read + Send>,
}

impl std::fmt::Debug for NewLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewLayer").field("diff_id", &self.diff_id).finish_non_exhaustive()
    }
}

/// Layers that an import or a commit made, not yet named by any image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayers {
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// Whether the host's system directories lie beneath them.
    pub on_host: bool,
    /// Defaults for processes.
    pub config: ImageConfig,
}

/// The port. All methods may be called concurrently; those that name a sandbox are serialised per sandbox by the caller.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The name that pools and sandboxes refer to it by: `linux`, `fake`.
    fn name(&self) -> &'static str;

    /// What it can do on this machine.
    fn capabilities(&self) -> &Capabilities;

    /// Makes a sandbox and returns when its agent has answered. On an error nothing of it is left. Making an id that exists
    /// destroys the old one first.
    async fn create(&self, request: CreateRequest) -> Result<DriverHandle, DriverError>;

    /// Destroys whatever exists of this id: processes, mounts, cgroups, files. Safe to repeat, also for an id never made.
    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError>;

    /// Freezes it. Freezing a frozen one changes nothing.
    async fn pause(&self, target: Target<'_>) -> Result<(), DriverError>;

    /// Thaws it. Thawing a running one changes nothing.
    async fn resume(&self, target: Target<'_>) -> Result<(), DriverError>;

    /// Begins an operation inside. The connection is open and the request sent when this returns.
    async fn open(&self, target: Target<'_>, request: &Request) -> Result<Connection, DriverError>;

    /// Counters, from the host's side where that knows better.
    async fn metrics(&self, target: Target<'_>) -> Result<Metrics, DriverError>;

    /// Takes over after a restart: finds out which of `known` are alive, and destroys everything else that this driver ever
    /// made in its data directory.
    async fn adopt(&self, known: Vec<(SandboxId, Option<DriverHandle>)>) -> Result<Adopted, DriverError>;

    /// Puts another network plan in force, and opens what was answered for its names. New connections follow it when this returns; those that exist and are no longer allowed
    /// are refused with their next packet.
    async fn set_network(&self, _target: Target<'_>, _plan: NetworkPlan, _named: Vec<NamedAddress>) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { capability: Capability::Network })
    }

    /// Opens addresses that were answered for names, each for its life; in force when this returns.
    async fn open_names(&self, _id: SandboxId, _addresses: Vec<NamedAddress>) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { capability: Capability::Network })
    }

    /// Where the host's services for sandboxes are to listen; `None` where sandboxes reach nothing.
    fn network_services(&self) -> Option<NetworkServices> {
        None
    }

    /// Whose connections come from this address. No sandbox can send from another's.
    fn sandbox_at(&self, _source: IpAddr) -> Option<SandboxId> {
        None
    }

    /// Whether this is an address of the machine itself: one that sandboxes must not reach through the host's services either.
    fn is_own_address(&self, _address: IpAddr) -> bool {
        false
    }

    /// What crossed its network interface.
    async fn traffic(&self, _target: Target<'_>) -> Result<Traffic, DriverError> {
        Err(DriverError::Unsupported { capability: Capability::Network })
    }

    /// Connects to a TCP port inside without going through the agent, where the driver can; `None` where it cannot. Tries
    /// 127.0.0.1 first, then ::1.
    async fn dial(&self, _target: Target<'_>, _port: u16) -> Option<std::io::Result<Box<dyn PortIo>>> {
        None
    }

    /// The server ends. Sandboxes live on; what the machine keeps for them is taken back where there are none.
    async fn close(&self) {}

    /// What happens to sandboxes without being asked. Can be taken once; `None` afterwards.
    fn events(&self) -> Option<mpsc::Receiver<DriverEvent>>;

    /// The image that needs no import, if the driver has one.
    fn builtin_image(&self) -> Option<NewLayers>;

    /// The layer with this digest, if it is there. It stays for an hour even when no image names it.
    async fn find_layer(&self, diff_id: &str) -> Result<Option<Layer>, DriverError>;

    /// Unpacks a layer and keeps it; the same one is kept once. Nothing is left of one that is refused.
    async fn add_layer(&self, layer: NewLayer) -> Result<Layer, DriverError>;

    /// A layer's content as [`NewLayer::archive`] has it: for giving images away. Blocks, as reading it does: call it on a thread that
    /// may wait. The end comes only when all of it was read, and the same layer gives the same bytes each time. The caller sees to it
    /// that the layer is not removed meanwhile.
    fn read_layer(&self, layer: &Layer) -> Result<Box<dyn std::io::Read + Send>, DriverError>;

    /// Imports a root filesystem.
    async fn import_image(&self, source: ImportSource) -> Result<NewLayers, DriverError>;

    /// Turns what a sandbox changed into a layer on top of its image's. The sandbox is frozen meanwhile and goes on afterwards.
    async fn commit(&self, target: Target<'_>, image: &Image) -> Result<NewLayers, DriverError>;

    /// All layers that are kept, but for what belongs to the driver itself.
    async fn list_layers(&self) -> Result<Vec<Layer>, DriverError>;

    /// These layers are spared by [`Driver::retain_layers`] no longer just for being new: who got them from [`Driver::add_layer`] or
    /// [`Driver::find_layer`] is done with them, whether an image names them or not.
    async fn release_layers(&self, _ids: Vec<String>) -> Result<(), DriverError> {
        Ok(())
    }

    /// Removes layers that are not among `used`. Safe to repeat.
    async fn retain_layers(&self, used: Vec<String>) -> Result<(), DriverError>;
}
