//! Images: named stacks of read-only layers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{EnvMap, InvalidName, TenantId, Timestamp};

/// An image's name as users write it, `repository[:tag]`, 1 to 255 characters of `A-Z a-z 0-9 . _ - / : @`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Most characters in a name.
    pub const LEN_MAX: usize = 255;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let len = text.chars().count();
        if len == 0 || len > Self::LEN_MAX {
            return Err(InvalidName::Length { what: "image", max: Self::LEN_MAX, len });
        }
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
        let parts_ok = text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let first_ok = text.as_bytes()[0].is_ascii_alphanumeric();
        if plain && parts_ok && first_ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Grammar {
                what: "image",
                name: text.chars().take(80).collect(),
                rule: "write repository[:tag] with letters, digits and . _ - / : @",
            })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// One read-only layer in the image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What the driver finds it by.
    pub id: String,
    /// Bytes on disk.
    pub size_bytes: u64,
}

/// What processes get from the image where neither the template nor the request says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Environment.
    pub env: EnvMap,
    /// Program and arguments to start.
    pub command: Vec<String>,
    /// User, by name or number.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
}

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// Made from the host's own system directories.
    Host,
    /// Imported from an archive or a directory.
    Imported,
    /// Committed from a sandbox.
    Committed {
        /// The sandbox, as text: it may be long gone.
        sandbox: String,
    },
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name, unique beside its owner.
    pub name: ImageName,
    /// Who may use it; `None`: everybody.
    pub tenant: Option<TenantId>,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// Whether the host's system directories lie beneath the layers (the `host` image and what was committed from it).
    pub on_host: bool,
    /// Defaults for processes.
    pub config: ImageConfig,
    /// Origin.
    pub source: ImageSource,
    /// When it was made.
    pub created_at: Timestamp,
}
