//! References to pools and sandboxes, perhaps on another cluster (native.md §4).

use sandbank_model::{PoolName, SandboxId};

use crate::errors::ApiError;

/// A pool reference, taken apart: `pool` or `{cluster}::{pool}`.
pub(crate) fn parse_pool(text: &str, local: &str) -> Result<Named<PoolName>, ApiError> {
    if text.contains("//") {
        return Err(ApiError::bad_request(format!(
            "{:?} names an image: the form pool//image belongs to the E2B API; here give the image in the field image",
            shown(text)
        )));
    }
    let (cluster, name) = match text.split_once("::") {
        Some((cluster, name)) => (Some(cluster.trim()).filter(|cluster| !cluster.is_empty()), name.trim()),
        None => (None, text),
    };
    check_cluster(cluster, local)?;
    let value = PoolName::parse("pool", name).map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(Named { cluster: cluster.map(str::to_owned), value })
}

/// A sandbox reference, taken apart: `{uuid}` or `{cluster}.{uuid}`. A text that is no id names no sandbox: 404.
pub(crate) fn parse_sandbox(text: &str, local: &str) -> Result<Named<SandboxId>, ApiError> {
    let missing = || ApiError::not_found(format!("sandbox {} not found or already terminated", shown(text)));
    let dot = text.len().checked_sub(37).filter(|at| text.as_bytes()[*at] == b'.');
    let (cluster, id) = match dot {
        Some(at) => (Some(&text[..at]).filter(|cluster| !cluster.is_empty()), &text[at + 1..]),
        None => (None, text),
    };
    let value = id.parse().map_err(|_| missing())?;
    check_cluster(cluster, local)?;
    Ok(Named { cluster: cluster.map(str::to_owned), value })
}

fn check_cluster(cluster: Option<&str>, local: &str) -> Result<(), ApiError> {
    match cluster {
        Some(other) if other != local => Err(ApiError::bad_gateway(format!(
            "cluster {:?} is not known here; GET /v1/clusters lists those that are",
            shown(other)
        ))),
        _ => Ok(()),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// What a reference names, and the cluster that it named, which answers repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named<T> {
    pub(crate) cluster: Option<String>,
    pub(crate) value: T,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use http::StatusCode;

    const ID: &str = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";

    #[test]
    fn pool_references_name_a_cluster_or_none() {
        let plain = parse_pool("my-pool", "local").unwrap();
        assert_eq!((plain.cluster.as_deref(), plain.value.as_str()), (None, "my-pool"));
        let local = parse_pool("local::my-pool", "local").unwrap();
        assert_eq!((local.cluster.as_deref(), local.value.as_str()), (Some("local"), "my-pool"));
        assert_eq!(parse_pool("::my-pool", "local").unwrap().cluster, None);
        assert_eq!(parse_pool(" local :: my-pool ", "local").unwrap().value.as_str(), "my-pool");
    }

    #[test]
    fn wrong_pool_references_get_the_right_status() {
        for (text, status) in [
            ("other::my-pool", StatusCode::BAD_GATEWAY),
            ("my-pool//image", StatusCode::BAD_REQUEST),
            ("local::my-pool//image", StatusCode::BAD_REQUEST),
            ("My-Pool", StatusCode::BAD_REQUEST),
            ("", StatusCode::BAD_REQUEST),
            ("..", StatusCode::BAD_REQUEST),
        ] {
            assert_eq!(parse_pool(text, "local").unwrap_err().status(), status, "{text}");
        }
    }

    #[test]
    fn sandbox_references_name_a_cluster_or_none() {
        assert_eq!(parse_sandbox(ID, "local").unwrap().cluster, None);
        let named = parse_sandbox(&format!("local.{ID}"), "local").unwrap();
        assert_eq!((named.cluster.as_deref(), named.value.to_string().as_str()), (Some("local"), ID));
        let dotted = parse_sandbox(&format!("eu.west.{ID}"), "eu.west").unwrap();
        assert_eq!(dotted.cluster.as_deref(), Some("eu.west"));
    }

    #[test]
    fn wrong_sandbox_references_get_the_right_status() {
        for (text, status) in [
            (format!("other.{ID}"), StatusCode::BAD_GATEWAY),
            ("nothing".to_owned(), StatusCode::NOT_FOUND),
            (format!("local{ID}"), StatusCode::NOT_FOUND),
            (ID.replace('-', ""), StatusCode::NOT_FOUND),
            ("ä".repeat(40), StatusCode::NOT_FOUND),
            (String::new(), StatusCode::NOT_FOUND),
        ] {
            assert_eq!(parse_sandbox(&text, "local").unwrap_err().status(), status, "{text}");
        }
    }
}
