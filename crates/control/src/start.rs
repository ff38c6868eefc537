//! What runs beside requests, and what tells how it goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::gauge;
use sandbank_driver::{Capability, DeniedDestination, Driver, DriverEvent};
use sandbank_model::{Actor, EventKind, FailureReason, SandboxId, State};
use sandbank_store::SandboxFilter;
use tokio::sync::mpsc;

use crate::auth::ADMIN_TENANT;
use crate::background::Background;
use crate::control::{Control, Inner};
use crate::lifecycle::event_of;
use crate::{ErrorKind, Result};

/// How often the store hears of activity.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// How often everything is looked at, should a poke ever be lost.
const SAFETY_NET: Duration = Duration::from_secs(60);
/// How often old records are removed, and how many in one commit.
const PRUNE_EVERY: Duration = Duration::from_secs(300);
const PRUNE_BATCH: u32 = 1000;
/// Rest before something that happened to a sandbox is recorded again.
const EVENT_RETRY: Duration = Duration::from_secs(1);

impl Control {
    /// Starts reconcilers, timers and driver-event handling. Needs a tokio runtime.
    pub fn start(&self) -> Background {
        let inner = &self.inner;
        inner.started.store(true, Ordering::Release);
        inner.tasks.spawn(Arc::clone(inner).run_supervisor());
        inner.tasks.spawn(Arc::clone(inner).run_expiry());
        inner.tasks.spawn(Arc::clone(inner).run_flush());
        inner.tasks.spawn(Arc::clone(inner).run_prune());
        for driver in inner.drivers.values() {
            if let Some(events) = driver.events() {
                inner.tasks.spawn(Arc::clone(inner).run_driver_events(Arc::clone(driver), events));
            }
        }
        Background { inner: Arc::clone(inner) }
    }

    /// What `/health` tells: the store answers, the drivers by name with what they can do.
    pub async fn health(&self) -> Result<Vec<(String, Vec<&'static str>)>> {
        self.inner.store.tenant_by_name(ADMIN_TENANT).await?;
        let abilities = |driver: &Arc<dyn Driver>| {
            let all = Capability::ALL.into_iter().filter(|capability| driver.capabilities().has(*capability));
            all.map(Capability::as_str).collect()
        };
        Ok(self.inner.drivers.iter().map(|(name, driver)| (name.clone(), abilities(driver))).collect())
    }

    /// Gauges for `/metrics`: sets pool depth and sandbox counts in the `metrics` recorder.
    pub async fn publish_gauges(&self) {
        if let Err(error) = self.inner.publish_gauges().await {
            tracing::warn!(error = %error, "the gauges could not be read");
        }
    }
}

impl Inner {
    async fn publish_gauges(&self) -> Result<()> {
        let counted = self.store.sandbox_count(SandboxFilter::default()).await?;
        for state in State::ALL {
            let count = counted.iter().find(|(found, _)| *found == state).map_or(0, |(_, count)| *count);
            gauge!("sandbank_sandboxes", "state" => state.as_str()).set(count as f64);
        }
        // Summed over pools: names of pools are users' words, and labels must come from small sets.
        let (mut ready, mut provisioning, mut claimed, mut wanted) = (0u64, 0u64, 0u64, 0u64);
        for pool in self.all_pools().await? {
            let counts = self.pool_counts(&pool).await?;
            ready += u64::from(counts.ready);
            provisioning += u64::from(counts.provisioning);
            claimed += u64::from(counts.claimed);
            wanted += u64::from(pool.sizing.replicas);
        }
        let depths = [("ready", ready), ("provisioning", provisioning), ("claimed", claimed), ("replicas", wanted)];
        for (what, count) in depths {
            gauge!("sandbank_pool_sandboxes", "what" => what).set(count as f64);
        }
        gauge!("sandbank_claims_waiting").set(self.pools.waiting() as f64);
        Ok(())
    }

