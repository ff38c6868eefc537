//! User namespaces, one for each range of 65,536 ids, the last few kept for reuse.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};

use super::step::{At, Step};
use crate::ranges::{RANGE_IDS, range_first_id};
use crate::sys::{self, Cloned};

/// Most namespaces kept open. Ranges given back last are given out first, so few are enough; and each holds a descriptor, which
/// every sandbox's first process inherits and closes: with one for each living sandbox that took a tenth of making one more.
const KEPT_MAX: usize = 32;

/// The namespaces used last, by range index, the newest at the end.
#[derive(Debug, Default)]
pub(crate) struct UserNamespaces {
    kept: VecDeque<(u32, Rc<OwnedFd>)>,
}

impl UserNamespaces {
    /// The one of this range.
    pub(crate) fn get(&mut self, range: u32) -> Step<Rc<OwnedFd>> {
        let known = self.kept.iter().position(|(theirs, _)| *theirs == range).and_then(|place| self.kept.remove(place));
        let namespace = match known {
            Some((_, namespace)) => namespace,
            None => Rc::new(make(range)?),
        };
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((range, Rc::clone(&namespace)));
        Ok(namespace)
    }
}

/// Makes one through a child that lives just long enough to be given its mapping.
fn make(range: u32) -> Step<OwnedFd> {
    // SAFETY: the launcher has a single thread.
    match unsafe { sys::clone3(libc::CLONE_NEWUSER, None) }.at("make a user namespace")? {
        Cloned::Child => wait_to_be_killed(),
        Cloned::Parent { pid, pidfd } => {
            let namespace = map_and_open(pid, range);
            let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
            namespace
        }
    }
}

fn wait_to_be_killed() -> ! {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    loop {
        let _ = rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 }));
        // The launcher that made this died before the death signal was asked for.
        if rustix::process::getppid().is_none_or(|parent| parent.as_raw_nonzero().get() == 1) {
            sys::exit_now(1);
        }
    }
}

fn map_and_open(pid: u32, range: u32) -> Step<OwnedFd> {
    let map = format!("0 {} {RANGE_IDS}\n", range_first_id(range));
    fs::write(format!("/proc/{pid}/uid_map"), &map).at("map user ids")?;
    fs::write(format!("/proc/{pid}/gid_map"), &map).at("map group ids")?;
    rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at("open the user namespace")
}

/// Enters the namespace with all its capabilities and becomes its root.
pub(crate) fn enter_as_root(namespace: BorrowedFd<'_>) -> Step<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let enter = || -> Result<(), Errno> {
        sys::setns(namespace, libc::CLONE_NEWUSER)?;
        set_thread_groups(&[])?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    enter().at("enter the user namespace")
}

/// In a user namespace that the caller was born in: makes its ids outside root's inside, the only mapping that needs no
/// privilege (user_namespaces(7)).
pub(crate) fn map_own_ids(uid: Uid, gid: Gid) -> Step<()> {
    fs::write("/proc/self/setgroups", "deny").at("give up supplementary groups")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1\n", uid.as_raw())).at("map its user id")?;
    fs::write("/proc/self/gid_map", format!("0 {} 1\n", gid.as_raw())).at("map its group id")
}
