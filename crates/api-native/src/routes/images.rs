//! Images.

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use sandbank_control::ImageArchive;
use sandbank_http::bytes_body;
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

/// Export an image
///
/// As an OCI archive that `docker load`, `podman load` and `skopeo` take. The answer begins when the archive is made. Images over
/// the server's own system directories (`host`, and what was committed from it) cannot be exported.
#[utoipa::path(post, path = "/v1/images/{name}/export", tag = "images", params(wire::ExportQuery),
    responses((status = 200, description = "The archive.", body = [u8], content_type = "application/x-tar")))]
pub(crate) async fn export(
    session: Session,
    PathText(name): PathText,
    Params(query): Params<wire::ExportQuery>,
) -> ApiResult<Response> {
    let name = name.strip_suffix("/export").ok_or_else(|| ApiError::not_found("no such route"))?;
    let compression = convert::compression(query);
    let archive = session.app.control.image_export(&session.caller, &named(name)?, compression).await?;
    let length = HeaderValue::from(archive.size_bytes);
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{}\"", archive.file_name));
    let chunks = stream::unfold(Some(archive), |archive: Option<ImageArchive>| async move {
        let mut archive = archive?;
        match archive.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(archive))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = bytes_body(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(header::CONTENT_LENGTH, length);
    if let Ok(disposition) = disposition {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// Import an image from the server's own file system
///
/// A root filesystem, an OCI image layout, or an archive of an image: what it is shows from what is in it.
#[utoipa::path(post, path = "/v1/admin/images/import", tag = "admin", request_body = wire::ImportImageRequest,
    responses((status = 201, description = "The image.", body = wire::ImageEnvelope)))]
pub(crate) async fn import(
    AdminSession(session): AdminSession,
    Input(request): Input<wire::ImportImageRequest>,
) -> ApiResult<Response> {
    let request = convert::import_model(request)?;
    let image = session.app.control.image_import(&session.caller, request).await?;
    Ok((StatusCode::CREATED, Json(wire::ImageEnvelope { image: convert::image_wire(&image) })).into_response())
}

/// Tell what images take on disk
#[utoipa::path(get, path = "/v1/admin/images/usage", tag = "admin",
    responses((status = 200, description = "All images together, and each.", body = wire::ImagesUsage)))]
pub(crate) async fn usage(AdminSession(session): AdminSession) -> ApiResult<Json<wire::ImagesUsage>> {
    Ok(Json(convert::usage_wire(session.app.control.images_usage(&session.caller).await?)))
}

/// Remove layers that nothing uses
///
/// They go by themselves after a while; this is for now. Layers of the last hour that no image has named yet stay: they may be of
/// a pull that is tried again.
#[utoipa::path(post, path = "/v1/admin/images/prune", tag = "admin",
    responses((status = 200, description = "What was removed.", body = wire::PrunedImages)))]
pub(crate) async fn prune(AdminSession(session): AdminSession) -> ApiResult<Json<wire::PrunedImages>> {
    Ok(Json(convert::pruned_wire(session.app.control.images_prune(&session.caller).await?)))
}
