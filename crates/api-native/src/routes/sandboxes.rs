//! Sandboxes.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sandbank_control::{LogQuery, SandboxView};
use sandbank_http::Query;
use sandbank_model::{EventSeq, LeaseChange};

use crate::app::App;
use crate::convert::{self, Shown, Wanted};
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_pool;
use crate::session::{Input, OnSandbox, Params, Session};
use crate::wire;

/// Most sandboxes in one answer (native.md §5).
const PAGE_MAX: u32 = 100;
/// Records looked through for a status that the states alone do not tell.
const SCAN_MAX: u64 = 20_000;
const SCAN_PAGE: u32 = 500;

impl Session {
    pub(crate) fn shown<'a>(&'a self, cluster: Option<&'a str>) -> Shown<'a> {
        Shown { cluster, base_url: &self.base_url, gateway: &self.app.gateway, now: self.app.control.now() }
    }

    fn envelope(&self, view: &SandboxView, cluster: Option<&str>) -> Json<wire::SandboxEnvelope> {
        Json(wire::SandboxEnvelope { sandbox: convert::sandbox_wire(view, &self.shown(cluster)) })
    }
}

/// Claim a sandbox of a pool, or make one without a pool
///
/// With `poolName`, a warm sandbox of that pool is handed out; when none is warm, `whenEmpty` says what happens. Without, one is
/// made of `image` or `templateName`.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandboxes", request_body = wire::CreateSandboxRequest,
    responses((status = 201, description = "It is yours.", body = wire::SandboxEnvelope)))]
pub(crate) async fn create(session: Session, Input(request): Input<wire::CreateSandboxRequest>) -> ApiResult<Response> {
    let Session { app, caller, .. } = &session;
    let (view, cluster) = match convert::wanted(request, &app.settings.cluster_id)? {
        Wanted::Claim(claim, cluster) => (app.control.claim(caller, *claim).await?, cluster),
        Wanted::Create(create) => (app.control.create(caller, *create).await?, None),
    };
    Ok((StatusCode::CREATED, session.envelope(&view, cluster.as_deref())).into_response())
}

/// List sandboxes
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandboxes", params(wire::SandboxListQuery),
    responses((status = 200, description = "A piece of the list.", body = wire::SandboxList)))]
pub(crate) async fn list(
    session: Session,
    Params(query): Params<wire::SandboxListQuery>,
    RawQuery(raw): RawQuery,
) -> ApiResult<Json<wire::SandboxList>> {
    let wire::SandboxListQuery { pool_name, status, warm, limit, offset } = query;
    let (limit, offset) = convert::page(wire::PageQuery { limit, offset })?;
    let limit = limit.min(PAGE_MAX);
    let named = pool_name.map(|text| parse_pool(&text, &session.app.settings.cluster_id)).transpose()?;
    let (cluster, pool) = named.map_or((None, None), |named| (named.cluster, Some(named.value)));
    let metadata = metadata_filter(raw.as_deref())?;
    let filter = convert::status_filter(pool, status.as_deref(), metadata, warm.unwrap_or(false))?;
    let (views, total) = select(&session, filter, (limit, offset)).await?;
    let shown = session.shown(cluster.as_deref());
    // Policies may be long: a list would be thousands of times as long as they are.
    let items = views.iter().map(|view| wire::Sandbox { network: None, ..convert::sandbox_wire(view, &shown) }).collect();
    Ok(Json(wire::SandboxList { items, total, limit, offset }))
}

fn metadata_filter(raw: Option<&str>) -> ApiResult<Vec<(String, String)>> {
    let query = Query::parse(raw)?;
    let pairs = query.pairs().filter_map(|(name, value)| Some((name.strip_prefix("metadata.")?.to_owned(), value.to_owned())));
    Ok(pairs.collect())
}

/// The page that is wanted. Statuses that several causes of one state share are told apart here, over at most [`SCAN_MAX`]
/// records.
async fn select(session: &Session, filter: convert::StatusFilter, page: (u32, u64)) -> ApiResult<(Vec<SandboxView>, u64)> {
    let Session { app, caller, .. } = session;
    let convert::StatusFilter { query, exact } = filter;
    if exact.is_empty() {
        let listing = app.control.list(caller, query, page.1, page.0).await?;
        return Ok((listing.items, listing.total));
    }
    let mut matching = Vec::new();
    let mut at = 0;
    loop {
        let listing = app.control.list(caller, query.clone(), at, SCAN_PAGE).await?;
        at += u64::from(SCAN_PAGE);
        matching.extend(listing.items.into_iter().filter(|view| exact.contains(&convert::status_of(&view.sandbox))));
        if at >= listing.total.min(SCAN_MAX) {
            return Ok(convert::cut(matching, page));
        }
    }
}

/// Get a sandbox
#[utoipa::path(get, path = "/v1/sandboxes/{id}", tag = "sandboxes",
    responses((status = 200, description = "It, also when it has ended.", body = wire::SandboxEnvelope)))]
