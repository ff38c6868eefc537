//! Looks around and tries things from inside a sandbox, and prints what it found: one line of JSON for each finding.
//!
//! A program of its own without any crate, so that `rustc` alone makes a static binary of it that runs in every root filesystem.
//! `tests/isolation.rs` builds it, puts it into sandboxes and knows which findings there must be.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

#[rustfmt::skip]
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn setns(fd: c_int, kind: c_int) -> c_int;
    fn ptrace(request: c_uint, ...) -> c_long;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn getpid() -> c_int;
    fn getppid() -> c_int;
    fn geteuid() -> c_uint;
    fn mknod(path: *const c_char, mode: c_uint, device: c_ulong) -> c_int;
    fn chown(path: *const c_char, owner: c_uint, group: c_uint) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn fchdir(fd: c_int) -> c_int;
    fn sethostname(name: *const c_char, length: usize) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn shmget(key: c_int, size: usize, flags: c_int) -> c_int;
    fn getrlimit(resource: c_int, limit: *mut [u64; 2]) -> c_int;
    fn setrlimit(resource: c_int, limit: *const [u64; 2]) -> c_int;
    fn swapon(path: *const c_char, flags: c_int) -> c_int;
    fn acct(path: *const c_char) -> c_int;
    fn klogctl(kind: c_int, buffer: *mut c_char, length: c_int) -> c_int;
}

