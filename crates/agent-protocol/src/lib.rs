//! What host and agent say to each other.
//!
//! One connection carries one operation. The host sends one [`Request`]; then both sides stream frames until the agent's last
//! message. Closing the connection cancels the operation (processes live on: they belong to the agent). Control messages are
//! JSON, so that a newer server still understands the agent of a sandbox that an older one made: fields are only ever added,
//! unknown ones are ignored. Bulk data travels in frames of its own, never inside JSON.
//!
//! The agent's words are untrusted input to the host: every frame is bounded ([`FRAME_MAX`]), and what it means is checked.

mod client;
mod frame;
mod message;

pub use client::{ClientError, Connection, ReadHalf, WriteHalf};
pub use frame::{
    DATA_MAX, FRAME_MAX, Frame, FrameError, FrameReader, encode_frame, read_frame, write_data, write_frame, write_output,
};
pub use message::{
    AgentError, AttachProcess, ErrorKind, ExitStatus, FileKind, FileStat, HostMessage, ListFiles, MakeDir, Metrics, MoveFile,
    OpenMode, ProcessInfo, ProcessSelector, PtySize, ReadFile, RemoveFile, Reply, Request, ResizePty, SendSignal, StartProcess,
    StatFile, Stream, WatchEvent, WatchEventKind, WatchFiles, WriteFile,
};

/// Version of the protocol. Raised when a message changes its meaning; additions do not raise it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of output kept for each stream of a process, unless the start request says otherwise.
pub const RING_BYTES_DEFAULT: u32 = 1024 * 1024;
