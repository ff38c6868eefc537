//! What the first process of a sandbox does between being cloned and becoming the agent.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal};

use super::message::MakeOrder;
use super::networks::Network;
use super::step::{At, Step, StepError};
use super::{mounts, networks, userns};
use crate::cgroup::{CgroupOrder, write_value};
use crate::manifest::start_ticks;
use crate::ranges::range_first_id;
use crate::seccomp::Filter;
use crate::{caps, sys};

/// Where the agent finds its listening socket.
const AGENT_LISTEN_FD: i32 = 3;
/// Where the agent's program is held until it runs.
const AGENT_PROGRAM_FD: i32 = 4;
/// What the agent is called with.
const AGENT_ARGV: [&CStr; 3] = [c"sandbank-agent", c"--listen-fd", c"3"];
/// Tells that descriptor 3 is meant for it (sd_listen_fds(3)); without this the agent runs itself again to be told.
const AGENT_ENVIRONMENT: [&CStr; 1] = [c"LISTEN_FDS=1"];
/// Most open files of one process, unless the host allows fewer.
const OPEN_FILES_MAX: u64 = 65_536;

/// What the launcher hands to the child it clones.
pub(super) struct Child<'a> {
    pub(super) order: &'a MakeOrder,
    /// The sandbox's directory.
    pub(super) dir: &'a Path,
    /// The agent's listening socket.
    pub(super) listener: BorrowedFd<'a>,
    /// The agent's program, sealed.
    pub(super) agent: BorrowedFd<'a>,
    /// The sandbox's user namespace, with its range of ids. Without one (no root) the child was born in its own, unmapped yet.
    pub(super) userns: Option<(BorrowedFd<'a>, u32)>,
    /// The sandbox's network namespace, ready to be used. Without one the child was born in its own.
    pub(super) network: Option<&'a Network>,
    /// User and group that the launcher runs as.
    pub(super) own_ids: (Uid, Gid),
    /// The launcher itself.
    pub(super) launcher: BorrowedFd<'a>,
    pub(super) filter: &'a Filter,
}

impl Child<'_> {
    /// Sets the sandbox up and becomes the agent. Returns only the failure.
    pub(super) fn run(&self) -> StepError {
        match self.set_up() {
            Ok(never) => never,
            Err(error) => error,
        }
    }

    fn set_up(&self) -> Step<StepError> {
        self.die_with_launcher()?;
        if self.userns.is_none() {
            userns::map_own_ids(self.own_ids.0, self.own_ids.1)?;
        }
        self.write_manifest()?;
        for order in self.order.cgroups.iter().filter(|order| !order.v2) {
            enter_cgroup(order)?;
        }
        sys::unshare_namespaces(libc::CLONE_NEWCGROUP).at("make a cgroup namespace")?;
        match self.network {
            Some(network) => sys::setns(network.namespace.as_fd(), libc::CLONE_NEWNET).at("enter the network namespace")?,
            None => sys::loopback_up().at("bring the loopback interface up")?,
        }
        rustix::system::sethostname(self.order.hostname.as_bytes()).at("set the host name")?;
        let ids = match self.userns {
            Some((userns, range)) => mounts::Ids::Range { userns, first: range_first_id(range) },
            None => mounts::Ids::Own,
        };
        rustix::process::umask(Mode::empty());
        mounts::isolate()?;
        mounts::root(self.dir, &self.order.root, &ids)?;
        mounts::system(&ids, self.order.limits().memory_bytes)?;
        networks::open_ports(Path::new("proc"), if self.userns.is_some() { networks::EVERY_GROUP } else { networks::ONE_GROUP })?;
        mounts::pivot()?;
        self.become_agent()
    }

    /// Until this process has written down that it exists it must not outlive the launcher: whoever takes over next could not
    /// know of it. As the agent it does.
    fn die_with_launcher(&self) -> Step<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at("follow the launcher")?;
        match sys::is_readable(self.launcher).at("follow the launcher")? {
            false => Ok(()),
            true => Err(Errno::SRCH).at("follow the launcher"),
        }
    }

    /// Through the host's `/proc`, which shows this process by the pid that the host knows.
    fn write_manifest(&self) -> Step<()> {
        let step = "write the manifest";
        let own = fs::read_link("/proc/self").at(step)?;
        let pid = own.to_str().and_then(|pid| pid.parse().ok()).ok_or(Errno::INVAL).at(step)?;
        let start_ticks = start_ticks("self").ok_or(Errno::SRCH).at(step)?;
        let mut manifest = self.order.manifest.clone();
        (manifest.pid, manifest.start_ticks) = (pid, start_ticks);
        manifest.network = self.network.and_then(|network| network.number);
        manifest.write(self.dir).at(step)
    }

    fn become_agent(&self) -> Step<StepError> {
        // The launcher gives way to the server; programs inside run as they would anywhere. Fails without root, where the
        // launcher did not lower it.
        let _ = rustix::process::setpriority_process(None, 0);
        if let Some((userns, _)) = self.userns {
            userns::enter_as_root(userns)?;
        }
        rustix::process::set_parent_process_death_signal(None).at("let go of the launcher")?;
        rustix::process::setsid().at("begin a session")?;
        limit_resources(self.order.limits().disk_bytes).at("limit resources")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        sys::default_signals();
        place_descriptors(self.listener, self.agent).at("place the descriptors")?;
        self.filter.install().at("install the system call filter")?;
        caps::drop_to_kept().at("drop capabilities")?;
        // SAFETY: the descriptor was just placed there, and nothing owns or closes it before the exec.
        let agent = unsafe { BorrowedFd::borrow_raw(AGENT_PROGRAM_FD) };
        Err(sys::exec_fd(agent, &AGENT_ARGV, &AGENT_ENVIRONMENT)).at("run the agent")
    }
}

