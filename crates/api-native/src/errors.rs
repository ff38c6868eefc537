//! The one table from kinds of errors to this dialect's statuses and shapes (native.md §5).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use sandbank_control::{Detail, Error, ErrorKind, PoolBrief, TemplateBrief};
use sandbank_http::{BodyError, InvalidJson, InvalidQuery};
use sandbank_model::PoolCounts;
use serde_json::{Value, json};

use crate::wire::{ErrorBody, ErrorCode};

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    retry_after: bool,
    // Boxed: errors are rare and results should stay small.
    body: Box<ErrorBody>,
}

/// Results of handlers.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let body = ErrorBody { error: error.into(), error_code: None, detail: None };
        Self { status, retry_after: false, body: Box::new(body) }
    }

    pub(crate) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(crate) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    pub(crate) fn bad_gateway(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, error)
    }

    pub(crate) fn unauthorized(error: &str, detail: Option<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error).with_detail(detail.map(Value::String))
    }

    pub(crate) fn with_detail(mut self, detail: Option<Value>) -> Self {
        self.body.detail = detail;
        self
    }

    /// The caller must create an API key first: 422.
    pub(crate) fn api_key_required(error: impl Into<String>) -> Self {
        let mut refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, error);
        refused.body.error_code = Some(ErrorCode::ApiKeyRequired);
        refused
    }

    /// AgentBox's own operations answer 400 where a sandbox's state does not allow them (native.md §6); ours answer 409.
    pub(crate) fn state_is_bad_request(error: Error) -> Self {
        let of_state = error.kind == ErrorKind::State;
        let mut mapped = Self::from(error);
        if of_state {
            mapped.status = StatusCode::BAD_REQUEST;
        }
        mapped
    }

    /// The message for people.
    pub(crate) fn text(&self) -> &str {
        &self.body.error
    }

    /// What the client is told, where it is a part of an answer.
    pub(crate) fn into_body(self) -> ErrorBody {
        *self.body
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

/// Status of each kind. `NoCapacity` is 429 as in AgentBox's code (its spec says 409); `Unavailable` is 503, never 500: the
/// client may try again.
const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::State => StatusCode::CONFLICT,
        ErrorKind::Quota | ErrorKind::NoCapacity => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Seconds after which trying again makes sense.
const RETRY_AFTER_SECONDS: u32 = 1;

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let Error { kind, message, detail } = error;
        let mut mapped = Self::new(status_of(kind), message);
        mapped.retry_after = matches!(kind, ErrorKind::Quota | ErrorKind::NoCapacity | ErrorKind::Unavailable);
        match detail.map(|detail| *detail) {
            None if kind == ErrorKind::Quota => {
                let message = mapped.body.error.clone();
                mapped.with_detail(Some(quota_detail(&message)))
            }
            None => mapped,
            Some(Detail::Text(text)) => mapped.with_detail(Some(Value::String(text))),
            Some(Detail::AvailablePools(pools)) => mapped.with_detail(Some(pools_detail(&pools))),
            Some(Detail::AvailableTemplates(templates)) => {
                // native.md §8: a pool of a missing template is a bad request, not a missing resource.
                mapped.status = StatusCode::BAD_REQUEST;
                mapped.with_detail(Some(templates_detail(&templates)))
            }
            Some(Detail::PoolStatus(counts)) => mapped.with_detail(Some(pool_status_detail(&counts))),
            Some(Detail::State(state)) => mapped.with_detail(Some(json!({ "state": state.as_str() }))),
            Some(Detail::ApiKeyRequired) => Self::api_key_required(mapped.body.error.clone()),
        }
    }
}

fn quota_detail(message: &str) -> Value {
    json!({ "errCode": "QUOTA_EXCEEDED", "message": message, "retryAfter": RETRY_AFTER_SECONDS })
}

fn pool_status_detail(counts: &PoolCounts) -> Value {
    let PoolCounts { provisioning, ready, outdated: _, claimed, stopping, failed } = counts;
    let hint = if *provisioning > 0 {
        "sandboxes are being made: try again shortly, or raise startupTimeout"
    } else if *failed > 0 {
        "sandboxes of this pool fail to start: look at the pool's status"
    } else {
        "all sandboxes are in use: release some, or raise the pool's replicas"
    };
    json!({
        "idle": ready, "running": claimed, "starting": provisioning, "stopping": stopping, "failed": failed,
        "hint": hint, "retryAfter": RETRY_AFTER_SECONDS,
    })
}

