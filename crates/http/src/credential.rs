//! Where a request carries its API key.

use http::{HeaderMap, HeaderName, header};

/// The secret in the first of `names` that is present, else in `Authorization: Bearer`. Each dialect lists its own headers.
/// A header whose value is not visible ASCII counts as present and empty, so that it is refused and not skipped.
#[must_use]
pub fn credential<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Option<&'a str> {
    for name in names {
        if let Some(value) = headers.get(name) {
            return Some(value.to_str().unwrap_or_default().trim());
        }
    }
    bearer(headers)
}

/// The token of `Authorization: Bearer <token>`; the scheme's case does not matter (RFC 9110 §11.1).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use http::HeaderValue;

    const NAMES: [HeaderName; 2] = [HeaderName::from_static("agentbox-api-key"), HeaderName::from_static("x-api-key")];

    #[test]
    fn listed_headers_come_before_the_bearer_token() {
        let mut headers = HeaderMap::new();
        assert_eq!(credential(&headers, &NAMES), None);
        headers.insert("authorization", HeaderValue::from_static("bearer abc"));
        assert_eq!(credential(&headers, &NAMES), Some("abc"));
        headers.insert("x-api-key", HeaderValue::from_static("second"));
        headers.insert("agentbox-api-key", HeaderValue::from_static(" first "));
        assert_eq!(credential(&headers, &NAMES), Some("first"));
    }

    #[test]
    fn basic_authorization_is_no_key() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Basic abc"));
        assert_eq!(credential(&headers, &NAMES), None);
    }

    #[test]
    fn a_key_that_is_not_ascii_is_an_empty_key() {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        assert_eq!(credential(&headers, &NAMES), Some(""));
    }
}
