//! Out of a sandbox. Names and sizes in it are untrusted: a name is one plain component, and nothing is followed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::{Copied, Inside};
use crate::client::{full, interrupted};
use crate::failure::{Failure, Result};
use crate::output::harmless;
use crate::progress::Progress;

/// Most entries of one directory: what the API lists at once.
const ENTRIES_MAX: usize = 10_000;
/// Deepest directory below the one that was asked for.
const DEPTH_MAX: usize = 128;
/// Header that carries a file's permissions in octal.
const MODE_HEADER: &str = "x-file-mode";

/// One file or a directory with everything in it.
pub(super) async fn copy(inside: &Inside<'_>, source: &str, target: &Path) -> Result<Copied> {
    let kind = inside.kind(source).await?;
    let Some(kind) = kind else {
        return Err(Failure::new(format!("there is no {} in sandbox {}", harmless(source), inside.id)));
    };
    let target = landing(source, target)?;
    match kind.as_str() {
        "directory" => tree(inside, source, target).await,
        // A link that was named is followed by the read.
        "file" | "symlink" => {
            let bytes = fetch(inside, source, &target).await?;
            Ok(Copied { files: 1, bytes, ..Copied::default() })
        }
        _ => Err(Failure::new(format!("{} is neither a file nor a directory", harmless(source)))),
    }
}

/// One file to standard output.
pub(super) async fn to_stdout(inside: &Inside<'_>, source: &str) -> Result<Copied> {
    let response = open(inside, source).await?;
    let progress = Progress::bytes(length(&response), source);
    let mut stdout = tokio::io::stdout();
    let bytes = pour(response, &mut stdout, &progress).await?.map_err(|error| Failure::output(&error))?;
    Ok(Copied { files: 1, bytes, ..Copied::default() })
}

/// Where the copy lands: in `target` when that is a directory (or is spelt like one), else at it, as `cp` does.
fn landing(source: &str, target: &Path) -> Result<PathBuf> {
    if !target.is_dir() {
        return if target.as_os_str().as_encoded_bytes().ends_with(b"/") {
            Err(Failure::new(format!("there is no directory {}: make it first", target.display())))
        } else {
            Ok(target.to_owned())
        };
    }
    match source.trim_end_matches('/').rsplit('/').next() {
        // The content of `.` and `/` goes right into the target.
        None | Some("" | "." | "..") => Ok(target.to_owned()),
        Some(name) => Ok(target.join(name)),
    }
}

async fn tree(inside: &Inside<'_>, source: &str, target: PathBuf) -> Result<Copied> {
    let mut copied = Copied::default();
    let mut pending = vec![(source.trim_end_matches('/').to_owned(), target, 0)];
    while let Some((source, target, depth)) = pending.pop() {
        if depth > DEPTH_MAX {
            return Err(Failure::new(format!("{} is more than {DEPTH_MAX} directories deep", harmless(&source))));
        }
        std::fs::create_dir_all(&target).map_err(|error| unwritable(&target, &error))?;
        copied.directories += 1;
        for entry in entries(inside, &source).await? {
            let name = component(&entry)?;
            let (from, to) = (format!("{source}/{name}"), target.join(name));
            match entry.get("type").and_then(Value::as_str) {
                Some("directory") => pending.push((from, to, depth + 1)),
                Some("file") => {
                    copied.bytes += fetch(inside, &from, &to).await?;
                    copied.files += 1;
                }
                _ => copied.skipped += 1,
            }
        }
    }
    Ok(copied)
}

async fn entries(inside: &Inside<'_>, directory: &str) -> Result<Vec<Value>> {
    let directory = if directory.is_empty() { "/" } else { directory };
    let answer = inside.client.get(&inside.address("/list", directory, &format!("&depth=1&limit={ENTRIES_MAX}"))).await?;
    let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if items.len() >= ENTRIES_MAX {
        return Err(Failure::new(format!(
            "{} has {ENTRIES_MAX} entries or more: pack it into an archive inside first",
            harmless(directory)
        )));
    }
    Ok(items)
}

