//! The person's terminal: raw while a program in a sandbox has it, and always given back as it was.

use std::io::{self, IsTerminal as _};

use rustix::termios::{self, OptionalActions, Termios};

use crate::failure::{Failure, Result};

/// The terminal in raw mode. Dropping it restores what was before, also when a panic unwinds.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input's terminal raw.
    pub(crate) fn enter() -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Err(Failure::usage("standard input is not a terminal: leave out -t"));
        }
        let failed = |error: rustix::io::Errno| Failure::new(format!("cannot set the terminal: {error}"));
        let before = termios::tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Columns and rows of the person's terminal; 80 by 24 when it does not say.
pub(crate) fn size() -> (u16, u16) {
    match termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}
