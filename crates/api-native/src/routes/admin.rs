//! What only admins may ask.

use std::collections::BTreeSet;

use axum::Json;
use sandbank_model::Tenant;

use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::session::{AdminSession, Input, PathText, Session};
use crate::wire;

async fn names(session: &Session, pick: impl Fn(Tenant) -> Option<String>) -> ApiResult<Json<wire::NameList>> {
    let tenants = session.app.control.admin_tenant_list(&session.caller).await?;
    let items: BTreeSet<String> = tenants.into_iter().filter_map(pick).collect();
    Ok(Json(wire::NameList { total: items.len() as u64, items: items.into_iter().collect() }))
}

/// List teams
#[utoipa::path(get, path = "/v1/admin/teams", tag = "admin", responses((status = 200, description = "Names.", body = wire::NameList)))]
pub(crate) async fn teams(AdminSession(session): AdminSession) -> ApiResult<Json<wire::NameList>> {
    names(&session, |tenant| Some(tenant.team)).await
}

/// List a team's users
#[utoipa::path(get, path = "/v1/admin/teams/{team}/users", tag = "admin",
    responses((status = 200, description = "Names.", body = wire::NameList)))]
pub(crate) async fn team_users(AdminSession(session): AdminSession, PathText(team): PathText) -> ApiResult<Json<wire::NameList>> {
    names(&session, |tenant| (tenant.team == team).then_some(tenant.user)).await
}

/// List namespaces
#[utoipa::path(get, path = "/v1/admin/namespaces", tag = "admin", responses((status = 200, description = "Names.", body = wire::NameList)))]
pub(crate) async fn namespaces(AdminSession(session): AdminSession) -> ApiResult<Json<wire::NameList>> {
    names(&session, |tenant| Some(tenant.name)).await
}

/// List namespaces with their quotas
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "admin",
    responses((status = 200, description = "Namespaces.", body = wire::TenantList)))]
pub(crate) async fn tenants(AdminSession(session): AdminSession) -> ApiResult<Json<wire::TenantList>> {
    let tenants = session.app.control.admin_tenant_list(&session.caller).await?;
    Ok(Json(wire::TenantList { items: tenants.into_iter().map(convert::tenant_wire).collect() }))
}

/// Set a namespace's quota
///
/// Replaces all limits: an absent one is none.
#[utoipa::path(put, path = "/v1/admin/tenants/{tenant}/quota", tag = "admin", request_body = wire::QuotaWire,
    responses((status = 200, description = "As it is now.", body = wire::TenantEnvelope)))]
pub(crate) async fn set_quota(
    AdminSession(session): AdminSession,
    PathText(tenant): PathText,
    Input(request): Input<wire::QuotaWire>,
) -> ApiResult<Json<wire::TenantEnvelope>> {
    let limits = convert::limits_model(request)?;
    if tenant.contains('\0') {
        return Err(ApiError::not_found("no such namespace"));
    }
    let tenant = session.app.control.admin_set_quota(&session.caller, &tenant, limits).await?;
    Ok(Json(wire::TenantEnvelope { tenant: convert::tenant_wire(tenant) }))
}

/// Set what a namespace's sandboxes may reach that say nothing of it
///
/// Those that live follow soon after.
#[utoipa::path(put, path = "/v1/admin/tenants/{tenant}/network", tag = "admin", request_body = wire::NetworkPolicy,
    responses((status = 200, description = "As it is now.", body = wire::TenantEnvelope)))]
pub(crate) async fn set_network(
    AdminSession(session): AdminSession,
    PathText(tenant): PathText,
    Input(request): Input<wire::NetworkPolicy>,
) -> ApiResult<Json<wire::TenantEnvelope>> {
    change_network(&session, &tenant, Some(convert::network_model(request)?)).await
}

/// Let a namespace's sandboxes follow the installation's default
#[utoipa::path(delete, path = "/v1/admin/tenants/{tenant}/network", tag = "admin",
    responses((status = 200, description = "As it is now.", body = wire::TenantEnvelope)))]
pub(crate) async fn clear_network(
    AdminSession(session): AdminSession,
    PathText(tenant): PathText,
) -> ApiResult<Json<wire::TenantEnvelope>> {
    change_network(&session, &tenant, None).await
}

async fn change_network(
    session: &Session,
    tenant: &str,
    policy: Option<sandbank_control::NetworkRequest>,
) -> ApiResult<Json<wire::TenantEnvelope>> {
    if tenant.contains('\0') {
        return Err(ApiError::not_found("no such namespace"));
    }
    let tenant = session.app.control.admin_set_network(&session.caller, tenant, policy).await?;
    Ok(Json(wire::TenantEnvelope { tenant: convert::tenant_wire(tenant) }))
}

/// Count all sandboxes
#[utoipa::path(get, path = "/v1/admin/statistics/sandboxes", tag = "admin",
    responses((status = 200, description = "Counts.", body = wire::SandboxStatisticsEnvelope)))]
pub(crate) async fn sandbox_statistics(AdminSession(session): AdminSession) -> ApiResult<Json<wire::SandboxStatisticsEnvelope>> {
    let statistics = session.app.control.admin_statistics(&session.caller).await?;
    Ok(Json(wire::SandboxStatisticsEnvelope { statistics: convert::statistics_wire(statistics) }))
}

/// Count all pools
#[utoipa::path(get, path = "/v1/admin/statistics/sandboxpools", tag = "admin",
    responses((status = 200, description = "Counts.", body = wire::PoolStatisticsEnvelope)))]
pub(crate) async fn pool_statistics(AdminSession(session): AdminSession) -> ApiResult<Json<wire::PoolStatisticsEnvelope>> {
    let statistics = session.app.control.admin_pool_statistics(&session.caller).await?;
    Ok(Json(wire::PoolStatisticsEnvelope { statistics: convert::pool_statistics_wire(statistics) }))
}
