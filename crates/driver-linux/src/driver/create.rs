//! Making a sandbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use sandbank_driver::{CreateRequest, DriverError};
use sandbank_model::{DriverHandle, NetworkPlan, SandboxId};
use tokio::sync::oneshot;

use super::destroy::clear_cgroups;
use super::live::Live;
use super::{Shared, blocking, failed, io_errno};
use crate::cgroup::SandboxCgroups;
use crate::image::root_plan;
use crate::launch::{Begun, FailureWatch, LaunchError};
use crate::launcher::MakeOrder;
use crate::manifest::Manifest;

/// Longest wait for the reason when the first process has ended before the agent answered.
const REASON_WAIT: Duration = Duration::from_millis(200);
/// Launchers that may die while one sandbox is being made: the first may have been dead already, unnoticed.
const LAUNCHER_DEATHS_MAX: u32 = 3;
/// Longest host name that the kernel takes.
const HOSTNAME_MAX: usize = 64;

impl Shared {
    /// As [`Shared::make`], to the end even when the caller stops waiting: what the launcher was asked for cannot be taken back, so
    /// what nobody waits for any more is destroyed when it is there.
    pub(super) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<DriverHandle, DriverError> {
        let (shared, id) = (Arc::clone(self), request.id);
        let (sender, made) = oneshot::channel();
        tokio::spawn(async move {
            let result = shared.make(request).await;
            if sender.send(result).is_err()
                && let Err(error) = shared.destroy(id).await
            {
                tracing::warn!(sandbox = %id, %error, "an abandoned sandbox could not be destroyed");
            }
        });
        made.await.unwrap_or_else(|_| {
            Err(DriverError::Failed { step: "make the sandbox".to_owned(), detail: "the server is shutting down".to_owned() })
        })
    }

    /// Makes a sandbox and waits for its agent. When the launcher dies meanwhile, it is tried again with the next one.
    async fn make(self: &Arc<Self>, request: CreateRequest) -> Result<DriverHandle, DriverError> {
        let id = request.id;
        if self.live().contains_key(&id) || self.sandboxes.join(id.to_string()).exists() {
            self.destroy(id).await?;
        }
        let mut deaths = 0;
        loop {
            let order = self.order(&request)?;
            let kept = order.cgroups.iter().any(|order| order.kept).then(|| order.manifest.cgroups.clone());
            let skeleton = order.skeleton.clone();
            let result = self.try_create(order, &request.network).await;
            let Err(error) = result else { return result.map_err(into_driver_error) };
            self.destroy(id).await?;
            self.give_back(skeleton, kept).await?;
            deaths += u32::from(error.is_death());
            if deaths >= LAUNCHER_DEATHS_MAX || !error.is_death() {
                return Err(into_driver_error(error));
            }
        }
    }

    /// Has what an order that failed had taken, and perhaps did not use, removed. The launcher must be done with the order.
    async fn give_back(self: &Arc<Self>, skeleton: Option<PathBuf>, kept: Option<SandboxCgroups>) -> Result<(), DriverError> {
        let shared = Arc::clone(self);
        blocking("give back what was kept", move || {
            if let Some(skeleton) = skeleton {
                shared.remover.give_back(skeleton);
            }
            kept.map_or(Ok(()), |cgroups| clear_cgroups(&cgroups))
        })
        .await
    }

    async fn try_create(self: &Arc<Self>, order: MakeOrder, plan: &NetworkPlan) -> Result<DriverHandle, LaunchError> {
        let manifest = order.manifest.clone();
        let begun = self.launcher.begin(order).await?;
        let Begun { pid, pidfd, network, mut failure } = begun;
        let manifest = Manifest { network, ..manifest };
        let live = Live::new(&manifest, pid, pidfd)
            .map_err(|error| LaunchError::Unavailable(failed("watch the first process", io_errno(&error))))?;
        let live = Arc::new(live);
        self.live().insert(live.id, Arc::clone(&live));
        self.await_agent(&live, &mut failure).await?;
        self.join_network(&live, plan).await.map_err(LaunchError::Unavailable)?;
        live.set_complete();
        self.watch(&live);
        Ok(live.handle())
    }

    /// Waits until the agent answers, setting up fails, or the process ends.
    async fn await_agent(&self, live: &Live, failure: &mut FailureWatch) -> Result<(), LaunchError> {
        tokio::select! {
            biased;
            answered = self.ping(live.id, self.config.agent_wait) => match answered {
                Ok(()) => Ok(()),
                Err(error) => Err(self.reason(failure).await.unwrap_or(LaunchError::Unavailable(error))),
            },
            error = failure.wait() => Err(error),
            () = live.ended() => Err(self.reason(failure).await.unwrap_or_else(|| agent_died(live.id))),
        }
    }

    /// What the child said about its failure; its message may be behind the end of the process.
    async fn reason(&self, failure: &mut FailureWatch) -> Option<LaunchError> {
        tokio::time::timeout(REASON_WAIT, failure.wait()).await.ok()
    }

    fn order(&self, request: &CreateRequest) -> Result<MakeOrder, DriverError> {
        let limits = request.spec.resources.clamped();
        let root = root_plan(&self.images, &request.image)?;
        let layers = root.lowers.iter().filter_map(|lower| self.images.layer_of(lower)).collect();
        let range = if self.id_ranges { Some(self.ranges().take(request.id)?) } else { None };
        // Last, since what is taken has to be used or given back.
        let kept = self.cgroup_stock.take(&limits);
        let (cgroups, is_kept) = kept.map_or_else(|| (self.cgroups.sandbox(request.id), false), |kept| (kept, true));
        let orders = self.cgroups.orders(&cgroups, &limits, is_kept);
        let manifest = Manifest {
            id: request.id,
            pid: 0,
            start_ticks: 0,
            boot_id: self.boot_id.clone(),
            range,
            cgroups,
            limits,
            layers,
            network: None,
        };
        Ok(MakeOrder {
            seq: 0,
            manifest,
            skeleton: self.remover.take_skeleton(),
            root,
            hostname: hostname(request),
            cgroups: orders,
        })
    }
}

/// The one asked for, cut to what the kernel takes; else the first 12 hexadecimal characters of the id's random part.
fn hostname(request: &CreateRequest) -> String {
    match &request.spec.hostname {
        Some(name) => name.chars().filter(char::is_ascii).take(HOSTNAME_MAX).collect(),
        None => request.id.uuid().simple().to_string()[20..].to_owned(),
    }
}

fn agent_died(id: SandboxId) -> LaunchError {
    LaunchError::Unavailable(DriverError::Failed {
        step: "start the agent".to_owned(),
        detail: format!("the first process of sandbox {id} ended before it answered"),
    })
}

fn into_driver_error(error: LaunchError) -> DriverError {
    match error {
        LaunchError::Unavailable(error) => error,
        LaunchError::Failed { step, errno: Errno::SRCH } => {
            DriverError::Failed { step, detail: "the launcher died meanwhile".to_owned() }
        }
        LaunchError::Failed { step, errno } => failed(step, errno),
        LaunchError::Died => DriverError::Failed {
            step: "make the sandbox".to_owned(),
            detail: "the launcher died again and again while making it; see its messages on the server's stderr".to_owned(),
        },
    }
}
