//! The fake sandbox's processes: a table, and a task for each that runs one of the built-in programs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sandbank_agent_protocol::{
    AgentError, DATA_MAX, ErrorKind, ExitStatus, ProcessInfo, ProcessSelector, RING_BYTES_DEFAULT, StartProcess, Stream,
};
use tokio::sync::{mpsc, watch};

use super::files::{User, now_ms};
use super::lock;
use super::programs::{self, Io};
use super::world::FakeSandbox;

const SIGKILL: i32 = 9;
/// Signals that end none of the built-in programs: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
const HARMLESS: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
/// Chunks of stdin that wait for a program that does not read.
const STDIN_CHUNKS: usize = 16;

/// The newest bytes of one stream.
#[derive(Debug)]
struct Ring {
    bytes: BytesMut,
    /// Offset of the first byte kept.
    start: u64,
    limit: usize,
}

impl Ring {
    fn new(limit: usize) -> Self {
        Self { bytes: BytesMut::new(), start: 0, limit }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn append(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        let over = self.bytes.len().saturating_sub(self.limit);
        if over > 0 {
            let _ = self.bytes.split_to(over);
            self.start += over as u64;
        }
    }

    /// What follows `offset`, which moves on; bytes that are gone are skipped.
    fn take(&self, offset: &mut u64) -> Bytes {
        let from = (*offset).clamp(self.start, self.end());
        // The ring is at most 4 GiB long (a u32 limit), so both casts keep their values.
        let at = (from - self.start) as usize;
        let len = (self.bytes.len() - at).min(DATA_MAX);
        *offset = from + len as u64;
        Bytes::copy_from_slice(&self.bytes[at..at + len])
    }
}

#[derive(Debug)]
struct Output {
    stdout: Ring,
    stderr: Ring,
    exit: Option<ExitStatus>,
}

/// Where a reader stands in both streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) request: StartProcess,
    started_at_ms: u64,
    output: Mutex<Output>,
    /// Bumped at every change of `output`.
    pub(super) version: watch::Sender<u64>,
    killed: watch::Sender<Option<i32>>,
    stdin: Mutex<Option<mpsc::Sender<Bytes>>>,
}

impl Process {
    pub(super) fn append(&self, stream: Stream, data: &[u8]) {
        let mut output = lock(&self.output);
        match stream {
            Stream::Stderr if self.request.pty.is_none() => output.stderr.append(data),
            _ => output.stdout.append(data),
        }
        drop(output);
        self.version.send_modify(|version| *version += 1);
    }

    fn finish(&self, status: ExitStatus) {
        lock(&self.output).exit = Some(status);
        lock(&self.stdin).take();
        self.version.send_modify(|version| *version += 1);
    }

    /// What comes after `offsets`, and the exit when there is nothing more to come.
    pub(super) fn take(&self, offsets: &mut Offsets) -> (Vec<(Stream, Bytes)>, Option<ExitStatus>) {
        let output = lock(&self.output);
        let main = if self.request.pty.is_some() { Stream::Pty } else { Stream::Stdout };
        let chunks: Vec<_> =
            [(main, output.stdout.take(&mut offsets.stdout)), (Stream::Stderr, output.stderr.take(&mut offsets.stderr))]
                .into_iter()
                .filter(|(_, chunk)| !chunk.is_empty())
                .collect();
        let exit = output.exit.filter(|_| chunks.is_empty());
        (chunks, exit)
    }

    /// The offsets that a request means: `None` is the end, and what has left the ring is skipped.
    pub(super) fn offsets(&self, stdout: Option<u64>, stderr: Option<u64>) -> Offsets {
        let output = lock(&self.output);
        let place = |wanted: Option<u64>, ring: &Ring| wanted.unwrap_or(ring.end()).clamp(ring.start, ring.end());
        Offsets { stdout: place(stdout, &output.stdout), stderr: place(stderr, &output.stderr) }
    }

    pub(super) fn signal(&self, signal: i32) -> Result<(), AgentError> {
        if !(1..=64).contains(&signal) {
            return Err(AgentError::new(ErrorKind::Invalid, format!("{signal} is not a signal: signals are 1 to 64")));
        }
        if lock(&self.output).exit.is_some() {
            return Err(AgentError::new(ErrorKind::NotFound, format!("process {} has ended", self.pid)));
        }
        if !HARMLESS.contains(&signal) {
            self.killed.send_replace(Some(signal));
        }
        Ok(())
    }

