//! Streams that are open into sandboxes: they count as activity, and they end when their sandbox does.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sandbank_model::SandboxId;
use tokio::sync::watch;

type Open = Arc<Mutex<HashMap<SandboxId, (watch::Sender<bool>, usize)>>>;

/// All open streams, counted by sandbox.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: Open,
}

/// One open stream. Dropping it says that it is closed.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    id: SandboxId,
    open: Open,
    ended: watch::Receiver<bool>,
}

impl Streams {
    /// A stream into `id` is open from now on.
    pub(crate) fn open(&self, id: SandboxId) -> StreamGuard {
        let mut open = self.open.lock();
        let entry = open.entry(id).or_insert_with(|| (watch::Sender::new(false), 0));
        entry.1 += 1;
        StreamGuard { id, open: Arc::clone(&self.open), ended: entry.0.subscribe() }
    }

    /// Whether any stream into it is open.
    pub(crate) fn any(&self, id: SandboxId) -> bool {
        self.open.lock().contains_key(&id)
    }

    /// Sandboxes with open streams.
    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.open.lock().keys().copied().collect()
    }

    /// The sandbox has ended: whoever waits for its streams is told.
    pub(crate) fn end(&self, id: SandboxId) {
        if let Some((sender, _)) = self.open.lock().get(&id) {
            sender.send_replace(true);
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
            entry.1 -= 1;
            if entry.1 == 0 {
                open.remove(&self.id);
            }
        }
    }
}
