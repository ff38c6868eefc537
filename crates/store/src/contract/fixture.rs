//! Objects to test with.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sandbank_model::{
    Actor, ApiKey, ApiKeyId, AssignmentId, Autoscaling, Command, CredentialKind, DriverHandle, Event, EventKind, EventSeq,
    ExpiryAction, Image, ImageConfig, ImageSource, KeyHash, Lease, Overrides, Pool, PoolCounts, PoolId, PoolPolicies, PoolState,
    PortAccess, PublicPorts, QuotaLimits, RegistryCredential, RegistryCredentialId, Role, Sandbox, SandboxId, SandboxSpec,
    Sealed, SemVer, Sizing, SnapshotId, State, Template, TemplateId, TemplateSpec, Tenant, TenantId, Timestamp, Usage,
    Visibility, transition,
};

use crate::{ClaimRequest, PageRequest, SandboxFilter, Store, Write};

static IDS: AtomicU32 = AtomicU32::new(1);
/// Tells the ids of two test processes over one store apart.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());

fn random() -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..6].copy_from_slice(&PROCESS.to_be_bytes()[..6]);
    bytes[6..].copy_from_slice(&IDS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

/// A clock that only moves when asked: one millisecond a look.
#[derive(Debug)]
pub struct Clock(AtomicU64);

impl Default for Clock {
    fn default() -> Self {
        Self(AtomicU64::new(1_700_000_000_000))
    }
}

impl Clock {
    /// The next millisecond.
    pub fn tick(&self) -> Timestamp {
        Timestamp::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A tenant of this name.
#[must_use]
pub fn tenant(name: &str) -> Tenant {
    let now = Timestamp::from_millis(1);
    Tenant {
        id: TenantId::new(now, random()),
        name: name.to_owned(),
        team: "team".to_owned(),
        user: name.to_owned(),
        quota: QuotaLimits::default(),
        created_at: now,
    }
}

/// A new snapshot's id.
#[must_use]
pub fn snapshot_id(now: Timestamp) -> SnapshotId {
    SnapshotId::new(now, random())
}

/// A key of a tenant, of a hash of its own.
#[must_use]
pub fn key(tenant: TenantId, issued_at: u64) -> ApiKey {
    let mut hash = [0; 32];
    hash[..10].copy_from_slice(&random());
    ApiKey {
        id: ApiKeyId::new(Timestamp::default(), random()),
        hash: KeyHash(hash),
        tenant,
        role: Role::Member,
        description: Some("a key".to_owned()),
        annotations: BTreeMap::new(),
        issued_at: Timestamp::from_millis(issued_at),
        expires_at: None,
        revoked_at: None,
    }
}

fn template_spec() -> TemplateSpec {
    TemplateSpec {
        description: None,
        sandbox: SandboxSpec::of_image("host".parse().unwrap()),
        idle_image: None,
        runtimes: Vec::new(),
        visibility: Visibility::default(),
        startup_timeout: None,
        idle_timeout: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// The first version of a template.
#[must_use]
pub fn template(tenant: Option<TenantId>, name: &str) -> Template {
    let now = Timestamp::from_millis(1);
    Template {
        id: TemplateId::new(now, random()),
        tenant,
        name: name.parse().unwrap(),
        version: SemVer::FIRST,
        spec: template_spec(),
        generation: 1,
        created_at: now,
        updated_at: now,
    }
}

/// A pool of two.
#[must_use]
pub fn pool(tenant: TenantId, name: &str) -> Pool {
    let now = Timestamp::from_millis(1);
    Pool {
        id: PoolId::new(now, random()),
        tenant,
        name: name.parse().unwrap(),
        template: None,
        template_spec: template_spec(),
        overrides: Overrides::default(),
        sizing: Sizing { replicas: 2, min: None, max: None, counting: sandbank_model::Counting::Total },
        autoscaling: Autoscaling::default(),
        policies: PoolPolicies::default(),
        driver: "fake".to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        state: PoolState::Active,
        revision: 1,
        generation: 1,
        created_at: now,
        updated_at: now,
        scaled_at: None,
    }
}

/// An image.
#[must_use]
pub fn image(tenant: Option<TenantId>, name: &str, created_at: u64) -> Image {
    Image {
        name: name.parse().unwrap(),
        tenant,
        layers: Vec::new(),
        on_host: true,
        config: ImageConfig::default(),
        source: ImageSource::Imported,
        created_at: Timestamp::from_millis(created_at),
    }
}

/// Credentials for a registry.
#[must_use]
pub fn credential(tenant: Option<TenantId>, host: &str, created_at: u64) -> RegistryCredential {
    let created_at = Timestamp::from_millis(created_at);
    RegistryCredential {
        id: RegistryCredentialId::new(created_at, random()),
        tenant,
        host: host.to_owned(),
        username: Some("me".to_owned()),
        kind: CredentialKind::Password,
        sealed: Sealed(random().to_vec()),
        created_at,
    }
}

/// A sandbox of a pool in state `Provisioning`.
#[must_use]
pub fn sandbox(of: &Pool, now: Timestamp) -> Sandbox {
    let spec = SandboxSpec::of_image("host".parse().unwrap());
    let sandbox = Sandbox::provisioning(SandboxId::new(now, random()), of.tenant, spec, "fake", now);
    Sandbox { pool: Some(of.id), pool_name: Some(of.name.clone()), ..sandbox }
}

/// An event about a sandbox.
#[must_use]
pub fn event_of(sandbox: &Sandbox, kind: EventKind, at: Timestamp) -> Event {
    let actor = Actor::system();
    Event { seq: EventSeq(0), at, tenant: sandbox.tenant, sandbox: Some(sandbox.id), pool: sandbox.pool, kind, actor }
}

/// A lease that begins at `now`.
#[must_use]
pub fn lease(now: Timestamp, metadata: &[(&str, &str)]) -> Lease {
    Lease {
        holder: "somebody".to_owned(),
        assignment: AssignmentId::new(now, random()),
        claimed_at: now,
        expires_at: Some(now.plus(Duration::from_secs(300))),
        idle_timeout: Some(Duration::from_secs(60)),
        on_expiry: ExpiryAction::Kill,
        metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        env: BTreeMap::from([("NAME".to_owned(), "value".to_owned())]),
        ports: PortAccess { public: PublicPorts::Only([8000].into()), token_generation: 3 },
    }
}

/// A claim from a pool.
#[must_use]
pub fn claim_request(pool: PoolId, now: Timestamp) -> ClaimRequest {
    ClaimRequest { pool, lease: lease(now, &[]), actor: Actor::system(), now }
}

/// Applies a command to a stored sandbox.
pub async fn apply(store: &Arc<dyn Store>, sandbox: &Sandbox, command: Command, now: Timestamp) -> Sandbox {
    let (next, event) = transition(sandbox, command, &Actor::system(), now).unwrap();
    match store.sandbox_update(next, sandbox.generation, event).await.unwrap() {
        Write::Updated(sandbox) => sandbox,
        other => panic!("nobody else writes, and yet: {other:?}"),
    }
}

/// A stored sandbox in state `Ready`, of revision `revision`, warm since `now`.
pub async fn ready(store: &Arc<dyn Store>, of: &Pool, revision: u64, now: Timestamp) -> Sandbox {
    let sandbox = sandbox(of, now);
    store.sandbox_insert(sandbox.clone(), revision, event_of(&sandbox, EventKind::Created, now)).await.unwrap();
    apply(store, &sandbox, Command::MarkReady(DriverHandle(format!("fake:{}", sandbox.id))), now).await
}

/// A stored pool with so many warm sandboxes.
pub async fn warm(store: &Arc<dyn Store>, clock: &Clock, count: u32) -> Pool {
    let tenant = store.tenant_ensure(tenant("t-team-user")).await.unwrap();
    let pool = pool(tenant.id, "base");
    store.pool_insert(pool.clone(), pool_event(&pool)).await.unwrap();
    for _ in 0..count {
        ready(store, &pool, 1, clock.tick()).await;
    }
    pool
}

/// The event of a new pool.
#[must_use]
pub fn pool_event(pool: &Pool) -> Event {
    let (at, actor) = (pool.created_at, Actor::system());
    Event { seq: EventSeq(0), at, tenant: pool.tenant, sandbox: None, pool: Some(pool.id), kind: EventKind::PoolCreated, actor }
}

/// Everything, on one page.
pub(super) const ALL: PageRequest = PageRequest { offset: 0, limit: 100_000 };

/// What the counters of a pool and its tenant must say, counted from the list of all sandboxes. Failures count since `since`.
pub async fn recount(store: &Arc<dyn Store>, pool: &Pool, since: Timestamp) -> (PoolCounts, Usage) {
    let filter = SandboxFilter { pool: Some(pool.id), ..SandboxFilter::default() };
    let mut counts = PoolCounts::default();
    for sandbox in store.sandbox_list(filter, ALL).await.unwrap().items {
        match sandbox.state {
            State::Provisioning => counts.provisioning += 1,
            State::Ready => counts.ready += 1,
            State::Stopping => counts.stopping += 1,
            State::Failed if sandbox.ended_at >= Some(since) => counts.failed += 1,
            State::Failed | State::Terminated => {}
            state => {
                assert!(state.is_claimed());
                counts.claimed += 1;
            }
        }
    }
    let mut usage = Usage::default();
    let filter = SandboxFilter { tenant: Some(pool.tenant), ..SandboxFilter::default() };
    for sandbox in store.sandbox_list(filter, ALL).await.unwrap().items {
        if sandbox.state.is_live() {
            usage.add(&sandbox.spec.resources);
        }
    }
    (counts, usage)
}
