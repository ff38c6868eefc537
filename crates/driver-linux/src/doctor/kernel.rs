//! Kernel, privileges, namespaces, filters.

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::trial::{self, try_in_child};
use super::{Check, Machine, number, setting};
use crate::seccomp::Filter;

/// The first kernel whose overlayfs takes id-mapped layers.
const KERNEL_NEEDED: (u32, u32) = (5, 19);

pub(super) fn version() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let (major, minor) = KERNEL_NEEDED;
    match parse_release(&release) {
        Some(found) if found >= KERNEL_NEEDED => Check::ok("kernel", format!("Linux {release}")),
        Some(_) => Check::missing(
            "kernel",
            format!("Linux {release}"),
            format!("start a kernel of version {major}.{minor} or newer; older ones cannot map the owners of image layers"),
        ),
        None => Check::degraded(
            "kernel",
            format!("Linux {release}, which is no version number"),
            format!("make sure that it is as new as {major}.{minor}"),
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn architecture() -> Check {
    // Everything that compiled is one that is supported: the filter's compiler knows only these.
    Check::ok("architecture", std::env::consts::ARCH)
}

pub(super) fn privileges(machine: &Machine) -> Check {
    if machine.is_root {
        return Check::ok("privileges", "running as root");
    }
    Check::degraded(
        "privileges",
        format!("running as user {}", rustix::process::geteuid().as_raw()),
        "run as root to give each sandbox user ids of its own and to enforce its limits; without root all sandboxes' files \
         belong to this user, and limits hold only where cgroups are delegated to it",
    )
}

pub(super) fn user_namespaces(machine: &Machine) -> Check {
    let name = "user namespaces";
    let allowed = number("/proc/sys/user/max_user_namespaces");
    match try_in_child(|| crate::sys::unshare_namespaces(libc::CLONE_NEWUSER)) {
        Ok(()) => match allowed {
            Some(allowed) if allowed < 4096 => Check::degraded(
                name,
                format!("at most {allowed} at once"),
                "each sandbox takes one: `sysctl -w user.max_user_namespaces=100000`",
            ),
            Some(allowed) => Check::ok(name, format!("at most {allowed} at once")),
            None => Check::ok(name, "can be made"),
        },
        Err(errno) => Check::missing(name, format!("cannot be made: {errno}"), why_no_user_namespaces(machine, allowed)),
    }
}

fn why_no_user_namespaces(machine: &Machine, allowed: Option<u64>) -> String {
    if allowed == Some(0) {
        return "they are switched off: `sysctl -w user.max_user_namespaces=100000`".to_owned();
    }
    if !machine.is_root {
        if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
            return "only root may make them here: `sysctl -w kernel.unprivileged_userns_clone=1`, or run as root".to_owned();
        }
        if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
            return "AppArmor keeps them from ordinary programs: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or \
                    give sandbank a profile with `userns,`, or run as root"
                .to_owned();
        }
    }
    "a container or security module around this process forbids them; in Docker, run with --privileged, or with \
     --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        .to_owned()
}

pub(super) fn namespaces(machine: &Machine) -> Check {
    let name = "namespaces";
    let wanted = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    match trial::namespaces(machine, wanted) {
        Ok(()) => Check::ok(name, "mount, pid, ipc, uts and cgroup namespaces can be made"),
        Err(errno) => Check::missing(
            name,
            format!("mount, pid, ipc, uts and cgroup namespaces cannot be made together: {errno}"),
            "the kernel lacks one of them, or a container around this process forbids it (Docker: --cap-add SYS_ADMIN)",
        ),
    }
}

pub(super) fn network_namespace(machine: &Machine) -> Check {
    let name = "network namespaces";
    match trial::namespaces(machine, libc::CLONE_NEWNET) {
        Ok(()) => Check::ok(name, "can be made"),
        Err(Errno::NOSPC) => Check::missing(
            name,
            "there are as many as are allowed",
            "each sandbox takes one: raise `sysctl user.max_net_namespaces`, or look for leaked ones with `lsns -t net`",
        ),
        Err(errno) => Check::missing(
            name,
            format!("cannot be made: {errno}"),
            "the kernel lacks CONFIG_NET_NS, or a container around this process forbids it",
        ),
    }
}

pub(super) fn seccomp(machine: &Machine) -> Check {
    let name = "system call filter";
    let Ok(filter) = Filter::compile() else {
        return Check::missing(name, "cannot be compiled", "this is a defect of sandbank: please report it");
    };
    let instructions = filter.instruction_count();
    // Installing takes CAP_SYS_ADMIN, which a new user namespace gives to anybody.
    let flags = if machine.is_root { 0 } else { libc::CLONE_NEWUSER };
    let tried = try_in_child(move || {
        if flags != 0 {
            crate::sys::unshare_namespaces(flags)?;
        }
        filter.install()
    });
    match tried {
        Ok(()) => Check::ok(name, format!("can be installed ({instructions} instructions)")),
        Err(errno) => Check::missing(
            name,
            format!("cannot be installed: {errno}"),
            "the kernel lacks CONFIG_SECCOMP_FILTER, or this process has no CAP_SYS_ADMIN",
        ),
    }
}

/// The agent is started from a sealed file in memory (memfd_create(2)), which `vm.memfd_noexec` = 2 forbids.
pub(super) fn program_in_memory() -> Check {
    let name = "programs from memory";
    let sealed = rustix::fs::memfd_create(c"sandbank-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::EXEC);
    let tried = match sealed {
        // Before Linux 6.3 the flag is unknown, and every such file can be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"sandbank-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING),
        other => other,
    };
    let noexec = setting("/proc/sys/vm/memfd_noexec").unwrap_or_else(|| "unset".to_owned());
    match tried {
        Ok(_) => Check::ok(name, format!("allowed (vm.memfd_noexec is {noexec})")),
        Err(errno) => Check::missing(
            name,
            format!("not allowed: {errno} (vm.memfd_noexec is {noexec})"),
            "the agent is executed from memory so that nothing can replace it: `sysctl -w vm.memfd_noexec=1`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn releases_of_all_distributions_are_understood() {
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("5.19"), Some((5, 19)));
        assert_eq!(parse_release("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.10+"), Some((5, 10)));
        assert_eq!(parse_release("next-20240101"), None);
        assert!(parse_release("10.0").is_some_and(|found| found > (5, 19)));
    }
}
