//! Images, events, quotas and the installation on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::TextMap;

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageInfo {
    /// Name.
    pub name: String,
    /// Whether everybody may use it.
    pub global: bool,
    /// `host`, `imported` (a root filesystem), `loaded` (an archive of an image), `pulled` or `committed`.
    pub source: String,
    /// How many layers it has.
    pub layers: usize,
    /// Their bytes on disk.
    pub size_bytes: u64,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Environment of processes.
    pub env: TextMap,
    /// Program and first arguments, which a request's command does not replace. Shown, not started.
    pub entrypoint: Vec<String>,
    /// Program and arguments to start, or the entrypoint's further arguments where there is one. Shown, not started.
    pub command: Vec<String>,
    /// User of processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory of processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Ports that it announces: `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: TextMap,
    /// Signal that asks its main process to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// One image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageEnvelope {
    /// It.
    pub image: ImageInfo,
}

/// Images.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageList {
    /// Entries, by name.
    pub items: Vec<ImageInfo>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only those after this position.
    pub after: Option<u64>,
    /// Most entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// Of this pool and its sandboxes.
    #[param(max_length = 200)]
    pub pool_name: Option<String>,
    /// The newest first.
    pub newest_first: Option<bool>,
}

/// An event.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventItem {
    /// Position.
    pub seq: u64,
    /// When, RFC 3339.
    pub at: String,
    /// What, such as `claimed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Pool by name, while it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_name: Option<String>,
    /// By whom.
    pub actor: String,
    /// In which request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Events.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventList {
    /// Entries.
    pub items: Vec<EventItem>,
}

/// A cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cluster {
    /// Id, as references name it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Whether it is the one that answers.
    pub local: bool,
}

/// Clusters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClusterList {
    /// They; exactly one is local.
    pub clusters: Vec<Cluster>,
}

/// What this installation offers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FeatureGates {
    /// Quotas.
    pub quota: bool,
}

/// A quota and its use. The maps hold quantities for `cpu`, `memory` and `sandboxes`; a limit that is not set is absent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Quota {
    /// Name.
    pub name: String,
    /// Address.
    pub quota_url: String,
    /// Queue.
    pub queue: String,
    /// For people.
    pub label: String,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// Limits.
    pub resources: BTreeMap<String, String>,
    /// Held now.
    pub used: BTreeMap<String, String>,
    /// Set aside; always nothing.
    pub reserved: BTreeMap<String, String>,
    /// Left.
    pub free: BTreeMap<String, String>,
}

/// Quotas.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuotaList {
    /// Entries.
    pub items: Vec<Quota>,
}

/// It is alive.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ping {
    /// `ok`.
    pub status: &'static str,
}

/// How the server does.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    pub status: &'static str,
    /// What each driver can do on this machine.
    pub drivers: BTreeMap<String, Vec<String>>,
    /// Version of the server.
    pub version: String,
}
