//! JSON bodies whose errors name the field and the place.

use serde::de::DeserializeOwned;

/// Why a text is not the JSON that was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidJson {
    /// Dotted path of the field, such as `spec.replicas`; empty when the text is not JSON at all.
    pub path: String,
    /// For people; contains the path.
    pub message: String,
}

/// Parses `bytes`. Wrong types, duplicate fields, malformed text and more than 128 levels are errors that say where.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidJson> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        describe(if path == "." { String::new() } else { path }, error.inner())
    })?;
    reader.end().map_err(|error| describe(String::new(), &error))?;
    Ok(value)
}

fn describe(path: String, error: &serde_json::Error) -> InvalidJson {
    // An error message quotes what was sent: a wrong value may be as long as the body.
    let cause: String = error.to_string().chars().take(300).collect();
    let message = match error.classify() {
        serde_json::error::Category::Data if !path.is_empty() => format!("field {path}: {cause}"),
        serde_json::error::Category::Data => cause,
        _ => format!("the request body is not valid JSON: {cause}"),
    };
    InvalidJson { path, message }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Outer {
        inner: Inner,
    }
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        count: u32,
    }

    fn check(text: &str, expect: &[&str]) {
        let error = parse_json::<Outer>(text.as_bytes()).unwrap_err();
        for part in expect {
            assert!(error.message.contains(part), "{text}: {} should contain {part}", error.message);
        }
    }

    #[test]
    fn errors_name_the_field_and_the_position() {
        check(r#"{"inner":{"count":"x"}}"#, &["inner.count", "invalid type", "column"]);
        check(r#"{"inner":{"count":-1}}"#, &["inner.count"]);
        check(r#"{"inner":{"count":1,"count":2}}"#, &["duplicate field `count`"]);
        check(r#"{"inner":{}}"#, &["missing field `count`"]);
        check(r#"{"inner":"#, &["not valid JSON", "line 1"]);
        check("", &["not valid JSON"]);
        check(r#"{"inner":{"count":1}} x"#, &["not valid JSON"]);
        check("\u{feff}{}", &["not valid JSON"]);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let text = "[".repeat(100_000);
        assert!(parse_json::<serde_json::Value>(text.as_bytes()).unwrap_err().message.contains("recursion limit"));
    }

    #[test]
    fn a_long_wrong_value_does_not_make_a_long_message() {
        let text = format!(r#"{{"inner":{{"count":"{}"}}}}"#, "x".repeat(100_000));
        assert!(parse_json::<Outer>(text.as_bytes()).unwrap_err().message.len() < 400);
    }
}
