#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, c_long,
};

use super::bpf::{ARCHITECTURE, CompileError, NUMBER_END, compile};
use super::rules::{RULES, SYS_OPEN_TREE_ATTR};
use super::{Check, Filter, Rule};

const I386: u32 = 0x4000_0003;

/// Runs the program as the kernel would (the subset of classic BPF that the compiler emits) and counts instructions.
fn interpret(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut data = vec![];
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
    let (mut accumulator, mut position, mut steps) = (0u32, 0usize, 0usize);
    loop {
        let instruction = filter.program[position];
        (position, steps) = (position + 1, steps + 1);
        let code = u32::from(instruction.code);
        let k = instruction.k;
        let branch = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        if code == BPF_LD | BPF_W | BPF_ABS {
            let at = k as usize;
            accumulator = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
        } else if code == BPF_RET | BPF_K {
            return (k, steps);
        } else if code == BPF_JMP | BPF_JEQ | BPF_K {
            position += branch(accumulator == k);
        } else if code == BPF_JMP | BPF_JGE | BPF_K {
            position += branch(accumulator >= k);
        } else if code == BPF_JMP | BPF_JSET | BPF_K {
            position += branch(accumulator & k != 0);
        } else {
            panic!("unexpected instruction {code:#x}");
        }
    }
}

fn verdict(number: c_long, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    interpret(&Filter::compile().unwrap(), ARCHITECTURE, u32::try_from(number).unwrap(), all).0
}

fn errno(number: i32) -> u32 {
    SECCOMP_RET_ERRNO | number.unsigned_abs()
}

#[test]
fn the_rules_compile_to_a_short_program_with_short_paths() {
    let filter = Filter::compile().unwrap();
    assert!(filter.instruction_count() <= 160, "{}", filter.instruction_count());
    for number in 0..600 {
        let (_, steps) = interpret(&filter, ARCHITECTURE, number, [1; 6]);
        assert!(steps <= 24, "system call {number} takes {steps} instructions");
    }
}

#[test]
fn every_unconditional_rule_refuses_and_its_neighbours_without_a_rule_are_allowed() {
    let filter = Filter::compile().unwrap();
    let rule_of = |number: u32| RULES.iter().find(|rule| rule.calls.contains(&c_long::from(number)));
    for number in 0..1000 {
        let (got, _) = interpret(&filter, ARCHITECTURE, number, [0; 6]);
        match rule_of(number).map(|rule| rule.checks) {
            None => assert_eq!(got, SECCOMP_RET_ALLOW, "{number}"),
            Some([Check { conditions: [], errno: code }]) => assert_eq!(got, errno(*code), "{number}"),
            Some(_) => {}
        }
    }
}

#[test]
fn mounts_namespaces_modules_and_tracing_the_kernel_are_refused() {
    let refused = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_fsconfig,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        SYS_OPEN_TREE_ATTR,
        libc::SYS_setns,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_open_by_handle_at,
        libc::SYS_reboot,
        libc::SYS_clock_settime,
        libc::SYS_syslog,
        libc::SYS_swapon,
        libc::SYS_quotactl,
    ];
    for number in refused {
        assert_eq!(verdict(number, &[]), errno(libc::EPERM), "{number}");
    }
    for number in [libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        assert_eq!(verdict(number, &[]), errno(libc::ENOSYS), "{number}");
    }
}

#[test]
fn ordinary_work_is_allowed() {
    for number in [
        libc::SYS_read,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_openat,
        libc::SYS_ptrace,
        libc::SYS_chroot,
        libc::SYS_capset,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_memfd_create,
        libc::SYS_name_to_handle_at,
        libc::SYS_exit_group,
        libc::SYS_wait4,
    ] {
        assert_eq!(verdict(number, &[]), SECCOMP_RET_ALLOW, "{number}");
    }
}

#[test]
fn clone_and_unshare_are_refused_only_with_a_new_namespace() {
    let thread = (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    assert_eq!(verdict(libc::SYS_clone, &[thread]), SECCOMP_RET_ALLOW);
    assert_eq!(verdict(libc::SYS_clone, &[libc::SIGCHLD as u64]), SECCOMP_RET_ALLOW);
    assert_eq!(verdict(libc::SYS_unshare, &[(libc::CLONE_FILES | libc::CLONE_FS) as u64]), SECCOMP_RET_ALLOW);
    for new in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        assert_eq!(verdict(libc::SYS_clone, &[new as u64 | thread]), errno(libc::EPERM), "{new:#x}");
        assert_eq!(verdict(libc::SYS_unshare, &[new as u64]), errno(libc::EPERM), "{new:#x}");
    }
    assert_eq!(verdict(libc::SYS_unshare, &[0x80]), errno(libc::EPERM));
}

