//! Use cases, authorization, quotas, leases, reconcilers and recovery: what Sandbank decides.
//!
//! A dialect calls [`Control`] and nothing else. Every use case takes the [`Caller`]; another tenant's object looks missing.
//! Time and randomness come from [`Clock`] and [`Entropy`], which only the server implements for real.

mod control;
mod error;
mod types;

pub use control::{Background, Control, FileReader, FileWriter, PortStream, ProcessEvents, ProcessInput, ProcessStream, Watch};
pub use error::{Detail, Error, ErrorKind, PoolBrief, Result, TemplateBrief};
pub use types::*;
