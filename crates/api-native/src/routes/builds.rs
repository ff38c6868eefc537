//! Builds of images, and the uploads that they copy from.

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use sandbank_control::{BuildContext, BuildLogPiece, BuildLogs};
use sandbank_http::{ndjson_body, ndjson_line};

use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{Input, Params, PathText, Session};
use crate::wire;

/// Upload files for builds
///
/// A tar archive, plain or compressed with gzip, streamed. It is kept for a day.
#[utoipa::path(post, path = "/v1/contexts", tag = "builds", params(wire::ContextQuery),
    request_body(content = [u8], content_type = "application/x-tar"),
    responses((status = 201, description = "It is kept.", body = wire::Context)))]
pub(crate) async fn upload(session: Session, Params(query): Params<wire::ContextQuery>, body: Body) -> ApiResult<Response> {
    let mut writer = session.app.control.context_begin(&session.caller).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the upload broke off, nothing is kept: {error}")))?;
        writer.write(chunk).await?;
    }
    let BuildContext { id, size_bytes } = writer.finish(query.id).await?;
    Ok((StatusCode::CREATED, Json(wire::Context { id, size_bytes })).into_response())
}

/// Build an image
///
/// Answered at once; the build goes on beside the request.
#[utoipa::path(post, path = "/v1/builds", tag = "builds", request_body = wire::BuildCreate,
    responses((status = 202, description = "It waits or runs.", body = wire::BuildEnvelope)))]
pub(crate) async fn create(session: Session, Input(request): Input<wire::BuildCreate>) -> ApiResult<Response> {
    let request = convert::build_model(request)?;
    let build = session.app.control.build_start(&session.caller, request).await?;
    Ok((StatusCode::ACCEPTED, Json(wire::BuildEnvelope { build: convert::build_wire(build) })).into_response())
}

/// List builds
#[utoipa::path(get, path = "/v1/builds", tag = "builds", params(wire::PageQuery),
    responses((status = 200, description = "The newest first.", body = wire::BuildList)))]
pub(crate) async fn list(session: Session, Params(query): Params<wire::PageQuery>) -> ApiResult<Json<wire::BuildList>> {
    let (limit, offset) = convert::page(query)?;
    let found = session.app.control.build_list(&session.caller, offset, limit).await?;
    let items = found.items.into_iter().map(convert::build_wire).collect();
    Ok(Json(wire::BuildList { items, total: found.total }))
}

/// A build
#[utoipa::path(get, path = "/v1/builds/{build}", tag = "builds",
    responses((status = 200, description = "It.", body = wire::BuildEnvelope)))]
pub(crate) async fn get(session: Session, PathText(id): PathText) -> ApiResult<Json<wire::BuildEnvelope>> {
    let build = session.app.control.build_get(&session.caller, convert::build_id(&id)?).await?;
    Ok(Json(wire::BuildEnvelope { build: convert::build_wire(build) }))
}

/// Cancel a build
///
/// Answered when no step begins any more. One that has ended stays as it is.
#[utoipa::path(delete, path = "/v1/builds/{build}", tag = "builds",
    responses((status = 200, description = "It, as it ended.", body = wire::BuildEnvelope)))]
pub(crate) async fn cancel(session: Session, PathText(id): PathText) -> ApiResult<Json<wire::BuildEnvelope>> {
    let build = session.app.control.build_cancel(&session.caller, convert::build_id(&id)?).await?;
    Ok(Json(wire::BuildEnvelope { build: convert::build_wire(build) }))
}

/// Stream a build's log
#[utoipa::path(get, path = "/v1/builds/{build}/logs", tag = "builds", params(wire::BuildLogQuery),
    responses((status = 200, description = "Lines, to the build's end.", body = wire::BuildLogLine, content_type = "application/x-ndjson")))]
pub(crate) async fn logs(
    session: Session,
    PathText(id): PathText,
    Params(query): Params<wire::BuildLogQuery>,
) -> ApiResult<Response> {
    let id = convert::build_id(&id)?;
    let mut logs = session.app.control.build_logs(&session.caller, id, query.offset.unwrap_or(0)).await?;
    if query.follow == Some(false) {
        let now = lines(logs.now());
        return Ok(ndjson_body(stream::once(async move { now })));
    }
    let pieces = stream::unfold(logs, |mut logs: BuildLogs| async move { logs.next().await.map(|piece| (lines(piece), logs)) });
    Ok(ndjson_body(pieces))
}

fn lines(piece: BuildLogPiece) -> Bytes {
    let lines = convert::build_log_wire(piece);
    lines
        .iter()
        .fold(BytesMut::new(), |mut all, line| {
            all.extend_from_slice(&ndjson_line(line));
            all
        })
        .freeze()
}

/// Forget what builds left for later ones
#[utoipa::path(delete, path = "/v1/build-cache", tag = "builds",
    responses((status = 200, description = "How many steps were forgotten.", body = wire::ClearedCache)))]
pub(crate) async fn clear_cache(session: Session) -> ApiResult<Json<wire::ClearedCache>> {
    let steps = session.app.control.build_cache_clear(&session.caller).await?;
    Ok(Json(wire::ClearedCache { steps }))
}
