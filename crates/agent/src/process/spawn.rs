//! Starts a process.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, setrlimit};
use sandbank_agent_protocol::{AgentError, ErrorKind, RING_BYTES_DEFAULT, StartProcess, Stream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::Process;
use super::output::{Output, pump};
use super::stdin::Stdin;
use super::table::ProcessTable;
use crate::credentials;
use crate::errors::{Outcome, invalid, refused, refused_io};
use crate::server::Agent;
use crate::terminal::{self, OWN_EXECUTABLE, STUB_ARGUMENT};
use crate::users::User;

const PATH_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_USER: &str = "/usr/local/bin:/usr/bin:/bin";
/// What programs of today understand.
const TERM: &str = "xterm-256color";
/// Makes the kernel kill a child before the agent when memory runs out.
const OOM_SCORE: &[u8] = b"500";

/// Starts the process and remembers it.
pub(super) fn launch(agent: &Agent, request: StartProcess) -> Outcome<Rc<Process>> {
    check(&request)?;
    let table = &agent.processes;
    table.check_room()?;
    let user = agent.users.resolve(request.user.as_deref())?;
    let env = environment(&request, &user);
    let streams = Streams::open(&request, &user).map_err(|error| in_context("cannot set up its streams", error))?;
    let Streams { ours, theirs } = streams;
    let pid = spawn(table, &request, &user, &env, theirs)?;
    prefer_for_oom(pid);
    let process = register(table, request, pid, ours)?;
    Ok(process)
}

fn in_context(what: &str, error: AgentError) -> AgentError {
    AgentError::new(error.kind, format!("{what}: {}", error.message))
}

fn check(request: &StartProcess) -> Outcome<()> {
    let program = request.argv.first().ok_or_else(|| invalid("argv is empty: name a program"))?;
    if program.is_empty() {
        return Err(invalid("the program's name is empty"));
    }
    let texts = request.argv.iter().chain(request.env.values()).chain(&request.cwd);
    if texts.chain(request.env.keys()).any(|text| text.contains('\0')) {
        return Err(invalid("an argument, environment variable or working directory contains a NUL byte"));
    }
    match request.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        Some(name) => Err(invalid(format_args!("{name:?} is not a name for an environment variable"))),
        None => Ok(()),
    }
}

fn environment(request: &StartProcess, user: &User) -> BTreeMap<String, String> {
    let mut env = request.env.clone();
    let path = if user.uid == 0 { PATH_ROOT } else { PATH_USER };
    let defaults =
        [("HOME", user.home.as_str()), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell), ("PATH", path)];
    for (name, value) in defaults {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    if request.pty.is_some() {
        env.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
    }
    env
}

/// The agent's ends of a new process's streams.
struct Ours {
    outputs: Vec<(Stream, OwnedFd)>,
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// The new process's ends.
struct Theirs {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

struct Streams {
    ours: Ours,
    theirs: Theirs,
}

impl Streams {
    fn open(request: &StartProcess, user: &User) -> Outcome<Self> {
        match request.pty {
            Some(size) => {
                let (master, slave) = terminal::open(user, size)?;
                Self::terminal(master, slave).map_err(|error| refused_io("terminal", &error))
            }
            None => Self::pipes(request.stdin).map_err(|errno| refused("pipe", errno)),
        }
    }

    fn terminal(master: OwnedFd, slave: OwnedFd) -> io::Result<Self> {
        let ours =
            Ours { outputs: vec![(Stream::Pty, master.try_clone()?)], stdin: Some(master.try_clone()?), terminal: Some(master) };
        let theirs = Theirs { stdin: slave.try_clone()?.into(), stdout: slave.try_clone()?.into(), stderr: slave.into() };
        Ok(Self { ours, theirs })
    }

    fn pipes(with_stdin: bool) -> Result<Self, Errno> {
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only the agent's ends: a program may not expect its own to be non-blocking.
        rustix::io::ioctl_fionbio(&stdout, true)?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        let (their_stdin, stdin) = if with_stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            (theirs.into(), Some(ours))
        } else {
            (Stdio::null(), None)
        };
        let ours = Ours { outputs: vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)], stdin, terminal: None };
        Ok(Self { ours, theirs: Theirs { stdin: their_stdin, stdout: their_stdout.into(), stderr: their_stderr.into() } })
    }
}

/// Starts the program as the user, in its directory. The agent's own thread goes there and comes back: the child inherits both,
/// and the standard library can use its fast path (vfork), which it cannot with a uid or directory of the command's own.
fn spawn(
    table: &ProcessTable,
    request: &StartProcess,
    user: &User,
    env: &BTreeMap<String, String>,
    theirs: Theirs,
) -> Outcome<Pid> {
    let child = credentials::as_user(user, || {
        enter(request.cwd.as_deref(), &user.home)?;
        let _back = BackToRoot;
        let program = find_program(&request.argv[0], env.get("PATH").map_or("", String::as_str))?;
        let mut command = command(request, &program);
        command.env_clear().envs(env).stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
        let _files = ChildrenFiles::set(table);
        command.spawn().map_err(|error| spawn_error(&request.argv[0], &error))
    })??;
    let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    number.ok_or_else(|| AgentError::new(ErrorKind::Io, "the kernel gave a process no number"))
}

