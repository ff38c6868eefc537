//! Which sandbox's lease may end next. Entries are looked at again when they come due: activity in between costs nothing here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use parking_lot::Mutex;
use sandbank_model::{Sandbox, SandboxId, State, Timestamp};
use tokio::sync::Notify;

/// A queue of deadlines, the earliest first; at most one valid entry a sandbox.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    queue: Mutex<Queue>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Reverse<(Timestamp, SandboxId)>>,
    armed: HashMap<SandboxId, Timestamp>,
}

impl Deadlines {
    /// Looks at the sandbox at `at`; an earlier time replaces a later one, never the other way round.
    pub(crate) fn arm(&self, id: SandboxId, at: Timestamp) {
        let mut queue = self.queue.lock();
        if queue.armed.get(&id).is_some_and(|armed| *armed <= at) {
            return;
        }
        let first = queue.heap.peek().map(|Reverse((first, _))| *first);
        queue.armed.insert(id, at);
        queue.heap.push(Reverse((at, id)));
        queue.compact();
        drop(queue);
        if first.is_none_or(|first| at < first) {
            self.earlier.notify_one();
        }
    }

    /// Arms what the record's lease says, if a clock runs.
    pub(crate) fn arm_for(&self, sandbox: &Sandbox) {
        let Some(lease) = sandbox.lease.as_ref().filter(|_| sandbox.state.lease_clock_runs()) else {
            return;
        };
        // A paused sandbox is idle by intent: its idle clock ends nothing, and armed in the past it would come due for ever.
        let at = match sandbox.state {
            State::Paused => lease.expires_at,
            _ => lease.deadline(sandbox.last_activity_at).map(|(at, _)| at),
        };
        if let Some(at) = at {
            self.arm(sandbox.id, at);
        }
    }

    /// The sandbox has ended.
    pub(crate) fn disarm(&self, id: SandboxId) {
        self.queue.lock().armed.remove(&id);
    }

    /// Takes what is due at `now`, at most `limit`.
    pub(crate) fn due(&self, now: Timestamp, limit: usize) -> Vec<SandboxId> {
        let mut queue = self.queue.lock();
        let mut due = Vec::new();
        while due.len() < limit {
            match queue.heap.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            if let Some(Reverse((at, id))) = queue.heap.pop()
                && queue.armed.get(&id) == Some(&at)
            {
                queue.armed.remove(&id);
                due.push(id);
            }
        }
        due
    }

    /// When the next entry comes due.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.queue.lock().heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Returns when an entry was armed that is earlier than all others.
    pub(crate) async fn changed(&self) {
        self.earlier.notified().await;
    }
}

impl Queue {
    /// Stale entries (of leases that moved or ended) never outnumber the valid ones by much.
    fn compact(&mut self) {
        if self.heap.len() > 2 * self.armed.len() + 64 {
            self.heap = self.armed.iter().map(|(id, at)| Reverse((*at, *id))).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sandbank_model::{SandboxId, Timestamp};

    use super::Deadlines;

    fn id(n: u8) -> SandboxId {
        SandboxId::new(Timestamp::default(), [n; 10])
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_earliest_comes_first_and_each_sandbox_once() {
        let deadlines = Deadlines::default();
        deadlines.arm(id(1), at(30));
        deadlines.arm(id(2), at(20));
        deadlines.arm(id(1), at(10));
        deadlines.arm(id(1), at(40));
        assert_eq!(deadlines.due(at(9), 10), vec![]);
        assert_eq!(deadlines.due(at(50), 10), vec![id(1), id(2)]);
        assert_eq!(deadlines.due(at(50), 10), vec![]);
    }

    #[test]
    fn ever_earlier_deadlines_of_one_sandbox_do_not_grow_the_queue() {
        let deadlines = Deadlines::default();
        for n in (0..10_000).rev() {
            deadlines.arm(id(1), at(n));
        }
        assert!(deadlines.queue.lock().heap.len() < 100);
        deadlines.disarm(id(1));
        assert_eq!(deadlines.due(at(20_000), 10), vec![]);
    }
}
