//! System calls that have no safe wrapper in rustix, each wrapped once.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Arguments of clone3(2), as the kernel lays them out (`struct clone_args`, version 2).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of a clone this is.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the child's pid as seen here and a pidfd of it.
    Parent { pid: u32, pidfd: OwnedFd },
}

/// clone3(2) without sharing memory, like fork. `cgroup`: a cgroup v2 directory that the child begins in.
///
/// # Safety
/// The calling process must have exactly one thread: the child gets a copy of its memory in which locks held by other threads
/// would stay locked for ever.
pub(crate) unsafe fn clone3(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        // The flags are bit sets below 2^32; the cast keeps their bits.
        flags: u64::from(flags as u32) | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the size given and lives through the call; no stack or memory is shared with the
    // child, and the caller promises to be single-threaded.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: u32::try_from(pid).unwrap_or(0), pidfd })
}

/// Moves the calling process into namespaces; `nstype` is a set of `CLONE_NEW*` flags (for one namespace's descriptor: its own).
pub(crate) fn setns(namespace: BorrowedFd<'_>, nstype: c_int) -> Result<(), Errno> {
    // SAFETY: setns takes a descriptor and an integer and touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), nstype) }).map(drop)
}

/// Runs `action` in the network namespace of `process` (a pidfd) and comes back to `home`. The calling thread is in the foreign
/// namespace meanwhile, so `action` must be one system call or two and must not panic or hand work to other threads.
///
/// A thread that could not come back would serve other sandboxes' requests from inside this one: that ends the program.
pub(crate) fn in_network_namespace<T>(
    process: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    action: impl FnOnce() -> T,
) -> Result<T, Errno> {
    setns(process, libc::CLONE_NEWNET)?;
    let done = action();
    if setns(home, libc::CLONE_NEWNET).is_err() {
        std::process::abort();
    }
    Ok(done)
}

/// unshare(2) for namespaces only (never `CLONE_FILES` or `CLONE_FS`, which would break assumptions of std).
pub(crate) fn unshare_namespaces(flags: c_int) -> Result<(), Errno> {
    const NAMESPACES: c_int = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    if flags & !NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: unshare takes an integer; only namespaces change, no descriptor table or memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a detached mount show its files' owners through the mapping of `userns`.
pub(crate) fn idmap_mount(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let set = if read_only { MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY } else { MOUNT_ATTR_IDMAP };
    set_mount_attributes(mount, set, userns.as_raw_fd() as u64)
}

/// Makes a detached mount read-only.
pub(crate) fn read_only_mount(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    set_mount_attributes(mount, MOUNT_ATTR_RDONLY, 0)
}

const MOUNT_ATTR_RDONLY: u64 = 1;

fn set_mount_attributes(mount: BorrowedFd<'_>, attr_set: u64, userns_fd: u64) -> Result<(), Errno> {
    let attr = MountAttr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the path is a static empty C string, `attr` is a mount_attr of the size given and lives through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// execveat(2) of an open file, with `variables` as its whole environment. Returns only on failure.
pub(crate) fn exec_fd(file: BorrowedFd<'_>, argv: &[&CStr], variables: &[&CStr]) -> Errno {
    let null_terminated =
        |texts: &[&CStr]| -> Vec<*const c_char> { texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect() };
    let (pointers, environment) = (null_terminated(argv), null_terminated(variables));
    // SAFETY: path, argv and envp are null-terminated arrays of C strings that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).err().unwrap_or(Errno::IO)
}

/// Closes the descriptors from `first` to `last`.
///
/// # Safety
/// No owned descriptor among them may be used or dropped afterwards.
pub(crate) unsafe fn close_between(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: takes integers; the caller answers for the descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// dup3(2): makes `target` a copy of `source`, closing what was there.
///
/// # Safety
/// No owned descriptor with the number `target` may be used or dropped afterwards: the process must be about to exec or exit.
pub(crate) unsafe fn dup_onto(source: RawFd, target: RawFd, flags: c_int) -> Result<(), Errno> {
    // SAFETY: takes integers; the caller answers for what `target` was.
    check(unsafe { libc::syscall(libc::SYS_dup3, source, target, flags) }).map(drop)
}

/// Ends the process at once, without running destructors or exit handlers that belong to the parent's copy of memory.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Brings the loopback interface of the current network namespace up. Its addresses appear by themselves.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Lets the next program started keep `fd` open, from within `Command::pre_exec`.
pub(crate) fn keep_open_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFD takes integers; an invalid number is an error.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `id` the owner (user and group) of the files that this process makes from now on, and takes back the capabilities over
/// files that the change costs (setfsuid(2), capabilities(7)).
pub(crate) fn own_new_files_as(id: u32) -> Result<(), Errno> {
    // SAFETY: setfsuid and setfsgid take integers and change only this thread's credentials.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
    let sets = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, rustix::thread::CapabilitySets { effective: sets.permitted, ..sets })
}

/// Gives the signals that the launcher ignores their default meaning again: what is ignored stays so across exec.
pub(crate) fn default_signals() {
    for signal in [libc::SIGCHLD, libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: SIG_DFL installs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ignores signals. An ignored SIGCHLD lets the kernel reap children by itself.
pub(crate) fn ignore_signals(signals: &[c_int]) {
    for signal in signals {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Whether a descriptor has something to read, or its other end is gone.
pub(crate) fn is_readable(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(descriptor, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::event::poll(&mut polled, Some(&now))? > 0)
}

/// Registers a descriptor with the running tokio runtime.
pub(crate) fn watched(descriptor: OwnedFd, interest: tokio::io::Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and keeps its number until it is dropped, and nothing takes it out of the AsyncFd or replaces it.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}
