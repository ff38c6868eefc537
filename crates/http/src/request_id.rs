//! Request ids.

use http::{HeaderMap, HeaderName};
use uuid::Uuid;

/// The header that carries a request's id in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's `X-Request-Id` when it has 1 to 128 printable ASCII characters, else a fresh id. Anything else could forge
/// log lines.
pub fn request_id(headers: &HeaderMap, fresh: impl FnOnce() -> Uuid) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|text| (1..=128).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b)))
        .map_or_else(|| fresh().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn of(value: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, http::HeaderValue::from_bytes(value).unwrap());
        request_id(&headers, Uuid::nil)
    }

    #[test]
    fn a_printable_id_is_kept_and_anything_else_replaced() {
        assert_eq!(of(b"abc-1"), "abc-1");
        assert_eq!(of(&[b'a'; 128]).len(), 128);
        for bad in [b"".as_slice(), &[b'a'; 129], b"a\tb", b"\xc3\xa4"] {
            assert_eq!(of(bad), Uuid::nil().to_string());
        }
        assert_eq!(request_id(&HeaderMap::new(), Uuid::nil), Uuid::nil().to_string());
    }
}
