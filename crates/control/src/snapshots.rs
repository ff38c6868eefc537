//! Snapshots of sandboxes' file systems, and forks: sandboxes made of another's file system.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sandbank_driver::{Capability, NewLayers, Target};
use sandbank_model::{
    EventKind, Image, ImageName, ImageSource, PoolPolicies, Refusal, Role, Sandbox, Snapshot, SnapshotId, SnapshotName, State,
    TenantId,
};
use sandbank_store::{PageRequest, Write};

use crate::control::{Control, Inner};
use crate::lifecycle::event_of;
use crate::limits::check_lease;
use crate::make::{LeaseTerms, Order};
use crate::sandboxes::{PAGE_MAX, live_lease};
use crate::types::{Caller, Fork, Id, LeaseRequest, Listing, OwnerView, SandboxView};
use crate::{Error, ErrorKind, Result};

/// Longest time for a commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
/// Most forks of one call (e2b.md §3.1).
const FORKS_MAX: u32 = 100;

impl Control {
    /// Makes an image of what a running or paused sandbox has changed, owned by the sandbox's tenant.
    pub async fn commit(&self, caller: &Caller, id: Id, name: ImageName) -> Result<Image> {
        caller.require(Role::Member, "committing an image")?;
        let inner = &self.inner;
        let layers = inner.layers_in_use.read().await;
        let (sandbox, made) = inner.commit_layers(caller, id).await?;
        let image = inner.record_image(image_of(&sandbox, made, name, inner.now()), layers).await?;
        inner.tell_of(caller, &sandbox, EventKind::Committed(image.name.to_string())).await?;
        Ok(image)
    }

    /// Keeps what a running or paused sandbox's file system is now, owned by the sandbox's tenant. A name is taken from the
    /// snapshot that had it before.
    pub async fn snapshot(&self, caller: &Caller, id: Id, name: Option<SnapshotName>) -> Result<Snapshot> {
        caller.require(Role::Member, "taking a snapshot")?;
        let inner = &self.inner;
        let layers = inner.layers_in_use.read().await;
        let (sandbox, made) = inner.commit_layers(caller, id).await?;
        let now = inner.now();
        let snapshot_id = SnapshotId::new(now, inner.random());
        let own_name: ImageName = snapshot_id.to_string().parse()?;
        let mut spec = sandbox.spec.clone();
        spec.image = own_name.clone();
        if let Some(network) = sandbox.lease.as_ref().and_then(|lease| lease.network.clone()) {
            // What is made of it may reach what the sandbox may now, not more.
            spec.network = Some(network);
        }
        let image = image_of(&sandbox, made, own_name, now);
        let tenant = sandbox.tenant;
        let snapshot = Snapshot { id: snapshot_id, tenant, name, sandbox: id, spec, image, created_at: now };
        inner.store.snapshot_put(snapshot.clone()).await?;
        drop(layers);
        inner.collect_layers_later();
        inner.tell_of(caller, &sandbox, EventKind::Snapshotted(snapshot_id)).await?;
        Ok(snapshot)
    }

    /// The caller's snapshots, the newest first; with `sandbox` only those of this one.
    pub async fn snapshot_list(
        &self,
        caller: &Caller,
        sandbox: Option<Id>,
        offset: u64,
        limit: u32,
    ) -> Result<Listing<Snapshot>> {
        let page = PageRequest { offset, limit: limit.min(PAGE_MAX) };
        let page = self.inner.store.snapshot_list(caller.principal.tenant, sandbox, page).await?;
        Ok(Listing { items: page.items, total: page.total })
    }

    /// The caller's snapshot of this id or name.
    pub async fn snapshot_get(&self, caller: &Caller, id_or_name: &str) -> Result<Snapshot> {
        let found = self.inner.find_snapshot(caller.principal.tenant, id_or_name).await?;
        found.ok_or_else(|| no_snapshot(id_or_name))
    }

    /// Refused while a template, pool or live sandbox is of it.
    pub async fn snapshot_delete(&self, caller: &Caller, id_or_name: &str) -> Result<Snapshot> {
        caller.require(Role::Member, "deleting snapshots")?;
        let inner = &self.inner;
        let snapshot = self.snapshot_get(caller, id_or_name).await?;
        let named = |name: &ImageName| snapshot.name.as_ref().is_some_and(|own| snapshot_name(name).as_ref() == Some(own));
        let means = |name: &ImageName| *name == snapshot.image.name || named(name);
        if let Some(user) = inner.image_user(&snapshot.image, means).await? {
            return Err(Error::new(ErrorKind::Conflict, format!("snapshot {id_or_name} is in use by {user}: delete that first")));
        }
        match inner.store.snapshot_delete(snapshot.tenant, snapshot.id).await? {
            Write::Updated(()) | Write::Refused(()) => {}
            Write::Missing => return Err(no_snapshot(id_or_name)),
        }
        inner.release_layers(&snapshot.image).await?;
        inner.collect_layers_later();
        Ok(snapshot)
    }

