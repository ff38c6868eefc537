//! The capabilities that process 1 of a sandbox keeps.
//!
//! They are held in the sandbox's own user namespace and so mean nothing for any object of the host (user_namespaces(7)).
//! What is left out is left out because it opens large parts of the kernel to whoever is root inside: `SYS_ADMIN` (mounts),
//! `NET_ADMIN` (netfilter), `SYS_PTRACE` (the agent), `MKNOD`, `SYS_RESOURCE` (limits), `NET_RAW` and the rest.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// One kept capability.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Which.
    pub capability: CapabilitySet,
    /// Its name as in capabilities(7), without `CAP_`.
    pub name: &'static str,
    /// What would not work without it.
    pub reason: &'static str,
}

macro_rules! kept {
    ($($name:ident: $reason:literal,)*) => {
        &[$(Kept { capability: CapabilitySet::$name, name: stringify!($name), reason: $reason }),*]
    };
}

/// All capabilities that stay in the bounding, permitted and effective sets. The inheritable and ambient sets are empty.
pub const KEPT: &[Kept] = kept! {
    CHOWN: "chown: package managers and tar give files to other users",
    DAC_OVERRIDE: "root reads and writes every file of the sandbox's own root",
    FOWNER: "root changes modes and times of files it does not own",
    FSETID: "chmod keeps the set-group-id bit on files of other groups",
    KILL: "root signals the processes of other users",
    SETGID: "su, sudo and the agent change groups",
    SETUID: "su, sudo and the agent change users",
    SETPCAP: "programs give up their own capabilities (setpriv, nginx, runuser)",
    NET_BIND_SERVICE: "servers listen below port 1024",
    SYS_CHROOT: "chroot: debootstrap, sshd, some build tools",
    SETFCAP: "package managers restore file capabilities",
    AUDIT_WRITE: "sudo and su log through PAM, which gives up without it",
};

/// [`KEPT`] as one set.
#[must_use]
pub const fn kept_set() -> CapabilitySet {
    let mut bits = 0;
    let mut index = 0;
    while index < KEPT.len() {
        bits |= KEPT[index].capability.bits();
        index += 1;
    }
    CapabilitySet::from_bits_retain(bits)
}

/// Reduces the calling thread to [`KEPT`]: bounding set first (that takes `SETPCAP`), then ambient, then permitted, effective
/// and inheritable. Makes only system calls, so that a freshly cloned child may call it.
///
/// # Errors
/// What the kernel said: `EPERM` when the caller lacks `SETPCAP` in its user namespace or one of [`KEPT`].
pub fn drop_to_kept() -> Result<(), Errno> {
    let kept = kept_set();
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel does not know ends the list.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_opens_the_kernel_is_kept() {
        let dangerous = CapabilitySet::SYS_ADMIN
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::NET_RAW
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::SYS_MODULE
            | CapabilitySet::MKNOD
            | CapabilitySet::SYS_RESOURCE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON;
        assert!(kept_set().intersection(dangerous).is_empty());
    }

    #[test]
    fn the_kept_set_is_the_twelve_of_the_list_and_each_has_a_reason() {
        assert_eq!(kept_set().bits().count_ones(), 12);
        assert_eq!(KEPT.len(), 12);
        assert!(KEPT.iter().all(|kept| !kept.reason.is_empty()));
        assert_eq!(kept_set().bits(), 0xa004_05fb);
    }

    #[test]
    fn a_thread_that_dropped_holds_exactly_the_kept_set() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: dropping capabilities needs root");
            return;
        }
        let status = std::thread::spawn(|| {
            drop_to_kept().map(|()| std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
        })
        .join()
        .unwrap_or(Err(Errno::FAULT));
        let status = status.unwrap_or_default();
        let line = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            u64::from_str_radix(value.trim(), 16).unwrap_or(u64::MAX)
        };
        for key in ["CapBnd:", "CapPrm:", "CapEff:"] {
            assert_eq!(line(key), kept_set().bits(), "{key}");
        }
        assert_eq!(line("CapInh:"), 0);
        assert_eq!(line("CapAmb:"), 0);
    }
}
