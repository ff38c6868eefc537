//! Files inside.

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode, header};
use sandbank_agent_protocol::FileStat;
use sandbank_control::{FileReader, Watch};
use sandbank_http::{bytes_body, ndjson_body, ndjson_line};

use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{Input, OnSandbox, Params};
use crate::wire;

const FILE_MODE: HeaderName = HeaderName::from_static("x-file-mode");

fn envelope(stat: FileStat) -> Json<wire::FileEnvelope> {
    Json(wire::FileEnvelope { file: convert::file_wire(stat) })
}

/// Read a file
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files", tag = "files", params(wire::ReadQuery),
    responses((status = 200, description = "Its bytes.", body = [u8], content_type = "application/octet-stream")))]
pub(crate) async fn read(on: OnSandbox, Params(query): Params<wire::ReadQuery>) -> ApiResult<Response> {
    let read = convert::read_model(query)?;
    let (offset, length) = (read.offset, read.length);
    let reader = on.session.app.control.file_read(&on.session.caller, on.id, read).await?;
    let (size, mode) = (reader.stat.size, reader.stat.mode);
    let chunks = stream::unfold(Some(reader), |reader: Option<FileReader>| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = bytes_body(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(value) = HeaderValue::from_str(&convert::mode_text(mode)) {
        headers.insert(FILE_MODE, value);
    }
    // Files of the kernel (in /proc) say 0 and have content all the same: those are sent without a length.
    if size > 0 {
        let rest = size.saturating_sub(offset);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length.map_or(rest, |length| rest.min(length))));
    }
    Ok(response)
}

/// Write a file
///
/// Of any size, streamed. It appears when all of it has come; a broken upload leaves the old one.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/files", tag = "files", params(wire::WriteQuery),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 201, description = "It is written.", body = wire::FileEnvelope)))]
pub(crate) async fn write(on: OnSandbox, Params(query): Params<wire::WriteQuery>, body: Body) -> ApiResult<Response> {
    let write = convert::write_model(query)?;
    let mut writer = on.session.app.control.file_write(&on.session.caller, on.id, write).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::bad_request(format!("the upload broke off, nothing was changed: {error}")))?;
        writer.write(chunk).await?;
    }
    Ok((StatusCode::CREATED, envelope(writer.finish().await?)).into_response())
}

/// Remove a file or directory
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/files", tag = "files", params(wire::RemoveQuery),
    responses((status = 204, description = "It is gone.")))]
pub(crate) async fn remove(on: OnSandbox, Params(query): Params<wire::RemoveQuery>) -> ApiResult<StatusCode> {
    let remove = convert::remove_model(query)?;
    on.session.app.control.file_remove(&on.session.caller, on.id, remove).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A file's metadata
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files/stat", tag = "files", params(wire::PathQuery),
    responses((status = 200, description = "Of a symbolic link, the link's own.", body = wire::FileEnvelope)))]
pub(crate) async fn stat(on: OnSandbox, Params(query): Params<wire::PathQuery>) -> ApiResult<Json<wire::FileEnvelope>> {
    let stat = convert::stat_model(query)?;
    Ok(envelope(on.session.app.control.file_stat(&on.session.caller, on.id, stat).await?))
}

/// List a directory
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files/list", tag = "files", params(wire::ListQuery),
    responses((status = 200, description = "Its entries.", body = wire::FileList)))]
pub(crate) async fn list(on: OnSandbox, Params(query): Params<wire::ListQuery>) -> ApiResult<Json<wire::FileList>> {
    let list = convert::list_model(query)?;
    let entries = on.session.app.control.file_list(&on.session.caller, on.id, list).await?;
    Ok(Json(wire::FileList { items: entries.into_iter().map(convert::file_wire).collect() }))
}

/// Rename a file or directory
#[utoipa::path(post, path = "/v1/sandboxes/{id}/files/move", tag = "files", request_body = wire::MoveRequest,
    responses((status = 200, description = "It, where it is now.", body = wire::FileEnvelope)))]
pub(crate) async fn rename(on: OnSandbox, Input(request): Input<wire::MoveRequest>) -> ApiResult<Json<wire::FileEnvelope>> {
    let rename = convert::move_model(request)?;
    Ok(envelope(on.session.app.control.file_move(&on.session.caller, on.id, rename).await?))
}

/// Make a directory and its parents
#[utoipa::path(post, path = "/v1/sandboxes/{id}/files/mkdir", tag = "files", request_body = wire::MkdirRequest,
    responses((status = 201, description = "It, also when it was there.", body = wire::FileEnvelope)))]
pub(crate) async fn mkdir(on: OnSandbox, Input(request): Input<wire::MkdirRequest>) -> ApiResult<Response> {
    let mkdir = convert::mkdir_model(request)?;
    let stat = on.session.app.control.file_mkdir(&on.session.caller, on.id, mkdir).await?;
    Ok((StatusCode::CREATED, envelope(stat)).into_response())
}

/// Watch a directory
///
/// A first line `ready`, then a line for each change.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files/watch", tag = "files", params(wire::WatchQuery),
    responses((status = 200, description = "Lines.", body = wire::WatchLine, content_type = "application/x-ndjson")))]
pub(crate) async fn watch(on: OnSandbox, Params(query): Params<wire::WatchQuery>) -> ApiResult<Response> {
    let watch = convert::watch_model(query)?;
    let watch = on.session.app.control.file_watch(&on.session.caller, on.id, watch).await?;
    let ready = wire::WatchLine { kind: "ready", path: None, is_dir: None, error: None };
    let changes = stream::unfold(Some(watch), |watch: Option<Watch>| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(event)) => Some((ndjson_line(&convert::watch_wire(event)), Some(watch))),
            Ok(None) => None,
            Err(error) => {
                let line = wire::WatchLine { kind: "error", path: None, is_dir: None, error: Some(error.message) };
                Some((ndjson_line(&line), None))
            }
        }
    });
    Ok(ndjson_body(stream::once(async move { ndjson_line(&ready) }).chain(changes)))
}
