//! Snapshots and forks.

use sandbank_control::{Fork, SandboxView};
use sandbank_http::format_time;
use sandbank_model::{Snapshot, SnapshotName};

use super::{LeaseFields, Shown, sandbox_wire};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

pub(crate) fn snapshot_name(request: wire::SnapshotRequest) -> ApiResult<Option<SnapshotName>> {
    let wire::SnapshotRequest { name } = request;
    name.map(|name| name.parse().map_err(|error| ApiError::bad_request(format!("name: {error}")))).transpose()
}

pub(crate) fn snapshot_wire(snapshot: &Snapshot) -> wire::Snapshot {
    let size_bytes = snapshot.size_bytes();
    let Snapshot { id, tenant: _, name, sandbox, spec: _, image: _, created_at } = snapshot;
    wire::Snapshot {
        snapshot_id: id.to_string(),
        name: name.as_ref().map(ToString::to_string),
        sandbox_id: sandbox.to_string(),
        size_bytes,
        created_at: format_time(*created_at),
    }
}

pub(crate) fn fork_model(request: wire::ForkRequest) -> ApiResult<Fork> {
    let wire::ForkRequest { count, timeout, idle_timeout, on_expiry, labels, annotations, metadata, env, network } = request;
    let lease = LeaseFields { timeout, idle_timeout, on_expiry, metadata, labels, annotations, env, network }.request()?;
    Ok(Fork { count: count.unwrap_or(1), lease })
}

pub(crate) fn fork_wire(fork: sandbank_control::Result<SandboxView>, shown: &Shown<'_>) -> wire::ForkItem {
    match fork {
        Ok(view) => wire::ForkItem::Made { sandbox: Box::new(sandbox_wire(&view, shown)) },
        Err(error) => wire::ForkItem::Failed(ApiError::from(error).into_body()),
    }
}
