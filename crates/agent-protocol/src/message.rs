//! The messages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The first message on a connection: what to do.
///
/// | request | then host → agent | agent → host |
/// |---|---|---|
/// | `Ping` | – | `Pong` |
/// | `Start` | `Data` (stdin) and `HostMessage`s | `Started`, `Data` of each stream, `Exited` |
/// | `Attach` | as `Start` | `Attached`, `Data`, `Exited` |
/// | `Signal`, `Resize`, `CloseStdin` | – | `Done` |
/// | `WriteStdin` | `Data`… `End` | `Done` when the process's pipe has taken it all |
/// | `ListProcesses` | – | `Processes` |
/// | `Stat`, `MakeDir`, `Move` | – | `Stat` |
/// | `Remove` | – | `Done` |
/// | `List` | – | `Entries`… `Done` |
/// | `Read` | – | `Stat`, `Data`…, `End` |
/// | `Write` | `Data`… `End` | `Stat` when it is written |
/// | `Watch` | – | `Done` (the watch is in place), `Watched`… |
/// | `Dial` | `Data`, `End` (half close) | `Done` (connected), `Data`, `End` |
/// | `Metrics` | – | `Metrics` |
/// | `Shutdown` | – | `Done`, then the agent ends |
///
/// Any of them may end with `Reply::Error` instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there?
    Ping,
    /// Start a process and stream it.
    Start(Box<StartProcess>),
    /// Stream a process that is running or has ended not long ago.
    Attach(AttachProcess),
    /// Send a signal.
    Signal(SendSignal),
    /// Change a terminal's size.
    Resize(ResizePty),
    /// Write to a process's stdin from another connection.
    WriteStdin(ProcessSelector),
    /// Close a process's stdin.
    CloseStdin(ProcessSelector),
    /// All processes started by requests, running or ended not long ago.
    ListProcesses,
    /// One file's metadata.
    Stat(StatFile),
    /// A directory's entries.
    List(ListFiles),
    /// A file's content.
    Read(ReadFile),
    /// Write a file.
    Write(WriteFile),
    /// Rename; across file systems, copy and remove.
    Move(MoveFile),
    /// Remove a file or a tree.
    Remove(RemoveFile),
    /// Make a directory and its parents.
    MakeDir(MakeDir),
    /// Tell of changes below a directory.
    Watch(WatchFiles),
    /// Connect to a TCP port on the sandbox's loopback (127.0.0.1, then ::1).
    Dial {
        /// Port.
        port: u16,
    },
    /// Counters of the sandbox as seen from inside.
    Metrics,
    /// Kill all processes and end.
    Shutdown,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartProcess {
    /// Program and arguments; the program is looked up in `PATH` of `env`. Not empty.
    pub argv: Vec<String>,
    /// The whole environment. `HOME`, `USER`, `LOGNAME`, `SHELL` and `PATH` are filled in from the user where absent.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None`: the user's home, or `/` where that does not exist.
    pub cwd: Option<String>,
    /// User by name (from the sandbox's `/etc/passwd`) or number, optionally `:group`; `None`: root.
    pub user: Option<String>,
    /// Run on a new terminal of this size; its output is the stream `Stream::Pty`.
    pub pty: Option<PtySize>,
    /// Keep stdin open for data. Otherwise it reads end of file at once. A terminal always takes data.
    pub stdin: bool,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Kill its group after so many milliseconds.
    pub deadline_ms: Option<u64>,
    /// Bytes of output kept for each stream; `None`: [`crate::RING_BYTES_DEFAULT`].
    pub ring_bytes: Option<u32>,
    /// What happens to the process when this connection closes: killed, or left running (false).
    #[serde(default)]
    pub kill_on_disconnect: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Names a process that a request started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessSelector {
    /// By its pid inside the sandbox.
    Pid(u32),
    /// By its tag; the youngest one with it.
    Tag(String),
}

/// Stream a process from given offsets. Bytes that have left the ring are skipped and said in `Attached`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachProcess {
    /// Which.
    pub process: ProcessSelector,
    /// First byte of stdout wanted (or of the terminal); `None`: only what comes from now on.
    pub stdout_offset: Option<u64>,
    /// First byte of stderr wanted; `None`: only what comes from now on.
    pub stderr_offset: Option<u64>,
    /// Stop after what is there now, without waiting for more: for logs.
    #[serde(default)]
    pub no_follow: bool,
}

/// Send a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendSignal {
    /// To which.
    pub process: ProcessSelector,
    /// Signal number, 1 to 64.
    pub signal: i32,
    /// To its whole group, or to the process alone.
    pub group: bool,
}

/// Change a terminal's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizePty {
    /// Of which process.
    pub process: ProcessSelector,
    /// New size.
    pub size: PtySize,
}

/// Metadata of one path. Relative paths are relative to the user's home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFile {
    /// Path.
    pub path: String,
    /// As which user (for relative paths); `None`: root.
    pub user: Option<String>,
    /// Follow a symbolic link at the end.
    pub follow: bool,
}

/// A directory's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListFiles {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// 1: the entries; 2: theirs too; and so on. At least 1.
    pub depth: u32,
    /// Most entries to tell of.
    pub limit: u32,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// First byte.
    pub offset: u64,
    /// Most bytes; `None`: to the end.
    pub length: Option<u64>,
}

/// What a write does with a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OpenMode {
    /// Replaced in one step when all data has come; a cancelled write leaves the old one.
    #[default]
    Replace,
    /// Added to.
    Append,
    /// An error.
    CreateNew,
}

/// Write a file. Parents are made, owned by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Path.
    pub path: String,
    /// As which user; it owns what is made; `None`: root.
    pub user: Option<String>,
    /// Permission bits; `None`: as the existing file, else 0644.
    pub mode: Option<u32>,
    /// What to do with an existing file.
    pub open: OpenMode,
}

/// Rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveFile {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// Replace an existing file at `to`.
    pub overwrite: bool,
}

/// Remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveFile {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// A directory with all that is in it; otherwise only an empty one.
    pub recursive: bool,
}

/// Make a directory and its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDir {
    /// Path.
    pub path: String,
    /// As which user; it owns what is made; `None`: root.
    pub user: Option<String>,
    /// Permission bits; `None`: 0755.
    pub mode: Option<u32>,
    /// An existing directory is an error.
    pub exclusive: bool,
}

/// Tell of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchFiles {
    /// Directory.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// Directories below it too, also new ones.
    pub recursive: bool,
}

/// What the host sends besides data on a `Start` or `Attach` connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Signal this connection's process.
    Signal {
        /// Number.
        signal: i32,
        /// Its whole group.
        group: bool,
    },
    /// Resize this connection's terminal.
    Resize(PtySize),
    /// Close stdin.
    CloseStdin,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Alive.
    Pong {
        /// [`crate::PROTOCOL_VERSION`] of the agent.
        protocol: u32,
        /// Milliseconds since the agent began.
        uptime_ms: u64,
    },
    /// It is done.
    Done,
    /// The process runs.
    Started {
        /// Pid inside the sandbox.
        pid: u32,
    },
    /// The stream begins.
    Attached {
        /// Pid inside the sandbox.
        pid: u32,
        /// Offset of the first byte of stdout (or terminal) that follows.
        stdout_offset: u64,
        /// Offset of the first byte of stderr that follows.
        stderr_offset: u64,
        /// Whether it runs on a terminal.
        pty: bool,
    },
    /// The process has ended and all its output has been sent.
    Exited(ExitStatus),
    /// Only for `Attach` with `no_follow`: that was all there is, the process still runs.
    StillRunning,
    /// Processes.
    Processes(Vec<ProcessInfo>),
    /// One file.
    Stat(FileStat),
    /// Some entries of a listing; more may follow.
    Entries(Vec<FileStat>),
    /// A change.
    Watched(WatchEvent),
    /// Counters.
    Metrics(Metrics),
    /// It failed. The last message.
    Error(AgentError),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// The deadline ended it.
    pub timed_out: bool,
}

impl ExitStatus {
    /// As a shell shows it: the code, or 128 + signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.or(self.signal.map(|signal| signal.saturating_add(128))).unwrap_or(-1)
    }
}

/// One of a process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Terminal.
    Pty,
}

/// A process that a request started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Pid inside the sandbox.
    pub pid: u32,
    /// Tag.
    pub tag: Option<String>,
    /// Program and arguments as requested.
    pub argv: Vec<String>,
    /// Environment as requested.
    pub env: BTreeMap<String, String>,
    /// Working directory as requested.
    pub cwd: Option<String>,
    /// User as requested.
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub pty: bool,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// How it ended, if it has.
    pub exit: Option<ExitStatus>,
    /// Bytes of stdout (or terminal) so far.
    pub stdout_bytes: u64,
    /// Bytes of stderr so far.
    pub stderr_bytes: u64,
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Socket, pipe or device.
    Other,
}

/// Metadata of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Absolute path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Kind, of the link itself when it was not followed.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner's number inside the sandbox.
    pub uid: u32,
    /// Group's number inside the sandbox.
    pub gid: u32,
    /// Owner's name, or the number as text.
    pub owner: String,
    /// Group's name, or the number as text.
    pub group: String,
    /// Last change of content, milliseconds since the Unix epoch.
    pub modified_at_ms: i64,
    /// Target, of a symbolic link.
    pub symlink_target: Option<String>,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEventKind {
    /// Made, or moved in.
    Create,
    /// Content changed.
    Write,
    /// Removed.
    Remove,
    /// Moved away (tell of the old name).
    Rename,
    /// Permissions or owner changed.
    Chmod,
    /// Events were lost: look for yourself.
    Overflow,
}

/// A change below a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Path relative to the watched directory.
    pub path: String,
    /// What.
    pub kind: WatchEventKind,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Counters of a sandbox as the agent sees them. The driver fills in what only the host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// CPU time used so far, microseconds.
    pub cpu_used_us: u64,
    /// Cores that may be used, thousandths.
    pub cpu_limit_millis: u32,
    /// Memory in use, bytes.
    pub memory_used_bytes: u64,
    /// Of it, page cache.
    pub memory_cache_bytes: u64,
    /// Memory limit, bytes; 0 is none.
    pub memory_limit_bytes: u64,
    /// Bytes used of the root file system's private part.
    pub disk_used_bytes: u64,
    /// Disk limit, bytes; 0 is none.
    pub disk_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Limit of them; 0 is none.
    pub pids_limit: u32,
    /// Processes killed because the sandbox was out of memory.
    pub oom_kills: u64,
    /// Memory that the agent itself holds, bytes.
    pub agent_bytes: u64,
}

/// Kind of an agent's refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request makes no sense: an empty argv, a path with NUL, a signal that does not exist.
    Invalid,
    /// No such file, process, user or port listener.
    NotFound,
    /// It exists already.
    Exists,
    /// Not a directory, is a directory, not empty, not a regular file.
    WrongKind,
    /// The kernel or the file's permissions forbid it.
    Denied,
    /// No space, too many processes, memory or open files.
    Exhausted,
    /// Anything else the kernel said.
    Io,
    /// Not known to this agent.
    Unsupported,
}

/// An agent's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct AgentError {
    /// Kind.
    pub kind: ErrorKind,
    /// For people: what was wrong, which value.
    pub message: String,
}

impl AgentError {
    /// Makes one.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
