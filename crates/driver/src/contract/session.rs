//! A sandbox that a rule holds, and what it does inside.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sandbank_agent_protocol::{
    AgentError, ClientError, Connection, ErrorKind, ExitStatus, FileStat, Frame, OpenMode, ReadFile, Reply, Request,
    StartProcess, Stream, WriteFile,
};
use sandbank_model::{DriverHandle, Image, NetworkPlan, SandboxId, SandboxSpec, Timestamp};

use super::Subject;
use crate::{CreateRequest, Driver, DriverError, Target};

static IDS: AtomicU32 = AtomicU32::new(1);

/// Most bytes that a rule collects from one process.
const OUTPUT_MAX: usize = 64 * 1024 * 1024;

/// Waits at most half a minute: far more than anything takes that works.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("{what} takes longer than 30 s"))
}

/// A fresh id.
pub(super) fn fresh_id() -> SandboxId {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut random = [0; 10];
    random[..4].copy_from_slice(&since.subsec_nanos().to_be_bytes());
    random[4..8].copy_from_slice(&IDS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    SandboxId::new(Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap()), random)
}

/// A sandbox that exists.
#[derive(Debug)]
pub struct Held<'a> {
    driver: &'a dyn Driver,
    /// Id.
    pub id: SandboxId,
    /// The driver's note.
    pub handle: DriverHandle,
}

impl std::fmt::Debug for dyn Driver + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a process wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// End.
    pub exit: ExitStatus,
}

/// A request to run a program that takes no input.
pub(super) fn program(argv: &[&str]) -> StartProcess {
    StartProcess { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..StartProcess::default() }
}

impl<'a> Held<'a> {
    /// Makes one from the subject's image.
    pub async fn create(subject: &'a Subject) -> Held<'a> {
        Self::create_from(subject, fresh_id(), &subject.image).await.expect("a sandbox of a usable image can be made")
    }

    /// Makes one of this id from this image.
    pub async fn create_from(subject: &'a Subject, id: SandboxId, image: &Image) -> Result<Held<'a>, DriverError> {
        let driver = &*subject.driver;
        let request = CreateRequest {
            id,
            spec: SandboxSpec::of_image(image.name.clone()),
            image: image.clone(),
            network: NetworkPlan::closed(),
        };
        let handle = within("create", driver.create(request)).await?;
        Ok(Self { driver, id, handle })
    }

    /// As the driver's methods want it.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        Target { id: self.id, handle: &self.handle }
    }

    /// Destroys it.
    pub async fn destroy(&self) {
        within("destroy", self.driver.destroy(self.id)).await.expect("destroy succeeds");
    }

    /// Begins an operation.
    pub async fn open(&self, request: &Request) -> Result<Connection, DriverError> {
        within("open", self.driver.open(self.target(), request)).await
    }

    /// An operation of one reply.
    pub async fn ask(&self, request: &Request) -> Result<Reply, DriverError> {
        let mut connection = self.open(request).await?;
        Ok(within("the reply", connection.reply("a reply")).await?)
    }

    /// The agent's refusal of an operation.
    pub async fn refusal(&self, request: &Request) -> AgentError {
        match self.ask(request).await {
            Err(DriverError::Agent(ClientError::Refused(error))) => error,
            other => panic!("the agent refuses {request:?}, and yet: {other:?}"),
        }
    }

    /// Whether its agent answers.
    pub async fn answers(&self) -> bool {
        matches!(self.ask(&Request::Ping).await, Ok(Reply::Pong { .. }))
    }

    /// Starts a process; the connection streams it. Its pid is returned too.
    pub async fn start(&self, request: StartProcess) -> Result<(Connection, u32), DriverError> {
        let mut connection = self.open(&Request::Start(Box::new(request))).await?;
        match within("the start", connection.reply("Started")).await? {
            Reply::Started { pid } => Ok((connection, pid)),
            other => panic!("a start is answered with Started, not {other:?}"),
        }
    }

    /// Runs a program to its end.
    pub async fn run(&self, argv: &[&str]) -> Output {
        let (connection, _) = self.start(program(argv)).await.expect("the program can be started");
        collect(connection).await
    }

    /// Runs a line of shell to its end.
    pub async fn shell(&self, line: &str) -> Output {
        self.run(&["sh", "-c", line]).await
    }

    /// Writes a file as root.
    pub async fn write(&self, path: &str, content: &[u8]) -> Result<FileStat, DriverError> {
        let request = WriteFile { path: path.to_owned(), user: None, mode: None, open: OpenMode::Replace };
        let mut connection = self.open(&Request::Write(request)).await?;
        // A refusal may close the connection before all data is sent: the reply says why.
        if connection.send_data(Bytes::copy_from_slice(content)).await.is_ok() {
            let _ = connection.send_end().await;
        }
        match within("the write", connection.reply("Stat")).await? {
            Reply::Stat(stat) => Ok(stat),
            other => panic!("a write is answered with Stat, not {other:?}"),
        }
    }

    /// Reads a file as root.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, DriverError> {
        let request = ReadFile { path: path.to_owned(), user: None, offset: 0, length: None };
        let mut connection = self.open(&Request::Read(request)).await?;
        let Reply::Stat(_) = within("the read", connection.reply("Stat")).await? else { panic!("a read begins with Stat") };
        let mut content = Vec::new();
        loop {
            match within("the data", connection.next()).await? {
                Some(Frame::Data(data)) => content.extend_from_slice(&data),
                Some(Frame::End) => return Ok(content),
                other => panic!("data or the end, not {other:?}"),
            }
            assert!(content.len() <= OUTPUT_MAX, "the file is longer than what was written");
        }
    }

    /// Whether there is a file.
    pub async fn has(&self, path: &str) -> bool {
        match self.read(path).await {
            Ok(_) => true,
            Err(DriverError::Agent(ClientError::Refused(error))) if error.kind == ErrorKind::NotFound => false,
            other => panic!("a file is there or not found: {other:?}"),
        }
    }
}

/// Everything from a process that streams, to its end.
pub(super) async fn collect(mut connection: Connection) -> Output {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match within("the process", connection.next()).await.expect("the stream goes on to the exit") {
            Some(Frame::Output(Stream::Stderr, data)) => stderr.extend_from_slice(&data),
            Some(Frame::Output(_, data)) => stdout.extend_from_slice(&data),
            Some(Frame::Message(body)) => match Frame::parse::<Reply>(&body).unwrap() {
                Reply::Exited(exit) => return Output { stdout, stderr, exit },
                other => panic!("output or the exit, not {other:?}"),
            },
            other => panic!("output or the exit, not {other:?}"),
        }
        assert!(stdout.len() + stderr.len() <= OUTPUT_MAX, "the process writes without end");
    }
}