pub(crate) async fn get(on: OnSandbox) -> ApiResult<Json<wire::SandboxEnvelope>> {
    let view = on.session.app.control.get(&on.session.caller, on.id).await?;
    Ok(on.session.envelope(&view, on.cluster.as_deref()))
}

/// Give a sandbox back
#[utoipa::path(delete, path = "/v1/sandboxes/{id}", tag = "sandboxes",
    responses((status = 202, description = "It is being destroyed.", body = wire::DeleteSandboxResult)))]
pub(crate) async fn delete(on: OnSandbox) -> ApiResult<Response> {
    let view = on.session.app.control.release(&on.session.caller, on.id).await?;
    Ok((StatusCode::ACCEPTED, Json(convert::deleted_wire(&view, on.cluster.as_deref()))).into_response())
}

/// Change a sandbox's idle timeout
#[utoipa::path(put, path = "/v1/sandboxes/{id}/timeout", tag = "sandboxes", request_body = wire::SetTimeoutRequest,
    responses((status = 204, description = "Done.")))]
pub(crate) async fn set_timeout(on: OnSandbox, Input(request): Input<wire::SetTimeoutRequest>) -> ApiResult<StatusCode> {
    let idle = convert::timeout("timeout", &request.timeout)?;
    let change = LeaseChange { idle: Some(idle), ..LeaseChange::default() };
    on.session.app.control.renew(&on.session.caller, on.id, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change a sandbox's timeouts
#[utoipa::path(post, path = "/v1/sandboxes/{id}/renew", tag = "sandboxes", request_body = wire::RenewRequest,
    responses((status = 200, description = "As it is now.", body = wire::SandboxEnvelope)))]
pub(crate) async fn renew(on: OnSandbox, Input(request): Input<wire::RenewRequest>) -> ApiResult<Json<wire::SandboxEnvelope>> {
    let change = convert::renewal(request)?;
    let view = on.session.app.control.renew(&on.session.caller, on.id, change).await?;
    Ok(on.session.envelope(&view, on.cluster.as_deref()))
}

/// Freeze a sandbox
#[utoipa::path(post, path = "/v1/sandboxes/{id}/pause", tag = "sandboxes",
    responses((status = 200, description = "As it is now.", body = wire::SandboxEnvelope)))]
pub(crate) async fn pause(on: OnSandbox) -> ApiResult<Json<wire::SandboxEnvelope>> {
    let view = on.session.app.control.pause(&on.session.caller, on.id).await?;
    Ok(on.session.envelope(&view, on.cluster.as_deref()))
}

/// Thaw a sandbox
#[utoipa::path(post, path = "/v1/sandboxes/{id}/resume", tag = "sandboxes",
    responses((status = 200, description = "As it is now.", body = wire::SandboxEnvelope)))]
pub(crate) async fn resume(on: OnSandbox) -> ApiResult<Json<wire::SandboxEnvelope>> {
    let view = on.session.app.control.resume(&on.session.caller, on.id).await?;
    Ok(on.session.envelope(&view, on.cluster.as_deref()))
}

/// Make an image of a sandbox's file system
#[utoipa::path(post, path = "/v1/sandboxes/{id}/commit", tag = "sandboxes", request_body = wire::CommitRequest,
    responses((status = 201, description = "The image.", body = wire::ImageEnvelope)))]
pub(crate) async fn commit(on: OnSandbox, Input(request): Input<wire::CommitRequest>) -> ApiResult<Response> {
    let name = convert::image_name("image", &request.image)?;
    let image = on.session.app.control.commit(&on.session.caller, on.id, name).await?;
    Ok((StatusCode::CREATED, Json(wire::ImageEnvelope { image: convert::image_wire(&image) })).into_response())
}

/// What a sandbox uses
#[utoipa::path(get, path = "/v1/sandboxes/{id}/metrics", tag = "sandboxes",
    responses((status = 200, description = "Counters.", body = wire::MetricsEnvelope)))]
pub(crate) async fn metrics(on: OnSandbox) -> ApiResult<Json<wire::MetricsEnvelope>> {
    let metrics = on.session.app.control.metrics(&on.session.caller, on.id).await?;
    Ok(Json(wire::MetricsEnvelope { metrics: convert::metrics_wire(&metrics) }))
}

/// What a sandbox may reach
#[utoipa::path(get, path = "/v1/sandboxes/{id}/network", tag = "sandboxes",
    responses((status = 200, description = "The policy in force, and who said so.", body = wire::NetworkEnvelope)))]
pub(crate) async fn network(on: OnSandbox) -> ApiResult<Json<wire::NetworkEnvelope>> {
    let view = on.session.app.control.network_get(&on.session.caller, on.id).await?;
    Ok(Json(convert::network_envelope(&view)))
}

