//! Names that users give.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Longer or shorter than allowed.
    #[error("a {what} name has 1 to {max} characters, this one has {len}")]
    Length {
        /// What is named: "pool", "template", "image".
        what: &'static str,
        /// Most characters allowed.
        max: usize,
        /// Characters given.
        len: usize,
    },
    /// A character or a position that the grammar does not allow.
    #[error("{name:?} is not a {what} name: {rule}")]
    Grammar {
        /// What is named.
        what: &'static str,
        /// The refused text, cut to 80 characters.
        name: String,
        /// The grammar in words.
        rule: &'static str,
    },
}

/// Name of a pool or a template: `^[a-z]([a-z0-9-]*[a-z0-9])?$`, 1 to 63 characters (native.md §8).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

impl PoolName {
    /// Most characters in a name.
    pub const LEN_MAX: usize = 63;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks `name`, calling it a `what` in the error.
    pub fn parse(what: &'static str, name: &str) -> Result<Self, InvalidName> {
        let len = name.chars().count();
        if len == 0 || len > Self::LEN_MAX {
            return Err(InvalidName::Length { what, max: Self::LEN_MAX, len });
        }
        let bytes = name.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let valid = bytes[0].is_ascii_lowercase() && bytes.iter().all(inner) && bytes[bytes.len() - 1] != b'-';
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidName::Grammar {
                what,
                name: name.chars().take(80).collect(),
                rule: "use lower-case letters, digits and '-', begin with a letter and end with a letter or digit",
            })
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PoolName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse("pool", text)
    }
}

impl TryFrom<String> for PoolName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse("pool", &text)
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

/// Checks a label, annotation or metadata key: 1 to 317 printable characters without spaces (253 for a DNS prefix, `/`, 63
/// for the name, as in Kubernetes).
pub fn validate_label_key(key: &str) -> Result<(), InvalidName> {
    let len = key.chars().count();
    if len == 0 || len > 317 {
        return Err(InvalidName::Length { what: "label", max: 317, len });
    }
    if key.chars().all(|c| !c.is_control() && !c.is_whitespace()) {
        Ok(())
    } else {
        Err(InvalidName::Grammar {
            what: "label",
            name: key.chars().take(80).collect(),
            rule: "use printable characters without spaces",
        })
    }
}
