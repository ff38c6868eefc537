//! The sandboxes that the fake keeps: what outlives a driver's restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sandbank_model::{DriverHandle, NamedAddress, NetworkPlan, SandboxId, SandboxSpec};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use super::faults::{AgentFault, Calls, Method, MethodFault, Responder};
use super::files::{Change, FileTree};
use super::lock;
use super::processes::Processes;
use crate::{DriverEvent, Traffic};

/// Changes that a slow watcher may fall behind before it is told `Overflow`.
const CHANGES_KEPT: usize = 256;

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) state: Mutex<WorldState>,
    pub(super) faults_changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct WorldState {
    pub(super) sandboxes: BTreeMap<SandboxId, Arc<FakeSandbox>>,
    pub(super) layers: BTreeMap<String, FileTree>,
    /// What layers from elsewhere came from.
    pub(super) archives: BTreeMap<String, Vec<u8>>,
    pub(super) layers_made: u64,
    pub(super) responders: BTreeMap<u16, Responder>,
    pub(super) faults: BTreeMap<Method, MethodFault>,
    pub(super) agent_faults: BTreeMap<SandboxId, AgentFault>,
    pub(super) agent_default: AgentFault,
    pub(super) calls: Calls,
    pub(super) creating: u32,
    pub(super) creating_max: u32,
    pub(super) events: Option<mpsc::Sender<DriverEvent>>,
}

impl World {
    /// Forgets a sandbox and ends all that runs in it.
    pub(super) fn remove(&self, id: SandboxId) {
        let mut state = lock(&self.state);
        state.agent_faults.remove(&id);
        let sandbox = state.sandboxes.remove(&id);
        drop(state);
        if let Some(sandbox) = sandbox {
            sandbox.end();
        }
    }

    pub(super) fn agent_fault(&self, id: SandboxId) -> AgentFault {
        let state = lock(&self.state);
        state.agent_faults.get(&id).copied().unwrap_or(state.agent_default)
    }

    pub(super) fn responder(&self, port: u16) -> Option<Responder> {
        lock(&self.state).responders.get(&port).cloned()
    }
}

/// What its freezer and its end look like to the tasks inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulse {
    Running,
    Frozen,
    Ended,
}

#[derive(Debug)]
pub(super) struct FakeSandbox {
    pub(super) handle: DriverHandle,
    pub(super) spec: SandboxSpec,
    pub(super) began: Instant,
    pub(super) files: Mutex<FileTree>,
    pub(super) changes: broadcast::Sender<Change>,
    pub(super) processes: Processes,
    pub(super) network: Mutex<NetworkPlan>,
    /// What was opened for names, in order.
    pub(super) opened: Mutex<Vec<NamedAddress>>,
    pub(super) traffic: Mutex<Traffic>,
    pulse: watch::Sender<Pulse>,
}

impl FakeSandbox {
    pub(super) fn new(handle: DriverHandle, spec: SandboxSpec, files: FileTree, network: NetworkPlan) -> Arc<Self> {
        let pulse = watch::Sender::new(Pulse::Running);
        Arc::new(Self {
            handle,
            spec,
            began: Instant::now(),
            files: Mutex::new(files),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            processes: Processes::new(),
            network: Mutex::new(network),
            opened: Mutex::default(),
            traffic: Mutex::default(),
            pulse,
        })
    }

    pub(super) fn is_frozen(&self) -> bool {
        *self.pulse.borrow() == Pulse::Frozen
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.pulse.send_if_modified(|pulse| {
            let next = if frozen { Pulse::Frozen } else { Pulse::Running };
            let changes = *pulse != Pulse::Ended && *pulse != next;
            if changes {
                *pulse = next;
            }
            changes
        });
    }

    fn end(&self) {
        self.pulse.send_replace(Pulse::Ended);
    }

    /// Waits while it is frozen; false when it has ended.
    pub(super) async fn awake(&self) -> bool {
        let mut pulse = self.pulse.subscribe();
        match pulse.wait_for(|pulse| *pulse != Pulse::Frozen).await {
            Ok(pulse) => *pulse == Pulse::Running,
            Err(_) => false,
        }
    }

    /// Resolves when it has ended.
    pub(super) async fn ended(&self) {
        let mut pulse = self.pulse.subscribe();
        let _ = pulse.wait_for(|pulse| *pulse == Pulse::Ended).await;
    }

    pub(super) fn tell(&self, changes: Vec<Change>) {
        for change in changes {
            let _ = self.changes.send(change);
        }
    }
}
