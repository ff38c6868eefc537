//! Makes directories.

use rustix::fs::Mode;
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FileStat, MakeDir};

use super::Place;
use super::place::{MODE_BITS, is_dir};
use crate::errors::Outcome;
use crate::server::Agent;

const MODE_DEFAULT: u32 = 0o755;

/// Serves a `MakeDir` request.
pub(super) fn directory(agent: &Agent, request: &MakeDir) -> Outcome<FileStat> {
    let place = Place::resolve(agent, &request.path, request.user.as_deref())?;
    place.make_parents()?;
    let mode = Mode::from_raw_mode(request.mode.unwrap_or(MODE_DEFAULT) & MODE_BITS);
    let made = place.act("make the directory", || match rustix::fs::mkdir(&*place.path, mode) {
        // The umask must not take away what was asked for.
        Ok(()) => rustix::fs::chmod(&*place.path, mode).map(|()| true),
        Err(Errno::EXIST) => match rustix::fs::stat(&*place.path) {
            Ok(stat) if is_dir(&stat) => Ok(false),
            Ok(_) => Err(Errno::NOTDIR),
            Err(_) => Err(Errno::EXIST),
        },
        Err(errno) => Err(errno),
    })?;
    if !made && request.exclusive {
        return Err(AgentError::new(ErrorKind::Exists, format!("the directory {} exists already", place.path)));
    }
    place.stat(true)
}