    /// Waits until the program has room for it; lost when it does not read or has ended, as a closed pipe is.
    pub(super) async fn write_stdin(&self, data: Bytes) -> Result<(), AgentError> {
        let sender = lock(&self.stdin).clone();
        let closed = || AgentError::new(ErrorKind::Io, format!("the stdin of process {} is closed", self.pid));
        sender.ok_or_else(closed)?.send(data).await.map_err(|_| closed())
    }

    pub(super) fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    fn info(&self) -> ProcessInfo {
        let output = lock(&self.output);
        ProcessInfo {
            pid: self.pid,
            tag: self.request.tag.clone(),
            argv: self.request.argv.clone(),
            env: self.request.env.clone(),
            cwd: self.request.cwd.clone(),
            user: self.request.user.clone(),
            pty: self.request.pty.is_some(),
            started_at_ms: self.started_at_ms,
            exit: output.exit,
            stdout_bytes: output.stdout.end(),
            stderr_bytes: output.stderr.end(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Processes {
    table: Mutex<BTreeMap<u32, Arc<Process>>>,
    last_pid: AtomicU32,
}

impl Processes {
    pub(super) fn new() -> Self {
        // Pid 1 is the agent.
        Self { table: Mutex::default(), last_pid: AtomicU32::new(1) }
    }

    pub(super) fn list(&self) -> Vec<ProcessInfo> {
        lock(&self.table).values().map(|process| process.info()).collect()
    }

    pub(super) fn running(&self) -> u32 {
        let table = lock(&self.table);
        u32::try_from(table.values().filter(|process| lock(&process.output).exit.is_none()).count()).unwrap_or(u32::MAX)
    }

    pub(super) fn find(&self, selector: &ProcessSelector) -> Result<Arc<Process>, AgentError> {
        let table = lock(&self.table);
        let found = match selector {
            ProcessSelector::Pid(pid) => table.get(pid),
            ProcessSelector::Tag(tag) => table.values().rev().find(|process| process.request.tag.as_ref() == Some(tag)),
        };
        found.cloned().ok_or_else(|| AgentError::new(ErrorKind::NotFound, "there is no such process"))
    }

    /// Starts one in `sandbox`, whose table this is.
    pub(super) fn start(&self, sandbox: &Arc<FakeSandbox>, request: StartProcess) -> Result<Arc<Process>, AgentError> {
        let program = request.argv.first().ok_or_else(|| AgentError::new(ErrorKind::Invalid, "argv is empty"))?;
        if !programs::exists(program) {
            return Err(AgentError::new(ErrorKind::NotFound, format!("there is no program {program:?}")));
        }
        let user = User::find(request.user.as_deref())?;
        if self.running().saturating_add(1) >= sandbox.spec.resources.pids {
            return Err(AgentError::new(ErrorKind::Exhausted, "the sandbox has as many processes as it may"));
        }
        let pid = self.last_pid.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = request.ring_bytes.unwrap_or(RING_BYTES_DEFAULT) as usize;
        let (stdin, stdin_reader) = mpsc::channel(STDIN_CHUNKS);
        let takes_stdin = request.stdin || request.pty.is_some();
        let process = Arc::new(Process {
            pid,
            started_at_ms: u64::try_from(now_ms()).unwrap_or(0),
            output: Mutex::new(Output { stdout: Ring::new(limit), stderr: Ring::new(limit), exit: None }),
            version: watch::Sender::new(0),
            killed: watch::Sender::new(None),
            stdin: Mutex::new(takes_stdin.then_some(stdin)),
            request,
        });
        lock(&self.table).insert(pid, Arc::clone(&process));
        let io = Io { sandbox: Arc::clone(sandbox), process: Arc::clone(&process), user, stdin: stdin_reader };
        tokio::spawn(run(io));
        Ok(process)
    }
}

async fn run(mut io: Io) {
    let (sandbox, process) = (Arc::clone(&io.sandbox), Arc::clone(&io.process));
    let mut killed = process.killed.subscribe();
    let deadline = async {
        match process.request.deadline_ms {
            Some(wait) => tokio::time::sleep(Duration::from_millis(wait)).await,
            None => std::future::pending().await,
        }
        sandbox.awake().await;
    };
    let status = tokio::select! {
        biased;
        () = sandbox.ended() => return,
        signal = killed.wait_for(Option::is_some) => {
            ExitStatus { code: None, signal: signal.ok().and_then(|signal| *signal), timed_out: false }
        }
        () = deadline => ExitStatus { code: None, signal: Some(SIGKILL), timed_out: true },
        code = programs::run(&mut io) => ExitStatus { code: Some(code), signal: None, timed_out: false },
    };
    process.finish(status);
}
