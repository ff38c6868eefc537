//! A host beyond this one: a network namespace of the bench's own. Needs root and Debian's `iproute2` and `util-linux`.
//!
//! All of it goes with the programs that hold the namespaces, and those end with the bench, however that ends.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::nanoseconds;
use crate::{BenchError, Result};

const PORT: u16 = 5201;
/// For documentation (RFC 5737), so nobody's: this host's end of the link, and the other one.
const LINK: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 10));
const NETWORK: &str = "203.0.113.0/24";
/// The same for the neighbour. No address of this host.
const DIRECT: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 10));
/// Interfaces' names in namespaces that hold nothing else.
const DIRECT_NAMES: (&str, &str) = ("direct", "neighbour");
const WAIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// The host beyond, with a sink on it.
pub(super) struct Outside {
    beyond: Namespace,
    /// Our end of the link.
    link: String,
}

impl Outside {
    pub(super) fn start() -> Result<Self> {
        let taken = ip(None, &["-oneline", "address", "show", "to", NETWORK])?;
        if !taken.trim().is_empty() {
            return Err(BenchError::new(format!("{NETWORK} is in use on this host: {}", taken.trim())));
        }
        // Two runs at the same time have two names, of at most 15 characters.
        let (link, peer) = (format!("sbench{}", std::process::id()), format!("sbpeer{}", std::process::id()));
        // From here on it is taken down whatever happens.
        let outside = Self { beyond: Namespace::start()?, link };
        connect(None, (&outside.link, &peer), &outside.beyond, LINK)?;
        wait_for("the host beyond does not listen", || Ok(TcpStream::connect_timeout(&outside.sink(), LOOK).is_ok()))?;
        Ok(outside)
    }

    /// Where it takes bytes.
    pub(super) fn sink(&self) -> SocketAddr {
        (LINK.1, PORT).into()
    }

    /// What a server must be told so that policies decide about it.
    pub(super) fn config(&self) -> String {
        format!("[network]\nallow_private = [\"{NETWORK}\"]\n")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // A pair ends with either end. What was not made, or is gone, needs no removing.
        let _ = ip(None, &["link", "delete", &self.link]);
    }
}

/// A neighbour of the host beyond.
pub(super) struct Direct(Namespace);

impl Direct {
    pub(super) fn start(outside: &Outside) -> Result<Self> {
        let neighbour = Namespace::start()?;
        connect(Some(&neighbour), DIRECT_NAMES, &outside.beyond, DIRECT)?;
        Ok(Self(neighbour))
    }

    /// Sends so much from it to the sink; the nanoseconds that it took.
    pub(super) fn send(&self, bytes: u64) -> Result<u64> {
        let to = SocketAddr::from((DIRECT.1, PORT)).to_string();
        let mut command = Command::new("nsenter");
        command.arg(self.0.net_argument()).arg("--").arg(std::env::current_exe()?).args(["send", &to, &bytes.to_string()]);
        nanoseconds(&run(&mut command)?)
    }
}

/// A network namespace and the sink that holds it.
struct Namespace(Child);

impl Namespace {
    fn start() -> Result<Self> {
        let ours = net_of(Path::new("/proc/self"))?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(std::env::current_exe()?).args(["sink", &PORT.to_string()]);
        // The sink ends when its standard input does, which is ours to hold.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut namespace = Self(child.map_err(|error| missing("unshare", &error))?);
        let process = PathBuf::from(format!("/proc/{}", namespace.0.id()));
        wait_for("`unshare --net` does not leave the network", || match namespace.0.try_wait()? {
            Some(status) => Err(BenchError::new(format!("`unshare --net` ended with {status}; it needs root"))),
            None => Ok(net_of(&process)? != ours),
        })?;
        Ok(namespace)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn net_argument(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn net_of(process: &Path) -> Result<PathBuf> {
    Ok(std::fs::read_link(process.join("ns/net"))?)
}

/// Connects two namespaces (`None`: ours) with a pair of interfaces, and gives both ends their addresses.
fn connect(
    from: Option<&Namespace>,
    (near, far): (&str, &str),
    to: &Namespace,
    (near_address, far_address): (Ipv4Addr, Ipv4Addr),
) -> Result<()> {
    ip(from, &["link", "add", near, "type", "veth", "peer", "name", far])?;
    ip(from, &["link", "set", far, "netns", &to.pid()])?;
    for (place, name, address) in [(from, near, near_address), (Some(to), far, far_address)] {
        ip(place, &["address", "add", &format!("{address}/24"), "dev", name])?;
        ip(place, &["link", "set", name, "up"])?;
    }
    Ok(())
}

/// Runs `ip` in a namespace; what it printed.
fn ip(place: Option<&Namespace>, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(if place.is_some() { "nsenter" } else { "ip" });
    if let Some(place) = place {
        command.arg(place.net_argument()).args(["--", "ip"]);
    }
    run(command.args(arguments))
}

fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().map_err(|error| missing(&name, &error))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(BenchError::new(format!("{command:?} ended with {status}: {}", String::from_utf8_lossy(&stderr).trim())))
}

fn missing(program: &str, error: &std::io::Error) -> BenchError {
    BenchError::new(format!("{program}: {error}; install Debian's iproute2 and util-linux"))
}

/// Waits until something is so, not for ever.
fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(BenchError::new(format!("{what} after {WAIT:?}")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
