//! Programs inside.

use axum::Json;
use axum::response::Response;
use http::StatusCode;

use super::streams::{log_body, process_body};
use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{Input, OnSandbox, Params, PathText};
use crate::wire;

/// Run a command and wait for it
///
/// Deprecated by AgentBox. A command that fails is still a success of this call.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec", tag = "processes", request_body = wire::ExecRequest,
    responses((status = 200, description = "How it went.", body = wire::ExecResult)))]
#[deprecated]
pub(crate) async fn collect(on: OnSandbox, Input(request): Input<wire::ExecRequest>) -> ApiResult<Json<wire::ExecResult>> {
    let exec = convert::exec_model(request)?;
    let output =
        on.session.app.control.exec_collect(&on.session.caller, on.id, exec).await.map_err(ApiError::state_is_bad_request)?;
    Ok(Json(convert::exec_wire(&output)))
}

/// Run a command and stream its output
///
/// A line of JSON for each event, as it happens. Closing the connection kills the command.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec/stream", tag = "processes", request_body = wire::ExecStreamRequest,
    responses((status = 200, description = "Lines.", body = wire::ProcessLine, content_type = "application/x-ndjson")))]
pub(crate) async fn stream(on: OnSandbox, Input(request): Input<wire::ExecStreamRequest>) -> ApiResult<Response> {
    let (exec, stdin) = convert::exec_stream_model(request)?;
    let process = on.session.app.control.exec(&on.session.caller, on.id, exec).await?;
    Ok(process_body(process, stdin))
}

/// List processes that requests started
#[utoipa::path(get, path = "/v1/sandboxes/{id}/processes", tag = "processes",
    responses((status = 200, description = "Those that run or ended not long ago.", body = wire::ProcessList)))]
pub(crate) async fn list(on: OnSandbox) -> ApiResult<Json<wire::ProcessList>> {
    let processes = on.session.app.control.process_list(&on.session.caller, on.id).await?;
    Ok(Json(wire::ProcessList { items: processes.into_iter().map(convert::process_wire).collect() }))
}

/// Send a signal to a process
#[utoipa::path(post, path = "/v1/sandboxes/{id}/processes/{pid}/signal", tag = "processes", request_body = wire::SignalRequest,
    responses((status = 204, description = "It was sent.")))]
pub(crate) async fn signal(
    on: OnSandbox,
    PathText(pid): PathText,
    Input(request): Input<wire::SignalRequest>,
) -> ApiResult<StatusCode> {
    let signal = convert::signal_model(convert::pid(&pid)?, request)?;
    on.session.app.control.process_signal(&on.session.caller, on.id, signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stream a process's output from an offset
#[utoipa::path(get, path = "/v1/sandboxes/{id}/processes/{pid}/attach", tag = "processes", params(wire::AttachQuery),
    responses((status = 200, description = "Lines.", body = wire::ProcessLine, content_type = "application/x-ndjson")))]
pub(crate) async fn attach(
    on: OnSandbox,
    PathText(pid): PathText,
    Params(query): Params<wire::AttachQuery>,
) -> ApiResult<Response> {
    let attach = convert::attach_model(convert::pid(&pid)?, &query);
    let process = on.session.app.control.process_attach(&on.session.caller, on.id, attach).await?;
    Ok(process_body(process, None))
}

/// Stream the log of a sandbox's command
#[utoipa::path(get, path = "/v1/sandboxes/{id}/logs/stream", tag = "sandboxes",
    responses((status = 200, description = "Lines, from the start of what is kept.", body = wire::LogEntry, content_type = "application/x-ndjson")))]
pub(crate) async fn logs_stream(on: OnSandbox) -> ApiResult<Response> {
    let process = on.session.app.control.logs_follow(&on.session.caller, on.id).await.map_err(ApiError::state_is_bad_request)?;
    Ok(log_body(on.session.app, process))
}
