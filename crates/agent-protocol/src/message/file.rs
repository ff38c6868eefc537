//! Files: what is asked of them and what is told.

use serde::{Deserialize, Serialize};

/// Metadata of one path. Relative paths are relative to the user's home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFile {
    /// Path.
    pub path: String,
    /// As which user (for relative paths); `None`: root.
    pub user: Option<String>,
    /// Follow a symbolic link at the end.
    pub follow: bool,
}

/// A directory's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListFiles {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// 1: the entries; 2: theirs too; and so on. At least 1.
    pub depth: u32,
    /// Most entries to tell of.
    pub limit: u32,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// First byte.
    pub offset: u64,
    /// Most bytes; `None`: to the end.
    pub length: Option<u64>,
}

/// What a write does with a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OpenMode {
    /// Replaced in one step when all data has come; a cancelled write leaves the old one.
    #[default]
    Replace,
    /// Added to.
    Append,
    /// An error.
    CreateNew,
}

/// Write a file. Parents are made, owned by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Path.
    pub path: String,
    /// As which user; it owns what is made; `None`: root.
    pub user: Option<String>,
    /// Permission bits; `None`: as the existing file, else 0644.
    pub mode: Option<u32>,
    /// What to do with an existing file.
    pub open: OpenMode,
}

/// Rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveFile {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// Replace an existing file at `to`.
    pub overwrite: bool,
}

/// Remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveFile {
    /// Path.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// A directory with all that is in it; otherwise only an empty one.
    pub recursive: bool,
}

/// Make a directory and its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDir {
    /// Path.
    pub path: String,
    /// As which user; it owns what is made; `None`: root.
    pub user: Option<String>,
    /// Permission bits; `None`: 0755.
    pub mode: Option<u32>,
    /// An existing directory is an error.
    pub exclusive: bool,
}

/// Tell of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchFiles {
    /// Directory.
    pub path: String,
    /// As which user; `None`: root.
    pub user: Option<String>,
    /// Directories below it too, also new ones.
    pub recursive: bool,
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Socket, pipe or device.
    Other,
}

/// Metadata of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Absolute path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Kind, of the link itself when it was not followed.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner's number inside the sandbox.
    pub uid: u32,
    /// Group's number inside the sandbox.
    pub gid: u32,
    /// Owner's name, or the number as text.
    pub owner: String,
    /// Group's name, or the number as text.
    pub group: String,
    /// Last change of content, milliseconds since the Unix epoch.
    pub modified_at_ms: i64,
    /// Target, of a symbolic link.
    pub symlink_target: Option<String>,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEventKind {
    /// Made, or moved in.
    Create,
    /// Content changed.
    Write,
    /// Removed.
    Remove,
    /// Moved away (tell of the old name).
    Rename,
    /// Permissions or owner changed.
    Chmod,
    /// Events were lost: look for yourself.
    Overflow,
}

/// A change below a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Path relative to the watched directory.
    pub path: String,
    /// What.
    pub kind: WatchEventKind,
    /// Whether it is a directory.
    pub is_dir: bool,
}
