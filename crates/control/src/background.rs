//! Tasks that run beside requests, and their end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::Inner;
use crate::{Error, Result};

/// All tasks of one [`Control`](crate::Control).
#[derive(Debug, Default, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    /// No new work is begun.
    pub(crate) closing: CancellationToken,
    /// Whatever runs is dropped where it waits.
    abort: CancellationToken,
}

impl Tasks {
    /// Runs `work` beside requests, until it ends or everything is aborted.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Waits, at most so long; `false` when the server is closing.
    pub(crate) async fn sleep(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.closing.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

/// Runs what waits for the disk where that harms nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::shutting_down())
}

/// The background work of a [`Control`](crate::Control). Dropping it without [`Background::shutdown`] drops all work where it
/// is, as a crash would.
pub struct Background {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Background {
    /// Ends it and waits, at most `grace`. What is under way is finished where that is possible; the rest is what recovery is for.
    pub async fn shutdown(self, grace: Duration) {
        let tasks = &self.inner.tasks;
        tasks.closing.cancel();
        tasks.tracker.close();
        if tokio::time::timeout(grace, tasks.tracker.wait()).await.is_err() {
            tracing::warn!(grace_ms = grace.as_millis(), tasks = tasks.tracker.len(), "background work did not end in time");
        }
        self.inner.flush_activity().await;
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.inner.tasks.closing.cancel();
        self.inner.tasks.abort.cancel();
    }
}