#[test]
fn only_unix_internet_and_harmless_netlink_sockets_can_be_made() {
    let stream = libc::SOCK_STREAM as u64;
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        assert_eq!(verdict(libc::SYS_socket, &[family as u64, stream, 6]), SECCOMP_RET_ALLOW, "{family}");
    }
    assert_eq!(verdict(libc::SYS_socketpair, &[libc::AF_UNIX as u64, stream]), SECCOMP_RET_ALLOW);
    for family in [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, libc::AF_BLUETOOTH, libc::AF_TIPC, 0, 255] {
        assert_eq!(verdict(libc::SYS_socket, &[family as u64, stream]), errno(libc::EAFNOSUPPORT), "{family}");
        assert_eq!(verdict(libc::SYS_socketpair, &[family as u64, stream]), errno(libc::EAFNOSUPPORT), "{family}");
    }
    let netlink = |protocol: i32| verdict(libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, protocol as u64]);
    assert_eq!(netlink(libc::NETLINK_ROUTE), SECCOMP_RET_ALLOW);
    assert_eq!(netlink(libc::NETLINK_INET_DIAG), SECCOMP_RET_ALLOW);
    for protocol in [libc::NETLINK_NETFILTER, libc::NETLINK_XFRM, libc::NETLINK_AUDIT, libc::NETLINK_GENERIC] {
        assert_eq!(netlink(protocol), errno(libc::EPROTONOSUPPORT), "{protocol}");
    }
}

#[test]
fn a_terminal_cannot_be_typed_into_whatever_the_upper_half_of_the_argument_says() {
    for upper in [0u64, 1 << 32, 0xffff_ffff << 32] {
        assert_eq!(verdict(libc::SYS_ioctl, &[0, upper | 0x5412]), errno(libc::EPERM));
        assert_eq!(verdict(libc::SYS_ioctl, &[0, upper | 0x541C]), errno(libc::EPERM));
        assert_eq!(verdict(libc::SYS_ioctl, &[0, upper | 0x5413]), SECCOMP_RET_ALLOW);
        assert_eq!(verdict(libc::SYS_socket, &[upper | 40, 1]), errno(libc::EAFNOSUPPORT));
    }
}

#[test]
fn personalities_that_undo_protections_are_refused() {
    for allowed in [0, 8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff] {
        assert_eq!(verdict(libc::SYS_personality, &[allowed]), SECCOMP_RET_ALLOW, "{allowed:#x}");
    }
    for refused in [0x40_0000, 0x10_0000, 0x44_0000] {
        assert_eq!(verdict(libc::SYS_personality, &[refused]), errno(libc::EPERM), "{refused:#x}");
    }
}

#[test]
fn a_foreign_architecture_ends_the_process_and_foreign_numbers_are_unknown() {
    let filter = Filter::compile().unwrap();
    for number in [0, 1, 21, 120, NUMBER_END] {
        assert_eq!(interpret(&filter, I386, number, [0; 6]).0, SECCOMP_RET_KILL_PROCESS);
    }
    for number in [NUMBER_END, NUMBER_END | 59, u32::MAX] {
        assert_eq!(interpret(&filter, ARCHITECTURE, number, [0; 6]).0, errno(libc::ENOSYS));
    }
}

#[test]
fn a_call_with_two_rules_and_impossible_numbers_do_not_compile() {
    let checks = &[Check { conditions: &[], errno: libc::EPERM }];
    let twice = [Rule { calls: &[7], checks }, Rule { calls: &[7], checks }];
    assert_eq!(compile(&twice).unwrap_err(), CompileError::Twice { number: 7 });
    assert_eq!(compile(&[Rule { calls: &[-1], checks }]).unwrap_err(), CompileError::Number { value: -1 });
}

#[test]
fn the_kernel_takes_the_program_and_enforces_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: installing a filter without NO_NEW_PRIVS needs root");
        return;
    }
    let filter = Filter::compile().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let filter = filter.clone();
        let mut command = Command::new(program);
        command.args(arguments);
        // SAFETY: `install` makes one system call and allocates nothing, which is fit for a forked child.
        unsafe { command.pre_exec(move || filter.install().map_err(Into::into)) };
        command.output().unwrap()
    };
    assert!(run("/bin/sh", &["-c", "ls / | cat >/dev/null"]).status.success());
    let unshare = run("unshare", &["--user", "true"]);
    assert!(!unshare.status.success());
    assert!(String::from_utf8_lossy(&unshare.stderr).contains("not permitted"), "{unshare:?}");
}
