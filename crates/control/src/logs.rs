//! A sandbox's log: what its command wrote, or what a runtime wrote into its log directory.
//!
//! While the sandbox lives, the agent keeps the last part of the output. When it ends, the last [`KEPT_BYTES`] are kept here, in
//! memory, for as many sandboxes as [`KEPT_TOTAL_BYTES`] and [`KEPT_ENTRIES`] allow; a restart forgets them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use sandbank_agent_protocol as agent;
use sandbank_agent_protocol::{AttachProcess, FileKind, ListFiles, ProcessSelector, ReadFile, Request, StartProcess, Stream};
use sandbank_driver::{Driver, Target};
use sandbank_model::{Actor, Command, DriverHandle, ExitInfo, Sandbox, SandboxId, State};

use crate::control::{Control, Inner};
use crate::convert::{out_of_turn, unresponsive};
use crate::processes::ProcessStream;
use crate::types::{Caller, Id, LogLine, LogQuery, Logs};
use crate::{Detail, Error, ErrorKind, Result};

/// Tag of the sandbox's own command.
pub(crate) const COMMAND_TAG: &str = "sandbank:command";
/// Bytes of log that outlive a sandbox.
const KEPT_BYTES: usize = 256 * 1024;
const KEPT_TOTAL_BYTES: usize = 64 * 1024 * 1024;
const KEPT_ENTRIES: usize = 4096;
/// Most bytes that one request reads, and longest time for it.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Output comes in pieces whose size the sandbox chooses: small ones are joined, and only so many are held.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_MAX: usize = 65_536;
const READ_TIME: Duration = Duration::from_secs(10);
/// Longest time that ending a sandbox waits for its log.
const KEEP_TIME: Duration = Duration::from_millis(500);
/// Log files of a runtime that are read, and bytes of each.
const FILES_MAX: usize = 32;
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Output as it was read, in order.
#[derive(Debug, Clone, Default)]
struct Captured {
    pieces: VecDeque<(bool, BytesMut)>,
    bytes: usize,
    /// Bytes that the command wrote in all.
    total: u64,
    truncated: bool,
}

impl Captured {
    fn push(&mut self, stderr: bool, data: &[u8], max: usize) {
        self.bytes += data.len();
        self.total += data.len() as u64;
        match self.pieces.back_mut() {
            Some((last, piece)) if *last == stderr && piece.len() + data.len() <= PIECE_BYTES => piece.extend_from_slice(data),
            _ => self.pieces.push_back((stderr, BytesMut::from(data))),
        }
        while self.bytes > max || self.pieces.len() > PIECES_MAX {
            let Some((stderr, mut oldest)) = self.pieces.pop_front() else { break };
            let surplus = self.bytes.saturating_sub(max);
            self.truncated = true;
            if surplus > 0 && oldest.len() > surplus {
                self.pieces.push_front((stderr, oldest.split_off(surplus)));
                self.bytes -= surplus;
            } else {
                self.bytes -= oldest.len();
            }
        }
    }

    fn into_logs(self, lines: Option<u32>, live: bool) -> Logs {
        let mut logs = Logs { lines: lines_of(&self.pieces), truncated: self.truncated, total_bytes: self.total, live };
        keep_last(&mut logs, lines);
        logs
    }
}

fn keep_last(logs: &mut Logs, lines: Option<u32>) {
    let wanted = lines.filter(|lines| *lines > 0).map_or(usize::MAX, |lines| lines as usize);
    if logs.lines.len() > wanted {
        logs.lines.drain(..logs.lines.len() - wanted);
        logs.truncated = true;
    }
}

fn lines_of(pieces: &VecDeque<(bool, BytesMut)>) -> Vec<LogLine> {
    let mut lines = Vec::new();
    let mut open: [BytesMut; 2] = [BytesMut::new(), BytesMut::new()];
    let line = |text: &[u8], stderr| LogLine { at: None, text: String::from_utf8_lossy(text).into_owned(), stderr };
    for (stderr, data) in pieces {
        let rest = &mut open[usize::from(*stderr)];
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(part);
            if let Some(whole) = rest.strip_suffix(b"\n") {
                lines.push(line(whole.strip_suffix(b"\r").unwrap_or(whole), *stderr));
                rest.clear();
            }
        }
    }
    for (stderr, rest) in [false, true].into_iter().zip(&open) {
        if !rest.is_empty() {
            lines.push(line(rest, stderr));
        }
    }
    lines
}

/// Logs of sandboxes that have ended, the oldest dropped first.
#[derive(Debug, Default)]
pub(crate) struct KeptLogs {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<SandboxId, Captured>,
    order: VecDeque<SandboxId>,
    bytes: usize,
}

impl KeptLogs {
    fn put(&self, id: SandboxId, log: Captured) {
        let mut kept = self.kept.lock();
        kept.bytes += log.bytes;
        match kept.by_id.insert(id, log) {
            Some(old) => kept.bytes -= old.bytes,
            None => kept.order.push_back(id),
        }
        while kept.bytes > KEPT_TOTAL_BYTES || kept.order.len() > KEPT_ENTRIES {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some(gone) = kept.by_id.remove(&oldest) {
                kept.bytes -= gone.bytes;
            }
        }
    }