fn pools_detail(pools: &[PoolBrief]) -> Value {
    let rows: Vec<Value> = pools
        .iter()
        .map(|PoolBrief { name, tenant, counts }| {
            json!({
                "name": name.as_str(), "namespace": tenant,
                "idle": counts.ready, "running": counts.claimed, "starting": counts.provisioning,
            })
        })
        .collect();
    let hint =
        if rows.is_empty() { "there is no pool yet: create one with POST /v1/sandboxpools" } else { "use one of availablePools" };
    json!({ "availablePools": rows, "hint": hint })
}

fn templates_detail(templates: &[TemplateBrief]) -> Value {
    let rows: Vec<Value> = templates
        .iter()
        .map(|TemplateBrief { name, description, global }| {
            json!({
                "name": name.as_str(), "description": description.as_deref().unwrap_or_default(),
                "syncSource": if *global { "global" } else { "local" },
            })
        })
        .collect();
    let hint = if rows.is_empty() {
        "there is no template yet: create one, or name an image instead"
    } else {
        "use one of availableTemplates"
    };
    json!({ "availableTemplates": rows, "hint": hint })
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<InvalidJson> for ApiError {
    fn from(error: InvalidJson) -> Self {
        Self::bad_request(error.message)
    }
}

impl From<InvalidQuery> for ApiError {
    fn from(error: InvalidQuery) -> Self {
        Self::bad_request(error.0)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::info!(status = self.status.as_u16(), error = %self.body.error, "request failed");
        }
        let mut response = (self.status, Json(self.body)).into_response();
        if self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn check(error: Error, status: u16, detail: Option<Value>) {
        let mapped = ApiError::from(error);
        assert_eq!(mapped.status.as_u16(), status);
        if let Some(expected) = detail {
            assert_eq!(mapped.body.detail, Some(expected));
        }
    }

    #[test]
    fn every_kind_has_its_status_and_none_is_500() {
        let rows = [
            (ErrorKind::Invalid, 400),
            (ErrorKind::Unauthenticated, 401),
            (ErrorKind::Forbidden, 403),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::State, 409),
            (ErrorKind::Quota, 429),
            (ErrorKind::NoCapacity, 429),
            (ErrorKind::Unsupported, 400),
            (ErrorKind::Unavailable, 503),
        ];
        for (kind, status) in rows {
            check(Error::new(kind, "x"), status, None);
        }
    }

    #[test]
    fn details_have_the_contracts_shapes() {
        let counts = PoolCounts { provisioning: 1, ready: 0, outdated: 0, claimed: 2, stopping: 3, failed: 4 };
        let detail = pool_status_detail(&counts);
        assert_eq!((&detail["idle"], &detail["running"], &detail["starting"]), (&json!(0), &json!(2), &json!(1)));
        assert_eq!((&detail["stopping"], &detail["failed"]), (&json!(3), &json!(4)));
        assert!(detail["hint"].is_string());
        check(
            Error::new(ErrorKind::Quota, "q"),
            429,
            Some(json!({"errCode": "QUOTA_EXCEEDED", "message": "q", "retryAfter": 1})),
        );
        let missing = Error::not_found("t").with(Detail::AvailableTemplates(vec![]));
        assert_eq!(ApiError::from(missing).status, StatusCode::BAD_REQUEST);
        let key = ApiError::from(Error::new(ErrorKind::Forbidden, "k").with(Detail::ApiKeyRequired));
        assert_eq!((key.status, key.body.error_code), (StatusCode::UNPROCESSABLE_ENTITY, Some(ErrorCode::ApiKeyRequired)));
    }

    #[test]
    fn a_wrong_state_is_400_for_agentboxs_own_operations() {
        let error = || Error::new(ErrorKind::State, "paused");
        assert_eq!(ApiError::from(error()).status, StatusCode::CONFLICT);
        assert_eq!(ApiError::state_is_bad_request(error()).status, StatusCode::BAD_REQUEST);
    }
}
