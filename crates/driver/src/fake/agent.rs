//! The fake's agent: speaks the agent protocol on one end of a socket pair.

use std::sync::Arc;

use bytes::BytesMut;
use sandbank_agent_protocol::{
    AgentError, DATA_MAX, ErrorKind, Frame, FrameError, FrameReader, HostMessage, ListFiles, Metrics, PROTOCOL_VERSION, ReadFile,
    Reply, Request, WatchEvent, WatchEventKind, WatchFiles, WriteFile, write_frame,
};
use sandbank_model::SandboxId;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;

use super::faults::{AgentFault, Responder};
use super::files::{User, depth_below, resolve};
use super::lock;
use super::processes::{Offsets, Process};
use super::world::{FakeSandbox, World};

const ENTRIES_IN_A_FRAME: usize = 500;
const WRITE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of an HTTP head that the fake responder waits for.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why an operation ended early.
enum Stop {
    /// The agent refuses; the host is told.
    Refused(AgentError),
    /// The host is gone or talks nonsense.
    Lost,
}

impl From<AgentError> for Stop {
    fn from(error: AgentError) -> Self {
        Self::Refused(error)
    }
}

impl From<FrameError> for Stop {
    fn from(_: FrameError) -> Self {
        Self::Lost
    }
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Self::Lost
    }
}