/// Numbers of calls without a function in every C library: (x86-64, arm64).
macro_rules! number {
    ($x86_64:literal, $aarch64:literal) => {
        if cfg!(target_arch = "x86_64") { $x86_64 } else { $aarch64 }
    };
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const EAFNOSUPPORT: i32 = 97;
const ECONNREFUSED: i32 = 111;

const CLONE_NEWNS: c_int = 0x0002_0000;
const CLONE_NEWUSER: c_int = 0x1000_0000;
const CLONE_NEWNET: c_int = 0x4000_0000;
const CLONE_NEWPID: c_int = 0x2000_0000;

/// Where two sandboxes would meet.
const PORT: u16 = 5555;
const ABSTRACT_NAME: &[u8] = b"sandbank-probe";
const SHM_KEY: c_int = 0x5ba4;

fn say(name: &str, ok: bool, detail: &str) {
    let escaped: String = detail.chars().map(|c| if c == '"' || c == '\\' || c.is_control() { '\'' } else { c }).collect();
    println!(r#"{{"name":"{name}","ok":{ok},"detail":"{escaped}"}}"#);
}

/// The call must have failed with one of these errors.
fn refused(name: &str, result: i64, errors: &[i32]) {
    let error = io::Error::last_os_error();
    let refused = result == -1 && error.raw_os_error().is_some_and(|code| errors.contains(&code));
    say(name, refused, &if result == -1 { error.to_string() } else { format!("it returned {result}") });
}

fn refused_io<T>(name: &str, result: io::Result<T>, errors: &[i32]) {
    let ok = result.as_ref().err().and_then(io::Error::raw_os_error).is_some_and(|code| errors.contains(&code));
    say(name, ok, &result.err().map_or("it worked".to_owned(), |error| error.to_string()));
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn entries(path: impl AsRef<Path>) -> BTreeSet<String> {
    let list = fs::read_dir(path).into_iter().flatten().flatten();
    list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn only(name: &str, found: &BTreeSet<String>, allowed: &[&str]) {
    let odd: Vec<_> = found.iter().filter(|entry| !allowed.contains(&entry.as_str())).collect();
    say(name, odd.is_empty(), &format!("unexpected: {odd:?}"));
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |index: usize| arguments.get(index).map(String::as_str).unwrap_or_default();
    match argument(1) {
        // data directory of the host, a secret file of the host, a port, abstract name and shm key in use on the host.
        "root" => {
            descriptors();
            status();
            processes();
            mounts(argument(2));
            hosts_things(argument(2), argument(3), argument(4), argument(5));
            refused_calls();
            agent();
            kernel_files();
            devices();
            limits();
            network();
            chroot_escape();
        }
        "user" => user(),
        "serve" => serve(),
        "look" => look(),
        other => panic!("unknown part {other:?}"),
    }
}

fn descriptors() {
    // The listing itself is the one with the highest number.
    let mut open: Vec<u32> = entries("/proc/self/fd").iter().filter_map(|name| name.parse().ok()).collect();
    open.sort_unstable();
    say("only_three_descriptors_are_open", open.len() == 4 && open[..3] == [0, 1, 2], &format!("{open:?}"));
    let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    let odd = names.iter().any(|name| name.starts_with("CARGO") || name.starts_with("SANDBANK") || name.starts_with("RUST"));
    say("the_environment_is_not_the_hosts", !odd, &format!("{names:?}"));
}

/// Lines of the process's status, for the test to compare with what the code says.
fn status() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for key in
        ["SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid"]
    {
        let value = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:"))).unwrap_or("missing");
        say(&format!("status_{key}"), true, value.trim());
    }
    say("uid_map", true, fs::read_to_string("/proc/self/uid_map").unwrap_or_default().trim());
}

fn processes() {
    let pids: BTreeSet<i32> = entries("/proc").iter().filter_map(|name| name.parse().ok()).collect();
    let known = BTreeSet::from([1, unsafe { getpid() }, unsafe { getppid() }]);
    say("only_its_own_processes_are_seen", pids.is_subset(&known), &format!("{pids:?} of {known:?}"));
}

fn mounts(host_data: &str) {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let field = |line: &str, index: usize| line.split(' ').nth(index).unwrap_or_default().to_owned();
    let points: BTreeSet<String> = mountinfo.lines().map(|line| field(line, 4)).collect();
    let expected = |point: &str| {
        let grafts = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
        let system = ["/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/run"];
        grafts.contains(&point) || system.contains(&point) || point.starts_with("/proc/") || point.starts_with("/sys/")
    };
    let odd: Vec<_> = points.iter().filter(|point| !expected(point)).collect();
    say("only_the_launchers_mounts_are_seen", odd.is_empty() && !points.is_empty(), &format!("unexpected: {odd:?}"));
    let kinds: BTreeSet<String> =
        mountinfo.lines().filter_map(|line| line.split(" - ").nth(1)?.split(' ').next().map(str::to_owned)).collect();
    only("mounts_are_of_harmless_kinds", &kinds, &["overlay", "proc", "sysfs", "tmpfs", "devpts"]);
    let leaks = mountinfo.contains(host_data) || mountinfo.contains("/images/layers");
    say("mountinfo_names_no_path_of_the_host", !leaks, &mountinfo);
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    say("the_socket_list_names_no_path_of_the_host", !sockets.contains(host_data), &sockets);
}

fn hosts_things(host_data: &str, secret: &str, port: &str, abstract_name: &str) {
    refused_io("the_hosts_data_directory_is_not_there", fs::metadata(host_data), &[ENOENT]);
    refused_io("a_file_of_the_host_is_not_there", fs::metadata(secret), &[ENOENT]);
    let _ = symlink(secret, "/tmp/to-secret");
    refused_io("a_link_does_not_lead_to_the_host", fs::read("/tmp/to-secret"), &[ENOENT]);
    refused_io("up_from_the_root_is_the_root", fs::metadata(format!("/../../../..{secret}")), &[ENOENT]);
    refused_io("its_own_proc_root_is_its_root", fs::metadata(format!("/proc/self/root{secret}")), &[ENOENT]);
    let connected = TcpStream::connect(("127.0.0.1", port.parse().unwrap_or(0)));
    refused_io("a_port_of_the_host_cannot_be_reached", connected, &[ECONNREFUSED]);
    let address = SocketAddr::from_abstract_name(abstract_name.as_bytes()).unwrap();
    refused_io("an_abstract_socket_of_the_host_cannot_be_reached", UnixStream::connect_addr(&address), &[ECONNREFUSED]);
    let root_id = fs::metadata("/").map(|root| (root.uid(), root.gid())).unwrap_or((1, 1));
    say("the_root_directory_belongs_to_root", root_id == (0, 0), &format!("{root_id:?}"));
    only("only_the_user_has_a_home", &entries("/home"), &["user"]);
    say("opt_is_empty", entries("/opt").is_empty(), &format!("{:?}", entries("/opt")));
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let locked = !shadow.is_empty() && shadow.lines().all(|line| line.split(':').nth(1) == Some("*"));
    say("all_passwords_are_locked", locked, &shadow);
}

fn refused_calls() {
    let (root, tmpfs, none) = (c("/"), c("tmpfs"), std::ptr::null::<c_void>());
    let target = c("/tmp");
    let perm = &[EPERM];
    unsafe {
        refused("mount", mount(tmpfs.as_ptr(), target.as_ptr(), tmpfs.as_ptr(), 0, none).into(), perm);
        refused("bind_mount", mount(root.as_ptr(), target.as_ptr(), none.cast(), 4096, none).into(), perm);
        let remount = 32 | 4096;
        refused("remount_sys_writable", mount(none.cast(), c("/sys").as_ptr(), none.cast(), remount, none).into(), perm);
        refused("umount", umount2(c("/proc/kcore").as_ptr(), 2).into(), perm);
        refused("umount_usr", umount2(c("/usr").as_ptr(), 2).into(), perm);
        let pivot_root = number!(155, 41);
        refused("pivot_root", syscall(pivot_root, root.as_ptr(), root.as_ptr()), perm);
        refused("open_tree", syscall(428, -100, root.as_ptr(), 1), perm);
        refused("move_mount", syscall(429, -100, root.as_ptr(), -100, target.as_ptr(), 0), perm);
        refused("fsopen", syscall(430, tmpfs.as_ptr(), 0), perm);
        refused("mount_setattr", syscall(442, -100, root.as_ptr(), 0, none, 0), perm);
        refused("new_user_namespace", unshare(CLONE_NEWUSER).into(), perm);
        refused("new_mount_namespace", unshare(CLONE_NEWNS).into(), perm);
        refused("new_network_namespace", unshare(CLONE_NEWNET).into(), perm);
        refused("new_pid_namespace", unshare(CLONE_NEWPID).into(), perm);
        refused("clone_with_new_user_namespace", clone_child(CLONE_NEWUSER), perm);
        refused("clone3_is_unknown", syscall(435, none, 0), &[ENOSYS]);
        let namespace = fs::File::open("/proc/self/ns/mnt").unwrap();
        refused("setns", setns(namespace.as_raw_fd(), 0).into(), perm);
        refused("load_a_module", syscall(number!(175, 105), none, 0, none), perm);
        refused("load_a_module_file", syscall(number!(313, 273), 0, none, 0), perm);
        refused("unload_a_module", syscall(number!(176, 106), c("ext4").as_ptr(), 0), perm);
        refused("kexec", syscall(number!(246, 104), 0, 0, none, 0), perm);
        // The wrong magic: were it let through, nothing would happen.
        refused("reboot", syscall(number!(169, 142), 0, 0, 0, none), perm);
        refused("bpf", syscall(number!(321, 280), 0, none, 0), perm);
        refused("perf_event_open", syscall(number!(298, 241), none, 0, -1, -1, 0), perm);
        refused("userfaultfd", syscall(number!(323, 282), 0), perm);
        refused("keyctl", syscall(number!(250, 219), 0, 0, 0, 0, 0), perm);
        refused("io_uring_is_unknown", syscall(425, 1, none), &[ENOSYS]);
        refused("open_by_handle_at", syscall(number!(304, 265), -100, none, 0), perm);
        let now = [i64::MAX, 0];
        refused("set_the_clock", syscall(number!(227, 112), 0, now.as_ptr()), perm);
        refused("swapon", swapon(c("/nowhere").as_ptr(), 0).into(), perm);
        refused("accounting", acct(none.cast()).into(), perm);
        refused("read_the_kernel_log", klogctl(3, [0; 8].as_mut_ptr(), 8).into(), perm);
        refused("type_into_a_terminal", ioctl(0, 0x5412, c("x").as_ptr()).into(), perm);
        refused("change_the_host_name", sethostname(c("x").as_ptr(), 1).into(), perm);
        refused("packet_socket", socket(17, 3, 0).into(), &[EAFNOSUPPORT]);
        refused("vsock_socket", socket(40, 1, 0).into(), &[EAFNOSUPPORT]);
        refused("raw_socket", socket(2, 3, 1).into(), perm);
    }
}

/// Clones as fork does, with more flags; a child that came to be ends at once.
fn clone_child(flags: c_int) -> c_long {
    const SIGCHLD: c_int = 17;
    let pid = unsafe { syscall(number!(56, 220), flags | SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        std::process::exit(0);
    }
    pid
}

fn agent() {
    let closed = &[EPERM, EACCES];
    refused_io("the_agents_memory_is_closed", fs::OpenOptions::new().read(true).write(true).open("/proc/1/mem"), closed);
    refused_io("the_agents_environment_is_closed", fs::read("/proc/1/environ"), closed);
    refused_io("the_agents_map_is_closed", fs::read("/proc/1/maps"), closed);
    refused_io("the_agents_program_is_closed", fs::read_link("/proc/1/exe"), closed);
    refused_io("the_agents_program_cannot_be_written", fs::OpenOptions::new().write(true).open("/proc/1/exe"), closed);
    refused_io(
        "the_agents_descriptors_are_closed",
        fs::read_dir("/proc/1/fd").and_then(|mut list| list.next().unwrap_or(Err(io::Error::from_raw_os_error(0)))),
        closed,
    );
    refused_io("the_agents_root_is_closed", fs::read_dir("/proc/1/root/"), closed);
    refused_io("the_agents_directory_is_closed", fs::read_link("/proc/1/cwd"), closed);
    let perm = &[EPERM];
    let none = std::ptr::null::<c_void>();
    unsafe {
        const PTRACE_ATTACH: c_uint = 16;
        const PTRACE_SEIZE: c_uint = 0x4206;
        refused("attach_to_the_agent", ptrace(PTRACE_ATTACH, 1, none, none), perm);
        refused("seize_the_agent", ptrace(PTRACE_SEIZE, 1, none, none), perm);
        let mut byte = 0u8;
        let local = [(&raw mut byte).cast::<c_void>() as usize, 1];
        let remote = [0x40_0000usize, 1];
        let read = syscall(number!(310, 270), 1, local.as_ptr(), 1, remote.as_ptr(), 1, 0);
        refused("read_the_agents_memory", read, perm);
        let pidfd = syscall(434, 1, 0);
        refused("take_the_agents_descriptors", syscall(438, pidfd, 3, 0), perm);
        signal_the_agent();
        let child = Command::new("/proc/self/exe").arg("serve").stdout(std::process::Stdio::null()).spawn();
        let Ok(mut child) = child else { return say("its_own_child_can_be_traced", false, "no child") };
        let traced = ptrace(PTRACE_SEIZE, child.id(), none, none);
        say("its_own_child_can_be_traced", traced == 0, &io::Error::last_os_error().to_string());
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Sends it every signal. None may have an effect, which the test sees by asking the agent afterwards.
fn signal_the_agent() {
    const SIGCHLD: c_int = 17;
    for signal in (1..=64).filter(|signal| *signal != SIGCHLD) {
        unsafe { kill(1, signal) };
    }
    // The two that Rust's runtime handles, as close together as can be.
    const SIGBUS: c_int = 7;
    const SIGSEGV: c_int = 11;
    for _ in 0..2000 {
        unsafe { kill(1, SIGBUS) };
        unsafe { kill(1, SIGSEGV) };
    }
    say("the_agent_was_sent_every_signal", true, "");
}

fn kernel_files() {
    let mut writable = Vec::new();
    let mut waiting = vec![Path::new("/proc/sys").to_owned()];
    let mut seen = 0;
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            seen += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            } else if fs::OpenOptions::new().write(true).open(entry.path()).is_ok() {
                writable.push(entry.path());
            }
        }
    }
    // Its file mode lets everybody open it, and the kernel then wants a capability for each write.
    writable.retain(|path| path != Path::new("/proc/sys/kernel/ns_last_pid"));
    say("no_kernel_setting_can_be_written", writable.is_empty() && seen > 100, &format!("{writable:?} of {seen}"));
    let masked = |path: &str| match fs::metadata(path) {
        Err(error) => matches!(error.raw_os_error(), Some(ENOENT | EACCES)),
        Ok(found) => found.file_type().is_char_device() && found.rdev() == (1 << 8 | 3),
    };
    for name in ["kcore", "keys", "timer_list", "sysrq-trigger"] {
        say(&format!("proc_{}_is_masked", name.replace('-', "_")), masked(&format!("/proc/{name}")), "");
    }
    for path in ["/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/1/pagemap", "/proc/vmallocinfo"] {
        let name = format!("{}_is_closed", path.trim_start_matches('/').replace('/', "_"));
        refused_io(
            &name,
            fs::File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut [0; 8])),
            &[EPERM, EACCES, ENOENT],
        );
    }
    for path in ["/sys/kernel/made", "/sys/fs/cgroup/made"] {
        let name = format!("{}_cannot_be_made", path.trim_start_matches('/').replace('/', "_"));
        refused_io(&name, fs::create_dir(path), &[EROFS, EPERM, EACCES, ENOENT]);
    }
    let mut writable = Vec::new();
    for path in ["/sys/kernel/uevent_helper", "/sys/kernel/profiling", "/sys/power/state", "/sys/module/kernel/parameters/panic"]
    {
        if fs::OpenOptions::new().write(true).open(path).is_ok() {
            writable.push(path);
        }
    }
    say("sys_cannot_be_written", writable.is_empty(), &format!("{writable:?}"));
    let groups = entries("/sys/fs/cgroup");
    let limits: Vec<_> = groups.iter().filter(|name| name.contains("memory")).collect();
    say("no_cgroup_file_is_in_reach", limits.is_empty(), &format!("{limits:?}"));
    only("sys_shows_only_its_own_interfaces", &entries("/sys/class/net"), &["eth0", "lo", "bonding_masters"]);
}

fn devices() {
    let allowed = ["null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "fd", "stdin", "stdout", "stderr"];
    only("only_harmless_devices_are_there", &entries("/dev"), &allowed);
    const BLOCK: c_uint = 0o060_644;
    const CHARACTER: c_uint = 0o020_644;
    unsafe {
        refused("make_a_disk", mknod(c("/tmp/sda").as_ptr(), BLOCK, 8 << 8).into(), &[EPERM]);
        refused("make_a_memory_device", mknod(c("/tmp/mem").as_ptr(), CHARACTER, 1 << 8 | 1).into(), &[EPERM]);
        refused("make_a_device_in_dev", mknod(c("/dev/kmsg").as_ptr(), CHARACTER, 1 << 8 | 11).into(), &[EPERM]);
    }
    let works = fs::write("/dev/null", "x").is_ok() && fs::File::open("/dev/urandom").is_ok();
    say("the_devices_that_are_there_work", works, "");
}

fn limits() {
    const RLIMIT_NOFILE: c_int = 7;
    let mut limit = [0; 2];
    unsafe { getrlimit(RLIMIT_NOFILE, &raw mut limit) };
    let raised = [limit[1] + 1, limit[1] + 1];
    unsafe { refused("raise_a_limit", setrlimit(RLIMIT_NOFILE, &raw const raised).into(), &[EPERM]) };
    refused_io("escape_the_out_of_memory_killer", fs::write("/proc/self/oom_score_adj", "-1000"), &[EPERM, EACCES]);
    // A file made set-user-id is root's inside, and that is nobody outside.
    let tricked =
        fs::write("/tmp/setuid", "").and_then(|()| fs::set_permissions("/tmp/setuid", fs::Permissions::from_mode(0o4755)));
    let found = fs::metadata("/tmp/setuid").map(|found| (found.uid(), found.mode() & 0o7777));
    say(
        "set_user_id_is_roots_inside",
        tricked.is_ok() && found.as_ref().is_ok_and(|found| *found == (0, 0o4755)),
        &format!("{found:?}"),
    );
}

fn network() {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: BTreeSet<String> =
        devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(|name| name.trim().to_owned()).collect();
    only("only_its_own_interfaces_are_there", &names, &["eth0", "lo"]);
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    say("its_only_route_is_by_its_own_interface", routes.lines().skip(1).all(|line| line.starts_with("eth0\t")), &routes);
    let outside = TcpStream::connect_timeout(&"192.0.2.1:80".parse().unwrap(), std::time::Duration::from_secs(2));
    say("nothing_outside_can_be_reached", outside.is_err(), "");
    let low = TcpListener::bind(("127.0.0.1", 80));
    say("a_low_port_can_be_listened_on", low.is_ok(), &format!("{low:?}"));
}

/// The old way out of a chroot: keep a descriptor outside of it and climb.
fn chroot_escape() {
    let before = fs::metadata("/").map(|root| (root.dev(), root.ino())).unwrap_or_default();
    let outside = fs::File::open("/").unwrap();
    let _ = fs::create_dir("/tmp/jail");
    unsafe {
        say("chroot_works", chroot(c("/tmp/jail").as_ptr()) == 0, "");
        fchdir(outside.as_raw_fd());
        for _ in 0..64 {
            let _ = std::env::set_current_dir("..");
        }
        chroot(c(".").as_ptr());
    }
    let after = fs::metadata("/").map(|root| (root.dev(), root.ino())).unwrap_or_default();
    say("climbing_out_of_a_chroot_ends_at_its_own_root", before == after, &format!("{before:?} {after:?}"));
}

fn user() {
    status();
    say("it_is_not_root", unsafe { geteuid() } == 1000, "");
    let closed = &[EPERM, EACCES];
    refused_io("the_shadow_file_is_closed", fs::read("/etc/shadow"), closed);
    refused_io("system_files_cannot_be_written", fs::write("/usr/bin/made", ""), closed);
    refused_io("roots_home_is_closed", fs::read_dir("/root"), closed);
    refused_io("the_agents_environment_is_closed", fs::read("/proc/1/environ"), closed);
    unsafe {
        signal_the_agent();
        let _ = fs::write("/tmp/of-user", "");
        refused("give_a_file_to_root", chown(c("/tmp/of-user").as_ptr(), 0, 0).into(), &[EPERM]);
        refused("new_user_namespace", unshare(CLONE_NEWUSER).into(), &[EPERM]);
        refused("become_root_by_chroot", chroot(c("/tmp").as_ptr()).into(), &[EPERM]);
    }
    say("its_home_can_be_written", fs::write("/home/user/made", "").is_ok(), "");
}

/// Offers everything by which another sandbox could find this one, until it is killed.
fn serve() {
    let _port = TcpListener::bind(("0.0.0.0", PORT));
    let _socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(ABSTRACT_NAME).unwrap());
    unsafe { shmget(SHM_KEY, 4096, 0o1666) };
    for path in ["/tmp/meeting-point", "/dev/shm/meeting-point", "/home/user/meeting-point", "/usr/meeting-point"] {
        let _ = fs::write(path, "here");
    }
    println!("ready");
    let _ = io::stdout().flush();
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Tells which of them it can find.
fn look() {
    say("port", TcpStream::connect(("127.0.0.1", PORT)).is_ok(), "");
    let address = SocketAddr::from_abstract_name(ABSTRACT_NAME).unwrap();
    say("abstract_socket", UnixStream::connect_addr(&address).is_ok(), "");
    say("shared_memory", unsafe { shmget(SHM_KEY, 0, 0) } != -1, "");
    for path in ["/tmp/meeting-point", "/dev/shm/meeting-point", "/home/user/meeting-point", "/usr/meeting-point"] {
        say(&path[1..].replace('/', "_"), Path::new(path).exists(), "");
    }
    let serving = entries("/proc").iter().any(|pid| {
        pid.parse::<u32>().is_ok() && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0serve\0"))
    });
    say("process", serving, "");
}
