//! Who asks for what: the first half of every handler.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use sandbank_control::Caller;
use sandbank_http::{JSON_BODY_MAX, Query, bearer, credential, parse_json, read_body};
use sandbank_model::{PoolName, Principal, SandboxId, SemVer};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::errors::{ApiError, ApiResult};
use crate::reference::{parse_pool, parse_sandbox};

/// Header fields that carry an API key, the contract's own first; `Authorization: Bearer` is the last resort.
pub(crate) const KEY_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("agentbox-api-key"), HeaderName::from_static("x-api-key")];
const IMPERSONATE_TEAM: &str = "x-impersonate-team";
const IMPERSONATE_USER: &str = "x-impersonate-user";
const CLIENT_VERSION: &str = "x-agentbox-client-version";

/// The request's id, put into the request by the outermost function.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// An authenticated request.
pub(crate) struct Session {
    pub(crate) app: App,
    pub(crate) caller: Caller,
    /// The key that the caller presented, for documentation that shows the reader's own key. Never logged; absent under
    /// impersonation, where it is somebody else's.
    secret: Option<String>,
    /// `http://host` as the client reached this server.
    pub(crate) base_url: String,
}

impl Session {
    pub(crate) fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// Refuses all but admins.
    pub(crate) fn require_admin(&self) -> ApiResult<()> {
        if self.caller.is_admin() { Ok(()) } else { Err(ApiError::new(StatusCode::FORBIDDEN, "admin access required")) }
    }

    /// Authenticates a request that no extractor takes apart.
    pub(crate) async fn of_parts(parts: &Parts, app: &App) -> ApiResult<Self> {
        Self::authenticate(parts, app).await
    }

    async fn authenticate(parts: &Parts, app: &App) -> ApiResult<Self> {
        let headers = &parts.headers;
        let secret = credential(headers, &KEY_HEADERS).ok_or_else(|| ApiError::unauthorized("missing api key", None))?;
        let principal = app.control.authenticate(secret).await.map_err(|error| refuse_key(error, headers))?;
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            check_client_version(headers, app.settings.client_version_min)?;
        }
        let secret = secret.to_owned();
        let principal = impersonate(headers, app, principal).await?;
        let secret = principal.impersonated_by.is_none().then_some(secret);
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let base_url = app.settings.public_url.clone().unwrap_or_else(|| base_url(parts));
        Ok(Self { app: app.clone(), caller: Caller { principal, request_id }, secret, base_url })
    }
}

/// Texts of native.md §3. What control said goes into the detail.
fn refuse_key(error: sandbank_control::Error, headers: &HeaderMap) -> ApiError {
    if error.kind != sandbank_control::ErrorKind::Unauthenticated {
        return error.into();
    }
    let jwt = KEY_HEADERS.iter().all(|name| !headers.contains_key(name))
        && bearer(headers).is_some_and(|token| token.matches('.').count() == 2);
    ApiError::unauthorized(if jwt { "invalid or expired jwt token" } else { "invalid api key" }, Some(error.message))
}

/// Both fields are needed; from anybody but an admin they are ignored (native.md §3).
async fn impersonate(headers: &HeaderMap, app: &App, principal: Principal) -> ApiResult<Principal> {
    let field =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty());
    match (field(IMPERSONATE_TEAM), field(IMPERSONATE_USER)) {
        (Some(team), Some(user)) if principal.role == sandbank_model::Role::Admin => {
            Ok(app.control.impersonate(principal, team, user).await?)
        }
        _ => Ok(principal),
    }
}

fn check_client_version(headers: &HeaderMap, min: SemVer) -> ApiResult<()> {
    let Some(value) = headers.get(CLIENT_VERSION) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or_default();
    // A leading v and pre-release or build suffixes are semver that our own x.y.z does not need.
    let core = text.strip_prefix('v').unwrap_or(text).split(['-', '+']).next().unwrap_or_default();
    let refused = |detail: String| {
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "client version not supported").with_detail(Some(detail.into()))
    };
    let version = core.parse::<SemVer>().map_err(|error| refused(error.to_string()))?;
    if version < min { Err(refused(format!("{version} is older than {min}: upgrade the client"))) } else { Ok(()) }
}

