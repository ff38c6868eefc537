//! Starts the real agent as an ordinary process and talks to it.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandbank_agent_protocol::{
    AgentError, AttachProcess, ClientError, Connection, ErrorKind, ExitStatus, FileStat, Frame, ProcessSelector, Reply, Request,
    StartProcess, Stream,
};
use tempfile::TempDir;
use tokio::net::UnixStream;

/// Anything that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent; killed with all its groups when dropped.
pub struct TestAgent {
    child: Child,
    pub dir: TempDir,
    pub socket: PathBuf,
}

impl TestAgent {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        // Sandbox users must be able to reach files in it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let socket = dir.path().join("agent.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandbank-agent"));
        command.arg("--listen").arg(&socket);
        Self::launch(dir, socket, command).await
    }

    /// The same with a command that ends up as the agent.
    pub async fn launch(dir: TempDir, socket: PathBuf, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let agent = Self { child, dir, socket };
        let connects = || std::os::unix::net::UnixStream::connect(&agent.socket).is_ok();
        eventually("the agent listens", connects).await;
        assert!(matches!(agent.ask(&Request::Ping).await, Ok(Reply::Pong { protocol: 1, .. })));
        agent
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the agent's scratch directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub async fn stream(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    pub async fn begin(&self, request: &Request) -> Connection {
        Connection::begin(self.stream().await, request).await.unwrap()
    }

    /// One request, one reply.
    pub async fn ask(&self, request: &Request) -> Result<Reply, AgentError> {
        let mut connection = self.begin(request).await;
        reply(&mut connection).await
    }

    /// Starts a process and says its pid; the connection follows it.
    pub async fn spawn(&self, start: StartProcess) -> (u32, Connection) {
        let mut connection = self.begin(&Request::Start(Box::new(start))).await;
        match reply(&mut connection).await.unwrap() {
            Reply::Started { pid } => (pid, connection),
            other => panic!("expected Started, got {other:?}"),
        }
    }

    /// Runs a shell command to its end.
    pub async fn shell(&self, script: &str) -> Ran {
        self.run(shell(script)).await
    }

    pub async fn run(&self, start: StartProcess) -> Ran {
        let (_, mut connection) = self.spawn(start).await;
        collect(&mut connection).await
    }

    /// What a refused start says.
    pub async fn refused(&self, start: StartProcess) -> AgentError {
        self.ask(&Request::Start(Box::new(start))).await.unwrap_err()
    }

    pub async fn read(&self, request: sandbank_agent_protocol::ReadFile) -> Result<(FileStat, Vec<u8>), AgentError> {
        let mut connection = self.begin(&Request::Read(request)).await;
        let Reply::Stat(stat) = reply(&mut connection).await? else { panic!("expected Stat") };
        let mut content = Vec::new();
        loop {
            match next(&mut connection).await {
                Some(Frame::Data(data)) => content.extend_from_slice(&data),
                Some(Frame::End) => return Ok((stat, content)),
                Some(Frame::Message(body)) => match Frame::parse::<Reply>(&body).unwrap() {
                    Reply::Error(error) => return Err(error),
                    other => panic!("unexpected {other:?}"),
                },
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub async fn write(
        &self,
        request: sandbank_agent_protocol::WriteFile,
        content: impl Into<Vec<u8>>,
    ) -> Result<FileStat, AgentError> {
        let mut connection = self.begin(&Request::Write(request)).await;
        // A refusal may close the connection before all is sent.
        let _ = connection.send_data(content.into().into()).await;
        let _ = connection.send_end().await;
        match reply(&mut connection).await? {
            Reply::Stat(stat) => Ok(stat),
            other => panic!("expected Stat, got {other:?}"),
        }
    }

    pub async fn list(&self, request: sandbank_agent_protocol::ListFiles) -> Result<Vec<FileStat>, AgentError> {
        let mut connection = self.begin(&Request::List(request)).await;
        let mut all = Vec::new();
        loop {
            match reply(&mut connection).await? {
                Reply::Entries(entries) => all.extend(entries),
                Reply::Done => return Ok(all),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        // Its processes first: the agent as an ordinary process does not take them along.
        if let Ok(children) = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())) {
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process did.
#[derive(Debug, Default)]
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub exit: Option<ExitStatus>,
}

impl Ran {
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub fn err(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }

    pub fn code(&self) -> i32 {
        self.exit.expect("it has ended").shell_code()
    }
}

pub fn argv(words: &[&str]) -> StartProcess {
    StartProcess { argv: words.iter().map(|word| (*word).to_owned()).collect(), ..StartProcess::default() }
}

pub fn shell(script: &str) -> StartProcess {
    argv(&["/bin/sh", "-c", script])
}

pub fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn attach(pid: u32, offset: Option<u64>) -> Request {
    Request::Attach(AttachProcess {
        process: ProcessSelector::Pid(pid),
        stdout_offset: offset,
        stderr_offset: offset,
        no_follow: false,
    })
}

pub async fn next(connection: &mut Connection) -> Option<Frame> {
    tokio::time::timeout(PATIENCE, connection.next()).await.expect("the agent hangs").unwrap()
}

pub async fn reply(connection: &mut Connection) -> Result<Reply, AgentError> {
    match tokio::time::timeout(PATIENCE, connection.reply("a reply")).await.expect("the agent hangs") {
        Ok(reply) => Ok(reply),
        Err(ClientError::Refused(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Follows a process to its end.
pub async fn collect(connection: &mut Connection) -> Ran {
    let mut ran = Ran::default();
    while !step(connection, &mut ran).await {}
    ran
}

/// Follows a process until its output holds `text`.
pub async fn collect_until(connection: &mut Connection, ran: &mut Ran, text: &str) {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    while !holds(&ran.stdout) && !holds(&ran.pty) && !holds(&ran.stderr) {
        assert!(!step(connection, ran).await, "it ended without {text:?}: {ran:?}");
    }
}

async fn step(connection: &mut Connection, ran: &mut Ran) -> bool {
    let frame = tokio::time::timeout(PATIENCE, connection.next()).await;
    match frame.unwrap_or_else(|_| panic!("the process says no more after {ran:?}")).unwrap() {
        Some(Frame::Output(Stream::Stdout, data)) => ran.stdout.extend_from_slice(&data),
        Some(Frame::Output(Stream::Stderr, data)) => ran.stderr.extend_from_slice(&data),
        Some(Frame::Output(Stream::Pty, data)) => ran.pty.extend_from_slice(&data),
        Some(Frame::Message(body)) => match Frame::parse::<Reply>(&body).unwrap() {
            Reply::Exited(exit) => {
                ran.exit = Some(exit);
                return true;
            }
            Reply::StillRunning => return true,
            other => panic!("unexpected {other:?}"),
        },
        other => panic!("unexpected {other:?}"),
    }
    false
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process exists and has not ended.
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// A process's state letter from `/proc`.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Private memory of a process, KiB.
pub fn private_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test cannot run here.
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

pub fn assert_kind<T: std::fmt::Debug>(outcome: Result<T, AgentError>, kind: ErrorKind, part: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, kind, "{}", error.message);
    assert!(error.message.contains(part), "{:?} does not say {part:?}", error.message);
}

pub fn exists(path: &str) -> bool {
    Path::new(path).symlink_metadata().is_ok()
}
