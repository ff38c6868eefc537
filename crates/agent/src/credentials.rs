//! Acting as a sandbox user for the length of one synchronous step.
//!
//! Linux credentials belong to threads, and the agent has one. It takes on a user's groups, gid and uid, keeps 0 as the saved
//! uid, does the step, and goes back. Nothing may be awaited in between: another connection would run as that user.

use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use sandbank_agent_protocol::{AgentError, ErrorKind};

use crate::errors::{Outcome, refused};
use crate::users::User;

/// What the agent itself is.
struct Own {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

fn own() -> &'static Own {
    static OWN: OnceLock<Own> = OnceLock::new();
    OWN.get_or_init(|| Own {
        uid: rustix::process::geteuid(),
        gid: rustix::process::getegid(),
        groups: rustix::process::getgroups().unwrap_or_default(),
    })
}

/// The agent's own uid.
pub(crate) fn own_uid() -> u32 {
    own().uid.as_raw()
}

/// The agent's own gid.
pub(crate) fn own_gid() -> u32 {
    own().gid.as_raw()
}

/// Runs `step` with the user's credentials.
pub(crate) fn as_user<T>(user: &User, step: impl FnOnce() -> T) -> Outcome<T> {
    let own = own();
    if own.uid.as_raw() == user.uid && (own.gid.as_raw() == user.gid || !own.uid.is_root()) {
        return Ok(step());
    }
    if !own.uid.is_root() {
        let message = format!("cannot act as user {}: the agent runs without root, as uid {}", user.name, own.uid.as_raw());
        return Err(AgentError::new(ErrorKind::Denied, message));
    }
    let _back = Back;
    take_on(user).map_err(|errno| {
        let hint = if errno == Errno::INVAL { " (the id is not mapped into this sandbox)" } else { "" };
        refused(format_args!("cannot become user {} (uid {}, gid {}){hint}", user.name, user.uid, user.gid), errno)
    })?;
    Ok(step())
}

fn take_on(user: &User) -> Result<(), Errno> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw_unchecked(*gid)).collect();
    match set_thread_groups(&groups) {
        // A user namespace made without privileges forbids setgroups for good; the primary group still counts there.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let (uid, gid) = (Uid::from_raw_unchecked(user.uid), Gid::from_raw_unchecked(user.gid));
    set_thread_res_gid(gid, gid, Gid::ROOT)?;
    set_thread_res_uid(uid, uid, Uid::ROOT)
}

/// Goes back to the agent's own credentials, also when the step panics in a test.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let own = own();
        let restored = set_thread_res_uid(own.uid, own.uid, own.uid)
            .and_then(|()| set_thread_res_gid(own.gid, own.gid, own.gid))
            .and_then(|()| match set_thread_groups(&own.groups) {
                Err(Errno::PERM) => Ok(()),
                other => other,
            });
        if restored.is_err() {
            // Serving anybody with the wrong credentials would be worse than ending the sandbox.
            std::process::abort();
        }
    }
}
