//! From the kernel's words to the driver's.

use std::io;

use rustix::io::Errno;
use sandbank_driver::DriverError;

/// Turns an I/O error at a step into the driver's error, telling apart what the machine has run out of.
pub(super) fn failed<E: Into<io::Error>>(step: impl FnOnce() -> String) -> impl FnOnce(E) -> DriverError {
    move |error| describe(step(), &error.into())
}

fn describe(step: String, error: &io::Error) -> DriverError {
    let what = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Some("disk space"),
        Some(Errno::MFILE | Errno::NFILE) => Some("file descriptors"),
        Some(Errno::NOMEM) => Some("memory"),
        _ => None,
    };
    let detail = error.to_string();
    match what {
        Some(what) => DriverError::Exhausted { what, detail: format!("{step}: {detail}") },
        None => DriverError::Failed { step, detail },
    }
}

/// What was handed in cannot be used.
pub(super) fn invalid(what: impl Into<String>) -> DriverError {
    DriverError::Invalid { what: what.into() }
}

/// A name from an archive, cut and with control characters escaped, for messages.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    let cut = &name[..name.len().min(SHOWN_MAX)];
    let text = format!("{:?}", String::from_utf8_lossy(cut));
    if cut.len() < name.len() { format!("{text}…") } else { text }
}
