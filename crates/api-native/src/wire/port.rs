//! Ports on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Who may reach a sandbox's ports.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortAccessRequest {
    /// Whether anybody may who knows its address; else a key or a port token is needed.
    pub public: bool,
    /// Only these ports are public; the others need a key or a token. Absent: all are.
    #[schema(max_items = 100, minimum = 1, maximum = 65535, example = json!([8000]))]
    pub ports: Option<Vec<u16>>,
}

/// Who may reach a sandbox's ports, and where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortAccess {
    /// Whether anybody may reach some or all of its ports.
    pub public: bool,
    /// The public ports; absent: none where `public` is false, else all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// Address of a port, with `{port}` for its number; absent where ports have no host names.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "http://{port}-0190f3c4-7b1a-7000-8000-0123456789ab.localhost:7070")]
    pub url_pattern: Option<String>,
}

/// What a port token is to open.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortTokenRequest {
    /// Port; absent: all of the sandbox's.
    #[schema(minimum = 1, maximum = 65535, example = 8000)]
    pub port: Option<u16>,
    /// Seconds until it ends. Absent: 3600.
    #[schema(minimum = 1, maximum = 86400, example = 3600)]
    pub expires_in_seconds: Option<u32>,
}

/// A port token: the only time that it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortTokenResult {
    /// The token, for the field `X-Sandbank-Port-Token`, or for `sandbank_port_token` as a query parameter or a cookie.
    pub token: String,
    /// Its port; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// When it ends, RFC 3339.
    pub expires_at: String,
    /// The port's address; absent without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A link that opens the port in a browser: it keeps the token as a cookie. A secret, as the token is. Absent without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub browser_url: Option<String>,
}

/// Which port a tunnel leads to.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TunnelQuery {
    /// Port inside.
    #[param(minimum = 1, maximum = 65535)]
    pub port: u16,
}