/// Enters a cgroup v1 directory, which is made unless it is there already.
fn enter_cgroup(order: &CgroupOrder) -> Step<()> {
    // `tasks` and not `cgroup.procs`: for the caller's own single thread the kernel then takes no global lock.
    let enter = || write_value(&order.dir.join("tasks"), "0");
    if order.kept {
        match enter() {
            // Somebody tidied up.
            Err(Errno::NOENT | Errno::NODEV) => {}
            result => return result.at("enter a cgroup"),
        }
    }
    make_cgroup(order)?;
    enter().at("enter a cgroup")
}

/// Makes one cgroup directory and writes its limits.
pub(super) fn make_cgroup(order: &CgroupOrder) -> Step<()> {
    let make = || rustix::fs::mkdir(&order.dir, Mode::from_raw_mode(0o755));
    match make() {
        Ok(()) | Err(Errno::EXIST) => {}
        // Somebody tidied up the empty directory above it.
        Err(Errno::NOENT) => {
            order.make_above().at("make the cgroup above")?;
            make().at("make a cgroup")?;
        }
        Err(errno) => return Err(errno).at("make a cgroup"),
    }
    for (file, value) in &order.writes {
        let (file, optional) = file.strip_suffix('?').map_or((file.as_str(), false), |file| (file, true));
        match write_value(&order.dir.join(file), value) {
            Err(Errno::NOENT) if optional => {}
            result => result.at("write a cgroup's limit")?,
        }
    }
    Ok(())
}

fn limit_resources(file_bytes: u64) -> Result<(), Errno> {
    let fixed = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    let at_most = |resource: Resource, wanted: u64| {
        let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        rustix::process::setrlimit(resource, fixed(wanted.min(hard)))
    };
    at_most(Resource::Nofile, OPEN_FILES_MAX)?;
    at_most(Resource::Core, 0)?;
    at_most(Resource::Fsize, file_bytes)
}

/// Standard streams to the sandbox's own `/dev/null`, the socket and the program to their numbers, all others closed.
fn place_descriptors(listener: BorrowedFd<'_>, agent: BorrowedFd<'_>) -> Result<(), Errno> {
    let null: OwnedFd = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // First out of the way of each other's places.
    let high = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, AGENT_PROGRAM_FD + 1);
    let (null, listener, agent) = (high(null.as_fd())?, high(listener)?, high(agent)?);
    // SAFETY: this process becomes another program or exits; nothing else uses descriptors 0 to 4 from here on, and what is
    // dropped above them has been closed by `close_from`, after which the owners are forgotten.
    unsafe {
        for stream in 0..3 {
            sys::dup_onto(null.as_raw_fd(), stream, 0)?;
        }
        sys::dup_onto(listener.as_raw_fd(), AGENT_LISTEN_FD, 0)?;
        sys::dup_onto(agent.as_raw_fd(), AGENT_PROGRAM_FD, libc::O_CLOEXEC)?;
    }
    // The failure channel stays until the exec closes it: every descriptor of the launcher is close-on-exec.
    Ok(())
}
