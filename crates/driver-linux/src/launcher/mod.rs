//! The launcher: a process with one thread that clones sandboxes on the server's orders.
//!
//! It holds no state that matters: what exists is on disk and in the cgroup tree. Killed at any moment, it takes the sandboxes
//! that are still being set up with it and leaves the others running; the server starts another one.

mod child;
mod message;
mod mounts;
mod networks;
mod step;
mod userns;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::cgroup::remove_kept;
use crate::channel;
use crate::seccomp::Filter;
use crate::sys::{self, Cloned};
pub(crate) use message::{Answer, FDS_VARIABLE, MakeOrder, Order, PACKET_MAX};
use networks::Networks;
use step::{At, Step, StepError};
use userns::UserNamespaces;

/// The agent's program, built by the build script.
static AGENT: &[u8] = include_bytes!(env!("SANDBANK_AGENT"));

/// Connections to an agent that may wait to be accepted.
const AGENT_BACKLOG: i32 = 1024;
/// The lowest number that the launcher's own descriptors have: out of the way of those that the agent gets.
const OWN_FDS_FROM: i32 = 16;
/// Nice value of the launcher; see [`may_raise_priority`].
const LAUNCHER_NICE: i32 = 10;
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Runs the launcher on the descriptors that [`crate::LinuxDriver`] left open for it. Never returns.
///
/// Must be called before the process has made a second thread or opened anything: it clones, and it closes what it does not
/// know.
pub fn launcher_main() -> ! {
    let code = match Launcher::start().and_then(|mut launcher| launcher.serve()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandbank launcher: failed to {}: {}", error.step, error.errno);
            1
        }
    };
    std::process::exit(code)
}

/// Making sandboxes gives way to serving those that are there: a refill must not slow the claims that made it necessary. Only
/// where the sandboxes' own processes can be given back their priority.
fn may_raise_priority() -> bool {
    rustix::process::geteuid().is_root()
}

/// A server may be spared when the machine runs out of memory (`OOMScoreAdjust=` of systemd). Sandboxes inherit from the launcher,
/// and what root has raised they cannot lower again: without this, whatever runs in them could be spared in place of the host's
/// own programs. Without root there is no such protection to give up.
fn give_up_protection() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let protected = std::fs::read_to_string(SCORE).is_ok_and(|score| score.starts_with('-'));
    if protected {
        let _ = std::fs::write(SCORE, "0");
    }
}

/// Network namespaces belong to whoever makes them; only root's own may be entered by sandboxes of other ranges of ids.
fn may_prepare_networks() -> bool {
    rustix::process::geteuid().is_root()
}

struct Launcher {
    channel: OwnedFd,
    /// Held as long as this process, or a child that is still being set up, lives.
    _lock: OwnedFd,
    own_pidfd: OwnedFd,
    agent: OwnedFd,
    filter: Filter,
    namespaces: UserNamespaces,
    networks: Option<Networks>,
    sandboxes: PathBuf,
    sandboxes_fd: OwnedFd,
    cgroup_bases: Vec<PathBuf>,
    /// For orders. Kept, since each page of a fresh one would be copied that a child still shares.
    packet: Vec<u8>,
}

impl Launcher {
    fn start() -> Step<Self> {
        let (channel, lock) = inherited_descriptors()?;
        // The kernel reaps children; what ends on a terminal's Ctrl-C or hangup is the server, which then closes the channel.
        sys::ignore_signals(&[libc::SIGCHLD, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE]);
        let _ = rustix::process::setsid();
        rustix::process::umask(Mode::from_raw_mode(0o077));
        if may_raise_priority() {
            let _ = rustix::process::setpriority_process(None, LAUNCHER_NICE);
        }
        give_up_protection();
        let own = rustix::process::getpid();
        let own_pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).at("open its own pidfd")?;
        let agent = sealed_agent().at("seal the agent's program")?;
        let filter = Filter::compile().map_err(|_| StepError { step: "compile the system call filter", errno: Errno::INVAL })?;
        let mut packet = vec![0; PACKET_MAX];
        let (sandboxes, cgroup_bases, network) = match receive(&channel, &mut packet)? {
            Some(Order::Configure { sandboxes, cgroup_bases, network }) => (sandboxes, cgroup_bases, network),
            _ => return Err(Errno::PROTO).at("be configured"),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let sandboxes_fd = rustix::fs::open(&sandboxes, flags, Mode::empty()).at("open the directory of sandboxes")?;
        Ok(Self {
            channel,
            _lock: lock,
            own_pidfd,
            agent,
            filter,
            namespaces: UserNamespaces::default(),
            networks: if may_prepare_networks() { Some(Networks::start(network)?) } else { None },
            sandboxes,
            sandboxes_fd,
            cgroup_bases,
            packet,
        })
    }

