//! How failures below become the ten kinds of error: the one table.

use sandbank_agent_protocol::{AgentError, ClientError, ErrorKind as AgentKind, FrameError};
use sandbank_driver::DriverError;
use sandbank_model::{InvalidName, InvalidSizing, QuotaExceeded, Refusal};
use sandbank_store::StoreError;

use crate::{Detail, Error, ErrorKind};

/// What a sandbox's agent refused:
///
/// | agent | here | why |
/// |---|---|---|
/// | `Invalid`, `WrongKind` | `Invalid` | the request names something that cannot be |
/// | `NotFound` | `NotFound` | no such file, process, user or listener |
/// | `Exists` | `Conflict` | |
/// | `Denied` | `Forbidden` | permissions inside the sandbox |
/// | `Exhausted` | `NoCapacity` | the sandbox is at a limit of its own |
/// | `Io` | `Unavailable` | the kernel failed |
/// | `Unsupported` | `Unsupported` | an older agent |
impl From<AgentError> for Error {
    fn from(error: AgentError) -> Self {
        let kind = match error.kind {
            AgentKind::Invalid | AgentKind::WrongKind => ErrorKind::Invalid,
            AgentKind::NotFound => ErrorKind::NotFound,
            AgentKind::Exists => ErrorKind::Conflict,
            AgentKind::Denied => ErrorKind::Forbidden,
            AgentKind::Exhausted => ErrorKind::NoCapacity,
            AgentKind::Io => ErrorKind::Unavailable,
            AgentKind::Unsupported => ErrorKind::Unsupported,
        };
        // The text comes from inside the sandbox: bounded, so that it cannot fill logs and answers.
        Self::new(kind, error.message.chars().take(1000).collect::<String>())
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(_) | FrameError::Truncated => {
                Self::new(ErrorKind::Unavailable, "the sandbox's agent closed the connection: the sandbox may have ended")
            }
            FrameError::TooLong { .. } | FrameError::Malformed { .. } => out_of_turn(),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refused) => refused.into(),
            ClientError::Frame(frame) => frame.into(),
            ClientError::OutOfTurn { .. } => out_of_turn(),
        }
    }
}

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        let kind = match error {
            DriverError::Agent(agent) => return agent.into(),
            DriverError::Unsupported { .. } => ErrorKind::Unsupported,
            DriverError::Gone { .. } => ErrorKind::State,
            DriverError::ImageMissing { .. } | DriverError::Invalid { .. } => ErrorKind::Invalid,
            DriverError::Exhausted { .. } => ErrorKind::NoCapacity,
            DriverError::TimedOut { .. } | DriverError::Failed { .. } => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}

/// What is wrong with an image from elsewhere, or with getting it:
///
/// | image | here | why |
/// |---|---|---|
/// | `NotFound` | `NotFound` | |
/// | `Unauthorized`, `Forbidden` | `Forbidden` | the registry refuses; our own key is good |
/// | `RateLimited`, `Unavailable`, `Status`, `Redirect` | `Unavailable` | the registry fails |
/// | `Io` | `Unavailable`, of what is not there or not readable `Invalid` | |
/// | the rest | `Invalid` | the name or the image cannot be used |
impl From<sandbank_oci::Error> for Error {
    fn from(error: sandbank_oci::Error) -> Self {
        use sandbank_oci::Error as Oci;
        let kind = match &error {
            Oci::NotFound { .. } => ErrorKind::NotFound,
            Oci::Unauthorized { .. } | Oci::Forbidden { .. } => ErrorKind::Forbidden,
            Oci::RateLimited { .. } | Oci::Unavailable { .. } | Oci::Status { .. } | Oci::Redirect { .. } => {
                ErrorKind::Unavailable
            }
            Oci::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => ErrorKind::Invalid,
                _ => ErrorKind::Unavailable,
            },
            Oci::Reference(_)
            | Oci::Setting { .. }
            | Oci::Platform { .. }
            | Oci::Unsupported { .. }
            | Oci::Malformed { .. }
            | Oci::TooLarge { .. }
            | Oci::Digest { .. }
            | Oci::Size { .. }
            | Oci::Choice { .. }
            | Oci::Archive { .. }
            | Oci::Decompressed { .. }
            | Oci::Compression { .. } => ErrorKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let error = Self::new(ErrorKind::State, message);
        match refusal {
            Refusal::State { state, .. } | Refusal::Already { state } => error.with(Detail::State(state)),
            Refusal::LeaseEnded { .. } => error,
        }
    }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<InvalidSizing> for Error {
    fn from(error: InvalidSizing) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<QuotaExceeded> for Error {
    fn from(error: QuotaExceeded) -> Self {
        Self::new(ErrorKind::Quota, format!("{error}: release sandboxes, shrink pools, or ask an admin for more"))
    }
}

/// The agent said something that the operation does not allow.
pub(crate) fn out_of_turn() -> Error {
    Error::new(ErrorKind::Unavailable, "the sandbox's agent answered out of turn: release the sandbox and claim another")
}

/// The agent said nothing in time.
pub(crate) fn unresponsive() -> Error {
    Error::new(ErrorKind::Unavailable, "the sandbox's agent did not answer in time: try again, or release the sandbox")
}

/// The sandbox ended under an open stream.
pub(crate) fn ended_under_stream() -> Error {
    Error::new(ErrorKind::State, "the sandbox ended while the stream was open")
}

#[cfg(test)]
mod tests {
    use sandbank_agent_protocol::{AgentError, ClientError, ErrorKind as AgentKind, FrameError};
    use sandbank_driver::{Capability, DriverError};
    use sandbank_store::StoreError;

    use crate::{Error, ErrorKind};

    #[test]
    fn every_failure_below_has_its_kind_and_a_message() {
        let refused = |kind| Error::from(ClientError::from(AgentError::new(kind, "why")));
        let rows = [
            (refused(AgentKind::Invalid), ErrorKind::Invalid),
            (refused(AgentKind::WrongKind), ErrorKind::Invalid),
            (refused(AgentKind::NotFound), ErrorKind::NotFound),
            (refused(AgentKind::Exists), ErrorKind::Conflict),
            (refused(AgentKind::Denied), ErrorKind::Forbidden),
            (refused(AgentKind::Exhausted), ErrorKind::NoCapacity),
            (refused(AgentKind::Io), ErrorKind::Unavailable),
            (refused(AgentKind::Unsupported), ErrorKind::Unsupported),
            (FrameError::Truncated.into(), ErrorKind::Unavailable),
            (FrameError::TooLong { length: 1 << 30 }.into(), ErrorKind::Unavailable),
            (ClientError::OutOfTurn { expected: "a pong" }.into(), ErrorKind::Unavailable),
            (DriverError::Unsupported { capability: Capability::Pause }.into(), ErrorKind::Unsupported),
            (DriverError::Exhausted { what: "memory", detail: "none".into() }.into(), ErrorKind::NoCapacity),
            (DriverError::TimedOut { what: "the launcher", waited_ms: 1 }.into(), ErrorKind::Unavailable),
            (DriverError::Invalid { what: "a broken archive".into() }.into(), ErrorKind::Invalid),
            (StoreError::DiskFull.into(), ErrorKind::Unavailable),
        ];
        for (error, kind) in rows {
            assert_eq!(error.kind, kind, "{error}");
            assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn what_an_agent_says_cannot_fill_an_answer() {
        let error = Error::from(AgentError::new(AgentKind::Io, "x".repeat(1_000_000)));
        assert_eq!(error.message.len(), 1000);
    }
}
