//! What a command says when it fails, and the exit code it fails with.

use std::fmt;
use std::io;

/// Something failed that the person at the terminal should read about.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Exit code of an error.
    pub(crate) const ERROR: u8 = 1;
    /// Exit code of a command line that makes no sense (clap uses the same).
    pub(crate) const USAGE: u8 = 2;
    /// Exit code of `run` and `exec` when the sandbox failed and not the program in it (as `docker run` and `chroot` do).
    pub(crate) const INFRASTRUCTURE: u8 = 125;
    /// Exit code when whoever reads our output went away: 128 + SIGPIPE.
    const BROKEN_PIPE: u8 = 141;

    /// An error with exit code 1. `message` says what was wrong and what to do.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: Self::ERROR }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: Self::USAGE }
    }

    /// The program was never at fault: `run` and `exec` could not do their part.
    pub(crate) fn into_infrastructure(self) -> Self {
        let code = if self.code == Self::ERROR { Self::INFRASTRUCTURE } else { self.code };
        Self { code, ..self }
    }

    /// Ends with `code` without a word: what there was to say has been said.
    pub(crate) fn silent(code: u8) -> Self {
        Self { message: String::new(), code }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// An error of our own output: silent when the reader went away.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::silent(Self::BROKEN_PIPE)
        } else {
            Self::new(format!("cannot write the output: {error}"))
        }
    }

    /// Prints `sandbank: …` to standard error, unless there is nothing to say.
    pub(crate) fn report(&self) {
        if !self.message.is_empty() {
            // When standard error itself is gone there is nobody left to tell.
            let _ = io::Write::write_all(&mut io::stderr(), format!("sandbank: {}\n", self.message).as_bytes());
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;
