//! The rules as data.

use libc::{EAFNOSUPPORT, ENOSYS, EPERM, EPROTONOSUPPORT, c_int, c_long};

/// Calls that are treated alike.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Their numbers.
    pub calls: &'static [c_long],
    /// Tried in order; the first whose conditions all hold refuses the call. Where none does, it is allowed.
    pub checks: &'static [Check],
}

/// When to refuse, and with what.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// All of them must hold. None: always.
    pub conditions: &'static [Condition],
    /// The error that the caller gets.
    pub errno: c_int,
}

/// Something about one argument. Only the lower 32 bits are looked at: all arguments tested are `int` or `unsigned int` to
/// the kernel (`clone`'s and `unshare`'s flags are cut or refused beyond that), and a filter that compared 64 bits could be passed by
/// setting the upper ones.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Position, from 0.
    pub argument: u8,
    /// What must hold.
    pub test: Test,
}

/// A test of a value.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// At least one of these bits is set.
    AnyBit(u32),
    /// It is one of these.
    Among(&'static [u32]),
    /// It is none of these.
    NotAmong(&'static [u32]),
}

const DENIED: &[Check] = &[Check { conditions: &[], errno: EPERM }];
const UNKNOWN: &[Check] = &[Check { conditions: &[], errno: ENOSYS }];

const fn denied(calls: &'static [c_long]) -> Rule {
    Rule { calls, checks: DENIED }
}

const fn unknown(calls: &'static [c_long]) -> Rule {
    Rule { calls, checks: UNKNOWN }
}

/// Every `CLONE_NEW*` that `clone` takes. `CLONE_NEWTIME` shares its bit with the exit signal there and means nothing.
const CLONE_NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const CLONE_NEWTIME: u32 = 0x80;

/// `SYS_open_tree_attr`, Linux 6.15; not in the libc crate. The same number on every architecture since 424.
pub(super) const SYS_OPEN_TREE_ATTR: c_long = 467;

/// `TIOCSTI` types into a terminal as if its user had; `TIOCLINUX` pastes into a console.
const TERMINAL_INJECTION: &[u32] = &[0x5412, 0x541C];

/// personality(2): 0; `PER_LINUX32`; `UNAME26` alone and with it; `ADDR_NO_RANDOMIZE` (gdb); and 0xffffffff, which only asks.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0x0004_0000, 0xffff_ffff];

const SOCKET_FAMILIES: &[u32] = &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32];

/// Addresses and routes (`ip`, `getifaddrs`) and sockets (`ss`). libaudit takes the refusal for "no audit" and goes on.
const NETLINK_PROTOCOLS: &[u32] = &[libc::NETLINK_ROUTE as u32, libc::NETLINK_INET_DIAG as u32];

const SOCKET_CHECKS: &[Check] = &[
    // VSOCK reaches the hypervisor, PACKET raw frames, ALG and the many old families are a store of kernel bugs.
    Check { conditions: &[Condition { argument: 0, test: Test::NotAmong(SOCKET_FAMILIES) }], errno: EAFNOSUPPORT },
    // Netfilter, xfrm, audit, generic netlink.
    Check {
        conditions: &[
            Condition { argument: 0, test: Test::Among(&[libc::AF_NETLINK as u32]) },
            Condition { argument: 2, test: Test::NotAmong(NETLINK_PROTOCOLS) },
        ],
        errno: EPROTONOSUPPORT,
    },
];

/// All rules of this architecture.
pub const RULES: &[Rule] = &[
    // Mounts: what the sandbox sees was laid out by the launcher, and stays.
    denied(&[libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root]),
    denied(&[libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount]),
    denied(&[libc::SYS_fspick, libc::SYS_mount_setattr, SYS_OPEN_TREE_ATTR]),
    // New namespaces give every capability inside them, and with it most of the kernel's attack surface.
    Rule {
        calls: &[libc::SYS_clone],
        checks: &[Check { conditions: &[Condition { argument: 0, test: Test::AnyBit(CLONE_NEW) }], errno: EPERM }],
    },
    Rule {
        calls: &[libc::SYS_unshare],
        checks: &[Check {
            conditions: &[Condition { argument: 0, test: Test::AnyBit(CLONE_NEW | CLONE_NEWTIME) }],
            errno: EPERM,
        }],
    },
    denied(&[libc::SYS_setns]),
    // Its flags are in memory, which a filter cannot read. C libraries fall back to clone.
    unknown(&[libc::SYS_clone3]),
    // Other kernels and more kernel.
    denied(&[libc::SYS_kexec_load, libc::SYS_kexec_file_load, libc::SYS_reboot]),
    denied(&[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module]),
    // Programs inside the kernel, counters that tell of other tenants, page faults held open from user space.
    denied(&[libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd]),
    // Keyrings are not namespaced by sandbox.
    denied(&[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl]),
    // Does what other calls do, past this filter; the most frequent home of recent kernel holes.
    unknown(&[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]),
    // Opens files by number, past all paths and mounts. Making such a number is harmless.
    denied(&[libc::SYS_open_by_handle_at]),
    // The whole machine's: quotas, accounting, swap, clocks, kernel log, consoles, profiling.
    denied(&[libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_acct, libc::SYS_swapon, libc::SYS_swapoff]),
    denied(&[libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_adjtimex, libc::SYS_clock_adjtime]),
    denied(&[libc::SYS_syslog, libc::SYS_vhangup, libc::SYS_lookup_dcookie, libc::SYS_nfsservctl]),
    // The host name was given by the launcher; it needs CAP_SYS_ADMIN anyway.
    denied(&[libc::SYS_sethostname, libc::SYS_setdomainname]),
    // Executable data and odd memory layouts that undo protections.
    Rule {
        calls: &[libc::SYS_personality],
        checks: &[Check { conditions: &[Condition { argument: 0, test: Test::NotAmong(PERSONALITIES) }], errno: EPERM }],
    },
    Rule {
        calls: &[libc::SYS_ioctl],
        checks: &[Check { conditions: &[Condition { argument: 1, test: Test::Among(TERMINAL_INJECTION) }], errno: EPERM }],
    },
    Rule { calls: &[libc::SYS_socket, libc::SYS_socketpair], checks: SOCKET_CHECKS },
    #[cfg(target_arch = "x86_64")]
    X86_64_ONLY,
];

/// `SYS_create_module`, `SYS_get_kernel_syms` and `SYS_query_module`: gone since Linux 2.6, and from the libc crate.
#[cfg(target_arch = "x86_64")]
const OLD_MODULE_CALLS: [c_long; 3] = [174, 177, 178];

/// Port access, segments (only 16- and 32-bit programs need them, which do not run here), and calls long gone.
#[cfg(target_arch = "x86_64")]
const X86_64_ONLY: Rule = denied(&[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
    OLD_MODULE_CALLS[0],
    OLD_MODULE_CALLS[1],
    OLD_MODULE_CALLS[2],
]);
