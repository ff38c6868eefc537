//! Registries' credentials.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::convert;
use crate::errors::ApiResult;
use crate::session::{Input, Params, PathText, Session};
use crate::wire;

/// Keep credentials for a registry
///
/// They replace those of the same host and owner, are stored encrypted, and are never shown again.
#[utoipa::path(post, path = "/v1/registries", tag = "registries", request_body = wire::RegistryLoginRequest,
    responses((status = 201, description = "They are kept.", body = wire::RegistryEnvelope)))]
pub(crate) async fn login(session: Session, Input(request): Input<wire::RegistryLoginRequest>) -> ApiResult<Response> {
    let (host, credentials, global) = convert::registry_login(request)?;
    let view = session.app.control.registry_login(&session.caller, &host, credentials, global).await?;
    Ok((StatusCode::CREATED, Json(wire::RegistryEnvelope { registry: convert::registry_wire(&view) })).into_response())
}

/// List the registries that there are credentials for
#[utoipa::path(get, path = "/v1/registries", tag = "registries", params(wire::PageQuery),
    responses((status = 200, description = "The caller's own and the installation's, without their secrets.", body = wire::RegistryList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::RegistryList>> {
    let page = convert::page(query)?;
    let views = session.app.control.registry_list(&session.caller).await?;
    let (views, total) = convert::cut(views, page);
    let items = views.iter().map(convert::registry_wire).collect();
    Ok(Json(wire::RegistryList { items, total, limit: page.0, offset: page.1 }))
}

/// Forget the credentials for a registry
#[utoipa::path(delete, path = "/v1/registries/{host}", tag = "registries", params(wire::RegistryScope),
    responses((status = 200, description = "They are gone.", body = wire::DeletedName)))]
pub(crate) async fn logout(
    session: Session,
    PathText(host): PathText,
    Params(scope): Params<wire::RegistryScope>,
) -> ApiResult<Json<wire::DeletedName>> {
    let wire::RegistryScope { global } = scope;
    let name = session.app.control.registry_logout(&session.caller, &host, global.unwrap_or(false)).await?;
    Ok(Json(wire::DeletedName { name, status: "Deleted".to_owned() }))
}
