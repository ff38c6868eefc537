//! Snapshots: what a sandbox's file system was at one moment, to make others of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Image, ImageName, InvalidName, SandboxId, SandboxSpec, SnapshotId, TenantId, Timestamp};

/// A snapshot's name, `name:tag`. Read without a tag it is `name:latest`.
///
/// The letters are those of image names, without `@`: 1 to 255 of `A-Z a-z 0-9 . _ - / :`, the tag after the only colon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The tag of a name that is written without one.
    pub const DEFAULT_TAG: &str = "latest";

    /// The text, with its tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Before the colon.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or(self.as_str(), |(name, _)| name)
    }

    /// After the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, tag)| tag)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (name, tag) = text.split_once(':').unwrap_or((text, Self::DEFAULT_TAG));
        let whole = format!("{name}:{tag}");
        let plain = whole.parse::<ImageName>().map_err(|error| match error {
            InvalidName::Length { max, len, .. } => InvalidName::Length { what: "snapshot", max, len },
            _ => refused(text),
        })?;
        let tag_is_plain = !tag.is_empty() && !tag.contains([':', '/']);
        // An id is found as an id: a name that looks like one would hide it.
        let is_id = name.parse::<SnapshotId>().is_ok();
        if tag_is_plain && !name.ends_with('/') && !whole.contains('@') && !is_id {
            Ok(Self(plain.into()))
        } else {
            Err(refused(text))
        }
    }
}

fn refused(text: &str) -> InvalidName {
    InvalidName::Grammar {
        what: "snapshot",
        name: text.chars().take(80).collect(),
        rule: "write name[:tag] with letters, digits and . _ - / in the name and . _ - in the tag; an id is no name",
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

/// One snapshot. It never changes, but its name may go to a newer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Id.
    pub id: SnapshotId,
    /// Owner.
    pub tenant: TenantId,
    /// What it is called; each name belongs to one snapshot of a tenant, the last one that was given it.
    pub name: Option<SnapshotName>,
    /// What it was taken of. It may be long gone.
    pub sandbox: SandboxId,
    /// What sandboxes made of it are, unless the request says otherwise: what the sandbox was. Its image is this snapshot.
    pub spec: SandboxSpec,
    /// The file system. Its name is the snapshot's id.
    pub image: Image,
    /// When it was taken.
    pub created_at: Timestamp,
}

impl Snapshot {
    /// Bytes of all layers, those of the image beneath included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.size_bytes).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_tag() {
        for (text, name, tag) in [("a", "a", "latest"), ("team/web:v1.2", "team/web", "v1.2"), ("x:latest", "x", "latest")] {
            let read: SnapshotName = text.parse().unwrap();
            assert_eq!((read.name(), read.tag()), (name, tag));
            assert_eq!(read, read.to_string().parse().unwrap());
        }
    }

    #[test]
    fn other_names_are_refused_by_name() {
        let id = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";
        for text in
            ["", ":", "a:", ":b", "a:b:c", "a:b/c", "a@b", "/a", "a/", "a b", "é", id, &format!("{id}:x"), &"n".repeat(256)]
        {
            let error = text.parse::<SnapshotName>().unwrap_err();
            assert!(error.to_string().contains("snapshot"), "{text}: {error}");
        }
    }
}
