//! The route table.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use sandbank_control::Control;
use sandbank_http::{Gateway, REQUEST_ID, request_id};

use crate::app::{self, App, NativeSettings};
use crate::errors::ApiError;
use crate::routes::{
    admin, builds, exec, files, images, keys, pools, port_access, ports, pulls, registries, sandboxes, snapshots, sockets,
    system, templates,
};
use crate::session::RequestId;

const SERVER_VERSION: HeaderName = HeaderName::from_static("x-agentbox-server-version");

/// The whole dialect: everything under `/v1`, the data plane `/sandboxes/...`, `/ping`, `/health`, `/metrics` and
/// `/openapi.json`. Unknown paths answer 404 and known paths with another method 405, in the envelope.
pub fn router(control: Control, gateway: Gateway, settings: NativeSettings) -> Router {
    let app = app::build(control, gateway, settings);
    Router::new()
        .merge(sandbox_routes())
        .merge(inside_routes())
        .merge(pool_routes())
        .merge(build_routes())
        .merge(admin_routes())
        .merge(system_routes())
        .route("/sandboxes/{*rest}", any(ports::data_plane))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(app.clone(), outermost))
        .with_state(app)
}

#[allow(deprecated, reason = "operations that AgentBox has deprecated are part of its contract")]
fn sandbox_routes() -> Router<App> {
    Router::new()
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/timeout", put(sandboxes::set_timeout))
        .route("/v1/sandboxes/{id}/renew", post(sandboxes::renew))
        .route("/v1/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{id}/resume", post(sandboxes::resume))
        .route("/v1/sandboxes/{id}/commit", post(sandboxes::commit))
        .route("/v1/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/v1/sandboxes/{id}/fork", post(snapshots::fork))
        .route("/v1/sandboxes/{id}/metrics", get(sandboxes::metrics))
        .route("/v1/sandboxes/{id}/is_ready", get(sandboxes::is_ready))
        .route("/v1/sandboxes/{id}/logs", get(sandboxes::logs))
        .route("/v1/sandboxes/{id}/logs/stream", get(exec::logs_stream))
        .route("/v1/sandboxes/{id}/events", get(sandboxes::events))
        .route("/v1/sandboxes/{id}/exec-token", post(sandboxes::exec_token))
}

#[allow(deprecated, reason = "operations that AgentBox has deprecated are part of its contract")]
fn inside_routes() -> Router<App> {
    Router::new()
        .route("/v1/sandboxes/{id}/exec", post(exec::collect))
        .route("/v1/sandboxes/{id}/exec/stream", post(exec::stream))
        .route("/v1/sandboxes/{id}/exec/ws", get(sockets::exec))
        .route("/v1/sandboxes/{id}/terminal", get(sockets::terminal))
        .route("/v1/sandboxes/{id}/processes", get(exec::list))
        .route("/v1/sandboxes/{id}/processes/{pid}/signal", post(exec::signal))
        .route("/v1/sandboxes/{id}/processes/{pid}/attach", get(exec::attach))
        .route("/v1/sandboxes/{id}/files", get(files::read).put(files::write).delete(files::remove))
        .route("/v1/sandboxes/{id}/files/stat", get(files::stat))
        .route("/v1/sandboxes/{id}/files/list", get(files::list))
        .route("/v1/sandboxes/{id}/files/move", post(files::rename))
        .route("/v1/sandboxes/{id}/files/mkdir", post(files::mkdir))
        .route("/v1/sandboxes/{id}/files/watch", get(files::watch))
        .route("/v1/sandboxes/{id}/port-access", get(port_access::get).put(port_access::set))
        .route("/v1/sandboxes/{id}/port-tokens", post(port_access::create_token).delete(port_access::revoke_tokens))
        .route("/v1/sandboxes/{id}/port-tunnel", get(port_access::tunnel))
        .route("/v1/sandboxes/{id}/ports/{port}", any(ports::on_port))
        .route("/v1/sandboxes/{id}/ports/{port}/", any(ports::on_port))
        .route("/v1/sandboxes/{id}/ports/{port}/{*rest}", any(ports::on_port))
}