    /// Makes sandboxes of what a running or paused one's file system is now, each with its resources, environment and command, and
    /// with its metadata and labels where the request has none. An answer for each, in order: some may be made where not all can.
    pub async fn fork(&self, caller: &Caller, id: Id, fork: Fork) -> Result<Vec<Result<SandboxView>>> {
        caller.require(Role::Member, "forking a sandbox")?;
        let Fork { count, lease } = fork;
        if !(1..=FORKS_MAX).contains(&count) {
            return Err(Error::invalid(format!("count is {count}: from 1 to {FORKS_MAX} forks can be made at once")));
        }
        check_lease(&lease)?;
        let inner = &self.inner;
        let original = inner.sandbox_of(caller, id).await?;
        let network = inner.lease_network(original.tenant, lease.network.as_ref())?;
        inner.check_network(&original.driver, original.tenant, network.as_ref()).await?;
        let network = network.or_else(|| original.lease.as_ref().and_then(|held| held.network.clone()));
        let terms = LeaseTerms::new(caller, inherited(lease, &original), &PoolPolicies::default()).with_network(network);
        inner.check_expiry_action(&original.driver, terms.on_expiry())?;
        // Held until the records of the forks name the layers.
        let layers = Arc::clone(&inner.layers_in_use).read_owned().await;
        let (sandbox, made) = inner.commit_layers(caller, id).await?;
        inner.tell_of(caller, &sandbox, EventKind::Forked(count)).await?;
        let name = sandbox.spec.image.clone();
        let order = Order {
            tenant: sandbox.tenant,
            spec: sandbox.spec.clone(),
            image: image_of(&sandbox, made, name, inner.now()),
            driver: sandbox.driver.clone(),
            pool: None,
            template: sandbox.template.clone(),
            actor: caller.actor(),
        };
        let forks = (0..count).map(|_| async {
            let layers = Arc::clone(&inner.layers_in_use).read_owned().await;
            let held = inner.make_for_holder(order.clone(), terms.clone(), None, layers).await?;
            Ok(SandboxView { sandbox: Arc::new(held.accept()), owner: OwnerView::from(&caller.principal) })
        });
        let forks = join_all(forks).await;
        drop(layers);
        Ok(forks)
    }
}

pub(crate) fn no_snapshot(id_or_name: &str) -> Error {
    let shown: String = id_or_name.chars().take(120).collect();
    Error::not_found(format!("snapshot {shown:?} not found"))
}

/// An image's name, read as a snapshot's.
fn snapshot_name(name: &ImageName) -> Option<SnapshotName> {
    name.as_str().parse().ok()
}

fn image_of(sandbox: &Sandbox, made: NewLayers, name: ImageName, now: sandbank_model::Timestamp) -> Image {
    let NewLayers { layers, on_host, config } = made;
    let source = ImageSource::Committed { sandbox: sandbox.id.to_string() };
    Image { name, tenant: Some(sandbox.tenant), layers, on_host, config, source, created_at: now }
}

/// What the holder of the original had said, where the request for forks says nothing.
fn inherited(mut lease: LeaseRequest, original: &Sandbox) -> LeaseRequest {
    if let Some(held) = &original.lease {
        for (ours, theirs) in [
            (&mut lease.metadata, &held.metadata),
            (&mut lease.labels, &held.labels),
            (&mut lease.annotations, &held.annotations),
        ] {
            if ours.is_empty() {
                ours.clone_from(theirs);
            }
        }
        for (name, value) in &held.env {
            lease.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    lease
}

impl Inner {
    /// What a running or paused sandbox's file system is now, as layers that nothing names yet: the caller holds `layers_in_use`
    /// until something does. The sandbox stands still meanwhile and goes on afterwards.
    async fn commit_layers(&self, caller: &Caller, id: Id) -> Result<(Sandbox, NewLayers)> {
        let _exclusive = self.sandbox_locks.lock(id).await;
        let sandbox = self.sandbox_of(caller, id).await?;
        live_lease(&sandbox, self.now())?;
        if !matches!(sandbox.state, State::Running | State::Paused) {
            return Err(Refusal::State { state: sandbox.state, wanted: "committed" }.into());
        }
        let base = sandbox.image.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::State, format!("sandbox {id} was made by an older sandbank that did not record its image"))
        })?;
        let (driver, handle) = self.target_of(&sandbox)?;
        driver.capabilities().require(Capability::Commit)?;
        let made = tokio::time::timeout(COMMIT_TIMEOUT, driver.commit(Target { id, handle: &handle }, base)).await;
        let made = made.map_err(|_| Error::new(ErrorKind::Unavailable, "the commit did not end in time"))??;
        Ok((sandbox, made))
    }

    /// Records an event about a sandbox that belongs to no transition, and that it was used.
    async fn tell_of(&self, caller: &Caller, sandbox: &Sandbox, kind: EventKind) -> Result<()> {
        self.store.event_append(event_of(sandbox, kind, caller.actor(), self.now())).await?;
        self.activity.touch(sandbox.id, self.now());
        Ok(())
    }

    /// A tenant's snapshot of this id or name.
    pub(crate) async fn find_snapshot(&self, tenant: TenantId, id_or_name: &str) -> Result<Option<Snapshot>> {
        if let Ok(id) = id_or_name.parse::<SnapshotId>() {
            return Ok(self.store.snapshot_get(tenant, id).await?);
        }
        match id_or_name.parse::<SnapshotName>() {
            Ok(name) => Ok(self.store.snapshot_named(tenant, &name).await?),
            Err(_) => Ok(None),
        }
    }
}
