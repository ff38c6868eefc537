//! Query strings: typed, bounded, each name at most once, errors that name the parameter.

use std::borrow::Cow;

use serde::de::value::{Error as ValueError, MapDeserializer};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

/// Most parameters of one query string.
const PAIRS_MAX: usize = 128;

/// A query string that is not what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidQuery(pub String);

/// A parsed query string: percent-decoded names and values in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    /// Parses what follows the `?`. `+` is a space, as forms send it. Bad percent signs and bytes that are not UTF-8 are errors.
    pub fn parse(query: Option<&'a str>) -> Result<Self, InvalidQuery> {
        let mut pairs = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            if pairs.len() == PAIRS_MAX {
                return Err(InvalidQuery(format!("the query has more than {PAIRS_MAX} parameters")));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Self { pairs })
    }

    /// All pairs, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// The value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Into a struct whose fields are numbers, `bool`s, strings or options of them. Unknown names are ignored, a name that is
    /// given twice is an error, and an empty number or flag is an error that names it.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, InvalidQuery> {
        let pairs = self.pairs.iter().map(|(name, value)| (name.as_ref(), Part(value.as_ref())));
        let map = MapDeserializer::<_, ValueError>::new(pairs);
        serde_path_to_error::deserialize(map).map_err(|error| {
            let path = error.path().to_string();
            let cause: String = error.inner().to_string().chars().take(300).collect();
            if path == "." {
                InvalidQuery(format!("query: {cause}"))
            } else {
                InvalidQuery(format!("query parameter {path}: {cause}"))
            }
        })
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, InvalidQuery> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Ok(Cow::Borrowed(text));
    }
    let refused =
        || InvalidQuery(format!("the query part {:?} is not percent-encoded UTF-8", text.chars().take(80).collect::<String>()));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit().ok_or_else(refused)?, digit().ok_or_else(refused)?);
                out.push(u8::try_from(high * 16 + low).map_err(|_| refused())?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| refused())
}

/// One value, parsed as the field's type asks.
struct Part<'a>(&'a str);

impl<'de> IntoDeserializer<'de, ValueError> for Part<'de> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! number {
    ($($method:ident => $visit:ident as $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
            match self.0.parse::<$type>() {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(ValueError::custom(format!(
                    "{:?} is not a whole number from {} to {}",
                    self.0.chars().take(80).collect::<String>(), <$type>::MIN, <$type>::MAX,
                ))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Part<'de> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self.0 {
            "true" | "1" => visitor.visit_bool(true),
            "false" | "0" => visitor.visit_bool(false),
            other => {
                Err(ValueError::custom(format!("{:?} is neither true nor false", other.chars().take(80).collect::<String>())))
            }
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        self.0.into_deserializer().deserialize_enum(name, variants, visitor)
    }

    number! {
        deserialize_u8 => visit_u8 as u8, deserialize_u16 => visit_u16 as u16,
        deserialize_u32 => visit_u32 as u32, deserialize_u64 => visit_u64 as u64,
        deserialize_i32 => visit_i32 as i32, deserialize_i64 => visit_i64 as i64,
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Sample {
        limit: Option<u32>,
        pool_name: Option<String>,
        warm: Option<bool>,
    }

    fn typed(text: &str) -> Result<Sample, String> {
        Query::parse(Some(text)).and_then(|query| query.typed()).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_decoded_and_typed() {
        let sample = typed("limit=5&poolName=a%2Fb+c&warm=true&other=1").unwrap();
        assert_eq!(sample, Sample { limit: Some(5), pool_name: Some("a/b c".to_owned()), warm: Some(true) });
        assert_eq!(typed("").unwrap(), Sample::default());
    }

    #[test]
    fn errors_name_the_parameter_and_the_value() {
        for (text, expect) in [
            ("limit=abc", "limit: \"abc\""),
            ("limit=-1", "limit: \"-1\""),
            ("limit=", "limit: \"\""),
            ("limit=99999999999", "limit: \"99999999999\""),
            ("warm=maybe", "warm: \"maybe\""),
            ("limit=1&limit=2", "limit"),
            ("a=%zz", "percent-encoded"),
            ("a=%ff", "percent-encoded"),
            ("a=%2", "percent-encoded"),
        ] {
            let error = typed(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }

    #[test]
    fn a_flood_of_parameters_is_refused() {
        let text = "a=1&".repeat(1_000);
        assert!(typed(&text).unwrap_err().contains("more than"));
    }
}
