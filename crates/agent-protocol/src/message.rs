//! The messages.

mod file;
mod process;

pub use file::{
    FileKind, FileStat, ListFiles, MakeDir, MoveFile, OpenMode, ReadFile, RemoveFile, StatFile, WatchEvent, WatchEventKind,
    WatchFiles, WriteFile,
};
pub use process::{
    AttachProcess, ExitStatus, ProcessInfo, ProcessSelector, PtySize, ResizePty, SendSignal, StartProcess, Stream,
};

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
