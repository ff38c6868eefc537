//! From the command line to a serving agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::rc::Rc;
use std::{io, process};

use listenfd::ListenFd;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::server::{self, Agent};

/// Set for the agent by whoever hands it the socket (systemd's protocol): the descriptor's number follows from it.
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FIRST: &str = "LISTEN_FDS_FIRST_FD";
const LISTEN_FIRST_DEFAULT: u32 = 3;
/// Room for events taken from the kernel at once.
const EVENTS_PER_TICK: usize = 128;
/// Open files the agent allows itself: connections, pipes and terminals of every process.
const OPEN_FILES: u64 = 16_384;

enum Listen {
    Descriptor(u32),
    Path(OsString),
}

/// Runs the agent until it is told to end.
pub(crate) fn run(arguments: &[OsString]) -> io::Result<()> {
    let listener = match parse(arguments)? {
        Listen::Descriptor(number) => adopt(number)?,
        Listen::Path(path) => std::os::unix::net::UnixListener::bind(path)?,
    };
    let children_files = harden();
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_current_thread().enable_io().enable_time().max_io_events_per_tick(EVENTS_PER_TICK).build()?;
    runtime.block_on(LocalSet::new().run_until(async move {
        let agent = Rc::new(Agent::new(children_files));
        server::serve(agent, UnixListener::from_std(listener)?).await
    }))
}

fn parse(arguments: &[OsString]) -> io::Result<Listen> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: sandbank-agent [--listen-fd N | --listen PATH]");
    match arguments {
        [] => Ok(Listen::Descriptor(LISTEN_FIRST_DEFAULT)),
        [option, value] if option == "--listen" => Ok(Listen::Path(value.clone())),
        [option, value] if option == "--listen-fd" => {
            value.to_str().and_then(|text| text.parse().ok()).map(Listen::Descriptor).ok_or_else(usage)
        }
        _ => Err(usage()),
    }
}

/// Takes over an inherited socket, and keeps it from children. Only the environment can tell safe code that a descriptor is
/// really meant for it, so an agent that was given just the number runs itself again with the environment set.
fn adopt(number: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let first = std::env::var(LISTEN_FIRST).ok().and_then(|first| first.parse().ok()).unwrap_or(LISTEN_FIRST_DEFAULT);
    if std::env::var_os(LISTEN_FDS).is_none() || first != number {
        let mut again = process::Command::new("/proc/self/exe");
        again.arg0("sandbank-agent").arg("--listen-fd").arg(number.to_string());
        return Err(again.env(LISTEN_FDS, "1").env(LISTEN_FIRST, number.to_string()).exec());
    }
    let listener = ListenFd::from_env().take_unix_listener(0)?;
    listener.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} is not a listening socket")))
}

/// Makes process 1 deaf to SIGSEGV and SIGBUS sent from inside, as it is to all signals without a handler (pid_namespaces(7)).
///
/// Rust's runtime handles these two, and both at once overflow the stack of the handlers, which ends the sandbox. A handler
/// that is called for anything but a stack's guard page puts the default action back and returns, so being sent each once does it.
fn give_up_fault_handlers() {
    for signal in [Signal::SEGV, Signal::BUS] {
        let _ = kill_process(getpid(), signal);
    }
}

/// What must hold before anything else runs in the sandbox. Returns the open-files limit that children get.
fn harden() -> Option<Rlimit> {
    // Without this a process inside could trace the agent or read its memory. Failing is not fatal: the host's safety does not
    // rest on it.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    give_up_fault_handlers();
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let _ = rustix::process::chdir(Path::new("/"));
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_none_or(|current| current >= wanted) {
        return None;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).ok()?;
    Some(limit)
}