#[allow(deprecated, reason = "operations that AgentBox has deprecated are part of its contract")]
fn pool_routes() -> Router<App> {
    Router::new()
        .route("/v1/sandboxpools", post(pools::create).get(pools::list))
        .route("/v1/sandboxpools/{name}", get(pools::get).put(pools::update).delete(pools::delete))
        .route("/v1/sandboxpools/{name}/sync-template", post(pools::sync_template))
        .route("/v1/sandboxpools/{name}/sync-template/preview", post(pools::sync_preview))
        .route("/v1/sandbox-templates", get(templates::list).post(templates::create))
        .route("/v1/sandbox-templates/{name}", get(templates::get).put(templates::update).delete(templates::delete))
        .route("/v1/images", get(images::list))
        .route("/v1/images/pull", post(pulls::pull))
        .route("/v1/snapshots", get(snapshots::list))
        // A name has slashes, so that the rest of the path is one parameter.
        .route("/v1/snapshots/{*name}", get(snapshots::get).delete(snapshots::delete))
        .route("/v1/registries", post(registries::login).get(registries::list))
        .route("/v1/registries/{host}", delete(registries::logout))
        // A name has slashes, so that the rest of the path is one parameter and ends with `/export` in a POST.
        .route("/v1/images/{*name}", get(images::get).delete(images::delete).post(images::export))
        .route("/v1/api-keys", post(keys::create).get(keys::list))
        .route("/v1/api-keys/{*name}", delete(keys::delete))
}

fn build_routes() -> Router<App> {
    Router::new()
        .route("/v1/contexts", post(builds::upload))
        .route("/v1/builds", post(builds::create).get(builds::list))
        .route("/v1/builds/{build}", get(builds::get).delete(builds::cancel))
        .route("/v1/builds/{build}/logs", get(builds::logs))
        .route("/v1/build-cache", delete(builds::clear_cache))
}

fn admin_routes() -> Router<App> {
    Router::new()
        .route("/v1/admin/api-keys", post(keys::admin_create).get(keys::admin_list))
        // `{namespace}/{short}` has a slash, so that the rest of the path is one parameter and ends with `/promote` in a POST.
        .route("/v1/admin/api-keys/{*name}", delete(keys::admin_delete).post(keys::admin_promote))
        .route("/v1/admin/sandbox-templates", post(templates::admin_create))
        .route("/v1/admin/sandbox-templates/{name}", put(templates::admin_update).delete(templates::admin_delete))
        .route("/v1/admin/images/import", post(images::import))
        .route("/v1/admin/images/usage", get(images::usage))
        .route("/v1/admin/images/prune", post(images::prune))
        .route("/v1/admin/teams", get(admin::teams))
        .route("/v1/admin/teams/{team}/users", get(admin::team_users))
        .route("/v1/admin/namespaces", get(admin::namespaces))
        .route("/v1/admin/tenants", get(admin::tenants))
        .route("/v1/admin/tenants/{tenant}/quota", put(admin::set_quota))
        .route("/v1/admin/statistics/sandboxes", get(admin::sandbox_statistics))
        .route("/v1/admin/statistics/sandboxpools", get(admin::pool_statistics))
}

fn system_routes() -> Router<App> {
    Router::new()
        .route("/v1/auth/whoami", get(system::whoami))
        .route("/v1/clusters", get(system::clusters))
        .route("/v1/feature-gates", get(system::feature_gates))
        .route("/v1/quotas", get(system::quotas))
        .route("/v1/statistics/sandboxes", get(system::statistics))
        .route("/v1/events", get(system::events))
        .route("/ping", get(system::ping))
        .route("/health", get(system::health))
        .route("/metrics", get(system::metrics))
        .route("/openapi.json", get(system::openapi))
}

/// Gives every request its id and every answer its two headers.
async fn outermost(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers(), || app.control.fresh_uuid());
    let echo = HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static(""));
    request.extensions_mut().insert(RequestId(id));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, echo);
    headers.insert(SERVER_VERSION, app.version_header.clone());
    response
}

async fn no_route(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::not_found(format!("there is nothing at {path}: GET /openapi.json lists what there is")).into_response()
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(20).collect();
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}: GET /openapi.json lists what it takes"))
        .into_response()
}
