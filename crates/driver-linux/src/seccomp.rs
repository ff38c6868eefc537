//! The system calls that a sandbox may not make.
//!
//! A short deny list over a default of allow. The walls are the namespaces, the missing capabilities ([`crate::caps`]) and the
//! read-only mounts; the filter takes away the parts of the kernel that have no business in a sandbox and where its bugs
//! are found: mounts, new namespaces, `bpf`, `io_uring`, `userfaultfd`, keys, modules, odd socket families.
//!
//! Decisions:
//! - **ptrace is allowed.** It reaches only the sandbox's own processes (pid namespace), debuggers and strace need it, and the
//!   agent is out of its reach: it is not dumpable and nobody inside has `CAP_SYS_PTRACE`. A tracer cannot dodge the filter, for
//!   it is run again after the tracer changed a call (seccomp(2), since Linux 4.8).
//! - **No `NO_NEW_PRIVS`**, because `sudo` must work. Installing then takes `CAP_SYS_ADMIN` in the sandbox's user namespace,
//!   which the child has until it drops its capabilities: so first [`Filter::install`], then [`crate::caps::drop_to_kept`].
//! - **No flags.** `SECCOMP_FILTER_FLAG_SPEC_ALLOW` changes nothing since Linux 5.16, where a filter stopped to imply the
//!   speculation mitigations; on a machine booted with `spec_store_bypass_disable=seccomp` its owner asked for them.
//! - Refusals look like a kernel without the feature or a caller without the right, so that programs take their usual way
//!   round: `clone3` and `io_uring_setup` are `ENOSYS`, the others mostly `EPERM`. Only calls of a foreign architecture
//!   (32-bit x86 on x86-64, 32-bit ARM on arm64) end the process: their numbers mean other calls.
//!
//! The program is a binary search, 5 to 8 instructions a call; calls that are always allowed cost nothing, since the kernel
//! keeps them in a bitmap (since Linux 5.11).

mod bpf;
mod rules;
#[cfg(test)]
mod tests;

use libc::{sock_filter, sock_fprog};
use rustix::io::Errno;

pub use bpf::CompileError;
use bpf::compile;
pub use rules::{Check, Condition, RULES, Rule, Test};

/// A compiled filter, made once in the launcher and installed in each sandbox's first process.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Box<[sock_filter]>,
}

impl Filter {
    /// Compiles [`RULES`] for this architecture.
    ///
    /// # Errors
    /// When the rules contradict each other or are too long for a program; the unit tests show that they are not.
    pub fn compile() -> Result<Self, CompileError> {
        compile(RULES).map(|program| Self { program: program.into_boxed_slice() })
    }

    /// How many instructions it has.
    #[must_use]
    pub fn instruction_count(&self) -> usize {
        self.program.len()
    }

    /// Installs it on the calling thread, for good and for all its children. Allocates nothing and makes one system call.
    ///
    /// # Errors
    /// What the kernel said: `EACCES` when the caller has no `CAP_SYS_ADMIN` in its user namespace, `EINVAL` without seccomp.
    pub fn install(&self) -> Result<(), Errno> {
        let program = sock_fprog {
            // `compile` refuses programs of more than 4096 instructions.
            len: self.program.len() as libc::c_ushort,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel only reads `program` and the `len` instructions it points to, during the call; both live
        // longer than that. Wrong instructions are refused by the kernel's verifier.
        let code = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if code == 0 {
            Ok(())
        } else {
            // SAFETY: `__errno_location` points to this thread's errno and is always valid to read.
            Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
        }
    }
}
