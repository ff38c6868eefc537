//! Pools.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sandbank_control::PoolView;

use crate::convert;
use crate::errors::ApiResult;
use crate::session::{Input, OnPool, Params, Session};
use crate::wire;

fn envelope(view: &PoolView) -> Json<wire::PoolEnvelope> {
    Json(wire::PoolEnvelope { template: convert::pool_full(view) })
}

/// Make a pool
#[utoipa::path(post, path = "/v1/sandboxpools", tag = "pools", request_body = wire::CreatePoolRequest,
    responses((status = 201, description = "It is made; its sandboxes follow.", body = wire::PoolEnvelope)))]
pub(crate) async fn create(session: Session, Input(request): Input<wire::CreatePoolRequest>) -> ApiResult<Response> {
    let request = convert::pool_request(request)?;
    let view = session.app.control.pool_create(&session.caller, request).await?;
    Ok((StatusCode::CREATED, envelope(&view)).into_response())
}

/// List pools
#[utoipa::path(get, path = "/v1/sandboxpools", tag = "pools", params(wire::PageQuery),
    responses((status = 200, description = "A piece of the list.", body = wire::PoolList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::PoolList>> {
    let (limit, offset) = convert::page(query)?;
    let listing = session.app.control.pool_list(&session.caller, offset, limit).await?;
    let items = listing.items.iter().map(convert::pool_wire).collect();
    Ok(Json(wire::PoolList { items, total: listing.total, limit, offset }))
}

/// Get a pool
///
/// Its documentation comes with the reader's own values.
#[utoipa::path(get, path = "/v1/sandboxpools/{name}", tag = "pools",
    responses((status = 200, description = "It.", body = wire::PoolEnvelope)))]
pub(crate) async fn get(on: OnPool) -> ApiResult<Json<wire::PoolEnvelope>> {
    let OnPool { session, name } = on;
    let view = session.app.control.pool_get(&session.caller, &name).await?;
    let pool_docs = convert::pool_docs(&view.pool, &session.app.settings.cluster_id, session.secret())?;
    Ok(Json(wire::PoolEnvelope { template: wire::SandboxPool { pool_docs, ..convert::pool_full(&view) } }))
}

/// Change a pool
#[utoipa::path(put, path = "/v1/sandboxpools/{name}", tag = "pools", request_body = wire::UpdatePoolRequest,
    responses((status = 200, description = "As it is now.", body = wire::PoolEnvelope)))]
pub(crate) async fn update(on: OnPool, Input(request): Input<wire::UpdatePoolRequest>) -> ApiResult<Json<wire::PoolEnvelope>> {
    let change = convert::pool_change(request)?;
    let view = on.session.app.control.pool_update(&on.session.caller, &on.name, change).await?;
    Ok(envelope(&view))
}

/// Delete a pool
///
/// Warm sandboxes are destroyed, claimed ones live until they are released.
#[utoipa::path(delete, path = "/v1/sandboxpools/{name}", tag = "pools",
    responses((status = 202, description = "It is going away.", body = wire::DeletePoolResult)))]
pub(crate) async fn delete(on: OnPool) -> ApiResult<Response> {
    let view = on.session.app.control.pool_delete(&on.session.caller, &on.name).await?;
    let result =
        wire::DeletePoolResult { name: view.pool.name.to_string(), namespace: view.owner.name, status: "Terminating".to_owned() };
    Ok((StatusCode::ACCEPTED, Json(result)).into_response())
}

/// Sync a pool with its template
///
/// Deprecated by AgentBox: an admin's update of a template reaches its pools by itself. Replicas stay as they are; running
/// sandboxes stay what they are.
#[utoipa::path(post, path = "/v1/sandboxpools/{name}/sync-template", tag = "pools",
    responses((status = 200, description = "As it is now.", body = wire::PoolEnvelope)))]
#[deprecated]
pub(crate) async fn sync_template(on: OnPool) -> ApiResult<Json<wire::PoolEnvelope>> {
    let view = on.session.app.control.pool_sync_template(&on.session.caller, &on.name).await?;
    Ok(envelope(&view))
}

/// What a sync would make of a pool
#[utoipa::path(post, path = "/v1/sandboxpools/{name}/sync-template/preview", tag = "pools",
    responses((status = 200, description = "Nothing was changed.", body = wire::SyncPreview)))]
pub(crate) async fn sync_preview(on: OnPool) -> ApiResult<Json<wire::SyncPreview>> {
    let preview = on.session.app.control.pool_sync_preview(&on.session.caller, &on.name).await?;
    Ok(Json(convert::preview_wire(&preview)))
}
