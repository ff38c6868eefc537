//! Random commands by several tenants at once, with faults; whatever happens, the invariants hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use sandbank_control::{Caller, Claim, Control, ErrorKind, LeaseRequest, WhenEmpty};
use sandbank_driver::Method;
use sandbank_model::{ExpiryAction, LeaseChange, QuotaLimits, SandboxId, State, Timeout};

use crate::support::{TestClock, World, claim, create, eventually, exec, pool_request};

const QUOTA: u64 = 8;

#[derive(Debug, Clone)]
enum Step {
    Claim(WhenEmpty, Option<u64>, ExpiryAction),
    Create,
    Abandon(u64),
    Release(usize),
    Pause(usize),
    Resume(usize),
    Renew(usize, u64),
    Exec(usize),
    Advance(u64),
    Fail(Method, u32),
    Kill(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let when =
        prop_oneof![Just(WhenEmpty::Refuse), Just(WhenEmpty::Create), Just(WhenEmpty::Wait(Some(Duration::from_millis(20))))];
    let action = prop_oneof![Just(ExpiryAction::Kill), Just(ExpiryAction::Pause), Just(ExpiryAction::Keep)];
    let method =
        prop_oneof![Just(Method::Create), Just(Method::Destroy), Just(Method::Pause), Just(Method::Resume), Just(Method::Open)];
    prop_oneof![
        4 => (when, proptest::option::of(1u64..20), action).prop_map(|(when, life, action)| Step::Claim(when, life, action)),
        2 => Just(Step::Create),
        2 => (0u64..2000).prop_map(Step::Abandon),
        4 => (0usize..16).prop_map(Step::Release),
        2 => (0usize..16).prop_map(Step::Pause),
        2 => (0usize..16).prop_map(Step::Resume),
        1 => ((0usize..16), (1u64..30)).prop_map(|(which, life)| Step::Renew(which, life)),
        2 => (0usize..16).prop_map(Step::Exec),
        1 => (1u64..10).prop_map(Step::Advance),
        1 => (method, 1u32..3).prop_map(|(method, times)| Step::Fail(method, times)),
        1 => (0usize..16).prop_map(Step::Kill),
    ]
}

/// What one tenant was given, and what it gave back.
#[derive(Default)]
struct Ledger {
    given: Mutex<BTreeMap<SandboxId, &'static str>>,
}

impl Ledger {
    fn give(&self, id: SandboxId, who: &'static str) {
        assert!(self.given.lock().insert(id, who).is_none(), "{id} was handed out twice");
    }

    fn pick(&self, who: &'static str, which: usize) -> Option<SandboxId> {
        let given = self.given.lock();
        let mine: Vec<SandboxId> = given.iter().filter(|(_, owner)| **owner == who).map(|(id, _)| *id).collect();
        (!mine.is_empty()).then(|| mine[which % mine.len()])
    }
}

struct Player {
    control: Control,
    caller: Caller,
    who: &'static str,
    ledger: Arc<Ledger>,
    clock: Arc<TestClock>,
    faults: sandbank_driver::FakeFaults,
}

impl Player {
    async fn play(&self, steps: Vec<Step>) {
        for step in steps {
            if let Err(error) = self.step(&step).await {
                assert_ne!(error.kind, ErrorKind::Unauthenticated, "{step:?}: {error}");
                assert!(!error.message.is_empty());
            }
        }
    }

