//! What one sandbox may take of the services, and all of them together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sandbank_model::SandboxId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::settings::EgressLimits;

/// Above so many records those of sandboxes that do nothing are looked for.
const RECORDS_BEFORE_SWEEP: usize = 256;
/// A record that nobody used for so long tells nothing: its bucket is full again.
const RECORD_LIFE: Duration = Duration::from_secs(60);

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Usage {
    limits: EgressLimits,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    sandboxes: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    by_id: HashMap<SandboxId, Arc<SandboxUsage>>,
    /// How many there may be before the next sweep.
    sweep_above: usize,
}

/// What is counted for one sandbox.
#[derive(Debug)]
pub(crate) struct SandboxUsage {
    bucket: Mutex<Bucket>,
    queries: Arc<Semaphore>,
    dns_connections: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Changes with the policy: whoever holds a connection open looks again.
    policy: watch::Sender<()>,
}

/// Holds a place among those that are counted, and with it the record that counts them.
#[derive(Debug)]
pub(crate) struct Place {
    _sandbox: Arc<SandboxUsage>,
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// A token bucket: `burst` at once, `per_second` in the long run.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, limits: &EgressLimits) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(limits.queries_per_second);
        self.tokens = (self.tokens + gained).min(f64::from(limits.queries_burst));
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Usage {
    pub(crate) fn new(limits: EgressLimits) -> Self {
        Self {
            limits,
            queries: Arc::new(Semaphore::new(limits.queries_in_flight_total)),
            connections: Arc::new(Semaphore::new(limits.connections_total)),
            sandboxes: Mutex::new(Records { by_id: HashMap::new(), sweep_above: RECORDS_BEFORE_SWEEP }),
        }
    }

    /// The record of one sandbox.
    pub(crate) fn of(&self, id: SandboxId) -> Arc<SandboxUsage> {
        let now = Instant::now();
        let mut records = self.sandboxes.lock();
        if let Some(found) = records.by_id.get(&id) {
            return Arc::clone(found);
        }
        if records.by_id.len() >= records.sweep_above {
            records.by_id.retain(|_, record| Arc::strong_count(record) > 1 || !record.idle(now));
            records.sweep_above = RECORDS_BEFORE_SWEEP.max(records.by_id.len() * 2);
        }
        let record = Arc::new(SandboxUsage {
            bucket: Mutex::new(Bucket { tokens: f64::from(self.limits.queries_burst), at: now }),
            queries: Arc::new(Semaphore::new(self.limits.queries_in_flight)),
            dns_connections: Arc::new(Semaphore::new(self.limits.dns_connections)),
            connections: Arc::new(Semaphore::new(self.limits.connections)),
            policy: watch::Sender::new(()),
        });
        records.by_id.insert(id, Arc::clone(&record));
        record
    }

    /// Has every open connection of the sandbox looked at again.
    pub(crate) fn policy_changed(&self, id: SandboxId) {
        if let Some(record) = self.sandboxes.lock().by_id.get(&id) {
            record.policy.send_replace(());
        }
    }

    /// Any policy may have changed.
    pub(crate) fn policies_changed(&self) {
        for record in self.sandboxes.lock().by_id.values() {
            record.policy.send_replace(());
        }
    }

    /// Whether the sandbox may send one more query now.
    pub(crate) fn query_allowed(&self, sandbox: &SandboxUsage, now: Instant) -> bool {
        sandbox.bucket.lock().take(now, &self.limits)
    }

    /// A place for a query that is being answered.
    pub(crate) fn query_place(&self, sandbox: &Arc<SandboxUsage>) -> Option<Place> {
        place(sandbox, &sandbox.queries, &self.queries)
    }

    /// A place for a DNS connection.
    pub(crate) fn dns_connection_place(&self, sandbox: &Arc<SandboxUsage>) -> Option<Place> {
        place(sandbox, &sandbox.dns_connections, &self.connections)
    }

    /// A place for a proxied connection.
    pub(crate) fn connection_place(&self, sandbox: &Arc<SandboxUsage>) -> Option<Place> {
        place(sandbox, &sandbox.connections, &self.connections)
    }
}

impl SandboxUsage {
    fn idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.bucket.lock().at) > RECORD_LIFE
    }

    /// Tells of changes from now on.
    pub(crate) fn policy_changes(&self) -> watch::Receiver<()> {
        self.policy.subscribe()
    }
}

fn place(sandbox: &Arc<SandboxUsage>, own: &Arc<Semaphore>, of_all: &Arc<Semaphore>) -> Option<Place> {
    let own = Arc::clone(own).try_acquire_owned().ok()?;
    let of_all = Arc::clone(of_all).try_acquire_owned().ok()?;
    Some(Place { _sandbox: Arc::clone(sandbox), _own: own, _of_all: of_all })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn id(number: u128) -> SandboxId {
        SandboxId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let limits = EgressLimits { queries_per_second: 10, queries_burst: 3, ..EgressLimits::default() };
        let usage = Usage::new(limits);
        let sandbox = usage.of(id(1));
        let start = Instant::now();
        let taken = |at: Duration| (0..100).filter(|_| usage.query_allowed(&sandbox, start + at)).count();
        assert_eq!(taken(Duration::ZERO), 3);
        assert_eq!(taken(Duration::from_millis(250)), 2);
        assert_eq!(taken(Duration::from_secs(60)), 3, "never more than a burst");
    }

    #[test]
    fn places_are_counted_by_sandbox_and_in_all() {
        let usage = Usage::new(EgressLimits { connections: 2, connections_total: 3, ..EgressLimits::default() });
        let (one, two) = (usage.of(id(1)), usage.of(id(2)));
        let first = usage.connection_place(&one).unwrap();
        let _second = usage.connection_place(&one).unwrap();
        assert!(usage.connection_place(&one).is_none(), "its own limit");
        let _third = usage.connection_place(&two).unwrap();
        assert!(usage.connection_place(&two).is_none(), "the limit of all");
        drop(first);
        assert!(usage.connection_place(&two).is_some());
    }

    #[test]
    fn records_of_sandboxes_that_are_gone_do_not_pile_up() {
        let usage = Usage::new(EgressLimits::default());
        let place = usage.connection_place(&usage.of(id(0))).unwrap();
        let changes = usage.of(id(0)).policy_changes();
        let Some(long_ago) = Instant::now().checked_sub(RECORD_LIFE * 2) else { return };
        for number in 0..10_000 {
            usage.of(id(number)).bucket.lock().at = long_ago;
        }
        let records = usage.sandboxes.lock().by_id.len();
        assert!(records <= RECORDS_BEFORE_SWEEP + 1, "{records}");
        usage.policy_changed(id(0));
        assert!(changes.has_changed().unwrap(), "who holds a connection still hears of changes");
        drop(place);
    }
}
