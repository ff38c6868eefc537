//! Connections to programs inside that wait for their next request.
//!
//! HTTP/1.1 carries one request at a time on a connection, and a connection comes here only when its answer has been read to its
//! end and nothing was left over: hyper closes one on which anything else arrives. So a request never meets bytes that belong to
//! another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use sandbank_model::SandboxId;
use tokio::time::Instant;

use super::guard::AbortOnDrop;

/// Most idle connections to one port.
const IDLE_PER_PORT: usize = 32;
/// Most idle connections in all.
const IDLE_MAX: usize = 1024;
/// Longest that a connection is kept idle.
const IDLE_LIFE: Duration = Duration::from_secs(30);
/// How often idle ones are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// Longest wait for a connection whose answer has been read to be ready for the next request.
const READY_WAIT: Duration = Duration::from_secs(1);

/// What connections are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Sandbox.
    pub sandbox: SandboxId,
    /// Port inside.
    pub port: u16,
}

/// Idle connections. Cheap to clone.
#[derive(Clone, Default)]
pub struct PortPool {
    idle: Arc<Mutex<Idle>>,
}

impl std::fmt::Debug for PortPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortPool").field("idle", &self.len()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Idle {
    ports: HashMap<PortKey, VecDeque<Waiting>>,
    count: usize,
    /// Sandboxes that connections were made into and that have not been closed since.
    open: HashMap<SandboxId, Closed>,
    swept: bool,
}

/// Whether the sandbox was closed after a connection into it was made: such a connection does not come back.
type Closed = Arc<AtomicBool>;

struct Waiting {
    connection: Connection,
    since: Instant,
}

/// A connection to a program inside, with the task that drives it.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    pub(super) task: AbortOnDrop,
    pub(super) closed: Closed,
}

impl PortPool {
    /// How many connections are idle.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.lock().count
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes the idle connections into a sandbox, and those that are in use as soon as they are not.
    pub fn close(&self, sandbox: SandboxId) {
        let mut idle = self.idle.lock();
        // Called for every sandbox that ends: most were never connected to.
        if let Some(closed) = idle.open.remove(&sandbox) {
            closed.store(true, Ordering::Release);
            idle.retain(|key, _| key.sandbox != sandbox);
        }
    }

    /// For a connection into this sandbox that is about to be made.
    pub(super) fn opening(&self, sandbox: SandboxId) -> Closed {
        Arc::clone(self.idle.lock().open.entry(sandbox).or_default())
    }

    /// The connection that was used last.
    pub(super) fn take(&self, key: PortKey) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let waiting = idle.ports.get_mut(&key)?;
        let mut taken = 0;
        let mut found = None;
        while let Some(last) = waiting.pop_back() {
            taken += 1;
            if last.connection.sender.is_ready() && last.since.elapsed() < IDLE_LIFE {
                found = Some(last.connection);
                break;
            }
        }
        if waiting.is_empty() {
            idle.ports.remove(&key);
        }
        idle.count -= taken;
        found
    }

    /// Keeps a connection whose answer was read to its end, as soon as it is ready for another request.
    pub(super) fn put(&self, key: PortKey, mut connection: Connection) {
        if connection.sender.is_ready() {
            self.keep(key, connection);
        } else if !connection.sender.is_closed() {
            let pool = self.clone();
            tokio::spawn(async move {
                if let Ok(Ok(())) = tokio::time::timeout(READY_WAIT, connection.sender.ready()).await {
                    pool.keep(key, connection);
                }
            });
        }
    }

    fn keep(&self, key: PortKey, connection: Connection) {
        let mut idle = self.idle.lock();
        let full = idle.count >= IDLE_MAX || idle.ports.get(&key).is_some_and(|waiting| waiting.len() >= IDLE_PER_PORT);
        if full || connection.closed.load(Ordering::Acquire) {
            return;
        }
        idle.ports.entry(key).or_default().push_back(Waiting { connection, since: Instant::now() });
        idle.count += 1;
        if !std::mem::replace(&mut idle.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.idle)));
        }
    }
}

impl Idle {
    fn retain(&mut self, mut wanted: impl FnMut(&PortKey, &Waiting) -> bool) {
        self.ports.retain(|key, waiting| {
            waiting.retain(|one| wanted(key, one));
            !waiting.is_empty()
        });
        self.count = self.ports.values().map(VecDeque::len).sum();
    }
}

/// Closes what has waited for too long, until nothing waits.
async fn sweep(idle: Weak<Mutex<Idle>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = idle.lock();
        idle.retain(|_, one| one.since.elapsed() < IDLE_LIFE && !one.connection.sender.is_closed());
        // Of sandboxes that ended while a connection into them was being made.
        idle.open.retain(|_, closed| Arc::strong_count(closed) > 1);
        if idle.count == 0 {
            idle.swept = false;
            return;
        }
    }
}