    fn get(&self, id: SandboxId) -> Option<Captured> {
        self.kept.lock().by_id.get(&id).cloned()
    }
}

impl Control {
    /// Log lines. Of a runtime only while the sandbox runs; the command's also afterwards, as long as they are kept.
    pub async fn logs(&self, caller: &Caller, id: Id, query: LogQuery) -> Result<Logs> {
        let inner = &self.inner;
        let sandbox = inner.sandbox_of(caller, id).await?;
        if let Some(runtime) = &query.runtime {
            let mut logs = inner.runtime_logs(caller, &sandbox, runtime).await?;
            keep_last(&mut logs, query.lines);
            return Ok(logs);
        }
        let live = sandbox.state.is_operable() && sandbox.expiry(inner.now()).is_none();
        if sandbox.spec.command.is_empty() {
            return Ok(Captured::default().into_logs(query.lines, live));
        }
        if live {
            let reading = inner.read_command_log(&sandbox, READ_BYTES);
            let captured = tokio::time::timeout(READ_TIME, reading).await.map_err(|_| inner.suspect(id, unresponsive()))??;
            return Ok(captured.into_logs(query.lines, true));
        }
        if matches!(sandbox.state, State::Paused | State::Pausing | State::Resuming) {
            let message = format!("sandbox {id} is {}: resume it to read its log", sandbox.state.as_str());
            return Err(Error::new(ErrorKind::State, message).with(Detail::State(sandbox.state)));
        }
        Ok(inner.kept_logs.get(id).unwrap_or_default().into_logs(query.lines, false))
    }

    /// The command's output from the start of what is kept, then as it comes. Ends when the sandbox does.
    pub async fn logs_follow(&self, caller: &Caller, id: Id) -> Result<ProcessStream> {
        let sandbox = self.inner.running(caller, id).await?;
        if sandbox.spec.command.is_empty() {
            return Err(Error::not_found("this sandbox has no command, hence no log to follow"));
        }
        self.process_attach(caller, id, attach_command(false)).await
    }
}

fn attach_command(no_follow: bool) -> AttachProcess {
    let process = ProcessSelector::Tag(COMMAND_TAG.to_owned());
    AttachProcess { process, stdout_offset: Some(0), stderr_offset: Some(0), no_follow }
}

impl Inner {
    /// Starts the sandbox's own command, with what the spec says over `env`. Nobody is connected to it: it lives as long as the
    /// sandbox.
    pub(crate) async fn start_command(
        &self,
        driver: &dyn Driver,
        sandbox: &Sandbox,
        handle: &DriverHandle,
        mut env: BTreeMap<String, String>,
    ) -> Result<()> {
        let spec = &sandbox.spec;
        env.extend(spec.env.clone());
        let start = StartProcess {
            argv: spec.command.clone(),
            env,
            cwd: spec.workdir.clone(),
            user: spec.user.clone(),
            tag: Some(COMMAND_TAG.to_owned()),
            ..StartProcess::default()
        };
        let request = Request::Start(Box::new(start));
        let starting = async {
            let mut connection = driver.open(Target { id: sandbox.id, handle }, &request).await?;
            match connection.reply("started").await? {
                agent::Reply::Started { .. } => Ok(()),
                _ => Err(out_of_turn()),
            }
        };
        let started = tokio::time::timeout(START_TIMEOUT, starting).await.unwrap_or_else(|_| Err(unresponsive()));
        started.map_err(|error| Error::new(error.kind, format!("the command could not be started: {}", error.message)))
    }

    /// Waits for the command's end beside everything else, if there is a command whose end is not known, and records it.
    pub(crate) fn follow_command(self: &Arc<Self>, sandbox: &Sandbox) {
        if sandbox.spec.command.is_empty() || sandbox.exit.is_some() {
            return;
        }
        let (inner, sandbox) = (Arc::clone(self), sandbox.clone());
        self.tasks.spawn(async move {
            if let Err(error) = inner.wait_for_command(&sandbox).await {
                tracing::debug!(sandbox = %sandbox.id, error = %error, "the end of a sandbox's command was not seen");
            }
        });
    }

    async fn wait_for_command(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let (driver, handle) = self.target_of(sandbox)?;
        // From now on only: the output itself stays with the agent.
        let attach = AttachProcess { stdout_offset: None, stderr_offset: None, ..attach_command(false) };
        let mut connection = driver.open(Target { id: sandbox.id, handle: &handle }, &Request::Attach(attach)).await?;
        loop {
            let frame = tokio::select! {
                frame = connection.next() => frame?,
                () = self.tasks.closing.cancelled() => return Ok(()),
            };
            match frame {
                Some(agent::Frame::Output(..)) => {}
                Some(agent::Frame::Message(body)) => match agent::Frame::parse::<agent::Reply>(&body)? {
                    agent::Reply::Attached { .. } => {}
                    agent::Reply::Exited(status) => return self.record_exit(sandbox.id, status.shell_code()).await,
                    agent::Reply::Error(error) => return Err(error.into()),
                    _ => return Err(out_of_turn()),
                },
                None => return Ok(()),
                Some(_) => return Err(out_of_turn()),
            }
        }
    }

