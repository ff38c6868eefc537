//! Who may reach a sandbox's ports, and a way to them for what speaks no HTTP.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use sandbank_control::{ErrorKind, PortPass, PortStream, PortVisitor};
use sandbank_http::Query;

use crate::app::App;
use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_sandbox;
use crate::session::{Input, OnSandbox, OptionalInput, Session, path_param};
use crate::wire;

/// What the tunnel switches to.
const PROTOCOL: &str = "tcp";

/// Who may reach a sandbox's ports
#[utoipa::path(get, path = "/v1/sandboxes/{id}/port-access", tag = "ports",
    responses((status = 200, description = "As it is now.", body = wire::PortAccess)))]
pub(crate) async fn get(on: OnSandbox) -> ApiResult<Json<wire::PortAccess>> {
    let OnSandbox { session, id, .. } = &on;
    let view = session.app.control.get(&session.caller, *id).await?;
    Ok(Json(convert::port_access_wire(&view.sandbox, &session.app.gateway, &session.base_url)))
}

/// Open a sandbox's ports to everybody, or close them
///
/// What is connected stays so.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/port-access", tag = "ports", request_body = wire::PortAccessRequest,
    responses((status = 200, description = "As it is now.", body = wire::PortAccess)))]
pub(crate) async fn set(on: OnSandbox, Input(request): Input<wire::PortAccessRequest>) -> ApiResult<Json<wire::PortAccess>> {
    let OnSandbox { session, id, .. } = &on;
    let public = convert::public_ports(request)?;
    let view = session.app.control.port_access_set(&session.caller, *id, public).await?;
    Ok(Json(convert::port_access_wire(&view.sandbox, &session.app.gateway, &session.base_url)))
}

/// A token that opens a sandbox's ports
///
/// Works without an API key, until it ends, the sandbox does, or all its tokens are revoked.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/port-tokens", tag = "ports", request_body = wire::PortTokenRequest,
    responses((status = 201, description = "The only time that it is shown.", body = wire::PortTokenResult)))]
pub(crate) async fn create_token(
    on: OnSandbox,
    OptionalInput(request): OptionalInput<wire::PortTokenRequest>,
) -> ApiResult<Response> {
    let OnSandbox { session, id, .. } = &on;
    let (port, life) = convert::port_token_model(request)?;
    let token = session.app.control.port_token(&session.caller, *id, port, Some(life)).await?;
    let result = convert::port_token_wire(token, *id, &session.app.gateway, &session.base_url);
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(result)).into_response())
}

/// Revoke all of a sandbox's port tokens
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/port-tokens", tag = "ports",
    responses((status = 204, description = "None that was given out before works any more. What is connected stays so.")))]
pub(crate) async fn revoke_tokens(on: OnSandbox) -> ApiResult<StatusCode> {
    on.session.app.control.port_tokens_revoke(&on.session.caller, on.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A byte stream to a port, for what speaks no HTTP
///
/// Needs `Connection: Upgrade` and `Upgrade: tcp`. After the answer the connection carries the port's bytes, with half closes.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/port-tunnel", tag = "ports", params(wire::TunnelQuery),
    responses((status = 101, description = "A byte stream.")))]
pub(crate) async fn tunnel(State(app): State<App>, request: Request) -> ApiResult<Response> {
    let (mut parts, body) = request.into_parts();
    let session = Session::of_parts(&parts, &app).await?;
    let text = path_param(&mut parts, &app, "id").await?;
    let id = parse_sandbox(&text, &app.settings.cluster_id)?.value;
    let wire::TunnelQuery { port } = Query::parse(parts.uri.query())?.typed()?;
    if !asks_for_tcp(&parts.headers) {
        return Err(ApiError::bad_request("this is a tunnel: send Connection: Upgrade and Upgrade: tcp over HTTP/1.1"));
    }
    let pass = app.control.port_admit(PortVisitor::Caller(&session.caller), id, port).await?;
    let stream = app.control.port_connect(&pass).await.map_err(|error| match error.kind {
        ErrorKind::NotFound => ApiError::bad_gateway(error.message),
        _ => error.into(),
    })?;
    let mut request = Request::from_parts(parts, body);
    tokio::spawn(join(hyper::upgrade::on(&mut request), stream, pass));
    let fields =
        [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, HeaderValue::from_static(PROTOCOL))];
    Ok((StatusCode::SWITCHING_PROTOCOLS, fields).into_response())
}

fn asks_for_tcp(headers: &HeaderMap) -> bool {
    let names = |field, wanted: &str| {
        let mut values = headers.get_all(field).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.any(|text| text.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, PROTOCOL)
}

/// Joins client and port until both have said all, one breaks off, or the sandbox ends.
async fn join(client: hyper::upgrade::OnUpgrade, stream: PortStream, pass: PortPass) {
    let _used = pass;
    let (mut inside, end) = stream.into_parts();
    let joined = async {
        // A client that is gone before it has switched wanted nothing.
        let Ok(client) = client.await else { return };
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut inside).await;
    };
    tokio::select! {
        () = joined => {}
        () = end.ended() => {}
    }
}
