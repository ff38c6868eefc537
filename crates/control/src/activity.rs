//! When each sandbox was last used. The store hears of it in batches; it may lose the last few seconds in a crash.

use std::collections::HashMap;

use parking_lot::Mutex;
use sandbank_model::{Sandbox, SandboxId, Timestamp};

/// Last activity of sandboxes, as far as the store has not heard of it.
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
        let latest = seen.entry(id).or_insert(Seen { at, written: false });
        if latest.at < at {
            *latest = Seen { at, written: false };
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

    /// What the store has not heard yet. What it heard the last time is forgotten here, and only now: a record that was read
    /// just before the store heard of it would otherwise look older than it is, and its sandbox idle.
    pub(crate) fn unwritten(&self) -> Vec<(SandboxId, Timestamp)> {
        let mut seen = self.seen.lock();
        seen.retain(|_, seen| !seen.written);
        seen.iter().map(|(id, seen)| (*id, seen.at)).collect()
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

#[cfg(test)]
mod tests {
    use sandbank_model::{SandboxId, Timestamp};

    use super::Activity;

    #[test]
    fn what_the_store_has_heard_is_kept_for_one_more_round_and_then_forgotten() {
        let (activity, at) = (Activity::default(), Timestamp::from_millis);
        let id = SandboxId::new(at(0), [1; 10]);
        activity.touch(id, at(5));
        activity.touch(id, at(3));
        assert_eq!(activity.unwritten(), [(id, at(5))]);
        activity.written(&[(id, at(5))]);
        assert_eq!(activity.seen.lock().len(), 1);
        assert_eq!(activity.unwritten(), []);
        assert_eq!(activity.seen.lock().len(), 0);
        activity.touch(id, at(6));
        activity.written(&[(id, at(5))]);
        assert_eq!(activity.unwritten(), [(id, at(6))], "a touch in between is not lost");
    }
}
