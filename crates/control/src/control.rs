//! [`Control`]: what all use cases share.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Mutex, RwLock};
use sandbank_driver::Driver;
use sandbank_model::{ImageName, KeyHash, SandboxId, TenantId, Timestamp};
use sandbank_store::Store;
use tokio::sync::Semaphore;

use crate::activity::Activity;
use crate::background::Tasks;
use crate::builds::Builds;
use crate::deadlines::Deadlines;
use crate::locks::KeyedLocks;
use crate::logs::KeptLogs;
use crate::network::Networks;
use crate::owners::Owners;
use crate::ports::PortClosers;
use crate::runtimes::PoolRuntimes;
use crate::secrets::{Sealer, SecretKey};
use crate::streams::Streams;
use crate::types::{Clock, Entropy, Settings};
use crate::{Error, ErrorKind, Result};

/// Sandboxes that are destroyed at the same time.
const DESTROY_CONCURRENCY: usize = 8;
/// Layers of images from elsewhere that are read at the same time: decompressing one may take 128 MiB.
const LAYER_CONCURRENCY: usize = 9;
/// Exports at the same time, each with an archive on disk.
const EXPORT_CONCURRENCY: usize = 4;

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

/// What the clones of a [`Control`] share. Nothing in it is the truth: that is the store's.
pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) drivers: BTreeMap<String, Arc<dyn Driver>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) settings: Settings,
    pub(crate) sealer: Sealer,
    /// Serialises driver operations on one sandbox.
    pub(crate) sandbox_locks: KeyedLocks<SandboxId>,
    /// Serialises "does it fit the quota?" and the insert that follows.
    pub(crate) quota_locks: KeyedLocks<TenantId>,
    pub(crate) activity: Activity,
    pub(crate) streams: Streams,
    pub(crate) port_closers: PortClosers,
    pub(crate) deadlines: Deadlines,
    pub(crate) pools: PoolRuntimes,
    pub(crate) kept_logs: KeptLogs,
    pub(crate) owners: Owners,
    pub(crate) builds: Builds,
    pub(crate) networks: Networks,
    /// Hash of the static admin key and its tenant. In memory only: a key that the configuration no longer names is gone.
    pub(crate) admin_key: RwLock<Option<(KeyHash, TenantId)>>,
    /// Held for reading from resolving or making layers until a record names them; for writing while layers are collected.
    pub(crate) layers_in_use: Arc<tokio::sync::RwLock<()>>,
    /// Places for sandboxes that are made to fill pools.
    pub(crate) refill_places: Arc<Semaphore>,
    /// Places for sandboxes that somebody is waiting for.
    pub(crate) demand_places: Arc<Semaphore>,
    pub(crate) destroy_places: Arc<Semaphore>,
    /// Serialises pulls of one name.
    pub(crate) pull_locks: KeyedLocks<(Option<TenantId>, ImageName)>,
    pub(crate) pull_places: Semaphore,
    /// Places for layers of images from elsewhere.
    pub(crate) layer_places: Arc<Semaphore>,
    /// Places for archives of images on their way out.
    pub(crate) export_places: Arc<Semaphore>,
    /// Sandboxes whose agent is being questioned.
    pub(crate) questioned: Mutex<HashSet<SandboxId>>,
    pub(crate) tasks: Tasks,
    /// Reconcilers run.
    pub(crate) started: AtomicBool,
}

impl Control {
    /// Use cases over these adapters. Nothing runs until [`Control::start`]. `secret_key` seals what tenants entrust: secrets that
    /// were sealed with another one cannot be used.
    pub fn new(
        store: Arc<dyn Store>,
        drivers: Vec<Arc<dyn Driver>>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        settings: Settings,
        secret_key: &SecretKey,
    ) -> Self {
        let places = settings.create_concurrency.max(1);
        let inner = Inner {
            store,
            drivers: drivers.into_iter().map(|driver| (driver.name().to_owned(), driver)).collect(),
            clock,
            entropy,
            sealer: Sealer::new(secret_key),
            sandbox_locks: KeyedLocks::default(),
            quota_locks: KeyedLocks::default(),
            activity: Activity::default(),
            streams: Streams::default(),
            port_closers: PortClosers::default(),
            deadlines: Deadlines::default(),
            pools: PoolRuntimes::new(settings.waiting_claims_max),
            kept_logs: KeptLogs::default(),
            owners: Owners::default(),
            builds: Builds::new(settings.builds.concurrency),
            networks: Networks::new(&settings.network.allow_private),
            admin_key: RwLock::new(None),
            layers_in_use: Arc::default(),
            refill_places: Arc::new(Semaphore::new(places)),
            demand_places: Arc::new(Semaphore::new(places)),
            destroy_places: Arc::new(Semaphore::new(DESTROY_CONCURRENCY)),
            pull_locks: KeyedLocks::default(),
            pull_places: Semaphore::new(settings.pulls.concurrency.max(1)),
            layer_places: Arc::new(Semaphore::new(LAYER_CONCURRENCY)),
            export_places: Arc::new(Semaphore::new(EXPORT_CONCURRENCY)),
            questioned: Mutex::default(),
            tasks: Tasks::default(),
            started: AtomicBool::new(false),
            settings,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Now, by the server's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.now()
    }

    /// A fresh id for things that dialects name (requests, tokens): UUIDv7.
    #[must_use]
    pub fn fresh_uuid(&self) -> uuid::Uuid {
        SandboxId::new(self.inner.now(), self.inner.random()).uuid()
    }

    /// 32 random bytes as 64 hexadecimal characters.
    #[must_use]
    pub fn fresh_secret(&self) -> String {
        KeyHash(self.inner.random()).to_hex()
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// A configured driver. A sandbox may name one that this installation no longer has.
    pub(crate) fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>> {
        self.drivers.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.drivers.keys().map(String::as_str).collect();
            Error::new(ErrorKind::Invalid, format!("driver {name:?} is not configured here: use one of {}", known.join(", ")))
        })
    }
}
