//! Streams that are open into sandboxes: they count as activity, and they end when their sandbox does.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sandbank_model::SandboxId;
use tokio::sync::watch;

type Open = Arc<Mutex<HashMap<SandboxId, Entry>>>;

/// The streams into one sandbox.
#[derive(Debug)]
struct Entry {
    ended: watch::Sender<bool>,
    /// Streams that count as activity.
    used: usize,
    /// Streams that do not.
    held: usize,
}

/// All open streams, counted by sandbox.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: Open,
}

/// One open stream. Dropping it says that it is closed.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    id: SandboxId,
    counts: bool,
    open: Open,
    ended: watch::Receiver<bool>,
}

impl Streams {
    /// A stream into `id` is open from now on.
    pub(crate) fn open(&self, id: SandboxId) -> StreamGuard {
        self.add(id, true)
    }

    /// A stream that is no activity by being open: a connection that is kept for the next request.
    pub(crate) fn hold(&self, id: SandboxId) -> StreamGuard {
        self.add(id, false)
    }

    fn add(&self, id: SandboxId, counts: bool) -> StreamGuard {
        let mut open = self.open.lock();
        let entry = open.entry(id).or_insert_with(|| Entry { ended: watch::Sender::new(false), used: 0, held: 0 });
        *if counts { &mut entry.used } else { &mut entry.held } += 1;
        StreamGuard { id, counts, open: Arc::clone(&self.open), ended: entry.ended.subscribe() }
    }

    /// Whether any stream into it is open that counts as activity.
    pub(crate) fn any(&self, id: SandboxId) -> bool {
        self.open.lock().get(&id).is_some_and(|entry| entry.used > 0)
    }

    /// Sandboxes with open streams that count as activity.
    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.open.lock().iter().filter(|(_, entry)| entry.used > 0).map(|(id, _)| *id).collect()
    }

    /// The sandbox has ended: whoever waits for its streams is told.
    pub(crate) fn end(&self, id: SandboxId) {
        if let Some(entry) = self.open.lock().get(&id) {
            entry.ended.send_replace(true);
        }
    }
}

impl StreamGuard {
    /// Returns when the sandbox has ended.
    pub(crate) async fn ended(&mut self) {
        if self.ended.wait_for(|ended| *ended).await.is_err() {
            // The sender lives as long as this guard's entry; should that ever change, waiting is the harmless answer.
            std::future::pending::<()>().await;
        }
    }

    /// Whether it counts as activity.
    pub(crate) const fn counts(&self) -> bool {
        self.counts
    }

    /// Whether the sandbox has ended.
    pub(crate) fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Another receiver for the same stream's other half.
    pub(crate) fn listener(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(entry) = open.get_mut(&self.id) {
            *if self.counts { &mut entry.used } else { &mut entry.held } -= 1;
            if entry.used + entry.held == 0 {
                open.remove(&self.id);
            }
        }
    }
}
