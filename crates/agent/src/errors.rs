//! From what the kernel says to what the host is told.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FrameError};

/// What an operation yields, or why it was refused.
pub(crate) type Outcome<T> = Result<T, AgentError>;

/// Why a connection's operation ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The host is told.
    Refused(AgentError),
    /// Nobody is left to tell.
    HostGone,
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::Refused(error)
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(_) | FrameError::Truncated => Self::HostGone,
            FrameError::TooLong { .. } | FrameError::Malformed { .. } => Self::Refused(invalid(error)),
        }
    }
}

/// The request makes no sense.
pub(crate) fn invalid(message: impl Display) -> AgentError {
    AgentError::new(ErrorKind::Invalid, message.to_string())
}

/// A kernel error as a refusal: "cannot open /x: No such file or directory".
pub(crate) fn refused(what: impl Display, errno: Errno) -> AgentError {
    AgentError::new(kind_of(errno), format!("{what}: {}", text_of(errno)))
}

/// The same, from the standard library's error.
pub(crate) fn refused_io(what: impl Display, error: &io::Error) -> AgentError {
    match Errno::from_io_error(error) {
        Some(errno) => refused(what, errno),
        None => AgentError::new(ErrorKind::Io, format!("{what}: {error}")),
    }
}

fn text_of(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn kind_of(errno: Errno) -> ErrorKind {
    match errno {
        Errno::NOENT | Errno::SRCH | Errno::CONNREFUSED | Errno::NXIO | Errno::NODEV => ErrorKind::NotFound,
        Errno::EXIST => ErrorKind::Exists,
        Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY | Errno::LOOP | Errno::NOEXEC => ErrorKind::WrongKind,
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY | Errno::BUSY => ErrorKind::Denied,
        Errno::NOSPC | Errno::DQUOT | Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::FBIG | Errno::MLINK => {
            ErrorKind::Exhausted
        }
        Errno::INVAL | Errno::NAMETOOLONG | Errno::TOOBIG => ErrorKind::Invalid,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_path_and_the_reason_without_the_error_number() {
        let error = refused("cannot open /x", Errno::NOENT);
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, "cannot open /x: No such file or directory");
    }
}