    /// Keeps a reconciler running for every pool and every pool at its template's newest version, and arms every lease that runs, should one have been missed.
    async fn run_supervisor(self: Arc<Self>) {
        loop {
            match self.all_pools().await {
                Ok(pools) => {
                    pools.iter().for_each(|pool| self.reconcile_pool(pool.id));
                    self.follow_templates(pools.into_iter(), &Actor::system()).await;
                }
                Err(error) => tracing::warn!(error = %error, "the pools could not be read"),
            }
            match self.store.sandbox_live().await {
                Ok(mut live) => {
                    for sandbox in &mut live {
                        self.freshen(sandbox);
                        self.deadlines.arm_for(sandbox);
                    }
                }
                Err(error) => tracing::warn!(error = %error, "the live sandboxes could not be read"),
            }
            if !self.tasks.sleep(SAFETY_NET).await {
                return;
            }
        }
    }

    async fn run_flush(self: Arc<Self>) {
        while self.tasks.sleep(FLUSH_EVERY).await {
            self.flush_activity().await;
            self.flush_denied().await;
        }
    }

    /// Tells the store when sandboxes were last used. Open streams count as use.
    pub(crate) async fn flush_activity(&self) {
        let now = self.now();
        for id in self.streams.ids() {
            self.activity.touch(id, now);
        }
        let batch = self.activity.unwritten();
        if batch.is_empty() {
            return;
        }
        match self.store.sandbox_touch(batch.clone()).await {
            Ok(()) => self.activity.written(&batch),
            Err(error) => tracing::warn!(error = %error, "last activity could not be written; it is tried again"),
        }
    }

    async fn run_prune(self: Arc<Self>) {
        while self.tasks.sleep(PRUNE_EVERY).await {
            self.sweep_contexts().await;
            self.prune_builds().await;
            let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
            let before = sandbank_model::Timestamp::from_millis(self.now().as_millis().saturating_sub(retention));
            while !self.tasks.closing.is_cancelled() {
                match self.store.prune(before, PRUNE_BATCH).await {
                    Ok(removed) if removed >= u64::from(PRUNE_BATCH) => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(error = %error, "old records could not be removed");
                        break;
                    }
                }
            }
        }
    }

    async fn run_driver_events(self: Arc<Self>, driver: Arc<dyn Driver>, mut events: mpsc::Receiver<DriverEvent>) {
        loop {
            let event = tokio::select! {
                () = self.tasks.closing.cancelled() => return,
                event = events.recv() => event,
            };
            let Some(event) = event else { return };
            // The driver tells once. What cannot be recorded now (the disk is full, perhaps because of this very sandbox) is
            // tried until it can be; the others wait in the driver's queue meanwhile.
            while let Err(error) = self.heed(&event).await {
                tracing::warn!(driver = driver.name(), error = %error, "an event of the driver could not be acted on");
                if error.kind != ErrorKind::Unavailable || !self.tasks.sleep(EVENT_RETRY).await {
                    break;
                }
            }
        }
    }

    async fn heed(self: &Arc<Self>, event: &DriverEvent) -> Result<()> {
        let (id, reason, message) = match event.clone() {
            DriverEvent::Ended { id, out_of_memory: true, detail } => (id, FailureReason::OutOfMemory, detail),
            DriverEvent::Ended { id, out_of_memory: false, detail } => (id, FailureReason::AgentDied, detail),
            DriverEvent::DiskLimit { id, used_bytes, limit_bytes } => {
                let message = format!("it wrote {used_bytes} bytes; its disk limit is {limit_bytes}");
                (id, FailureReason::DiskLimit, message)
            }
            DriverEvent::OutOfMemory { id } => return self.note_out_of_memory(id).await,
            DriverEvent::Denied { id, destinations } => {
                let spelled = |to: &DeniedDestination| SocketAddr::new(to.address, to.port).to_string();
                let destinations: Vec<String> = destinations.iter().map(spelled).collect();
                return self.note_denied(id, &destinations).await;
            }
        };
        if self.store.sandbox_get(id).await?.is_none() {
            return Ok(());
        }
        self.fail(id, reason, &message).await
    }

    async fn note_out_of_memory(&self, id: SandboxId) -> Result<()> {
        if let Some(sandbox) = self.store.sandbox_get(id).await?.filter(|sandbox| sandbox.state.is_live()) {
            self.store.event_append(event_of(&sandbox, EventKind::OutOfMemory, Actor::system(), self.now())).await?;
        }
        Ok(())
    }
}
