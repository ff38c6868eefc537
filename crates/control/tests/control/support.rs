//! A whole control over a real store and a driver in memory, with a clock that tests move.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sandbank_control::{
    AdminKeyRequest, Background, BuildSettings, Caller, Claim, Clock, Control, CreateSandbox, CreateSource, Entropy, Exec,
    KeyRequest, LeaseRequest, PoolRequest, SandboxQuery, SandboxView, SecretKey, Settings, SpecChange, TemplateRequest,
    TemplateSource, WhenEmpty,
};
use sandbank_driver::{FakeDriver, FakeFaults};
use sandbank_model::{
    Autoscaling, BURST_GAP, Counting, ImageName, Overrides, PoolName, PoolPolicies, QuotaLimits, Role, SandboxId, SandboxSpec,
    Sizing, State, TemplateSpec, Timestamp, Visibility,
};
use sandbank_store::{PageRequest, SandboxFilter, SqliteStore, Store};

use crate::disk::DiskOf;

pub const ADMIN_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Numbers that never repeat: SplitMix64 from a fixed seed.
#[derive(Debug)]
pub struct TestEntropy(AtomicU64);

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..piece.len()]);
        }
    }
}

pub fn settings() -> Settings {
    Settings {
        image_aliases: BTreeMap::from([("base".to_owned(), "host".to_owned())]),
        default_driver: "fake".to_owned(),
        startup_timeout: Duration::from_secs(20),
        create_concurrency: 8,
        waiting_claims_max: 64,
        retention: Duration::from_secs(86_400),
        exec_output_max: 4096,
        default_quota: QuotaLimits::default(),
        default_image: "host".parse().unwrap(),
        pulls: sandbank_control::PullSettings::default(),
        scratch_dir: std::env::temp_dir(),
        builds: BuildSettings::default(),
        network: sandbank_control::NetworkSettings::default(),
    }
}

pub struct World {
    pub control: Control,
    pub faults: FakeFaults,
    pub store: Arc<SqliteStore>,
    pub clock: Arc<TestClock>,
    pub settings: Settings,
    /// The disk under the store is full.
    pub disk_full: Arc<AtomicBool>,
    /// Writes that were refused for it.
    pub refused_writes: Arc<AtomicU64>,
    pub background: Option<Background>,
    seed: u64,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with(settings()).await
    }

    pub async fn with(settings: Settings) -> Self {
        Self::over(FakeDriver::new(), settings).await
    }

    /// Over a driver that cannot do these.
    pub async fn without(missing: &[sandbank_driver::Capability]) -> Self {
        Self::over(FakeDriver::new().without(missing), settings()).await
    }

    async fn over(driver: FakeDriver, settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings;
        settings.builds.contexts_dir.get_or_insert(dir.path().join("contexts"));
        let store = Arc::new(SqliteStore::open(dir.path().join("sandbank.db")).unwrap());
        let clock = Arc::new(TestClock(AtomicU64::new(1_800_000_000_000)));
        let faults = driver.faults();
        let (disk_full, refused_writes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let disk = DiskOf { store: Arc::clone(&store), full: Arc::clone(&disk_full), refused: Arc::clone(&refused_writes) };
        let control = assemble(disk, driver, &clock, &settings, 1);
        control.recover().await.unwrap();
        control.ensure_admin_key(ADMIN_KEY).await.unwrap();
        let background = Some(control.start());
        Self { control, faults, store, clock, settings, disk_full, refused_writes, background, seed: 1, _dir: dir }
    }

    /// The server is killed: all its tasks vanish where they are. Nothing runs until [`World::start_again`].
    pub async fn crash(&mut self) {
        drop(self.background.take());
        // Tasks that were told to stop are dropped at their next poll; nothing of the old server acts after this.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    pub async fn start_again(&mut self) -> sandbank_control::Recovery {
        self.seed += 1;
        let driver = self.faults.restart();
        let disk = DiskOf {
            store: Arc::clone(&self.store),
            full: Arc::clone(&self.disk_full),
            refused: Arc::clone(&self.refused_writes),
        };
        self.control = assemble(disk, driver, &self.clock, &self.settings, self.seed);
        let recovery = self.control.recover().await.unwrap();
        self.control.ensure_admin_key(ADMIN_KEY).await.unwrap();
        self.background = Some(self.control.start());
        recovery
    }

    pub async fn admin(&self) -> Caller {
        caller(self.control.authenticate(&format!("agbx_{ADMIN_KEY}")).await.unwrap())
    }

    /// A caller of team `t` and this user, with a key of this role.
    pub async fn user(&self, user: &str, role: Role) -> Caller {
        let key = AdminKeyRequest {
            namespace: None,
            team: "t".into(),
            user: user.into(),
            role,
            key: KeyRequest::default(),
            import: None,
        };
        let key = self.control.admin_key_create(&self.admin().await, key).await.unwrap();
        caller(self.control.authenticate(&key.secret).await.unwrap())
    }

    pub async fn owner(&self, user: &str) -> Caller {
        self.user(user, Role::Owner).await
    }

    /// A pool of so many warm sandboxes of the host image.
    pub async fn pool(&self, caller: &Caller, name: &str, replicas: u32) {
        self.control.pool_create(caller, pool_request(name, replicas)).await.unwrap();
        self.warm(caller, name, replicas).await;
    }

    /// The claims pause: a pool that held back for them fills itself.
    pub fn claims_pause(&self) {
        self.clock.advance(BURST_GAP);
    }

    /// Waits until the pool has so many warm sandboxes.
    pub async fn warm(&self, caller: &Caller, name: &str, count: u32) {
        let name = pool_name(name);
        self.claims_pause();
        eventually(&format!("{count} warm sandboxes"), || async {
            self.control.pool_get(caller, &name).await.unwrap().counts.ready == count
        })
        .await;
    }

    pub async fn claim(&self, caller: &Caller, pool: &str) -> sandbank_control::Result<SandboxView> {
        self.control.claim(caller, claim(pool, WhenEmpty::Refuse)).await
    }

    pub async fn state(&self, id: SandboxId) -> State {
        self.store.sandbox_get(id).await.unwrap().unwrap().state
    }

    pub async fn reaches(&self, id: SandboxId, state: State) {
        eventually(&format!("{id} is {state:?}"), || async { self.state(id).await == state }).await;
    }

    pub async fn created(&self, caller: &Caller) -> SandboxId {
        self.control.create(caller, create()).await.unwrap().sandbox.id
    }

    /// Waits until nothing is being made or destroyed, and checks that records and driver agree.
    pub async fn settled(&self) {
        eventually("records and driver agree", || async { self.agree().await }).await;
    }

    pub async fn agree(&self) -> bool {
        let live = self.store.sandbox_live().await.unwrap();
        let existing = self.faults.sandboxes();
        let quiet = live.iter().all(|sandbox| !matches!(sandbox.state, State::Provisioning | State::Stopping));
        let same = live.len() == existing.len()
            && live.iter().all(|sandbox| {
                let frozen = matches!(sandbox.state, State::Paused | State::Expired);
                existing.get(&sandbox.id) == Some(&frozen)
            });
        quiet && same
    }

    pub async fn store_handle(&self, id: SandboxId) -> sandbank_model::DriverHandle {
        self.store_get(id).await.unwrap().handle.unwrap()
    }

    pub async fn store_get(&self, id: SandboxId) -> Option<sandbank_model::Sandbox> {
        self.store.sandbox_get(id).await.unwrap()
    }

    pub async fn store_live(&self) -> Vec<sandbank_model::Sandbox> {
        self.store.sandbox_live().await.unwrap()
    }

    pub async fn all(&self) -> Vec<sandbank_model::Sandbox> {
        let page = PageRequest { offset: 0, limit: 100_000 };
        self.store.sandbox_list(SandboxFilter::default(), page).await.unwrap().items
    }

    pub async fn mine(&self, caller: &Caller) -> Vec<SandboxView> {
        self.control.list(caller, SandboxQuery::default(), 0, 1000).await.unwrap().items
    }
}