/// The address that the client used. A `Host` with anything but a name and a port is not repeated to anybody.
fn base_url(parts: &Parts) -> String {
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or_else(|| parts.uri.authority().map(|a| a.as_str()));
    let plain = |host: &&str| host.len() <= 255 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
    format!("http://{}", host.filter(plain).unwrap_or("localhost"))
}

impl FromRequestParts<App> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        Self::authenticate(parts, app).await
    }
}

/// An authenticated request of an admin.
pub(crate) struct AdminSession(pub(crate) Session);

impl FromRequestParts<App> for AdminSession {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let session = Session::authenticate(parts, app).await?;
        session.require_admin()?;
        Ok(Self(session))
    }
}

/// An authenticated request about the sandbox in its path.
pub(crate) struct OnSandbox {
    pub(crate) session: Session,
    pub(crate) id: SandboxId,
    /// The cluster that the reference named: answers repeat it.
    pub(crate) cluster: Option<String>,
}

impl FromRequestParts<App> for OnSandbox {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let session = Session::authenticate(parts, app).await?;
        let text = path_param(parts, app, "id").await?;
        let named = parse_sandbox(&text, &app.settings.cluster_id)?;
        Ok(Self { session, id: named.value, cluster: named.cluster })
    }
}

/// An authenticated request about the pool in its path.
pub(crate) struct OnPool {
    pub(crate) session: Session,
    pub(crate) name: PoolName,
}

impl FromRequestParts<App> for OnPool {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let session = Session::authenticate(parts, app).await?;
        let text = path_param(parts, app, "name").await?;
        let named = parse_pool(&text, &app.settings.cluster_id)?;
        Ok(Self { session, name: named.value })
    }
}

/// One decoded parameter of the path.
pub(crate) async fn path_param(parts: &mut Parts, app: &App, name: &str) -> ApiResult<String> {
    let params = RawPathParams::from_request_parts(parts, app)
        .await
        .map_err(|_| ApiError::bad_request("the path is not percent-encoded UTF-8"))?;
    let value = params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    value.ok_or_else(|| ApiError::not_found("no such resource"))
}

/// The decoded parameter `name`, `host`, `tenant`, `team` or `pid` of a path that names no pool.
pub(crate) struct PathText(pub(crate) String);

impl FromRequestParts<App> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|_| ApiError::bad_request("the path is not percent-encoded UTF-8"))?;
        let value = params.iter().find(|(key, _)| *key != "id").map(|(_, value)| value.to_owned());
        value.map(Self).ok_or_else(|| ApiError::not_found("no such resource"))
    }
}

/// A JSON body of at most 1 MiB. The content type does not matter: curl's default is taken too.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        read_json(&parts.headers, body).await.map(Self)
    }
}

async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> ApiResult<T> {
    let bytes = read_body(headers, body, JSON_BODY_MAX).await?;
    Ok(parse_json(&bytes)?)
}

/// A JSON body that may be absent.
pub(crate) struct OptionalInput<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalInput<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(&parts.headers, body, JSON_BODY_MAX).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { Ok(Self(parse_json(&bytes)?)) }
    }
}

/// A typed query string.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> ApiResult<Self> {
        Ok(Self(Query::parse(parts.uri.query())?.typed()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn version(text: &str, min: SemVer) -> Option<StatusCode> {
        let mut headers = HeaderMap::new();
        headers.insert(CLIENT_VERSION, text.parse().unwrap());
        check_client_version(&headers, min).err().map(|error| error.status())
    }

    #[test]
    fn old_and_malformed_client_versions_are_told_to_upgrade() {
        let min = SemVer { major: 1, minor: 2, patch: 0 };
        assert_eq!(version("1.2.0", min), None);
        assert_eq!(version("v1.3.0-rc.1+build", min), None);
        assert_eq!(version("1.1.9", min), Some(StatusCode::UPGRADE_REQUIRED));
        assert_eq!(version("latest", min), Some(StatusCode::UPGRADE_REQUIRED));
        assert_eq!(version("", min), Some(StatusCode::UPGRADE_REQUIRED));
        assert_eq!(check_client_version(&HeaderMap::new(), min).map_err(|error| error.status()), Ok(()));
    }
}
