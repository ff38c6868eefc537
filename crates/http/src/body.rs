//! Bounded request bodies.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Most bytes of a JSON request body: 1 MiB.
pub const JSON_BODY_MAX: usize = 1024 * 1024;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More bytes than allowed: status 413.
    #[error("the request body is larger than {max} bytes")]
    TooLarge {
        /// Most bytes allowed.
        max: usize,
    },
    /// The client went away or broke the framing: status 400.
    #[error("the request body could not be read: {0}")]
    Broken(String),
}

/// Reads a whole body of at most `max` bytes. A `Content-Length` above `max` is refused before anything is read.
pub async fn read_body(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, BodyError> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(BodyError::TooLarge { max });
    }
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge { max }),
        Err(error) => Err(BodyError::Broken(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    async fn read(body: impl Into<Body>, max: usize) -> Result<Bytes, BodyError> {
        read_body(&HeaderMap::new(), body.into(), max).await
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_read() {
        assert_eq!(read("12345", 5).await.unwrap(), "12345");
    }

    #[tokio::test]
    async fn one_byte_over_the_limit_is_refused_with_the_limit() {
        assert_eq!(read("123456", 5).await, Err(BodyError::TooLarge { max: 5 }));
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_unread() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "6".parse().unwrap());
        assert_eq!(read_body(&headers, Body::empty(), 5).await, Err(BodyError::TooLarge { max: 5 }));
    }
}