/// Replace what a sandbox may reach
///
/// All of it: what the request leaves out is the default. New connections follow it at once, and those that exist and are no longer
/// allowed end.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/network", tag = "sandboxes", request_body = wire::NetworkPolicy,
    responses((status = 200, description = "In force.", body = wire::NetworkEnvelope)))]
pub(crate) async fn set_network(
    on: OnSandbox,
    Input(request): Input<wire::NetworkPolicy>,
) -> ApiResult<Json<wire::NetworkEnvelope>> {
    let policy = convert::network_model(request)?;
    let view = on.session.app.control.network_update(&on.session.caller, on.id, policy).await?;
    Ok(Json(convert::network_envelope(&view)))
}

/// Whether a sandbox's services answer
///
/// Deprecated by AgentBox. Runs the template's probes now.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/is_ready", tag = "sandboxes",
    responses((status = 200, description = "All do.", body = wire::ReadyResult),
              (status = 503, description = "Some do not (or the server cannot tell).", body = wire::ReadyOrError)))]
#[deprecated]
pub(crate) async fn is_ready(on: OnSandbox) -> ApiResult<Response> {
    let rows = on.session.app.control.readiness(&on.session.caller, on.id).await?;
    let id = match &on.cluster {
        Some(cluster) => format!("{cluster}.{}", on.id),
        None => on.id.to_string(),
    };
    let result = convert::ready_wire(id, rows);
    let status = if result.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(result)).into_response())
}

/// Log lines of a sandbox
#[utoipa::path(get, path = "/v1/sandboxes/{id}/logs", tag = "sandboxes", params(wire::LogsQuery),
    responses((status = 200, description = "Lines, oldest first.", body = wire::SandboxLogsResult)))]
pub(crate) async fn logs(on: OnSandbox, Params(query): Params<wire::LogsQuery>) -> ApiResult<Json<wire::SandboxLogsResult>> {
    let (lines, runtime) = log_query(query)?;
    let OnSandbox { session, id, cluster } = &on;
    let (control, caller) = (&session.app.control, &session.caller);
    let view = control.get(caller, *id).await?;
    let query = LogQuery { lines, runtime: runtime.clone() };
    let logs = control.logs(caller, *id, query).await.map_err(ApiError::state_is_bad_request)?;
    Ok(Json(convert::logs_wire(&view, logs, runtime, cluster.as_deref(), control.now())))
}

fn log_query(query: wire::LogsQuery) -> ApiResult<(Option<u32>, Option<String>)> {
    let wire::LogsQuery { container, lines, source } = query;
    if let Some(container) = container.filter(|name| !name.is_empty() && name != convert::CONTAINER) {
        let shown: String = container.chars().take(63).collect();
        return Err(ApiError::bad_request(format!(
            "container {shown:?} does not exist: a sandbox has one, called {}",
            convert::CONTAINER
        )));
    }
    match lines {
        Some(lines) if lines > 10_000 => {
            Err(ApiError::bad_request(format!("query parameter lines is {lines}: it must lie between 0 and 10000")))
        }
        lines => Ok((lines.filter(|lines| *lines > 0), source.filter(|source| !source.is_empty() && source != "stdout"))),
    }
}

/// What happened to a sandbox
#[utoipa::path(get, path = "/v1/sandboxes/{id}/events", tag = "sandboxes", params(wire::EventQuery),
    responses((status = 200, description = "Events, by position.", body = wire::EventList)))]
pub(crate) async fn events(on: OnSandbox, Params(query): Params<wire::EventQuery>) -> ApiResult<Json<wire::EventList>> {
    super::system::list_events(&on.session, Some(on.id), query).await
}

/// A token for a sandbox's terminal
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec-token", tag = "sandboxes",
    responses((status = 200, description = "Works once, within 30 seconds.", body = wire::TokenResult)))]
pub(crate) async fn exec_token(State(app): State<App>, on: OnSandbox) -> ApiResult<Json<wire::TokenResult>> {
    let view = app.control.get(&on.session.caller, on.id).await?;
    let now = app.control.now();
    if !view.sandbox.state.is_operable() || view.sandbox.expiry(now).is_some() {
        return Err(ApiError::bad_request(format!("sandbox {} is not running: it is {}", on.id, view.sandbox.state.as_str())));
    }
    let token = app.control.fresh_secret();
    let grant = crate::app::TokenGrant { caller: on.session.caller, sandbox: on.id };
    if !app.tokens.issue(token.clone(), grant, now) {
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many exec tokens are open: use them, or try again in 30 seconds",
        ));
    }
    Ok(Json(wire::TokenResult { token }))
}

/// Events after a position.
pub(crate) fn position(after: Option<u64>) -> ApiResult<Option<EventSeq>> {
    match after {
        Some(after) if after > i64::MAX as u64 => {
            Err(ApiError::bad_request(format!("query parameter after is {after}: at most {} exists", i64::MAX)))
        }
        after => Ok(after.map(EventSeq)),
    }
}
