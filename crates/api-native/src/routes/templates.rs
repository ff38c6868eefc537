//! Templates.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sandbank_control::TemplateView;

use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{AdminSession, Input, Params, PathText, Session};
use crate::wire;

fn envelope(session: &Session, view: &TemplateView) -> Json<wire::TemplateEnvelope> {
    Json(wire::TemplateEnvelope { template: convert::template_full(view, &session.app.settings.cluster_id) })
}

fn named(text: &str) -> ApiResult<sandbank_model::PoolName> {
    convert::template_name(text).map_err(|_| {
        let shown: String = text.chars().take(63).collect();
        ApiError::not_found(format!("sandbox template {shown:?} not found"))
    })
}

fn deleted(name: &sandbank_model::PoolName) -> Json<wire::DeletedName> {
    Json(wire::DeletedName { name: name.to_string(), status: "Deleted".to_owned() })
}

/// List templates
#[utoipa::path(get, path = "/v1/sandbox-templates", tag = "templates", params(wire::PageQuery),
    responses((status = 200, description = "Those that the caller sees.", body = wire::TemplateList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::TemplateList>> {
    let page = convert::page(query)?;
    let views = session.app.control.template_list(&session.caller).await?;
    let (views, total) = convert::cut(views, page);
    let items = views.iter().map(convert::template_summary).collect();
    Ok(Json(wire::TemplateList { items, total, limit: page.0, offset: page.1 }))
}

/// Get a template
#[utoipa::path(get, path = "/v1/sandbox-templates/{name}", tag = "templates",
    responses((status = 200, description = "It.", body = wire::TemplateEnvelope)))]
pub(crate) async fn get(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::TemplateEnvelope>> {
    let view = session.app.control.template_get(&session.caller, &named(&name)?).await?;
    Ok(envelope(&session, &view))
}

/// Make a template of the caller's own
#[utoipa::path(post, path = "/v1/sandbox-templates", tag = "templates", request_body = wire::SimpleTemplateRequest,
    responses((status = 201, description = "It.", body = wire::TemplateEnvelope)))]
pub(crate) async fn create(session: Session, Input(request): Input<wire::SimpleTemplateRequest>) -> ApiResult<Response> {
    let request = convert::simple_template(request, None)?;
    let view = session.app.control.template_create(&session.caller, request).await?;
    Ok((StatusCode::CREATED, envelope(&session, &view)).into_response())
}

/// Write a newer version of the caller's own template
#[utoipa::path(put, path = "/v1/sandbox-templates/{name}", tag = "templates", request_body = wire::SimpleTemplateRequest,
    responses((status = 200, description = "The new version.", body = wire::TemplateEnvelope)))]
pub(crate) async fn update(
    session: Session,
    PathText(name): PathText,
    Input(request): Input<wire::SimpleTemplateRequest>,
) -> ApiResult<Json<wire::TemplateEnvelope>> {
    let request = convert::simple_template(request, Some(named(&name)?))?;
    let view = session.app.control.template_update(&session.caller, request).await?;
    Ok(envelope(&session, &view))
}

/// Delete the caller's own template
#[utoipa::path(delete, path = "/v1/sandbox-templates/{name}", tag = "templates",
    responses((status = 200, description = "It is gone. Pools made of it keep their copies.", body = wire::DeletedName)))]
pub(crate) async fn delete(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::DeletedName>> {
    let name = named(&name)?;
    session.app.control.template_delete(&session.caller, &name, false).await?;
    Ok(deleted(&name))
}

/// Make a template for the installation
#[utoipa::path(post, path = "/v1/admin/sandbox-templates", tag = "admin", request_body = wire::UpsertTemplateRequest,
    responses((status = 201, description = "It.", body = wire::TemplateEnvelope)))]
pub(crate) async fn admin_create(
    AdminSession(session): AdminSession,
    Input(request): Input<wire::UpsertTemplateRequest>,
) -> ApiResult<Response> {
    let request = convert::admin_template(request, None)?;
    let view = session.app.control.template_create(&session.caller, request).await?;
    Ok((StatusCode::CREATED, envelope(&session, &view)).into_response())
}

/// Write a newer version of an installation's template; its pools follow
#[utoipa::path(put, path = "/v1/admin/sandbox-templates/{name}", tag = "admin", request_body = wire::UpsertTemplateRequest,
    responses((status = 200, description = "The new version.", body = wire::TemplateEnvelope)))]
pub(crate) async fn admin_update(
    AdminSession(session): AdminSession,
    PathText(name): PathText,
    Input(request): Input<wire::UpsertTemplateRequest>,
) -> ApiResult<Json<wire::TemplateEnvelope>> {
    let request = convert::admin_template(request, Some(named(&name)?))?;
    let view = session.app.control.template_update(&session.caller, request).await?;
    Ok(envelope(&session, &view))
}

/// Delete an installation's template
#[utoipa::path(delete, path = "/v1/admin/sandbox-templates/{name}", tag = "admin",
    responses((status = 200, description = "It is gone. Pools made of it keep their copies.", body = wire::DeletedName)))]
pub(crate) async fn admin_delete(
    AdminSession(session): AdminSession,
    PathText(name): PathText,
) -> ApiResult<Json<wire::DeletedName>> {
    let name = named(&name)?;
    session.app.control.template_delete(&session.caller, &name, true).await?;
    Ok(deleted(&name))
}
