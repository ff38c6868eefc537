//! Files.

use sandbank_agent_protocol::{
    FileKind, FileStat, ListFiles, MakeDir, MoveFile, OpenMode, ReadFile, RemoveFile, StatFile, WatchEvent, WatchEventKind,
    WatchFiles, WriteFile,
};
use sandbank_http::format_time;
use sandbank_model::Timestamp;

use super::{optional_text, text};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

const PATH_MAX: usize = 4096;
const LIST_MAX: u32 = 10_000;
const DEPTH_MAX: u32 = 64;

/// A path inside. `..` is for the sandbox's own kernel to resolve: nothing outside can be reached by it.
fn path(field: &str, path: String) -> ApiResult<String> {
    if path.is_empty() {
        return Err(ApiError::bad_request(format!("{field} is empty")));
    }
    text(field, path, PATH_MAX)
}

fn user(user: Option<String>) -> ApiResult<Option<String>> {
    optional_text("user", user, 64)
}

fn mode(mode: Option<String>) -> ApiResult<Option<u32>> {
    let parse = |text: String| {
        let value = Some(text.as_str()).filter(|text| text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()));
        value.and_then(|text| u32::from_str_radix(text, 8).ok()).filter(|bits| *bits <= 0o7777).ok_or_else(|| {
            ApiError::bad_request(format!(
                "mode {:?} is not permission bits in octal, such as 0644",
                text.chars().take(40).collect::<String>()
            ))
        })
    };
    mode.map(parse).transpose()
}

pub(crate) fn stat_model(query: wire::PathQuery) -> ApiResult<StatFile> {
    let wire::PathQuery { path: given, user: as_user } = query;
    Ok(StatFile { path: path("path", given)?, user: user(as_user)?, follow: false })
}

pub(crate) fn read_model(query: wire::ReadQuery) -> ApiResult<ReadFile> {
    let wire::ReadQuery { path: given, user: as_user, offset, length } = query;
    Ok(ReadFile { path: path("path", given)?, user: user(as_user)?, offset: offset.unwrap_or(0), length })
}

pub(crate) fn write_model(query: wire::WriteQuery) -> ApiResult<WriteFile> {
    let wire::WriteQuery { path: given, user: as_user, mode: bits, append, exclusive } = query;
    let open = match (append.unwrap_or(false), exclusive.unwrap_or(false)) {
        (false, false) => OpenMode::Replace,
        (true, false) => OpenMode::Append,
        (false, true) => OpenMode::CreateNew,
        (true, true) => return Err(ApiError::bad_request("append and exclusive exclude each other")),
    };
    Ok(WriteFile { path: path("path", given)?, user: user(as_user)?, mode: mode(bits)?, open })
}

pub(crate) fn remove_model(query: wire::RemoveQuery) -> ApiResult<RemoveFile> {
    let wire::RemoveQuery { path: given, user: as_user, recursive } = query;
    Ok(RemoveFile { path: path("path", given)?, user: user(as_user)?, recursive: recursive.unwrap_or(false) })
}

pub(crate) fn list_model(query: wire::ListQuery) -> ApiResult<ListFiles> {
    let wire::ListQuery { path: given, user: as_user, depth, limit } = query;
    let in_range = |field: &str, value: u32, max: u32| {
        if (1..=max).contains(&value) {
            Ok(value)
        } else {
            Err(ApiError::bad_request(format!("query parameter {field} is {value}: it must lie between 1 and {max}")))
        }
    };
    Ok(ListFiles {
        path: path("path", given)?,
        user: user(as_user)?,
        depth: in_range("depth", depth.unwrap_or(1), DEPTH_MAX)?,
        limit: in_range("limit", limit.unwrap_or(1_000), LIST_MAX)?,
    })
}

pub(crate) fn watch_model(query: wire::WatchQuery) -> ApiResult<WatchFiles> {
    let wire::WatchQuery { path: given, user: as_user, recursive } = query;
    Ok(WatchFiles { path: path("path", given)?, user: user(as_user)?, recursive: recursive.unwrap_or(false) })
}

pub(crate) fn move_model(request: wire::MoveRequest) -> ApiResult<MoveFile> {
    let wire::MoveRequest { from, to, overwrite, user: as_user } = request;
    Ok(MoveFile { from: path("from", from)?, to: path("to", to)?, user: user(as_user)?, overwrite: overwrite.unwrap_or(false) })
}

pub(crate) fn mkdir_model(request: wire::MkdirRequest) -> ApiResult<MakeDir> {
    let wire::MkdirRequest { path: given, mode: bits, user: as_user } = request;
    Ok(MakeDir { path: path("path", given)?, user: user(as_user)?, mode: mode(bits)?, exclusive: false })
}

/// Permission bits as text.
pub(crate) fn mode_text(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// A file's metadata.
pub(crate) fn file_wire(stat: FileStat) -> wire::FileInfo {
    let FileStat { path, kind, size, mode, uid, gid, owner, group, modified_at_ms, symlink_target } = stat;
    let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/").to_owned();
    wire::FileInfo {
        name,
        path,
        kind: match kind {
            FileKind::File => wire::FileType::File,
            FileKind::Dir => wire::FileType::Directory,
            FileKind::Symlink => wire::FileType::Symlink,
            FileKind::Other => wire::FileType::Other,
        },
        size,
        mode: mode_text(mode),
        owner,
        group,
        uid,
        gid,
        modified_at: format_time(Timestamp::from_millis(u64::try_from(modified_at_ms).unwrap_or(0))),
        symlink_target,
    }
}

/// A change.
pub(crate) fn watch_wire(event: WatchEvent) -> wire::WatchLine {
    let WatchEvent { path, kind, is_dir } = event;
    let kind = match kind {
        WatchEventKind::Create => "create",
        WatchEventKind::Write => "write",
        WatchEventKind::Remove => "remove",
        WatchEventKind::Rename => "rename",
        WatchEventKind::Chmod => "chmod",
        WatchEventKind::Overflow => "overflow",
    };
    wire::WatchLine { kind, path: Some(path), is_dir: Some(is_dir), error: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn paths_without_text_or_with_nul_are_refused() {
        let stat = |path: &str| stat_model(wire::PathQuery { path: path.to_owned(), user: None });
        assert!(stat("/a/../b").is_ok());
        for bad in ["", "/a\0b", &"x".repeat(PATH_MAX + 1)] {
            assert!(stat(bad).is_err());
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode(Some("0644".to_owned())).unwrap(), Some(0o644));
        assert_eq!(mode(Some("755".to_owned())).unwrap(), Some(0o755));
        for bad in ["", "9", "0o644", "rwx", "77777", "-1"] {
            assert!(mode(Some(bad.to_owned())).is_err(), "{bad}");
        }
        assert_eq!(mode_text(0o100_644), "0644");
    }
}