    /// Takes orders until the server closes its end.
    fn serve(&mut self) -> Step<()> {
        while let Some(order) = self.next_order()? {
            let Order::Make(order) = order else { return Err(Errno::PROTO).at("take an order") };
            match self.make(&order) {
                Ok((pid, pidfd, network)) => {
                    self.answer(&Answer::Begun { seq: order.seq, pid, network }, Some(pidfd.as_fd()))?;
                }
                Err(error) => self.answer(&failure(&order, error), None)?,
            }
        }
        // However the server ended, nobody uses what it kept any more.
        remove_kept(&self.cgroup_bases);
        Ok(())
    }

    /// The next order; what orders use up is made ahead while none waits.
    fn next_order(&mut self) -> Step<Option<Order>> {
        while let Some(networks) = self.networks.as_mut().filter(|networks| networks.wants_more()) {
            // A machine that has no more of them tells so when an order needs one.
            if sys::is_readable(self.channel.as_fd()).at("look for an order")? || networks.add().is_err() {
                break;
            }
        }
        receive(&self.channel, &mut self.packet)
    }

    fn answer(&self, answer: &Answer, pidfd: Option<BorrowedFd<'_>>) -> Step<()> {
        channel::send(self.channel.as_fd(), answer, pidfd, SendFlags::NOSIGNAL).at("answer the server")
    }

    /// Makes a sandbox's directory, of a skeleton where there is one. It fails when there is a directory with something in it.
    fn make_directory(&self, name: &str, skeleton: Option<&Path>) -> Step<()> {
        if let Some(skeleton) = skeleton
            && rustix::fs::renameat(CWD, skeleton, &self.sandboxes_fd, name).is_ok()
        {
            return Ok(());
        }
        rustix::fs::mkdirat(&self.sandboxes_fd, name, Mode::RWXU).at("make the sandbox's directory")
    }

    /// Begins a sandbox: its directory, its agent's socket, its first process. With it comes which addresses it has.
    fn make(&mut self, order: &MakeOrder) -> Step<(u32, OwnedFd, Option<u16>)> {
        let name = order.manifest.id.to_string();
        let userns = match order.manifest.range {
            Some(range) => Some((self.namespaces.get(range)?, range)),
            None => None,
        };
        let own_ids = (rustix::process::geteuid(), rustix::process::getegid());
        let network = match &mut self.networks {
            Some(networks) => Some(networks.take()?),
            None => None,
        };
        let mut flags = NAMESPACES;
        if userns.is_none() {
            flags |= libc::CLONE_NEWUSER;
        }
        if network.is_none() {
            flags |= libc::CLONE_NEWNET;
        }
        self.make_directory(&name, order.skeleton.as_deref())?;
        let dir_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir_fd =
            rustix::fs::openat(&self.sandboxes_fd, &name, dir_flags, Mode::empty()).at("open the sandbox's directory")?;
        let listener = listen(dir_fd.as_fd()).at("make the agent's socket")?;
        let mut unified = None;
        for group in order.cgroups.iter().filter(|group| group.v2) {
            child::make_cgroup(group)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            unified = Some(rustix::fs::open(&group.dir, flags, Mode::empty()).at("open the cgroup")?);
        }
        let dir = self.sandboxes.join(&name);
        // SAFETY: the launcher has a single thread.
        match unsafe { sys::clone3(flags, unified.as_ref().map(AsFd::as_fd)) }.at("clone the first process")? {
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd, network.and_then(|network| network.number))),
            Cloned::Child => {
                let child = child::Child {
                    order,
                    dir: &dir,
                    listener: listener.as_fd(),
                    agent: self.agent.as_fd(),
                    userns: userns.as_ref().map(|(userns, range)| ((**userns).as_fd(), *range)),
                    network: network.as_ref(),
                    own_ids,
                    launcher: self.own_pidfd.as_fd(),
                    filter: &self.filter,
                };
                let error = child.run();
                let _ = self.answer(&failure(order, error), None);
                sys::exit_now(1)
            }
        }
    }
}

