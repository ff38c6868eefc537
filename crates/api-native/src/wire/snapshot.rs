//! Snapshots and forks.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ErrorBody, NetworkPolicy, OnExpiry, Sandbox, TextMap};

/// A snapshot to take.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SnapshotRequest {
    /// `name[:tag]`, the tag `latest` where none is given. Taken from the snapshot that had it before. Default: it has none.
    #[schema(min_length = 1, max_length = 255, example = "work:before-upgrade")]
    pub name: Option<String>,
}

/// A snapshot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    /// UUID.
    pub snapshot_id: String,
    /// `name:tag`, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The sandbox that it was taken of.
    pub sandbox_id: String,
    /// Bytes of all its layers, those of the image beneath included.
    pub size_bytes: u64,
    /// RFC 3339.
    pub created_at: String,
}

/// A snapshot.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SnapshotEnvelope {
    /// It.
    pub snapshot: Snapshot,
}

/// Snapshots, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SnapshotList {
    /// Entries.
    pub items: Vec<Snapshot>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// Which snapshots.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct SnapshotListQuery {
    /// Only those of this sandbox.
    #[param(max_length = 200)]
    pub sandbox_id: Option<String>,
    /// Most entries to return.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    pub limit: Option<u32>,
    /// Entries to skip.
    #[param(minimum = 0, default = 0)]
    pub offset: Option<u64>,
}

/// Forks to make. What is absent is the original's, timeouts excepted.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForkRequest {
    /// How many. Default 1.
    #[schema(minimum = 1, maximum = 100)]
    pub count: Option<u32>,
    /// Released after so long in any case, a Go duration; "0" is never. Default: never.
    #[schema(max_length = 64, example = "1h")]
    pub timeout: Option<String>,
    /// Released after so long without use, a Go duration; "0" is never. Default: never.
    #[schema(max_length = 64, example = "30m")]
    pub idle_timeout: Option<String>,
    /// What happens when a timeout passes. Default: it is destroyed.
    pub on_expiry: Option<OnExpiry>,
    /// Labels.
    pub labels: Option<TextMap>,
    /// Annotations.
    pub annotations: Option<TextMap>,
    /// Your own words about them.
    pub metadata: Option<TextMap>,
    /// Environment, added to the original's.
    pub env: Option<TextMap>,
    /// What it may reach. Absent: what the original may.
    pub network: Option<NetworkPolicy>,
}

/// What became of each fork, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ForkList {
    /// As many as were asked for.
    pub items: Vec<ForkItem>,
}

/// A fork, or why there is none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ForkItem {
    /// It was made.
    Made {
        /// It.
        sandbox: Box<Sandbox>,
    },
    /// It was not.
    Failed(ErrorBody),
}
