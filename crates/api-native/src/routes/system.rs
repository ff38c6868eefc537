//! The installation itself, quotas, statistics, events.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use sandbank_model::{PoolId, SandboxId};

use crate::app::App;
use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_pool;
use crate::session::{AdminSession, Params, Session};
use crate::wire;

/// Pools whose names a list of events may show.
const EVENT_POOLS_MAX: u32 = 1_000;

/// Who am I
#[utoipa::path(get, path = "/v1/auth/whoami", tag = "system", responses((status = 200, description = "You.", body = wire::WhoAmI)))]
pub(crate) async fn whoami(session: Session) -> Json<wire::WhoAmI> {
    Json(convert::whoami(&session.caller.principal))
}

/// List clusters
#[utoipa::path(get, path = "/v1/clusters", tag = "system",
    responses((status = 200, description = "Exactly one is local.", body = wire::ClusterList)))]
pub(crate) async fn clusters(session: Session) -> Json<wire::ClusterList> {
    let settings = &session.app.settings;
    let local = wire::Cluster { id: settings.cluster_id.clone(), name: settings.cluster_name.clone(), local: true };
    Json(wire::ClusterList { clusters: vec![local] })
}

/// What this installation offers
#[utoipa::path(get, path = "/v1/feature-gates", tag = "system",
    responses((status = 200, description = "Features.", body = wire::FeatureGates)))]
pub(crate) async fn feature_gates(_: Session) -> Json<wire::FeatureGates> {
    Json(wire::FeatureGates { quota: true })
}

/// The caller's quota
#[utoipa::path(get, path = "/v1/quotas", tag = "system", responses((status = 200, description = "One entry.", body = wire::QuotaList)))]
pub(crate) async fn quotas(session: Session) -> ApiResult<Json<wire::QuotaList>> {
    let principal = &session.caller.principal;
    if principal.team.is_empty() || principal.user.is_empty() {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "quotas belong to a user of a team: this key has none"));
    }
    let view = session.app.control.quota(&session.caller).await?;
    Ok(Json(wire::QuotaList { items: vec![convert::quota_wire(view)] }))
}

/// Count the caller's sandboxes
#[utoipa::path(get, path = "/v1/statistics/sandboxes", tag = "system",
    responses((status = 200, description = "Counts.", body = wire::SandboxStatisticsEnvelope)))]
pub(crate) async fn statistics(session: Session) -> ApiResult<Json<wire::SandboxStatisticsEnvelope>> {
    let statistics = session.app.control.statistics(&session.caller).await?;
    Ok(Json(wire::SandboxStatisticsEnvelope { statistics: convert::statistics_wire(statistics) }))
}

/// What happened to the caller's pools and sandboxes
#[utoipa::path(get, path = "/v1/events", tag = "system", params(wire::EventQuery),
    responses((status = 200, description = "Events.", body = wire::EventList)))]
pub(crate) async fn events(session: Session, Params(query): Params<wire::EventQuery>) -> ApiResult<Json<wire::EventList>> {
    list_events(&session, None, query).await
}

pub(crate) async fn list_events(
    session: &Session,
    sandbox: Option<SandboxId>,
    query: wire::EventQuery,
) -> ApiResult<Json<wire::EventList>> {
    let wire::EventQuery { after, limit, pool_name, newest_first } = query;
    let limit = limit.unwrap_or(100);
    let (limit, _) = convert::page(wire::PageQuery { limit: Some(limit), offset: None })?;
    let after = super::sandboxes::position(after)?;
    let pool = pool_name.map(|text| parse_pool(&text, &session.app.settings.cluster_id)).transpose()?.map(|named| named.value);
    let (control, caller) = (&session.app.control, &session.caller);
    let events = control.events(caller, sandbox, pool, after, newest_first.unwrap_or(false), limit).await?;
    let names = if events.iter().any(|event| event.pool.is_some()) { pool_names(session).await? } else { BTreeMap::new() };
    Ok(Json(wire::EventList { items: events.into_iter().map(|event| convert::event_wire(event, &names)).collect() }))
}

async fn pool_names(session: &Session) -> ApiResult<BTreeMap<PoolId, String>> {
    let pools = session.app.control.pool_list(&session.caller, 0, EVENT_POOLS_MAX).await?;
    Ok(pools.items.into_iter().map(|view| (view.pool.id, view.pool.name.to_string())).collect())
}

/// Alive
#[utoipa::path(get, path = "/ping", tag = "system", security(()), responses((status = 200, description = "It is.", body = wire::Ping)))]
pub(crate) async fn ping() -> Json<wire::Ping> {
    Json(wire::Ping { status: "ok" })
}

/// How the server does
#[utoipa::path(get, path = "/health", tag = "system", security(()),
    responses((status = 200, description = "Its store and drivers answer.", body = wire::Health),
              (status = 503, description = "They do not.", body = wire::ErrorBody)))]
pub(crate) async fn health(State(app): State<App>) -> ApiResult<Json<wire::Health>> {
    let drivers = app.control.health().await?;
    let drivers = drivers.into_iter().map(|(name, can)| (name, can.into_iter().map(str::to_owned).collect())).collect();
    Ok(Json(wire::Health { status: "ok", drivers, version: app.settings.server_version.clone() }))
}

/// Prometheus metrics
///
/// Without a key from this machine itself, elsewhere with an admin's key.
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, description = "Metrics in Prometheus' text format.", body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(app): State<App>, request: Request) -> ApiResult<Response> {
    let (mut parts, _) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    // A reverse proxy on this machine speaks for strangers: whoever was forwarded needs the key.
    let forwarded = parts.headers.contains_key("x-forwarded-for") || parts.headers.contains_key(header::FORWARDED);
    if forwarded || !peer.is_some_and(|ip| ip.is_loopback()) {
        AdminSession::from_request_parts(&mut parts, &app).await?;
    }
    let render = app.settings.render_metrics.as_ref().ok_or_else(|| ApiError::not_found("metrics are turned off"))?;
    app.control.publish_gauges().await;
    let mut response = render().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Value)))]
pub(crate) async fn openapi() -> Response {
    let mut response = crate::openapi::text().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
