//! Processes inside on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::TextMap;

/// What to run: a text for `/bin/sh -c`, or program and arguments.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum CommandWire {
    /// Run by `/bin/sh -c`.
    Shell(String),
    /// Program and arguments.
    Argv(Vec<String>),
}

/// Run a command and wait.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecRequest {
    /// What to run.
    pub command: CommandWire,
    /// Killed after so long.
    #[schema(minimum = 1, maximum = 300, default = 30)]
    pub timeout_seconds: Option<u32>,
    /// Environment, over the sandbox's.
    pub env: Option<TextMap>,
    /// Working directory.
    #[schema(max_length = 4096)]
    pub cwd: Option<String>,
    /// User.
    #[schema(max_length = 64)]
    pub user: Option<String>,
}

/// How it went. A command that failed is still a success of this call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecResult {
    /// Exit code; 128 + signal number when a signal ended it.
    pub exit_code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Output was dropped because there was too much.
    pub truncated: bool,
    /// The timeout ended it.
    pub timed_out: bool,
}

/// Run a command and stream its output.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecStreamRequest {
    /// What to run.
    pub command: CommandWire,
    /// Environment, over the sandbox's.
    pub env: Option<TextMap>,
    /// Working directory.
    #[schema(max_length = 4096)]
    pub cwd: Option<String>,
    /// User.
    #[schema(max_length = 64)]
    pub user: Option<String>,
    /// Killed after so long; absent: never.
    #[schema(minimum = 1, maximum = 31536000)]
    pub timeout_seconds: Option<u32>,
    /// A name to find it by.
    #[schema(min_length = 1, max_length = 255)]
    pub tag: Option<String>,
    /// What it reads from standard input.
    pub stdin: Option<String>,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
pub(crate) struct TtySize {
    /// Columns.
    #[schema(minimum = 1, maximum = 65535)]
    pub cols: u16,
    /// Rows.
    #[schema(minimum = 1, maximum = 65535)]
    pub rows: u16,
}

/// The first message on `exec/ws`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecSocketStart {
    /// What to run.
    pub command: CommandWire,
    /// Environment, over the sandbox's.
    pub env: Option<TextMap>,
    /// Working directory.
    pub cwd: Option<String>,
    /// User.
    pub user: Option<String>,
    /// On a terminal of this size.
    pub tty: Option<TtySize>,
    /// Keep standard input open for binary messages.
    pub stdin: Option<bool>,
    /// Killed after so long.
    #[schema(minimum = 1, maximum = 31536000)]
    pub timeout_seconds: Option<u32>,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Let it live on when the socket closes.
    pub detach: Option<bool>,
}

/// What a client says on a socket besides data.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum SocketCommand {
    /// New terminal size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// A signal to the process group.
    Signal {
        /// Number or name.
        signal: SignalWire,
    },
    /// End of standard input.
    Eof,
}

/// A signal by number or name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum SignalWire {
    /// Number, 1 to 64.
    Number(i32),
    /// Name, such as `SIGTERM`.
    Name(String),
}

/// A line of a process stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum ProcessLine {
    /// It runs.
    #[serde(rename_all = "camelCase")]
    Started {
        /// Pid inside.
        pid: u32,
        /// Offset of the first byte of standard output (or the terminal) that follows.
        stdout_offset: u64,
        /// Offset of the first byte of standard error that follows.
        stderr_offset: u64,
    },
    /// Standard output, or the terminal.
    Stdout {
        /// Text, or base64.
        data: String,
        /// `base64` where the bytes are not UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<&'static str>,
    },
    /// Standard error.
    Stderr {
        /// Text, or base64.
        data: String,
        /// `base64` where the bytes are not UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<&'static str>,
    },
    /// It ended. The last line.
    #[serde(rename_all = "camelCase")]
    Exited {
        /// Exit code; 128 + signal number when a signal ended it.
        exit_code: i32,
        /// Signal that ended it.
        signal: Option<i32>,
        /// The timeout ended it.
        timed_out: bool,
    },
    /// It still runs (attached without following). The last line.
    Running {},
    /// The stream broke. The last line.
    Error {
        /// For people.
        error: String,
    },
}

/// A process that a request started.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessItem {
    /// Pid inside.
    pub pid: u32,
    /// Tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// Whether it still runs.
    pub running: bool,
    /// Exit code, once it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Bytes of standard output (or the terminal) so far.
    pub stdout_bytes: u64,
    /// Bytes of standard error so far.
    pub stderr_bytes: u64,
}

/// Processes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProcessList {
    /// Entries.
    pub items: Vec<ProcessItem>,
}

/// A signal to send.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SignalRequest {
    /// Number or name.
    pub signal: SignalWire,
    /// To the whole process group. Default true.
    pub group: Option<bool>,
}

/// From where to stream a process.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct AttachQuery {
    /// First byte of standard output (or the terminal); default 0, what is still kept.
    pub stdout_offset: Option<u64>,
    /// First byte of standard error; default 0.
    pub stderr_offset: Option<u64>,
    /// Wait for more. Default true.
    pub follow: Option<bool>,
}

/// A terminal.
#[derive(Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct TerminalQuery {
    /// Token of `exec-token`, instead of an API key.
    #[param(max_length = 200)]
    pub token: Option<String>,
    /// Columns; default 80.
    #[param(minimum = 1, maximum = 65535)]
    pub cols: Option<u16>,
    /// Rows; default 24.
    #[param(minimum = 1, maximum = 65535)]
    pub rows: Option<u16>,
    /// Shell; default the user's `$SHELL`, else `/bin/sh`.
    #[param(max_length = 4096)]
    pub shell: Option<String>,
}

/// A token for the terminal.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenResult {
    /// Works once, within 30 seconds.
    pub token: String,
}
