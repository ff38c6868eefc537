//! A real server of the real binary, in a directory of its own, taken down with everything it made however a test ends.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

pub mod registry;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_sandbank");

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Whether this machine can run sandboxes as the tests need them; says why not.
pub fn can_run() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: these tests make sandboxes with all limits, which needs root");
    false
}

/// Waits until `seen` gives something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {WAIT:?} in vain for: {what}");
        std::thread::sleep(POLL);
    }
}

/// The binary without any of this shell's settings.
pub fn sandbank() -> Command {
    let mut command = Command::new(BINARY);
    for name in ["URL", "KEY", "DATA_DIR", "CONFIG", "LISTEN", "ADMIN_KEY", "SECRET_KEY", "REGISTRY_PASSWORD"] {
        command.env_remove(format!("SANDBANK_{name}"));
    }
    command.stdin(Stdio::null());
    command
}

/// How a command ended, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let code = output.status.code().unwrap_or_else(|| 1000 + output.status.signal().unwrap_or(0));
        Self {
            code,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// The one line of a command that must have failed with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

/// A running server.
pub struct Server {
    directory: TempDir,
    child: Option<Child>,
    /// Its data is on a file system of its own.
    on_small_disk: bool,
}

impl Server {
    /// Starts one on a free port, without pools.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// As [`Server::start`], with this configuration file.
    pub fn start_with(configuration: &str) -> Self {
        let mut server = Self::prepared(configuration);
        server.start_again();
        server
    }

    /// As [`Server::start_with`], with data on a file system of its own of so many MiB.
    pub fn start_on_small_disk(configuration: &str, mib: u32) -> Self {
        let mut server = Self::prepared(configuration);
        std::fs::create_dir(server.data()).unwrap();
        let options = std::ffi::CString::new(format!("size={mib}m,mode=0755")).unwrap();
        rustix::mount::mount("tmpfs", server.data(), "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
        server.on_small_disk = true;
        server.start_again();
        server
    }

    fn prepared(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("sandbank.toml"), configuration).unwrap();
        Self { directory, child: None, on_small_disk: false }
    }

    /// The file system of its own goes with all that is on it, but for the note of cgroups, which are looked for afterwards.
    fn unmount(&mut self, flags: rustix::mount::UnmountFlags) -> Result<(), rustix::io::Errno> {
        if self.on_small_disk {
            let note = self.data().join("cgroups.json");
            let cgroups = std::fs::read(&note).unwrap_or_default();
            rustix::mount::unmount(self.data(), flags)?;
            let _ = std::fs::write(&note, cgroups);
            self.on_small_disk = false;
        }
        Ok(())
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Starts the server on the same data, which must not be in use.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().append(true).create(true).open(self.directory.path().join("log")).unwrap();
        let child = sandbank()
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data())
            .arg("--config")
            .arg(self.directory.path().join("sandbank.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let pid = child.id();
        self.child = Some(child);
        wait_for("the server to serve", || {
            assert!(self.child.as_mut().unwrap().try_wait().unwrap().is_none(), "the server ended:\n{}", self.log());
            let notice = self.notice()?;
            (notice["pid"] == pid).then_some(())
        });
    }

    fn notice(&self) -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(self.data().join("server.json")).ok()?).ok()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        self.notice().expect("server.json")["url"].as_str().unwrap().to_owned()
    }

    /// The admin key.
    pub fn key(&self) -> String {
        std::fs::read_to_string(self.data().join("admin.key")).unwrap().trim().to_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: rustix::process::Signal) {
        send(self.pid(), signal);
    }

    /// Kills it: no goodbye. Its launcher and its sandboxes are not touched.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends it as a service manager does; gives its exit code.
    #[track_caller]
    pub fn terminate(&mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        let status = wait_for("the server to end", || child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    /// Waits for a server that ends by itself.
    pub fn reap(&mut self) {
        let mut child = self.child.take().expect("it ran");
        wait_for("the server to end", || child.try_wait().unwrap());
    }

    /// A client command for this server.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = sandbank();
        command.args(arguments).env("SANDBANK_DATA_DIR", self.data());
        command
    }

    /// Runs a client command; the words are split at spaces.
    pub fn cli(&self, line: &str) -> Ended {
        self.command(line.split_whitespace()).output().expect("it starts").into()
    }

    /// Runs a client command given word by word.
    pub fn words(&self, words: &[&str]) -> Ended {
        self.command(words).output().expect("it starts").into()
    }

    /// Runs a client command with something on its standard input.
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Ended {
        let mut child =
            self.command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || {
            // A program that does not read all of it closes the pipe.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.into()
    }

    /// A JSON document that a client command prints.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.cli(&format!("{line} --json")).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// Makes a pool of the host image and waits until it is full.
    #[track_caller]
    pub fn pool(&self, name: &str, replicas: u32) {
        self.cli(&format!("pool create {name} --image host --replicas {replicas} --memory 256Mi")).ok();
        self.wait_warm(name, replicas);
    }

    /// Waits until so many are warm.
    #[track_caller]
    pub fn wait_warm(&self, name: &str, replicas: u32) {
        wait_for(&format!("{replicas} warm sandboxes in {name}"), || {
            let pool = self.json(&format!("pool show {name}"));
            (pool["template"]["status"]["idleReplicas"] == replicas).then_some(())
        });
    }

    /// Claims from a pool.
    #[track_caller]
    pub fn claim(&self, line: &str) -> String {
        self.cli(&format!("claim {line}")).ok().trim().to_owned()
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.url().trim_start_matches("http://").to_owned()
    }

    /// Names in `<data>/sandboxes`: what is on disk.
    pub fn on_disk(&self) -> Vec<String> {
        names(&self.data().join("sandboxes"))
    }

    /// Takes everything down through the server.
    fn empty(&mut self) {
        if self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None))) {
            self.child = None;
            self.start_again();
        }
        let pools = self.json("pool list");
        for pool in pools["items"].as_array().into_iter().flatten() {
            self.words(&["pool", "delete", pool["name"].as_str().unwrap_or_default()]);
        }
        let sandboxes = self.cli("ps --quiet --warm");
        for id in sandboxes.stdout.lines() {
            self.words(&["rm", id]);
        }
        wait_for("all sandboxes to be gone from disk", || self.on_disk().is_empty().then_some(()));
    }

    /// Ends the server and checks that nothing of it is left on this machine.
    #[track_caller]
    pub fn finish(mut self) {
        self.empty();
        assert_eq!(self.terminate(), 0, "{}", self.log());
        // Busy while anything uses what is on it.
        wait_for("nobody to use its disk", || self.unmount(rustix::mount::UnmountFlags::empty()).ok());
        let left = wait_gone(&self.data());
        assert!(left.is_empty(), "left behind: {left:#?}");
        assert!(remove_cgroups(&self.data()), "cgroups in {:?} are not empty", cgroups_of(&self.data()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
        if self.directory.path().exists() && (self.child.is_some() || !self.on_disk().is_empty()) {
            let emptied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.empty()));
            if emptied.is_err() {
                eprintln!("could not take everything down: {:?}", remains(&self.data()));
            }
        }
        if let Some(mut child) = self.child.take() {
            send(child.id(), rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(12);
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(POLL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.unmount(rustix::mount::UnmountFlags::DETACH);
        remove_cgroups(&self.data());
    }
}

/// Removes the directories in which a server made its sandboxes' cgroups: it keeps them for its next start, and a test has
/// none. Says whether they were empty.
pub fn remove_cgroups(data: &Path) -> bool {
    let mut empty = true;
    for directory in cgroups_of(data) {
        match std::fs::remove_dir(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => empty = false,
            _ => {
                // Shared with servers of other tests: goes with the last one.
                let _ = directory.parent().map(std::fs::remove_dir);
            }
        }
    }
    empty
}

/// A bare request with a JSON body; gives the status and the body as JSON. An answer that breaks off is an error.
pub fn http(address: &str, key: &str, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
    let broken = |what: &str| std::io::Error::other(what.to_owned());
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nagentbox-api-key: {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| broken("no status"))?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| broken("no body"))?;
    if body.is_empty() {
        return Ok((status, Value::Null));
    }
    serde_json::from_str(body).map(|body| (status, body)).map_err(|_| broken("half a body"))
}

/// Sends a signal to a process that we started.
pub fn send(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Entries of a directory; none when there is no directory.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Launchers of the server whose data is in `data`: children of `server`.
pub fn launcher_of(server: u32) -> Option<u32> {
    names(Path::new("/proc")).iter().filter_map(|name| name.parse::<u32>().ok()).find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent == Some(server) && command.windows(8).any(|word| word == b"launcher")
    })
}

/// What a server in `data` can leave on a machine: cgroups that its note names, mounts below its directory, processes in them.
pub fn remains(data: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let data = data.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&data)).map(|line| format!("mount {line}")));
    for pid in names(Path::new("/proc")).iter().filter(|name| name.parse::<u32>().is_ok()) {
        let maps = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&maps).contains(&data) {
            left.push(format!("process {pid}: {}", String::from_utf8_lossy(&maps).replace('\0', " ")));
        }
    }
    for directory in cgroups_of(Path::new(&data)) {
        for name in names(&directory) {
            let path = directory.join(name);
            if path.is_dir() {
                left.push(format!("cgroup {}", path.display()));
            }
        }
    }
    left
}

/// The cgroup directories that hold the sandboxes of a server: the driver notes them beside its data.
fn cgroups_of(data: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(data.join("cgroups.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn wait_gone(data: &Path) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = remains(data);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(POLL);
    }
}
