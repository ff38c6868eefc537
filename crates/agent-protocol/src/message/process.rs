//! Processes: what is asked of them and what is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