    async fn record_exit(&self, id: SandboxId, code: i32) -> Result<()> {
        self.advance(id, &Actor::system(), |sandbox, _| {
            let open = sandbox.exit.is_none()
                && matches!(sandbox.state, State::Ready | State::Running | State::Pausing | State::Paused | State::Resuming);
            Ok(open.then_some(Command::CommandExited(ExitInfo { code })))
        })
        .await?;
        Ok(())
    }

    /// What the agent has of the command's output, the last `max` bytes. The sandbox's idle clock is not touched.
    async fn read_command_log(&self, sandbox: &Sandbox, max: usize) -> Result<Captured> {
        let (driver, handle) = self.target_of(sandbox)?;
        let target = Target { id: sandbox.id, handle: &handle };
        let mut connection = driver.open(target, &Request::Attach(attach_command(true))).await?;
        let mut captured = Captured::default();
        loop {
            match connection.next().await? {
                Some(agent::Frame::Output(stream, data)) => captured.push(stream == Stream::Stderr, &data, max),
                Some(agent::Frame::Message(body)) => match agent::Frame::parse::<agent::Reply>(&body)? {
                    agent::Reply::Attached { stdout_offset, stderr_offset, .. } => {
                        captured.total = stdout_offset.saturating_add(stderr_offset);
                        captured.truncated = captured.total > 0;
                    }
                    agent::Reply::Exited(_) | agent::Reply::StillRunning => return Ok(captured),
                    agent::Reply::Error(error) => return Err(error.into()),
                    _ => return Err(out_of_turn()),
                },
                Some(_) => return Err(out_of_turn()),
                None => return Err(agent::FrameError::Truncated.into()),
            }
        }
    }

    /// Keeps the log of a sandbox that is about to be destroyed. What cannot be had quickly is not kept.
    pub(crate) async fn keep_log(self: &Arc<Self>, sandbox: &Sandbox) {
        let readable = sandbox.handle.is_some() && sandbox.paused_at.is_none() && sandbox.lease.is_some();
        if sandbox.spec.command.is_empty() || !readable {
            return;
        }
        if let Ok(Ok(captured)) = tokio::time::timeout(KEEP_TIME, self.read_command_log(sandbox, KEPT_BYTES)).await {
            self.kept_logs.put(sandbox.id, captured);
        }
    }

    async fn runtime_logs(self: &Arc<Self>, caller: &Caller, sandbox: &Sandbox, runtime: &str) -> Result<Logs> {
        let runtimes = self.runtimes_of(sandbox).await?;
        let found = runtimes.into_iter().find(|found| found.name == runtime);
        let dir = found
            .ok_or_else(|| Error::invalid(format!("this sandbox has no runtime {runtime:?}")))?
            .log_dir
            .ok_or_else(|| Error::invalid(format!("the runtime {runtime:?} has no log directory")))?;
        let control = Control { inner: Arc::clone(self) };
        let list = ListFiles { path: dir, user: None, depth: 1, limit: 1000 };
        let mut files = control.file_list(caller, sandbox.id, list).await?;
        files.retain(|file| file.kind == FileKind::File);
        files.sort_by(|a, b| (a.modified_at_ms, &a.path).cmp(&(b.modified_at_ms, &b.path)));
        let mut captured = Captured { truncated: files.len() > FILES_MAX, ..Captured::default() };
        let skipped = files.len().saturating_sub(FILES_MAX);
        for file in files.into_iter().skip(skipped) {
            let offset = file.size.saturating_sub(READ_BYTES as u64);
            captured.truncated |= offset > 0;
            let read = ReadFile { path: file.path, user: None, offset, length: Some(READ_BYTES as u64) };
            let mut reader = control.file_read(caller, sandbox.id, read).await?;
            while let Some(piece) = reader.next().await? {
                captured.push(false, &piece, READ_BYTES);
            }
        }
        Ok(captured.into_logs(None, true))
    }
}

#[cfg(test)]
mod tests {
    use super::Captured;

    #[test]
    fn lines_are_whole_and_keep_their_stream_and_the_oldest_bytes_go_first() {
        let mut captured = Captured::default();
        captured.push(false, b"first\nsec", 100);
        captured.push(true, b"oops\r\n", 100);
        captured.push(false, b"ond\nopen", 100);
        let logs = captured.clone().into_logs(None, true);
        let lines: Vec<(&str, bool)> = logs.lines.iter().map(|line| (line.text.as_str(), line.stderr)).collect();
        assert_eq!(lines, [("first", false), ("oops", true), ("second", false), ("open", false)]);
        assert!(!logs.truncated);
        assert_eq!(captured.clone().into_logs(Some(1), true).lines.len(), 1);
        captured.push(false, b"0123456789", 12);
        assert_eq!(captured.bytes, 12);
        for n in 0..200_000 {
            captured.push(n % 2 == 0, b"x", 1_000_000);
        }
        assert!(captured.pieces.len() <= super::PIECES_MAX);
        assert!(captured.into_logs(None, false).truncated);
    }
}
