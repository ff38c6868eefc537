//! What every handler shares.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use sandbank_control::{Caller, Control};
use sandbank_http::{Gateway, TokenStore};
use sandbank_model::{SandboxId, SemVer};

/// What an installation may set for this dialect.
#[derive(Clone)]
pub struct NativeSettings {
    /// This cluster's id in references (native.md §4).
    pub cluster_id: String,
    /// This cluster's name for people.
    pub cluster_name: String,
    /// Version told in `X-AgentBox-Server-Version`.
    pub server_version: String,
    /// Oldest client accepted on writes that tell their version (native.md §3).
    pub client_version_min: SemVer,
    /// Address that clients reach this server by, such as `https://sandbank.example`; `None`: as the request's `Host` says.
    pub public_url: Option<String>,
    /// Renders the Prometheus page; `None`: `/metrics` answers 404.
    pub render_metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

impl Default for NativeSettings {
    fn default() -> Self {
        Self {
            cluster_id: "local".to_owned(),
            cluster_name: "local".to_owned(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            client_version_min: SemVer { major: 0, minor: 0, patch: 0 },
            public_url: None,
            render_metrics: None,
        }
    }
}

impl std::fmt::Debug for NativeSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeSettings")
            .field("cluster_id", &self.cluster_id)
            .field("public_url", &self.public_url)
            .finish_non_exhaustive()
    }
}

/// An exec token opens one sandbox for the caller that asked for it.
pub(crate) struct TokenGrant {
    pub(crate) caller: Caller,
    pub(crate) sandbox: SandboxId,
}

/// State of the router.
pub(crate) struct Inner {
    pub(crate) control: Control,
    pub(crate) settings: NativeSettings,
    pub(crate) tokens: TokenStore<TokenGrant>,
    pub(crate) gateway: Gateway,
    pub(crate) version_header: HeaderValue,
}

/// Shared state; cheap to clone.
pub(crate) type App = Arc<Inner>;

/// An exec token's life (native.md §6).
const TOKEN_LIFE: Duration = Duration::from_secs(30);
/// Most exec tokens alive.
const TOKENS_MAX: usize = 10_000;

pub(crate) fn build(control: Control, gateway: Gateway, settings: NativeSettings) -> App {
    let version_header = HeaderValue::from_str(&settings.server_version).unwrap_or(HeaderValue::from_static("unknown"));
    Arc::new(Inner { control, settings, tokens: TokenStore::new(TOKEN_LIFE, TOKENS_MAX), gateway, version_header })
}
