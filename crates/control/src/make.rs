//! Making one sandbox: record first, then the driver, then `Ready` or, for somebody who waits, `Running`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_driver::{CreateRequest, Driver, DriverError};
use sandbank_model::{
    Actor, AssignmentId, Command, DriverHandle, Event, EventKind, EventSeq, ExpiryAction, Failure, FailureReason, Image, Lease,
    NetworkPolicy, Pool, PoolId, PoolName, PoolPolicies, PortAccess, Sandbox, SandboxId, SandboxSpec, State, TemplateRef,
    TenantId, Timeout, Timestamp,
};
use sandbank_store::Write;
use tokio::sync::Semaphore;

use crate::control::Inner;
use crate::destroy::destroy_in_time;
use crate::quota::Allowance;
use crate::types::{Caller, LeaseRequest};
use crate::{Error, ErrorKind, Result, telemetry};

/// A create that takes longer gives its place to others, so that slow ones do not stop the rest.
const SLOW_CREATE: Duration = Duration::from_secs(2);
/// Longest time for one create.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A sandbox to make.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) tenant: TenantId,
    pub(crate) spec: SandboxSpec,
    pub(crate) image: Image,
    pub(crate) driver: String,
    /// Pool, its name and revision.
    pub(crate) pool: Option<(PoolId, PoolName, u64)>,
    pub(crate) template: Option<TemplateRef>,
    pub(crate) actor: Actor,
}

/// A lease that begins when there is a sandbox for it.
#[derive(Debug, Clone)]
pub(crate) struct LeaseTerms {
    holder: String,
    life: Option<Duration>,
    idle: Option<Duration>,
    on_expiry: ExpiryAction,
    network: Option<Arc<NetworkPolicy>>,
    request: LeaseRequest,
}

impl LeaseTerms {
    /// What the request asks, else what the pool says.
    pub(crate) fn new(caller: &Caller, request: LeaseRequest, policies: &PoolPolicies) -> Self {
        Self {
            holder: caller.principal.tenant_name.clone(),
            life: request.timeout.map_or(policies.lease_life, Timeout::duration),
            idle: request.idle_timeout.map_or(policies.idle_timeout, Timeout::duration),
            on_expiry: request.on_expiry.unwrap_or(policies.on_expiry),
            network: None,
            request,
        }
    }

    /// With a network policy of its own, sealed.
    pub(crate) fn with_network(self, network: Option<Arc<NetworkPolicy>>) -> Self {
        Self { network, ..self }
    }

    pub(crate) const fn network(&self) -> Option<&Arc<NetworkPolicy>> {
        self.network.as_ref()
    }

    pub(crate) const fn on_expiry(&self) -> ExpiryAction {
        self.on_expiry
    }

    /// The lease, beginning at `now`.
    pub(crate) fn begin(&self, now: Timestamp, assignment: AssignmentId) -> Lease {
        let LeaseRequest {
            timeout: _,
            idle_timeout: _,
            on_expiry: _,
            metadata,
            labels,
            annotations,
            env,
            network: _,
            public_ports,
        } = &self.request;
        Lease {
            holder: self.holder.clone(),
            assignment,
            claimed_at: now,
            expires_at: self.life.map(|life| now.plus(life)),
            idle_timeout: self.idle,
            on_expiry: self.on_expiry,
            metadata: metadata.clone(),
            labels: labels.clone(),
            annotations: annotations.clone(),
            env: env.clone(),
            network: self.network.clone(),
            ports: PortAccess { public: public_ports.clone(), token_generation: 0 },
        }
    }
}

/// What one pool's next sandbox is.
pub(crate) fn order_of_pool(pool: &Pool, spec: SandboxSpec, image: Image, actor: Actor) -> Order {
    Order {
        tenant: pool.tenant,
        spec,
        image,
        driver: pool.driver.clone(),
        pool: Some((pool.id, pool.name.clone(), pool.revision)),
        template: pool.template.clone(),
        actor,
    }
}