    async fn step(&self, step: &Step) -> sandbank_control::Result<()> {
        let (control, caller) = (&self.control, &self.caller);
        let pick = |which: usize| self.ledger.pick(self.who, which);
        match step {
            Step::Claim(when, life, action) => {
                let timeout = life.map(|life| Timeout::After(Duration::from_secs(life)));
                let lease = LeaseRequest { timeout, on_expiry: Some(*action), ..LeaseRequest::default() };
                let view = control.claim(caller, Claim { lease, ..claim("p", *when) }).await?;
                assert_eq!(view.sandbox.tenant, caller.principal.tenant);
                self.ledger.give(view.sandbox.id, self.who);
            }
            Step::Create => self.ledger.give(control.create(caller, create()).await?.sandbox.id, self.who),
            Step::Abandon(micros) => {
                let claiming = control.claim(caller, claim("p", WhenEmpty::Create));
                if let Ok(done) = tokio::time::timeout(Duration::from_micros(*micros), claiming).await {
                    self.ledger.give(done?.sandbox.id, self.who);
                }
            }
            Step::Release(which) => {
                if let Some(id) = pick(*which) {
                    control.release(caller, id).await?;
                }
            }
            Step::Pause(which) => {
                if let Some(id) = pick(*which) {
                    control.pause(caller, id).await?;
                }
            }
            Step::Resume(which) => {
                if let Some(id) = pick(*which) {
                    control.resume(caller, id).await?;
                }
            }
            Step::Renew(which, life) => {
                if let Some(id) = pick(*which) {
                    let expires = Some(Timeout::After(Duration::from_secs(*life)));
                    control.renew(caller, id, LeaseChange { expires, ..LeaseChange::default() }).await?;
                }
            }
            Step::Exec(which) => {
                if let Some(id) = pick(*which) {
                    control.exec_collect(caller, id, exec(&["true"])).await?;
                }
            }
            Step::Advance(seconds) => self.clock.advance(Duration::from_secs(*seconds)),
            Step::Fail(method, times) => self.faults.fail(*method, *times),
            Step::Kill(which) => {
                if let Some(id) = pick(*which) {
                    self.faults.end(id, false, "killed by the test");
                }
            }
        }
        Ok(())
    }
}

async fn quota_holds(world: &World) {
    let mut held: BTreeMap<_, u64> = BTreeMap::new();
    for sandbox in world.store_live().await {
        *held.entry(sandbox.tenant).or_default() += 1;
    }
    assert!(held.values().all(|count| *count <= QUOTA), "a quota of {QUOTA} was passed: {held:?}");
}

async fn run(scripts: Vec<Vec<Step>>) {
    let mut settings = crate::support::settings();
    settings.default_quota = QuotaLimits { sandboxes: Some(QUOTA), ..QuotaLimits::default() };
    let world = World::with(settings).await;
    let ledger = Arc::new(Ledger::default());
    let mut playing = Vec::new();
    for (who, steps) in ["ann", "bob", "cy"].into_iter().zip(scripts) {
        let caller = world.owner(who).await;
        world.control.pool_create(&caller, pool_request("p", 3)).await.unwrap();
        let (control, clock, faults) = (world.control.clone(), Arc::clone(&world.clock), world.faults.clone());
        let player = Player { control, caller, who, ledger: Arc::clone(&ledger), clock, faults };
        playing.push(tokio::spawn(async move { player.play(steps).await }));
    }
    while !playing.iter().all(tokio::task::JoinHandle::is_finished) {
        quota_holds(&world).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for played in playing {
        played.await.unwrap();
    }
    for method in [Method::Create, Method::Destroy, Method::Pause, Method::Resume, Method::Open] {
        world.faults.fail(method, 0);
    }
    world.settled().await;
    quota_holds(&world).await;
    // What was answered is in the store, and nothing is claimed that nobody was given.
    let given = ledger.given.lock().clone();
    for id in given.keys() {
        assert!(world.store_get(*id).await.is_some(), "{id} was given and is not recorded");
    }
    // An abandoned create may still be on its way; it ends released.
    eventually("nothing is claimed that nobody has", || async {
        let live = world.store_live().await;
        live.iter().all(|sandbox| given.contains_key(&sandbox.id) || sandbox.state == State::Ready) && world.agree().await
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_by_several_tenants_keep_the_invariants(
        scripts in proptest::collection::vec(proptest::collection::vec(step(), 1..25), 3)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(scripts));
    }
}
