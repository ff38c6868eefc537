//! Images.

use std::path::PathBuf;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sandbank_model::ImageName;

use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{AdminSession, Input, Params, PathText, Session};
use crate::wire;

fn named(text: &str) -> ApiResult<ImageName> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(120).collect();
        ApiError::not_found(format!("image {shown:?} not found"))
    })
}

/// List images
#[utoipa::path(get, path = "/v1/images", tag = "images", params(wire::PageQuery),
    responses((status = 200, description = "Those that the caller may use.", body = wire::ImageList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::ImageList>> {
    let page = convert::page(query)?;
    let images = session.app.control.image_list(&session.caller).await?;
    let (images, total) = convert::cut(images, page);
    let items = images.iter().map(convert::image_wire).collect();
    Ok(Json(wire::ImageList { items, total, limit: page.0, offset: page.1 }))
}

/// Get an image
#[utoipa::path(get, path = "/v1/images/{name}", tag = "images",
    responses((status = 200, description = "It.", body = wire::ImageEnvelope)))]
pub(crate) async fn get(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::ImageEnvelope>> {
    let image = session.app.control.image_get(&session.caller, &named(&name)?).await?;
    Ok(Json(wire::ImageEnvelope { image: convert::image_wire(&image) }))
}

/// Delete an image
///
/// Refused while a template, pool or live sandbox uses it.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "images",
    responses((status = 200, description = "It is gone.", body = wire::DeletedName)))]
pub(crate) async fn delete(session: Session, PathText(name): PathText) -> ApiResult<Json<wire::DeletedName>> {
    let name = named(&name)?;
    session.app.control.image_delete(&session.caller, &name).await?;
    Ok(Json(wire::DeletedName { name: name.to_string(), status: "Deleted".to_owned() }))
}

/// Import a root filesystem from the server's own file system
#[utoipa::path(post, path = "/v1/admin/images/import", tag = "admin", request_body = wire::ImportImageRequest,
    responses((status = 201, description = "The image.", body = wire::ImageEnvelope)))]
pub(crate) async fn import(
    AdminSession(session): AdminSession,
    Input(request): Input<wire::ImportImageRequest>,
) -> ApiResult<Response> {
    let wire::ImportImageRequest { name, path, global } = request;
    let name = convert::image_name("name", &name)?;
    let path = PathBuf::from(convert::text("path", path, 4096)?);
    if !path.is_absolute() {
        return Err(ApiError::bad_request("path is not absolute: give the whole path on the server, beginning with /"));
    }
    let image = session.app.control.image_import(&session.caller, name, path, global.unwrap_or(false)).await?;
    Ok((StatusCode::CREATED, Json(wire::ImageEnvelope { image: convert::image_wire(&image) })).into_response())
}
