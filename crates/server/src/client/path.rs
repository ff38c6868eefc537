//! Percent-encoding of what users give into addresses (RFC 3986).

/// Encodes one path segment: everything but unreserved characters.
pub(crate) fn encode_segment(text: &str) -> String {
    encode(text, b"-._~")
}

/// Encodes one query value; `/` and `:` stay readable.
pub(crate) fn encode_query(text: &str) -> String {
    encode(text, b"-._~/:")
}

fn encode(text: &str, plain: &[u8]) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_and_unicode_are_encoded() {
        assert_eq!(encode_segment("a/b c"), "a%2Fb%20c");
        assert_eq!(encode_query("/tmp/ä&x=1+2"), "/tmp/%C3%A4%26x%3D1%2B2");
        assert_eq!(encode_segment(".."), "..");
    }
}