/// An entry's name, if it is one plain component: anything else could leave the target directory.
fn component(entry: &Value) -> Result<&str> {
    let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if plain {
        Ok(name)
    } else {
        Err(Failure::new(format!("the sandbox tells of a file named {name:?}, which is no file name: nothing more is copied")))
    }
}

async fn open(inside: &Inside<'_>, source: &str) -> Result<Response<Incoming>> {
    let request = inside.client.request(Method::GET, &inside.address("", source, ""));
    inside.client.send(request, full(Bytes::new())).await
}

pub(in crate::commands) fn length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Copies one file; an existing one is replaced in one step, when everything has come.
async fn fetch(inside: &Inside<'_>, source: &str, target: &Path) -> Result<u64> {
    let response = open(inside, source).await?;
    let mode = response.headers().get(MODE_HEADER).and_then(|mode| u32::from_str_radix(mode.to_str().ok()?, 8).ok());
    let progress = Progress::bytes(length(&response), source);
    let special = std::fs::metadata(target).is_ok_and(|metadata| !metadata.is_file());
    if special {
        let mut file =
            tokio::fs::OpenOptions::new().write(true).open(target).await.map_err(|error| unwritable(target, &error))?;
        return pour(response, &mut file, &progress).await?.map_err(|error| unwritable(target, &error));
    }
    let partial = Partial::beside(target)?;
    let mut file = tokio::fs::File::create_new(&partial.0).await.map_err(|error| unwritable(&partial.0, &error))?;
    let bytes = pour(response, &mut file, &progress).await?.map_err(|error| unwritable(target, &error))?;
    if let Some(mode) = mode {
        // Permissions only: a set-user-id bit from a sandbox has no business here.
        file.set_permissions(Permissions::from_mode(mode & 0o777)).await.map_err(|error| unwritable(target, &error))?;
    }
    std::fs::rename(&partial.0, target).map_err(|error| unwritable(target, &error))?;
    Ok(bytes)
}

/// A file that is not whole yet; removed unless it was renamed.
pub(in crate::commands) struct Partial(pub(in crate::commands) PathBuf);

impl Partial {
    pub(in crate::commands) fn beside(target: &Path) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| Failure::new(format!("{} is not a file name", target.display())))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        Ok(Self(target.with_file_name(partial)))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Pours a body out. The outer error is the connection's, the inner one the writer's.
pub(in crate::commands) async fn pour(
    response: Response<Incoming>,
    writer: &mut (impl AsyncWrite + Unpin),
    progress: &Progress,
) -> Result<std::io::Result<u64>> {
    let announced = length(&response);
    let mut body = response.into_body();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| interrupted(&error))?;
        if let Some(data) = frame.data_ref() {
            if let Err(error) = writer.write_all(data).await {
                return Ok(Err(error));
            }
            total += data.len() as u64;
            progress.advance(data.len() as u64);
        }
    }
    match announced {
        Some(announced) if announced != total => Err(Failure::new(format!("only {total} of {announced} bytes came: try again"))),
        _ => Ok(writer.flush().await.map(|()| total)),
    }
}

pub(in crate::commands) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn names_that_could_leave_the_target_are_refused() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(component(&json!({ "name": name })).is_err(), "{name:?}");
        }
        assert_eq!(component(&json!({ "name": "..a" })).unwrap(), "..a");
    }

    #[test]
    fn a_copy_lands_in_a_directory_or_at_the_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(landing("/a/b/", dir.path()).unwrap(), dir.path().join("b"));
        assert_eq!(landing("/", dir.path()).unwrap(), dir.path());
        assert_eq!(landing("/a/..", dir.path()).unwrap(), dir.path());
        assert_eq!(landing("/a/b", &dir.path().join("c")).unwrap(), dir.path().join("c"));
        assert!(landing("/a/b", Path::new("/nowhere/at/all/")).is_err());
    }
}