fn assemble(store: DiskOf, driver: FakeDriver, clock: &Arc<TestClock>, settings: &Settings, seed: u64) -> Control {
    let entropy = TestEntropy(AtomicU64::new(seed.wrapping_mul(0x1234_5678_9abc_def1)));
    let key = SecretKey::new([7; 32]);
    Control::new(Arc::new(store), vec![Arc::new(driver)], clock.clone(), Arc::new(entropy), settings.clone(), &key)
}

pub fn caller(principal: sandbank_model::Principal) -> Caller {
    Caller { principal, request_id: "test".into() }
}

pub fn pool_name(name: &str) -> PoolName {
    name.parse().unwrap()
}

pub fn image(name: &str) -> ImageName {
    name.parse().unwrap()
}

pub fn claim(pool: &str, when_empty: WhenEmpty) -> Claim {
    Claim { pool: pool_name(pool), image: None, image_credentials: None, when_empty, lease: LeaseRequest::default() }
}

pub fn create() -> CreateSandbox {
    CreateSandbox {
        source: CreateSource::Image(image("base")),
        changes: SpecChange::default(),
        lease: LeaseRequest::default(),
        driver: None,
        image_credentials: None,
    }
}

pub fn create_with(command: &[&str]) -> CreateSandbox {
    let command = Some(command.iter().map(|word| (*word).to_owned()).collect());
    CreateSandbox { changes: SpecChange { command, ..SpecChange::default() }, ..create() }
}

pub fn template_spec() -> TemplateSpec {
    TemplateSpec {
        description: None,
        sandbox: SandboxSpec::of_image(image("host")),
        idle_image: None,
        runtimes: Vec::new(),
        visibility: Visibility::default(),
        startup_timeout: None,
        idle_timeout: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

pub fn template_request(name: &str, global: bool) -> TemplateRequest {
    TemplateRequest {
        name: pool_name(name),
        version: None,
        spec: template_spec(),
        network: None,
        global,
        expected_generation: None,
    }
}

pub fn pool_request(name: &str, replicas: u32) -> PoolRequest {
    PoolRequest {
        name: pool_name(name),
        template: TemplateSource::Inline(Box::new(template_spec())),
        overrides: Overrides::default(),
        network: None,
        sizing: Sizing { replicas, min: None, max: None, counting: Counting::Total },
        autoscaling: Autoscaling::default(),
        policies: PoolPolicies::default(),
        driver: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        require_api_key: false,
    }
}

pub fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|arg| (*arg).to_owned()).collect(), ..Exec::default() }
}

/// Waits, at most ten seconds, until it is so.
pub async fn eventually<F, Fut>(what: &str, mut so: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let give_up = tokio::time::Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(tokio::time::Instant::now() < give_up, "it never became so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
