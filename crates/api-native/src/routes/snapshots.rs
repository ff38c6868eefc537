//! Snapshots of sandboxes, and forks.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::convert;
use crate::errors::ApiResult;
use crate::reference::parse_sandbox;
use crate::session::{OnSandbox, OptionalInput, Params, PathText, Session};
use crate::wire;

/// Take a snapshot of a sandbox
///
/// Of its file system, while it stands still; it goes on afterwards. Sandboxes are made of a snapshot with `snapshot` in a create
/// call, and pools and templates by giving its id or name as their image.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/snapshots", tag = "snapshots", request_body = Option<wire::SnapshotRequest>,
    responses((status = 201, description = "The snapshot.", body = wire::SnapshotEnvelope)))]
pub(crate) async fn create(on: OnSandbox, OptionalInput(request): OptionalInput<wire::SnapshotRequest>) -> ApiResult<Response> {
    let name = convert::snapshot_name(request)?;
    let snapshot = on.session.app.control.snapshot(&on.session.caller, on.id, name).await?;
    Ok((StatusCode::CREATED, Json(wire::SnapshotEnvelope { snapshot: convert::snapshot_wire(&snapshot) })).into_response())
}

/// Fork a sandbox
///
/// Makes sandboxes of what its file system is now, each with its resources, environment and command. Its processes and its memory
/// are not copied. The answer has an entry for each, in order: a sandbox, or the error where one could not be made.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/fork", tag = "snapshots", request_body = Option<wire::ForkRequest>,
    responses((status = 201, description = "What became of each.", body = wire::ForkList)))]
pub(crate) async fn fork(on: OnSandbox, OptionalInput(request): OptionalInput<wire::ForkRequest>) -> ApiResult<Response> {
    let request = convert::fork_model(request)?;
    let forks = on.session.app.control.fork(&on.session.caller, on.id, request).await?;
    let shown = on.session.shown(on.cluster.as_deref());
    let items = forks.into_iter().map(|fork| convert::fork_wire(fork, &shown)).collect();
    Ok((StatusCode::CREATED, Json(wire::ForkList { items })).into_response())
}

/// List snapshots
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(wire::SnapshotListQuery),
    responses((status = 200, description = "The caller's, the newest first.", body = wire::SnapshotList)))]
pub(crate) async fn list(
    session: Session,
    Params(query): Params<wire::SnapshotListQuery>,
) -> ApiResult<Json<wire::SnapshotList>> {
    let wire::SnapshotListQuery { sandbox_id, limit, offset } = query;
    let (limit, offset) = convert::page(wire::PageQuery { limit, offset })?;
    let local = &session.app.settings.cluster_id;
    let sandbox = sandbox_id.map(|text| parse_sandbox(&text, local)).transpose()?.map(|named| named.value);
    let listing = session.app.control.snapshot_list(&session.caller, sandbox, offset, limit).await?;
    let items = listing.items.iter().map(convert::snapshot_wire).collect();
    Ok(Json(wire::SnapshotList { items, total: listing.total, limit, offset }))
}

/// Get a snapshot by its id or name
#[utoipa::path(get, path = "/v1/snapshots/{name}", tag = "snapshots",
    responses((status = 200, description = "It.", body = wire::SnapshotEnvelope)))]
pub(crate) async fn get(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::SnapshotEnvelope>> {
    let snapshot = session.app.control.snapshot_get(&session.caller, &name).await?;
    Ok(Json(wire::SnapshotEnvelope { snapshot: convert::snapshot_wire(&snapshot) }))
}

/// Delete a snapshot by its id or name
///
/// Refused while a template, pool or live sandbox is of it.
#[utoipa::path(delete, path = "/v1/snapshots/{name}", tag = "snapshots",
    responses((status = 200, description = "It is gone.", body = wire::DeletedName)))]
pub(crate) async fn delete(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::DeletedName>> {
    let snapshot = session.app.control.snapshot_delete(&session.caller, &name).await?;
    Ok(Json(wire::DeletedName { name: snapshot.id.to_string(), status: "Deleted".to_owned() }))
}
