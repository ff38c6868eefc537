//! Files inside on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A file or directory.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileInfo {
    /// Absolute path.
    pub path: String,
    /// Last part of the path.
    pub name: String,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: FileType,
    /// Bytes.
    pub size: u64,
    /// Permission bits in octal, such as `0644`.
    pub mode: String,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Last change of content, RFC 3339.
    pub modified_at: String,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FileType {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Socket, pipe or device.
    Other,
}

/// One file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileEnvelope {
    /// It.
    pub file: FileInfo,
}

/// Directory entries.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileList {
    /// Entries.
    pub items: Vec<FileInfo>,
}

/// A path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// Path inside; relative ones begin at the user's home.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user; default: the sandbox's.
    #[param(max_length = 64)]
    pub user: Option<String>,
}

/// What to read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReadQuery {
    /// Path inside.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user.
    #[param(max_length = 64)]
    pub user: Option<String>,
    /// First byte.
    pub offset: Option<u64>,
    /// Most bytes.
    pub length: Option<u64>,
}

/// What to write.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WriteQuery {
    /// Path inside; missing parents are made.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user, who owns what is made.
    #[param(max_length = 64)]
    pub user: Option<String>,
    /// Permission bits in octal; default: as before, else 0644.
    #[param(max_length = 5, pattern = "^0?[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// Add to an existing file.
    pub append: Option<bool>,
    /// Refuse when it exists.
    pub exclusive: Option<bool>,
}

/// What to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// Path inside.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user.
    #[param(max_length = 64)]
    pub user: Option<String>,
    /// A directory with all that is in it.
    pub recursive: Option<bool>,
}

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Directory inside.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user.
    #[param(max_length = 64)]
    pub user: Option<String>,
    /// 1: its entries; 2: theirs too; and so on.
    #[param(minimum = 1, maximum = 64, default = 1)]
    pub depth: Option<u32>,
    /// Most entries.
    #[param(minimum = 1, maximum = 10000, default = 1000)]
    pub limit: Option<u32>,
}

/// What to watch.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WatchQuery {
    /// Directory inside.
    #[param(min_length = 1, max_length = 4096)]
    pub path: String,
    /// As this user.
    #[param(max_length = 64)]
    pub user: Option<String>,
    /// Directories below it too.
    pub recursive: Option<bool>,
}

/// Rename.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MoveRequest {
    /// From.
    #[schema(min_length = 1, max_length = 4096)]
    pub from: String,
    /// To.
    #[schema(min_length = 1, max_length = 4096)]
    pub to: String,
    /// Replace what is there.
    pub overwrite: Option<bool>,
    /// As this user.
    #[schema(max_length = 64)]
    pub user: Option<String>,
}

/// Make a directory and its parents.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MkdirRequest {
    /// Path.
    #[schema(min_length = 1, max_length = 4096)]
    pub path: String,
    /// Permission bits in octal; default 0755.
    #[schema(max_length = 5, pattern = "^0?[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// As this user, who owns what is made.
    #[schema(max_length = 64)]
    pub user: Option<String>,
}

/// A change below a watched directory.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WatchLine {
    /// `ready` first; then `create`, `write`, `remove`, `rename`, `chmod`, `overflow` (events were lost), `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Path relative to the watched directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether it is a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_dir: Option<bool>,
    /// What broke the watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
