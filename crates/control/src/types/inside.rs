//! Inside a sandbox: processes, logs, readiness.

use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_model::{EnvMap, Timestamp};

/// A program to run in a sandbox. What is `None` comes from the sandbox's lease, spec and image, in this order.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, over the sandbox's.
    pub env: EnvMap,
    /// Working directory.
    pub cwd: Option<String>,
    /// User.
    pub user: Option<String>,
    /// On a terminal of this size.
    pub pty: Option<agent::PtySize>,
    /// Keep stdin open.
    pub stdin: bool,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Kill it after so long.
    pub timeout: Option<Duration>,
    /// Kill it when the stream is dropped.
    pub kill_on_disconnect: bool,
}

/// A collected exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub status: agent::ExitStatus,
    /// Standard output, at most `Settings::exec_output_max` bytes.
    pub stdout: Bytes,
    /// Standard error, likewise.
    pub stderr: Bytes,
    /// Bytes were dropped.
    pub truncated: bool,
}

/// What a process stream tells, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It runs (or was found).
    Started {
        /// Pid inside the sandbox.
        pid: u32,
        /// Offset of the first byte of stdout (or terminal) that follows; 0 for a new process.
        stdout_offset: u64,
        /// Offset of the first byte of stderr that follows.
        stderr_offset: u64,
    },
    /// Output.
    Output(agent::Stream, Bytes),
    /// It ended. The last event.
    Exited(agent::ExitStatus),
    /// Attached without following, and it still runs. The last event.
    StillRunning,
}

/// Log lines of a sandbox: what its command wrote, or what a runtime wrote into its log directory.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// The last so many lines; `None`: all that is kept.
    pub lines: Option<u32>,
    /// A runtime's name; `None`: the command's output.
    pub runtime: Option<String>,
}

/// Logs as they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Lines, oldest first, without the line end.
    pub lines: Vec<LogLine>,
    /// Earlier lines were dropped.
    pub truncated: bool,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether the sandbox still runs (live) or this was kept when it ended.
    pub live: bool,
}

/// A line of log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was captured, if known.
    pub at: Option<Timestamp>,
    /// Text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Whether it came from standard error.
    pub stderr: bool,
}

/// A runtime's readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Runtime.
    pub name: String,
    /// Ready.
    pub ready: bool,
    /// Why not, or how it was seen.
    pub message: String,
}
