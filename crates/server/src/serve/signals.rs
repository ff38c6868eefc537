//! The signals that end the server.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, Result};

/// Exit code of a server that was told twice: 128 + SIGTERM.
const FORCED: i32 = 143;

/// SIGTERM and SIGINT.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Watches from now on.
    pub(crate) fn watch() -> Result<Self> {
        let watch = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot watch for signals: {error}")));
        Ok(Self { terminate: watch(SignalKind::terminate())?, interrupt: watch(SignalKind::interrupt())? })
    }

    /// Waits for one.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// From now on the next one ends the process at once.
    pub(crate) fn exit_on_repeat(mut self) {
        tokio::spawn(async move {
            self.requested().await;
            tracing::warn!("told twice: leaving at once");
            std::process::exit(FORCED);
        });
    }
}
