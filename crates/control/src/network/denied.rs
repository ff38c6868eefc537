//! Connections that were refused, as events: few of them, however hard a sandbox tries.

use std::time::Duration;

use sandbank_model::{Actor, EventKind, SandboxId, Timestamp};

use crate::Result;
use crate::control::{Control, Inner};
use crate::lifecycle::event_of;

/// Least time between two such events of one sandbox.
const EVERY: Duration = Duration::from_secs(10);
/// Most destinations that an event names.
const DESTINATIONS_MAX: usize = 16;
/// Longest destination, characters: a name with a port.
const DESTINATION_LEN_MAX: usize = 270;

/// What was refused since the last event of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Denials {
    told_at: Option<Timestamp>,
    destinations: Vec<String>,
    count: u64,
}

impl Denials {
    fn add(&mut self, destinations: &[impl AsRef<str>], count: u64) {
        self.count = self.count.saturating_add(count);
        for destination in destinations {
            if self.destinations.len() >= DESTINATIONS_MAX {
                break;
            }
            let shown: String = destination.as_ref().chars().filter(|c| !c.is_control()).take(DESTINATION_LEN_MAX).collect();
            if !self.destinations.contains(&shown) {
                self.destinations.push(shown);
            }
        }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.told_at.is_none_or(|at| now.since(at) >= EVERY)
    }
}

impl Control {
    /// A connection of a sandbox was refused, to this destination (`address:port`, `name:port` or a name that was only to be resolved):
    /// for services of the host that refuse some. Told in events, at most one a sandbox in ten seconds. Cheap, and never waits.
    pub fn network_denied(&self, id: SandboxId, destination: &str) {
        let networks = &self.inner.networks;
        // Only of sandboxes that live: what is remembered is bounded by how many there are.
        if networks.get(id).is_some() {
            networks.denied.lock().entry(id).or_default().add(&[destination], 1);
        }
    }
}

impl Inner {
    pub(crate) async fn note_denied(&self, id: SandboxId, destinations: &[String]) -> Result<()> {
        // Only of sandboxes that live: what is remembered is bounded by how many there are.
        if destinations.is_empty() || !self.store.sandbox_get(id).await?.is_some_and(|sandbox| sandbox.state.is_live()) {
            return Ok(());
        }
        let count = u64::try_from(destinations.len()).unwrap_or(u64::MAX);
        self.networks.denied.lock().entry(id).or_default().add(destinations, count);
        self.tell_denied(id).await;
        Ok(())
    }

    /// Tells what was held back and is due by now, and forgets sandboxes that have been quiet since.
    pub(crate) async fn flush_denied(&self) {
        let now = self.now();
        let due: Vec<SandboxId> = {
            let mut denied = self.networks.denied.lock();
            denied.retain(|_, denials| denials.count > 0 || !denials.is_due(now));
            denied.iter().filter(|(_, denials)| denials.count > 0 && denials.is_due(now)).map(|(id, _)| *id).collect()
        };
        for id in due {
            self.tell_denied(id).await;
        }
    }

    /// Writes the event if it is time; what cannot be written is kept for the next time.
    async fn tell_denied(&self, id: SandboxId) {
        let now = self.now();
        let (destinations, count) = {
            let mut denied = self.networks.denied.lock();
            let Some(denials) = denied.get_mut(&id).filter(|denials| denials.count > 0 && denials.is_due(now)) else { return };
            denials.told_at = Some(now);
            (std::mem::take(&mut denials.destinations), std::mem::take(&mut denials.count))
        };
        let kind = EventKind::NetworkDenied { destinations: destinations.clone(), count };
        if let Err(error) = self.append_denied(id, kind).await {
            tracing::warn!(sandbox = %id, count, error = %error, "refused connections could not be recorded; it is tried again");
            self.networks.denied.lock().entry(id).or_default().add(&destinations, count);
        }
    }

    async fn append_denied(&self, id: SandboxId, kind: EventKind) -> Result<()> {
        // Also of one that has ended meanwhile: what it tried in its last seconds is told too.
        if let Some(sandbox) = self.store.sandbox_get(id).await? {
            self.store.event_append(event_of(&sandbox, kind, Actor::system(), self.now())).await?;
        }
        Ok(())
    }
}