/// One connection: answers one operation, or misbehaves as told.
pub(super) async fn serve(world: Arc<World>, id: SandboxId, sandbox: Arc<FakeSandbox>, mut stream: UnixStream) {
    let answer = async {
        match world.agent_fault(id) {
            AgentFault::None => answer(&world, &sandbox, stream).await,
            AgentFault::Die => {}
            AgentFault::Hang => {
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
            AgentFault::Garbage => {
                let _ = stream.write_all(&[0xff; 64]).await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
            AgentFault::OutOfTurn => {
                if let Ok(frame) = Frame::message(&Reply::StillRunning) {
                    let _ = write_frame(&mut stream, &frame).await;
                }
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = sandbox.ended() => {}
        () = answer => {}
    }
}

async fn answer(world: &World, sandbox: &Arc<FakeSandbox>, stream: UnixStream) {
    let (reader, writer) = stream.into_split();
    let mut host = Host { reader: FrameReader::new(reader), writer, sandbox: Arc::clone(sandbox) };
    if let Err(Stop::Refused(error)) = host.operation(world).await {
        let _ = host.reply(&Reply::Error(error)).await;
    }
}

struct Host {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    sandbox: Arc<FakeSandbox>,
}

impl Host {
    async fn send(&mut self, frame: &Frame) -> Result<(), Stop> {
        self.sandbox.awake().await;
        Ok(write_frame(&mut self.writer, frame).await?)
    }

    async fn reply(&mut self, reply: &Reply) -> Result<(), Stop> {
        self.send(&Frame::message(reply)?).await
    }

    async fn operation(&mut self, world: &World) -> Result<(), Stop> {
        let Some(Frame::Message(body)) = self.reader.next().await? else { return Err(Stop::Lost) };
        let request = Frame::parse::<Request>(&body)
            .map_err(|_| AgentError::new(ErrorKind::Unsupported, "this agent does not know the request"))?;
        self.sandbox.awake().await;
        let sandbox = Arc::clone(&self.sandbox);
        let reply = match request {
            Request::Ping => {
                let uptime_ms = u64::try_from(sandbox.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                Reply::Pong { protocol: PROTOCOL_VERSION, uptime_ms }
            }
            Request::Start(start) => {
                let kill = start.kill_on_disconnect;
                let process = sandbox.processes.start(&sandbox, *start)?;
                self.reply(&Reply::Started { pid: process.pid }).await?;
                return self.stream(&process, Offsets { stdout: 0, stderr: 0 }, true, kill).await;
            }
            Request::Attach(attach) => {
                let process = sandbox.processes.find(&attach.process)?;
                let offsets = process.offsets(attach.stdout_offset, attach.stderr_offset);
                let (stdout_offset, stderr_offset, pty) = (offsets.stdout, offsets.stderr, process.request.pty.is_some());
                self.reply(&Reply::Attached { pid: process.pid, stdout_offset, stderr_offset, pty }).await?;
                return self.stream(&process, offsets, !attach.no_follow, false).await;
            }
            Request::Signal(signal) => {
                sandbox.processes.find(&signal.process)?.signal(signal.signal)?;
                Reply::Done
            }
            Request::Resize(resize) => {
                let process = sandbox.processes.find(&resize.process)?;
                if process.request.pty.is_none() {
                    return Err(AgentError::new(ErrorKind::WrongKind, "the process has no terminal").into());
                }
                Reply::Done
            }
            Request::WriteStdin(selector) => {
                let process = sandbox.processes.find(&selector)?;
                loop {
                    match self.reader.next().await? {
                        Some(Frame::Data(data)) => process.write_stdin(data).await?,
                        Some(Frame::End) => break,
                        _ => return Err(Stop::Lost),
                    }
                }
                Reply::Done
            }
            Request::CloseStdin(selector) => {
                sandbox.processes.find(&selector)?.close_stdin();
                Reply::Done
            }
            Request::ListProcesses => Reply::Processes(sandbox.processes.list()),
            Request::Stat(stat) => Reply::Stat(lock(&sandbox.files).stat(&stat.path, stat.user.as_deref())?),
            Request::List(list) => return self.list(&list).await,
            Request::Read(read) => return self.read(&read).await,
            Request::Write(write) => return self.write(&write).await,
            Request::Move(rename) => told(&sandbox, lock(&sandbox.files).rename(&rename)?),
            Request::MakeDir(make) => told(&sandbox, lock(&sandbox.files).make_dir(&make)?),
            Request::Remove(remove) => {
                let changes = lock(&sandbox.files).remove(&remove)?;
                sandbox.tell(changes);
                Reply::Done
            }
            Request::Watch(watch) => return self.watch(&watch).await,
            Request::Dial { port } => return self.dial(world.responder(port), port).await,
            Request::Metrics => Reply::Metrics(metrics(&sandbox)),
            Request::Shutdown => Reply::Done,
        };
        self.reply(&reply).await
    }

    async fn list(&mut self, request: &ListFiles) -> Result<(), Stop> {
        let entries = lock(&self.sandbox.files).list(request)?;
        for piece in entries.chunks(ENTRIES_IN_A_FRAME) {
            self.reply(&Reply::Entries(piece.to_vec())).await?;
        }
        self.reply(&Reply::Done).await
    }

    async fn read(&mut self, request: &ReadFile) -> Result<(), Stop> {
        let (stat, content) = lock(&self.sandbox.files).read(&request.path, request.user.as_deref())?;
        self.reply(&Reply::Stat(stat)).await?;
        let from = usize::try_from(request.offset).unwrap_or(usize::MAX).min(content.len());
        let length = request.length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let wanted = content.slice(from..from.saturating_add(length).min(content.len()));
        for at in (0..wanted.len()).step_by(DATA_MAX) {
            self.send(&Frame::Data(wanted.slice(at..wanted.len().min(at + DATA_MAX)))).await?;
        }
        self.send(&Frame::End).await
    }

    async fn write(&mut self, request: &WriteFile) -> Result<(), Stop> {
        lock(&self.sandbox.files).check_write(request)?;
        let mut content = BytesMut::new();
        loop {
            match self.reader.next().await? {
                Some(Frame::Data(data)) if content.len() + data.len() <= WRITE_BYTES_MAX => content.extend_from_slice(&data),
                Some(Frame::Data(_)) => return Err(AgentError::new(ErrorKind::Exhausted, "no space left").into()),
                Some(Frame::End) => break,
                _ => return Err(Stop::Lost),
            }
        }
        self.sandbox.awake().await;
        let reply = told(&self.sandbox, lock(&self.sandbox.files).write(request, &content)?);
        self.reply(&reply).await
    }

    async fn watch(&mut self, request: &WatchFiles) -> Result<(), Stop> {
        let dir = resolve(&request.path, User::find(request.user.as_deref())?)?;
        lock(&self.sandbox.files).list(&ListFiles { path: dir.clone(), user: None, depth: 1, limit: 1 })?;
        let mut changes = self.sandbox.changes.subscribe();
        self.reply(&Reply::Done).await?;
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                frame = self.reader.next() => match frame? {
                    Some(_) => continue,
                    None => return Err(Stop::Lost),
                },
            };
            let event = match change {
                Ok(change) => match depth_below(&dir, &change.path) {
                    Some(depth) if depth == 1 || request.recursive => {
                        let path = change.path[dir.len()..].trim_start_matches('/').to_owned();
                        WatchEvent { path, kind: change.kind, is_dir: change.is_dir }
                    }
                    _ => continue,
                },
                Err(RecvError::Lagged(_)) => WatchEvent { path: String::new(), kind: WatchEventKind::Overflow, is_dir: true },
                Err(RecvError::Closed) => return Err(Stop::Lost),
            };
            self.reply(&Reply::Watched(event)).await?;
        }
    }

    /// Sends a process's output from `offsets` on, and its exit; takes stdin and messages meanwhile.
    async fn stream(&mut self, process: &Process, mut offsets: Offsets, follow: bool, kill: bool) -> Result<(), Stop> {
        let streamed = self.stream_until_end(process, &mut offsets, follow).await;
        if kill && streamed.is_err() {
            let _ = process.signal(9);
        }
        streamed
    }

    async fn stream_until_end(&mut self, process: &Process, offsets: &mut Offsets, follow: bool) -> Result<(), Stop> {
        let mut version = process.version.subscribe();
        loop {
            version.borrow_and_update();
            let (chunks, exit) = process.take(offsets);
            if let Some(exit) = exit {
                return self.reply(&Reply::Exited(exit)).await;
            }
            let idle = chunks.is_empty();
            for (stream, chunk) in chunks {
                self.send(&Frame::Output(stream, chunk)).await?;
            }
            if idle && !follow {
                return self.reply(&Reply::StillRunning).await;
            }
            tokio::select! {
                biased;
                frame = self.reader.next() => match frame? {
                    Some(frame) => take_input(process, frame).await?,
                    None => return Err(Stop::Lost),
                },
                _ = version.changed(), if idle => {}
                () = std::future::ready(()), if !idle => {}
            }
        }
    }

    async fn dial(&mut self, responder: Option<Responder>, port: u16) -> Result<(), Stop> {
        let refused = || AgentError::new(ErrorKind::NotFound, format!("nothing listens on port {port}"));
        let responder = responder.ok_or_else(refused)?;
        self.reply(&Reply::Done).await?;
        let mut head = BytesMut::new();
        while let Some(frame) = self.reader.next().await? {
            match (&responder, frame) {
                (Responder::Echo, Frame::Data(data)) => self.send(&Frame::Data(data)).await?,
                (Responder::Echo, Frame::End) => return self.send(&Frame::End).await,
                (Responder::Http { status, body }, Frame::Data(data)) => {
                    head.extend_from_slice(&data);
                    if head.windows(4).any(|end| end == b"\r\n\r\n") {
                        let length = body.len();
                        let answer =
                            format!("HTTP/1.1 {status} Fake\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                        self.send(&Frame::Data(answer.into())).await?;
                        return self.send(&Frame::End).await;
                    }
                    if head.len() > HEAD_BYTES_MAX {
                        return Err(Stop::Lost);
                    }
                }
                (Responder::Mirror, Frame::Data(data)) => {
                    head.extend_from_slice(&data);
                    while let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") {
                        let request = head.split_to(end + 4);
                        let mut answer =
                            BytesMut::from(format!("HTTP/1.1 200 Fake\r\ncontent-length: {}\r\n\r\n", request.len()).as_bytes());
                        answer.extend_from_slice(&request);
                        self.send(&Frame::Data(answer.freeze())).await?;
                    }
                    if head.len() > HEAD_BYTES_MAX {
                        return Err(Stop::Lost);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

async fn take_input(process: &Process, frame: Frame) -> Result<(), Stop> {
    // As with a real pipe, what a process no longer reads is lost without ending the stream of its output.
    match frame {
        Frame::Data(data) => {
            let _ = process.write_stdin(data).await;
        }
        Frame::End => process.close_stdin(),
        Frame::Message(body) => match Frame::parse::<HostMessage>(&body)? {
            HostMessage::Signal { signal, .. } => {
                let _ = process.signal(signal);
            }
            HostMessage::CloseStdin => process.close_stdin(),
            HostMessage::Resize(_) => {}
        },
        Frame::Output(..) => return Err(Stop::Lost),
    }
    Ok(())
}

fn told(sandbox: &FakeSandbox, (stat, changes): (sandbank_agent_protocol::FileStat, Vec<super::files::Change>)) -> Reply {
    sandbox.tell(changes);
    Reply::Stat(stat)
}

/// Counters of a sandbox.
pub(super) fn metrics(sandbox: &FakeSandbox) -> Metrics {
    let resources = &sandbox.spec.resources;
    Metrics {
        cpu_used_us: 1000,
        cpu_limit_millis: resources.cpu_millis,
        memory_used_bytes: 1024 * 1024,
        memory_cache_bytes: 0,
        memory_limit_bytes: resources.memory_bytes,
        disk_used_bytes: lock(&sandbox.files).size_bytes(),
        disk_limit_bytes: resources.disk_bytes,
        pids: sandbox.processes.running() + 1,
        pids_limit: resources.pids,
        oom_kills: 0,
        agent_bytes: 0,
    }
}
