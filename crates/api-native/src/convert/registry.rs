//! Registries' credentials.

use sandbank_control::{RegistryCredentials, RegistryView};
use sandbank_http::format_time;
use sandbank_model::CredentialKind;

use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// Credentials to keep: host, what is shown to it, and whether they are the installation's.
pub(crate) fn registry_login(request: wire::RegistryLoginRequest) -> ApiResult<(String, RegistryCredentials, bool)> {
    let wire::RegistryLoginRequest { host, username, password, token, global } = request;
    let host = host.ok_or_else(|| ApiError::bad_request("host is required: the registry's, such as ghcr.io"))?;
    let credentials = match (username, password, token) {
        (Some(username), Some(password), None) => RegistryCredentials::Password { username, password },
        (None, None, Some(token)) => RegistryCredentials::Token(token),
        _ => return Err(ApiError::bad_request("give username and password, or token alone")),
    };
    Ok((host, credentials, global.unwrap_or(false)))
}

/// A registry without its secret.
pub(crate) fn registry_wire(view: &RegistryView) -> wire::RegistryItem {
    let RegistryView { host, username, kind, global, created_at } = view;
    wire::RegistryItem {
        host: host.clone(),
        username: username.clone(),
        kind: match kind {
            CredentialKind::Password => wire::RegistrySecret::Password,
            CredentialKind::Token => wire::RegistrySecret::Token,
        },
        global: *global,
        created_at: format_time(*created_at),
    }
}
