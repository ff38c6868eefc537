//! What a test can do to the fake, and what it can see of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{NamedAddress, NetworkPlan, SandboxId};

use super::world::World;
use super::{FakeDriver, lock};
use crate::{DriverEvent, Traffic};

/// How an agent misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentFault {
    /// Not at all.
    #[default]
    None,
    /// Takes requests and never answers.
    Hang,
    /// Closes every connection at once.
    Die,
    /// Answers bytes that are no frame.
    Garbage,
    /// Answers well-formed frames that no operation allows.
    OutOfTurn,
}

/// A driver method, for faults and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// `create`
    Create,
    /// `destroy`
    Destroy,
    /// `pause`
    Pause,
    /// `resume`
    Resume,
    /// `open`
    Open,
    /// `metrics`
    Metrics,
    /// `adopt`
    Adopt,
    /// `import_image`
    Import,
    /// `add_layer`
    AddLayer,
    /// `commit`
    Commit,
    /// `retain_layers`
    Retain,
    /// `set_network`
    SetNetwork,
}

/// How a method misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MethodFault {
    pub(super) failures: u32,
    pub(super) hang: bool,
    pub(super) delay: Duration,
}

/// What answers on a port inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Responder {
    /// Sends back what it gets; closes after the peer has.
    Echo,
    /// Answers every request head with this status and body, then closes.
    Http {
        /// Status code.
        status: u16,
        /// Body.
        body: String,
    },
    /// Answers every request head with itself as the body, and goes on listening. Takes no bodies.
    Mirror,
    /// Accepts and says nothing.
    Silent,
}

/// How often each method was called, whether it succeeded or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calls(BTreeMap<Method, u64>);

impl Calls {
    /// Calls of one method.
    #[must_use]
    pub fn of(&self, method: Method) -> u64 {
        self.0.get(&method).copied().unwrap_or(0)
    }

    /// Calls of all methods.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn count(&mut self, method: Method) {
        *self.0.entry(method).or_default() += 1;
    }
}

/// The test's hand on a [`FakeDriver`]. Clones are the same hand.
#[derive(Debug, Clone)]
pub struct FakeFaults {
    pub(super) world: Arc<World>,
}

impl FakeFaults {
    /// The next `times` calls of `method` fail.
    pub fn fail(&self, method: Method, times: u32) {
        self.change(method, |fault| fault.failures = times);
    }

    /// Calls of `method` wait for ever while `hang` is true; those that wait go on when it becomes false.
    pub fn hang(&self, method: Method, hang: bool) {
        self.change(method, |fault| fault.hang = hang);
    }

    /// Calls of `method` take at least this long.
    pub fn slow(&self, method: Method, delay: Duration) {
        self.change(method, |fault| fault.delay = delay);
    }

    fn change(&self, method: Method, change: impl FnOnce(&mut MethodFault)) {
        change(lock(&self.world.state).faults.entry(method).or_default());
        self.world.faults_changed.notify_waiters();
    }

    /// How the agent of one sandbox behaves from now on.
    pub fn agent(&self, id: SandboxId, fault: AgentFault) {
        lock(&self.world.state).agent_faults.insert(id, fault);
    }

    /// How the agents of all sandboxes behave that have no fault of their own.
    pub fn agents(&self, fault: AgentFault) {
        lock(&self.world.state).agent_default = fault;
    }

    /// Emits an event as if the driver had seen it; nothing else happens. Dropped when nobody listens or the queue is full.
    pub fn emit(&self, event: DriverEvent) {
        let sender = lock(&self.world.state).events.clone();
        if let Some(sender) = sender {
            let _ = sender.try_send(event);
        }
    }

    /// The sandbox's first process ends: it is gone, and the event says so.
    pub fn end(&self, id: SandboxId, out_of_memory: bool, detail: &str) {
        self.lose(id);
        self.emit(DriverEvent::Ended { id, out_of_memory, detail: detail.to_owned() });
    }

    /// The sandbox vanishes without an event, as when the machine restarts: `adopt` says gone.
    pub fn lose(&self, id: SandboxId) {
        self.world.remove(id);
    }

    /// Something answers on this port inside every sandbox.
    pub fn respond(&self, port: u16, responder: Responder) {
        lock(&self.world.state).responders.insert(port, responder);
    }

    /// How often the driver was called so far.
    #[must_use]
    pub fn calls(&self) -> Calls {
        lock(&self.world.state).calls.clone()
    }

    /// Most calls of `create` that were under way at once.
    #[must_use]
    pub fn creates_at_once_max(&self) -> u32 {
        lock(&self.world.state).creating_max
    }

    /// The sandboxes that exist, frozen or not.
    #[must_use]
    pub fn sandboxes(&self) -> BTreeMap<SandboxId, bool> {
        lock(&self.world.state).sandboxes.iter().map(|(id, sandbox)| (*id, sandbox.is_frozen())).collect()
    }

    /// What the sandbox may reach; `None` when there is no such sandbox.
    #[must_use]
    pub fn network(&self, id: SandboxId) -> Option<NetworkPlan> {
        let sandbox = lock(&self.world.state).sandboxes.get(&id).cloned()?;
        let plan = lock(&sandbox.network).clone();
        Some(plan)
    }

    /// What was opened for names in this sandbox, in order.
    #[must_use]
    pub fn opened(&self, id: SandboxId) -> Vec<NamedAddress> {
        let sandbox = lock(&self.world.state).sandboxes.get(&id).cloned();
        sandbox.map(|sandbox| lock(&sandbox.opened).clone()).unwrap_or_default()
    }

    /// So much crossed the sandbox's network interface. Nothing happens when there is no such sandbox.
    pub fn traffic(&self, id: SandboxId, traffic: Traffic) {
        if let Some(sandbox) = lock(&self.world.state).sandboxes.get(&id) {
            *lock(&sandbox.traffic) = traffic;
        }
    }

    /// The layers that exist.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        lock(&self.world.state).layers.keys().cloned().collect()
    }

    /// A new driver over the same sandboxes, as after a restart of the server, that can do everything. The
    /// old one's events go nowhere from now on.
    #[must_use]
    pub fn restart(&self) -> FakeDriver {
        FakeDriver::over(Arc::clone(&self.world), crate::Capability::ALL)
    }
}
