//! A server of our own for a row: started in a temporary data directory on a free port, ended at the end.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::host::Census;
use crate::{BenchError, Result};

/// The server binary: the one named, or `sandbank` beside this program. When cargo runs us it is built first, so that the one
/// measured is the one in the tree.
pub(crate) fn find_binary(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return path.canonicalize().map_err(|error| BenchError::new(format!("--server {}: {error}", path.display())));
    }
    let own = std::env::current_exe()?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "sandbank-server"]);
        if own.components().any(|part| part.as_os_str() == "release") {
            build.arg("--release");
        }
        if !build.status()?.success() {
            return Err(BenchError::new("building sandbank-server failed"));
        }
    }
    let beside = own.with_file_name("sandbank");
    if beside.exists() {
        Ok(beside)
    } else {
        Err(BenchError::new(format!(
            "no server at {}: run by `cargo run --release -p sandbank-bench`, or pass --server",
            beside.display()
        )))
    }
}

/// The configuration's file in the data directory.
const CONFIG: &str = "bench.toml";

/// A running server.
pub(crate) struct Server {
    child: Child,
    binary: PathBuf,
    data: Data,
    key: String,
    pub(crate) address: SocketAddr,
}

enum Data {
    Temporary(tempfile::TempDir),
    Given(PathBuf),
}

impl Server {
    /// Starts one with this configuration and waits until it serves.
    pub(crate) async fn start(binary: &Path, data_dir: Option<&Path>, config: &str) -> Result<Self> {
        let data = match data_dir {
            Some(path) => Data::Given(path.to_owned()),
            None => Data::Temporary(tempfile::Builder::new().prefix("sandbank-bench-").tempdir()?),
        };
        std::fs::write(data.path().join(CONFIG), config)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let key = fresh_key()?;
        let child = spawn(binary, data.path(), address, &key)?;
        let mut server = Self { child, binary: binary.to_owned(), data, key, address };
        server.wait_until_up().await?;
        Ok(server)
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// Sandboxes that the data directory holds: being made, there, or being destroyed.
    pub(crate) fn sandboxes(&self) -> usize {
        std::fs::read_dir(self.data_dir().join("sandboxes")).map_or(0, |entries| entries.flatten().count())
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(self.address, &self.key).await
    }

    /// Forgets the server's highest use of memory so far; what it uses now, bytes.
    pub(crate) fn memory_begin(&self) -> Result<u64> {
        // 5: reset the peak resident set size (proc_pid_clear_refs(5)).
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?;
        self.memory("VmRSS:")
    }

    /// Most memory that the server used since, bytes.
    pub(crate) fn memory_peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| BenchError::new(format!("no {field} in the server's status")))
    }

    pub(crate) fn census(&self) -> Census {
        Census::take(self.child.id(), self.data_dir())
    }

    /// `kill -9`, then a new one on the same data directory and port. How long from its start until it answers.
    pub(crate) async fn kill_and_restart(&mut self) -> Result<Duration> {
        self.child.kill()?;
        self.child.wait()?;
        let begun = Instant::now();
        self.child = spawn(&self.binary, self.data.path(), self.address, &self.key)?;
        self.wait_until_up().await?;
        Ok(begun.elapsed())
    }

    async fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(mut client) = self.client().await
                && client.get("/ping").await.is_ok()
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(BenchError::new(format!("the server ended while starting: {status}")));
            }
            if Instant::now() > deadline {
                return Err(BenchError::new("the server did not serve within 60 s"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.terminate();
        // Sandboxes outlive their server by design. A row that failed half-way left some: a server that knows of none destroys
        // whatever it finds in its data directory before it serves.
        if self.sandboxes_left() == 0 {
            return;
        }
        for file in ["sandbank.db", "sandbank.db-wal", "sandbank.db-shm"] {
            let _ = std::fs::remove_file(self.data.path().join(file));
        }
        let Ok(child) = spawn(&self.binary, self.data.path(), self.address, &self.key) else { return };
        self.child = child;
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.sandboxes_left() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.terminate();
    }
}

impl Server {
    fn sandboxes_left(&self) -> usize {
        std::fs::read_dir(self.data.path().join("sandboxes")).map_or(0, |entries| entries.flatten().count())
    }

    fn terminate(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Data {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

fn spawn(binary: &Path, data: &Path, address: SocketAddr, key: &str) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join("bench-server.log"))?;
    let child = Command::new(binary)
        .args(["serve", "--listen", &address.to_string(), "--data-dir"])
        .arg(data)
        .arg("--config")
        .arg(data.join(CONFIG))
        .env("SANDBANK_ADMIN_KEY", key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

fn fresh_key() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| BenchError::new(error.to_string()))?;
    Ok(format!("agbx_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}
