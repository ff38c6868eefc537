//! Errors of the launcher: the step that failed and what the kernel said.

use std::io;

use rustix::io::Errno;

/// A failed step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepError {
    /// What was being done, reads after "failed to".
    pub(crate) step: &'static str,
    /// What the kernel said.
    pub(crate) errno: Errno,
}

/// Result of a step.
pub(crate) type Step<T> = Result<T, StepError>;

/// Names the step of a result.
pub(crate) trait At<T> {
    /// Adds the step's name to an error.
    fn at(self, step: &'static str) -> Step<T>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: &'static str) -> Step<T> {
        self.map_err(|errno| StepError { step, errno })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &'static str) -> Step<T> {
        self.map_err(|error| StepError { step, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
    }
}
