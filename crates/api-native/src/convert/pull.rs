//! Pulls.

use sandbank_control::{LayerProgress, LayerState, LayersProgress, Pull, PullPolicy};

use super::{image_name, text};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

const USERNAME_MAX: usize = 256;
const PASSWORD_MAX: usize = 4096;

/// A pull that tells `progress` how far it is.
pub(crate) fn pull(request: wire::PullImageRequest, progress: LayersProgress) -> ApiResult<Pull> {
    let wire::PullImageRequest { name, policy, username, password, global } = request;
    let policy = match policy.unwrap_or(wire::PullPolicy::Always) {
        wire::PullPolicy::Always => PullPolicy::Always,
        wire::PullPolicy::Missing => PullPolicy::Missing,
        wire::PullPolicy::Never => PullPolicy::Never,
    };
    Ok(Pull {
        name: image_name("name", &name)?,
        policy,
        credentials: credentials(username, password)?,
        global: global.unwrap_or(false),
        progress,
    })
}

/// Both or neither.
pub(crate) fn credentials(
    username: Option<String>,
    password: Option<String>,
) -> ApiResult<Option<sandbank_control::RegistryCredentials>> {
    match (username, password) {
        (None, None) => Ok(None),
        (Some(username), Some(password)) => Ok(Some(sandbank_control::RegistryCredentials::Password {
            username: text("username", username, USERNAME_MAX)?,
            password: text("password", password, PASSWORD_MAX)?,
        })),
        _ => Err(ApiError::bad_request("username and password go together: give both or neither")),
    }
}

/// Credentials that came with a request for one image: those of the one registry that it lies in.
pub(crate) fn pull_secret(secret: wire::ImagePullSecret) -> ApiResult<Option<sandbank_control::RegistryCredentials>> {
    let mut entries = secret.registries.into_iter();
    match (entries.next(), entries.next()) {
        (None, _) => Ok(None),
        (Some(entry), None) => credentials(Some(entry.username), Some(entry.password)),
        _ => Err(ApiError::bad_request("imagePullSecret has more than one registry: an image lies in one")),
    }
}

/// How far a layer is.
pub(crate) fn pulled_layer(layer: &LayerProgress) -> wire::PulledLayer {
    let LayerProgress { digest, state, read_bytes, size_bytes } = layer;
    let state = match state {
        LayerState::Waiting => "waiting",
        LayerState::Taking => "taking",
        LayerState::Present => "present",
        LayerState::Taken => "taken",
    };
    wire::PulledLayer { digest: digest.to_string(), state: state.to_owned(), read_bytes: *read_bytes, size_bytes: *size_bytes }
}
