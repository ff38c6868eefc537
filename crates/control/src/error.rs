//! The ten kinds of error that leave `control`. Each dialect maps kinds to its own codes in one table.

use sandbank_model::{PoolCounts, PoolName, State};

/// Kind of an error: what a client can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong in itself: change it.
    Invalid,
    /// No key, a wrong one, an expired or revoked one.
    Unauthenticated,
    /// The key is good, but not for this.
    Forbidden,
    /// There is no such object, or it belongs to somebody else.
    NotFound,
    /// The name is taken, or the object was changed in between.
    Conflict,
    /// The sandbox's state does not allow it now.
    State,
    /// The tenant's quota does not allow it.
    Quota,
    /// Nothing is free now: try again later.
    NoCapacity,
    /// This driver, or this machine, cannot do that.
    Unsupported,
    /// Something behind the server failed: the disk is full, the launcher or an agent does not answer.
    Unavailable,
}

/// What a client may want to know beside the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Plain words.
    Text(String),
    /// The pools that there are.
    AvailablePools(Vec<PoolBrief>),
    /// The templates that there are: name, description, whether the installation owns it.
    AvailableTemplates(Vec<TemplateBrief>),
    /// Why a pool had none.
    PoolStatus(PoolCounts),
    /// The state found.
    State(State),
    /// The caller's tenant has no API key yet, and this needs one (native.md §8, `API_KEY_REQUIRED`).
    ApiKeyRequired,
}

/// A pool in an error's detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolBrief {
    /// Name.
    pub name: PoolName,
    /// Its tenant's name.
    pub tenant: String,
    /// What is there.
    pub counts: PoolCounts,
}

/// A template in an error's detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateBrief {
    /// Name.
    pub name: PoolName,
    /// For people.
    pub description: Option<String>,
    /// Whether the installation owns it (not a tenant).
    pub global: bool,
}

/// An error: its kind, a message that says what was wrong and what to do, and perhaps a detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Kind.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// For programs. Boxed: errors are rare and results should stay small.
    pub detail: Option<Box<Detail>>,
}

/// Results of `control`.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without detail.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None }
    }

    /// What was asked for is not done because the server ends.
    pub(crate) fn shutting_down() -> Self {
        Self::new(ErrorKind::Unavailable, "the server is shutting down: try again in a moment")
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.detail = Some(Box::new(detail));
        self
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// There is no such object for this caller.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
}