/// Puts the image's defaults where the spec says nothing, so that operations need no look at the image.
fn with_image_defaults(mut spec: SandboxSpec, image: &Image) -> SandboxSpec {
    for (name, value) in &image.config.env {
        spec.env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    spec.user = spec.user.or_else(|| image.config.user.clone());
    spec.workdir = spec.workdir.or_else(|| image.config.workdir.clone());
    spec
}

impl Inner {
    /// Inserts the record of a sandbox to be made, within the tenant's allowance.
    pub(crate) async fn insert_order(&self, order: Order, allowance: &mut Allowance) -> Result<Sandbox> {
        allowance.take(&order.spec.resources)?;
        self.insert_allowed(order).await
    }

    /// Inserts the record of a sandbox that was taken from an allowance, which must outlive the insert.
    pub(crate) async fn insert_allowed(&self, order: Order) -> Result<Sandbox> {
        let now = self.now();
        let spec = with_image_defaults(order.spec, &order.image);
        let mut sandbox = Sandbox::provisioning(SandboxId::new(now, self.random()), order.tenant, spec, &order.driver, now);
        sandbox.image = Some(order.image);
        sandbox.template = order.template;
        let mut revision = 0;
        if let Some((pool, name, at)) = order.pool {
            sandbox.pool = Some(pool);
            sandbox.pool_name = Some(name);
            revision = at;
        }
        let event = Event {
            seq: EventSeq(0),
            at: now,
            tenant: sandbox.tenant,
            sandbox: Some(sandbox.id),
            pool: sandbox.pool,
            kind: EventKind::Created,
            actor: order.actor,
        };
        self.store.sandbox_insert(sandbox.clone(), revision, event).await?;
        Ok(sandbox)
    }

    /// Makes what an inserted record promises. With terms it goes straight to a holder. On an error the record says `Failed`
    /// (at once or, when the store refuses, as soon as it can).
    pub(crate) async fn build(
        self: &Arc<Self>,
        sandbox: Sandbox,
        terms: Option<&LeaseTerms>,
        actor: &Actor,
        places: &Arc<Semaphore>,
    ) -> Result<Sandbox> {
        let place = Arc::clone(places).acquire_owned().await.ok();
        let _exclusive = self.sandbox_locks.lock(sandbox.id).await;
        let begun = Instant::now();
        let made = self.make_and_start(&sandbox, terms, place).await;
        telemetry::stage("create", begun.elapsed());
        let handle = match made {
            Ok(handle) => handle,
            Err(error) => {
                self.abandon(&sandbox, &error.message);
                return Err(error);
            }
        };
        let now = self.now();
        let command = match terms {
            Some(terms) => {
                let lease = terms.begin(now, AssignmentId::new(now, self.random()));
                Command::MarkReadyClaimed(handle, Box::new(lease))
            }
            None => Command::MarkReady(handle),
        };
        match self.write(&sandbox, command, actor).await {
            Ok(Write::Updated(written)) => {
                self.follow_command(&written);
                Ok(written)
            }
            // Somebody asked for its end in the meantime and destroys it as soon as this lock is free.
            Ok(Write::Refused(current)) => {
                Err(Error::new(ErrorKind::State, format!("the sandbox was {} while it was being made", current.state.as_str())))
            }
            Ok(Write::Missing) => Err(Error::not_found("the sandbox's record is gone")),
            Err(error) => {
                self.abandon(&sandbox, &error.message);
                Err(error)
            }
        }
    }

    async fn make_and_start(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        terms: Option<&LeaseTerms>,
        place: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Result<DriverHandle> {
        let driver = Arc::clone(self.driver(&sandbox.driver)?);
        let image = sandbox.image.clone().ok_or_else(|| Error::invalid("the sandbox has no image"))?;
        let network = self.admit_network(sandbox, terms.and_then(LeaseTerms::network)).await?;
        let request = CreateRequest { id: sandbox.id, spec: sandbox.spec.clone(), image, network };
        let handle = create_in_time(driver.as_ref(), request, place).await?;
        let trust = self.trust_in_force(sandbox.id, driver.as_ref(), &handle).await?;
        if !sandbox.spec.command.is_empty() {
            self.start_command(driver.as_ref(), sandbox, &handle, trust).await?;
        }
        Ok(handle)
    }

    /// Cleans up after a failed making: destroys whatever there is and records the failure, until both have worked.
    fn abandon(self: &Arc<Self>, sandbox: &Sandbox, message: &str) {
        let (inner, id) = (Arc::clone(self), sandbox.id);
        let (driver, message) = (sandbox.driver.clone(), message.chars().take(1000).collect::<String>());
        self.tasks.spawn(async move {
            let mut wait = RETRY_FIRST;
            loop {
                let recorded = inner.record_abandoned(id, &message).await;
                let exclusive = inner.sandbox_locks.lock(id).await;
                let destroyed = match inner.driver(&driver) {
                    Ok(driver) => destroy_in_time(driver.as_ref(), id).await,
                    Err(_) => Ok(()),
                };
                match recorded.and(destroyed) {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(sandbox = %id, error = %error, "cleaning up after a failed create failed");
                    }
                }
                drop(exclusive);
                if !inner.tasks.sleep(wait).await {
                    return;
                }
                wait = (wait * 2).min(RETRY_MAX);
            }
        });
    }

    async fn record_abandoned(&self, id: SandboxId, message: &str) -> Result<()> {
        self.advance(id, &Actor::system(), |sandbox, _| {
            let failure = Failure { reason: FailureReason::ProvisionFailed, message: message.to_owned() };
            Ok((sandbox.state == State::Provisioning).then_some(Command::Fail(failure)))
        })
        .await?;
        Ok(())
    }
}

async fn create_in_time(
    driver: &dyn Driver,
    request: CreateRequest,
    place: Option<tokio::sync::OwnedSemaphorePermit>,
) -> Result<DriverHandle> {
    let create = driver.create(request);
    tokio::pin!(create);
    if let Ok(done) = tokio::time::timeout(SLOW_CREATE, &mut create).await {
        return Ok(done?);
    }
    drop(place);
    let rest = CREATE_TIMEOUT.saturating_sub(SLOW_CREATE);
    let waited_ms = u64::try_from(CREATE_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let timed_out = DriverError::TimedOut { what: "the driver", waited_ms };
    Ok(tokio::time::timeout(rest, create).await.unwrap_or(Err(timed_out))?)
}