fn failure(order: &MakeOrder, error: StepError) -> Answer {
    Answer::Failed { seq: order.seq, step: error.step.to_owned(), errno: error.errno.raw_os_error() }
}

fn receive(channel: &OwnedFd, packet: &mut [u8]) -> Step<Option<Order>> {
    let received = channel::receive::<Order>(channel.as_fd(), packet).at("take an order")?;
    Ok(received.map(|(order, _)| order))
}

/// The channel and the lock, moved out of the way of the agent's numbers, and everything else closed.
fn inherited_descriptors() -> Step<(OwnedFd, OwnedFd)> {
    let text = std::env::var(FDS_VARIABLE).unwrap_or_default();
    let numbers = text.split_once(',').and_then(|(channel, lock)| Some((channel.parse().ok()?, lock.parse().ok()?)));
    let (channel, lock): (RawFd, RawFd) = numbers.ok_or(Errno::BADF).at("find the server's channel")?;
    if channel <= 2 || lock <= 2 {
        return Err(Errno::BADF).at("find the server's channel");
    }
    // SAFETY: the driver left exactly these two open for us, and nothing in this process owns them.
    let (channel, lock) = unsafe { (BorrowedFd::borrow_raw(channel), BorrowedFd::borrow_raw(lock)) };
    let away = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, OWN_FDS_FROM).at("find the server's channel");
    let (channel, lock) = (away(channel)?, away(lock)?);
    let (low, high) = (channel.as_raw_fd().min(lock.as_raw_fd()), channel.as_raw_fd().max(lock.as_raw_fd()));
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
        // SAFETY: besides the standard streams this process uses nothing yet but the two descriptors left out.
        unsafe { sys::close_between(first, last) }.at("close what it does not know")?;
    }
    Ok((channel, lock))
}

/// The agent's program in memory, so that no path leads to it. Nobody can change it, and its mode lets the sandboxes run it but
/// not read it: a process that runs what it cannot read is not dumpable, so nothing inside can trace it or open its `/proc`
/// entries (ptrace(2), `PR_SET_DUMPABLE` in prctl(2)).
fn sealed_agent() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // The flag that says that it will be run exists since Linux 6.3; before, all can be.
    let memory = match rustix::fs::memfd_create("sandbank-agent", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("sandbank-agent", flags)?,
        result => result?,
    };
    let mut rest = AGENT;
    while !rest.is_empty() {
        let written = rustix::io::write(&memory, rest)?;
        rest = &rest[written..];
    }
    // The descriptor that runs must not be one that can write, or the kernel says ETXTBSY. Opened while that is still allowed.
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let program = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o111))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    // Sealing the executable bits exists since Linux 6.3.
    match rustix::fs::fcntl_add_seals(&memory, seals | SealFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::fcntl_add_seals(&memory, seals)?,
        result => result?,
    }
    Ok(program)
}

/// A listening socket named `agent.sock` in `dir`, reached through its descriptor since socket paths are short.
fn listen(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let path = format!("/proc/self/fd/{}/agent.sock", dir.as_raw_fd());
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, AGENT_BACKLOG)?;
    Ok(socket)
}
