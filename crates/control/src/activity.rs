//! When each sandbox was last used. The store hears of it in batches; it may lose the last few seconds in a crash.

use std::collections::HashMap;

use parking_lot::Mutex;
use sandbank_model::{Sandbox, SandboxId, Timestamp};

/// Last activity of sandboxes that are or were in use since the start.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    seen: Mutex<HashMap<SandboxId, Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Timestamp,
    written: bool,
}

impl Activity {
    /// It was used at `at`.
    pub(crate) fn touch(&self, id: SandboxId, at: Timestamp) {
        let mut seen = self.seen.lock();
        let entry = seen.entry(id).or_insert(Seen { at, written: false });
        if entry.at < at {
            *entry = Seen { at, written: false };
        }
    }

    /// The sandbox has ended.
    pub(crate) fn forget(&self, id: SandboxId) {
        self.seen.lock().remove(&id);
    }

    /// Puts what is known here into a record that was read from the store.
    pub(crate) fn overlay(&self, sandbox: &mut Sandbox) {
        if let Some(seen) = self.seen.lock().get(&sandbox.id) {
            sandbox.last_activity_at = sandbox.last_activity_at.max(seen.at);
        }
    }

    /// What the store has not heard yet.
    pub(crate) fn unwritten(&self) -> Vec<(SandboxId, Timestamp)> {
        let seen = self.seen.lock();
        seen.iter().filter(|(_, seen)| !seen.written).map(|(id, seen)| (*id, seen.at)).collect()
    }

    /// The store has heard this.
    pub(crate) fn written(&self, batch: &[(SandboxId, Timestamp)]) {
        let mut seen = self.seen.lock();
        for (id, at) in batch {
            if let Some(entry) = seen.get_mut(id).filter(|entry| entry.at == *at) {
                entry.written = true;
            }
        }
    }
}
