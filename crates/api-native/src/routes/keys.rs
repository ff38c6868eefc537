//! API keys.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sandbank_control::OwnerView;
use sandbank_model::ApiKeyId;

use crate::convert::{self, KeyReference};
use crate::errors::{ApiError, ApiResult};
use crate::session::{AdminSession, Input, OptionalInput, Params, PathText, Session};
use crate::wire;

fn own(session: &Session) -> OwnerView {
    let principal = &session.caller.principal;
    OwnerView { name: principal.tenant_name.clone(), team: principal.team.clone(), user: principal.user.clone() }
}

/// Make an API key
#[utoipa::path(post, path = "/v1/api-keys", tag = "keys", request_body = wire::CreateKeyRequest,
    responses((status = 201, description = "The only time that the secret is shown.", body = wire::CreateKeyResult)))]
pub(crate) async fn create(
    session: Session,
    OptionalInput(request): OptionalInput<wire::CreateKeyRequest>,
) -> ApiResult<Response> {
    let new = session.app.control.key_create(&session.caller, convert::key_request(request)?).await?;
    Ok((StatusCode::CREATED, Json(convert::new_key_wire(new, &own(&session)))).into_response())
}

/// List the caller's API keys
#[utoipa::path(get, path = "/v1/api-keys", tag = "keys", params(wire::PageQuery),
    responses((status = 200, description = "Keys, without their secrets.", body = wire::KeyList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::KeyList>> {
    let page = convert::page(query)?;
    let keys = session.app.control.key_list(&session.caller).await?;
    let (keys, total) = convert::cut(keys, page);
    let owner = own(&session);
    let items = keys.iter().map(|key| convert::key_wire(key, &owner)).collect();
    Ok(Json(wire::KeyList { items, total, limit: page.0, offset: page.1 }))
}

/// Revoke an API key
///
/// `name` is the key's id, or its AgentBox name, perhaps with `{namespace}/` in front.
#[utoipa::path(delete, path = "/v1/api-keys/{name}", tag = "keys",
    responses((status = 200, description = "It opens nothing any more.", body = wire::DeletedKey)))]
pub(crate) async fn delete(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::DeletedKey>> {
    let reference = KeyReference::parse(&name);
    let id = match reference.id() {
        Some(id) => id,
        None => {
            let keys = session.app.control.key_list(&session.caller).await?;
            keys.iter().find(|key| reference.names(key)).map(|key| key.id).ok_or_else(|| missing(&name))?
        }
    };
    revoke(&session, id).await
}

async fn revoke(session: &Session, id: ApiKeyId) -> ApiResult<Json<wire::DeletedKey>> {
    let key = session.app.control.key_revoke(&session.caller, id).await?;
    Ok(Json(wire::DeletedKey { key_id: key.id.to_string(), status: "Deleted".to_owned() }))
}

fn missing(name: &str) -> ApiError {
    let shown: String = name.chars().take(120).collect();
    ApiError::not_found(format!("API key {shown:?} not found"))
}

/// Make or import an API key for any namespace
#[utoipa::path(post, path = "/v1/admin/api-keys", tag = "admin", request_body = wire::AdminCreateKeyRequest,
    responses((status = 201, description = "The only time that the secret is shown.", body = wire::CreateKeyResult),
              (status = 200, description = "Imported before: nothing changed.", body = wire::CreateKeyResult)))]
pub(crate) async fn admin_create(
    AdminSession(session): AdminSession,
    Input(request): Input<wire::AdminCreateKeyRequest>,
) -> ApiResult<Response> {
    let request = convert::admin_key_request(request)?;
    let (control, caller) = (&session.app.control, &session.caller);
    if request.import.is_some() {
        let (key, created) = control.admin_key_import(caller, request).await?;
        let owner = control.owner(key.tenant).await?;
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        return Ok((status, Json(convert::imported_key_wire(&key, &owner))).into_response());
    }
    let new = control.admin_key_create(caller, request).await?;
    let owner = control.owner(new.key.tenant).await?;
    Ok((StatusCode::CREATED, Json(convert::new_key_wire(new, &owner))).into_response())
}

/// List all API keys
#[utoipa::path(get, path = "/v1/admin/api-keys", tag = "admin", params(wire::PageQuery),
    responses((status = 200, description = "Keys, without their secrets.", body = wire::KeyList)))]
pub(crate) async fn admin_list(
    AdminSession(session): AdminSession,
    Params(query): Params<wire::PageQuery>,
) -> ApiResult<Json<wire::KeyList>> {
    let page = convert::page(query)?;
    let keys = session.app.control.admin_key_list(&session.caller).await?;
    let (keys, total) = convert::cut(keys, page);
    let items = keys.iter().map(|(key, owner)| convert::key_wire(key, owner)).collect();
    Ok(Json(wire::KeyList { items, total, limit: page.0, offset: page.1 }))
}

/// The key that an admin names.
async fn admin_find(session: &Session, name: &str) -> ApiResult<ApiKeyId> {
    let reference = KeyReference::parse(name);
    let keys = session.app.control.admin_key_list(&session.caller).await?;
    let in_namespace = |owner: &OwnerView| reference.namespace.is_none_or(|namespace| owner.name == namespace);
    let found = keys.iter().find(|(key, owner)| in_namespace(owner) && (Some(key.id) == reference.id() || reference.names(key)));
    found.map(|(key, _)| key.id).ok_or_else(|| missing(name))
}

/// Revoke any API key
#[utoipa::path(delete, path = "/v1/admin/api-keys/{name}", tag = "admin",
    responses((status = 200, description = "It opens nothing any more.", body = wire::DeletedKey)))]
pub(crate) async fn admin_delete(
    AdminSession(session): AdminSession,
    PathText(name): PathText,
) -> ApiResult<Json<wire::DeletedKey>> {
    let id = admin_find(&session, &name).await?;
    revoke(&session, id).await
}

/// Copy an API key to the federation
///
/// There is none here: always 503.
#[utoipa::path(post, path = "/v1/admin/api-keys/{name}/promote", tag = "admin",
    responses((status = 503, description = "This installation belongs to no federation.", body = wire::ErrorBody)))]
pub(crate) async fn admin_promote(AdminSession(session): AdminSession, PathText(name): PathText) -> ApiResult<StatusCode> {
    let name = name.strip_suffix("/promote").ok_or_else(|| ApiError::not_found("no such route"))?;
    admin_find(&session, name).await?;
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this installation belongs to no federation: there is no hub to promote the key to",
    ))
}