fn command(request: &StartProcess, program: &OsStr) -> Command {
    if request.pty.is_some() {
        let mut command = Command::new(OWN_EXECUTABLE);
        command.arg0("sandbank-tty").arg(STUB_ARGUMENT).arg(program).args(&request.argv);
        return command;
    }
    let mut command = Command::new(program);
    command.arg0(&request.argv[0]).args(&request.argv[1..]).process_group(0);
    command
}

fn spawn_error(program: &str, error: &io::Error) -> AgentError {
    let what = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => format!("cannot run {program:?}: it, or the interpreter it names, was not found"),
        Some(Errno::AGAIN) => format!("cannot run {program:?}: the sandbox has too many processes"),
        Some(Errno::TOOBIG) => format!("cannot run {program:?}: its arguments and environment are too long"),
        _ => format!("cannot run {program:?}"),
    };
    refused_io(what, error)
}

/// Goes to the working directory: the one asked for (relative to the home), else the home, else stays in `/`.
fn enter(cwd: Option<&str>, home: &str) -> Outcome<()> {
    match cwd {
        Some(cwd) => {
            let path = Path::new(home).join(cwd);
            rustix::process::chdir(path).map_err(|errno| refused(format_args!("cannot use the working directory {cwd:?}"), errno))
        }
        None => {
            // A home that does not exist leaves the process in `/`.
            let _ = rustix::process::chdir(home);
            Ok(())
        }
    }
}

struct BackToRoot;

impl Drop for BackToRoot {
    fn drop(&mut self) {
        let _ = rustix::process::chdir("/");
    }
}

/// Lowers the open-files limit to what children get, for the length of a spawn.
struct ChildrenFiles(Option<rustix::process::Rlimit>);

impl ChildrenFiles {
    fn set(table: &ProcessTable) -> Self {
        let Some(limit) = table.children_files else { return Self(None) };
        let own = rustix::process::getrlimit(Resource::Nofile);
        Self(setrlimit(Resource::Nofile, limit).ok().map(|()| own))
    }
}

impl Drop for ChildrenFiles {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            let _ = setrlimit(Resource::Nofile, own);
        }
    }
}

/// Looks the program up in the child's `PATH`, so that a missing one is a clear refusal.
fn find_program(name: &str, path: &str) -> Outcome<OsString> {
    if name.contains('/') {
        return match rustix::fs::access(name, Access::EXEC_OK) {
            Ok(()) => Ok(name.into()),
            Err(errno) => Err(refused(format_args!("cannot run {name:?}"), errno)),
        };
    }
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = PathBuf::from(if directory.is_empty() { "." } else { directory }).join(name);
        match rustix::fs::access(&candidate, Access::EXEC_OK) {
            Ok(()) => return Ok(candidate.into_os_string()),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(AgentError::new(ErrorKind::Denied, format!("{name:?} is in PATH ({path}) but may not be executed")));
    }
    Err(AgentError::new(ErrorKind::NotFound, format!("no program {name:?} in PATH ({path})")))
}

/// A failure leaves the child as likely to be killed as the agent, which is how it would be without this.
fn prefer_for_oom(pid: Pid) {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    let opened = File::options().write(true).open(path);
    let _ = opened.and_then(|mut file| file.write_all(OOM_SCORE));
}

fn register(table: &ProcessTable, request: StartProcess, pid: Pid, ours: Ours) -> Outcome<Rc<Process>> {
    let changed = Rc::new(Notify::new());
    let ring_bytes = usize::try_from(request.ring_bytes.unwrap_or(RING_BYTES_DEFAULT)).unwrap_or(usize::MAX);
    let is_terminal = ours.terminal.is_some();
    let wired = || -> io::Result<(Vec<Rc<Output>>, Stdin)> {
        let outputs = ours
            .outputs
            .into_iter()
            .map(|(stream, fd)| Output::new(stream, fd, ring_bytes, table.budget.clone(), Rc::clone(&changed)));
        Ok((outputs.collect::<io::Result<_>>()?, Stdin::new(ours.stdin, is_terminal)?))
    };
    let (outputs, stdin) = wired().map_err(|error| {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        refused_io("cannot watch the process's streams", &error)
    })?;
    let process = Rc::new(Process {
        pid,
        sequence: table.number(),
        request,
        started_at_ms: now_ms(),
        outputs,
        stdin,
        terminal: RefCell::new(ours.terminal),
        exit: Cell::new(None),
        timed_out: Cell::new(false),
        deadline: RefCell::new(None),
        changed,
    });
    for output in &process.outputs {
        spawn_local(pump(Rc::clone(output)));
    }
    set_deadline(&process);
    table.insert(Rc::clone(&process));
    Ok(process)
}

fn set_deadline(process: &Rc<Process>) {
    let Some(deadline_ms) = process.request.deadline_ms else { return };
    let weak = Rc::downgrade(process);
    let timer = spawn_local(async move {
        tokio::time::sleep(Duration::from_millis(deadline_ms)).await;
        if let Some(process) = weak.upgrade() {
            process.time_out();
        }
    });
    *process.deadline.borrow_mut() = Some(timer.abort_handle());
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
