//! Into a sandbox.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{Copied, Inside};
use crate::client::{Body, encode_segment, full};
use crate::failure::{Failure, Result};
use crate::progress::Progress;

/// Bytes read from a file at a time.
const CHUNK: usize = 256 * 1024;

/// One file or a directory with everything in it.
pub(super) async fn copy(inside: &Inside<'_>, source: &Path, target: &str) -> Result<Copied> {
    // What the person named is followed when it is a link; links below are not.
    let metadata = std::fs::metadata(source).map_err(|error| unreadable(source, &error))?;
    let target = landing(inside, source, target).await?;
    if metadata.is_file() {
        let progress = Arc::new(Progress::bytes(Some(metadata.len()), &source.display().to_string()));
        let bytes = send_file(inside, source, &metadata, &target, &progress).await?;
        return Ok(Copied { files: 1, bytes, ..Copied::default() });
    }
    if !metadata.is_dir() {
        return Err(Failure::new(format!("{} is neither a file nor a directory", source.display())));
    }
    tree(inside, source, target).await
}

/// Standard input as one file.
pub(super) async fn from_stdin(inside: &Inside<'_>, target: &str) -> Result<Copied> {
    let progress = Arc::new(Progress::bytes(None, "standard input"));
    let bytes = send(inside, tokio::io::stdin(), target, "", &progress).await?;
    Ok(Copied { files: 1, bytes, ..Copied::default() })
}

/// Where the copy lands: below `target` when that is a directory (or is spelt like one), else at it, as `cp` does.
async fn landing(inside: &Inside<'_>, source: &Path, target: &str) -> Result<String> {
    let is_directory = target.ends_with('/') || inside.kind(target).await?.as_deref() == Some("directory");
    if !is_directory {
        return Ok(target.to_owned());
    }
    let canonical = std::fs::canonicalize(source).map_err(|error| unreadable(source, &error))?;
    // `.` and `..` have no name of their own; the content of `.` goes right into the target.
    let name = match source.file_name() {
        Some(name) => name.to_owned(),
        None if source == Path::new(".") || source.ends_with(".") => return Ok(target.to_owned()),
        None => canonical.file_name().map(ToOwned::to_owned).unwrap_or_default(),
    };
    let name = name.to_str().ok_or_else(|| not_utf8(source))?;
    Ok(join(target, name))
}

/// A directory, its directories first.
async fn tree(inside: &Inside<'_>, source: &Path, target: String) -> Result<Copied> {
    let progress = Arc::new(Progress::bytes(None, &source.display().to_string()));
    let mut copied = Copied::default();
    let mut pending: Vec<(PathBuf, String)> = vec![(source.to_owned(), target)];
    while let Some((directory, target)) = pending.pop() {
        make_directory(inside, &directory, &target).await?;
        copied.directories += 1;
        let entries = std::fs::read_dir(&directory).map_err(|error| unreadable(&directory, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&directory, &error))?;
            let path = entry.path();
            let name = entry.file_name();
            let target = join(&target, name.to_str().ok_or_else(|| not_utf8(&path))?);
            let metadata = entry.metadata().map_err(|error| unreadable(&path, &error))?;
            if metadata.is_dir() {
                pending.push((path, target));
            } else if metadata.is_file() {
                copied.bytes += send_file(inside, &path, &metadata, &target, &progress).await?;
                copied.files += 1;
            } else {
                copied.skipped += 1;
            }
        }
    }
    Ok(copied)
}

async fn make_directory(inside: &Inside<'_>, source: &Path, target: &str) -> Result<()> {
    let mode = std::fs::metadata(source).map_err(|error| unreadable(source, &error))?.permissions().mode() & 0o777;
    let mut body = json!({ "path": target, "mode": format!("{mode:04o}") });
    if let Some(user) = inside.user {
        body["user"] = json!(user);
    }
    inside.client.post(&format!("/v1/sandboxes/{}/files/mkdir", encode_segment(inside.id)), &body).await?;
    Ok(())
}

async fn send_file(inside: &Inside<'_>, path: &Path, metadata: &Metadata, target: &str, progress: &Arc<Progress>) -> Result<u64> {
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(path, &error))?;
    let mode = format!("&mode={:04o}", metadata.permissions().mode() & 0o777);
    if metadata.len() == 0 {
        let request = inside.client.request(Method::PUT, &inside.address("", target, &mode));
        inside.client.send(request, full(Bytes::new())).await?;
        return Ok(0);
    }
    send(inside, file, target, &mode, progress).await
}

/// Streams `reader` into a file; gives how many bytes went.
async fn send(
    inside: &Inside<'_>,
    reader: impl AsyncRead + Send + 'static,
    target: &str,
    more: &str,
    progress: &Arc<Progress>,
) -> Result<u64> {
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = (Arc::clone(&sent), Arc::clone(progress));
    let stream = ReaderStream::with_capacity(reader, CHUNK).map(move |chunk| {
        chunk.map(|chunk: Bytes| {
            counter.0.fetch_add(chunk.len() as u64, std::sync::atomic::Ordering::Relaxed);
            counter.1.advance(chunk.len() as u64);
            Frame::data(chunk)
        })
    });
    let body: Body = StreamBody::new(stream).boxed_unsync();
    let request = inside.client.request(Method::PUT, &inside.address("", target, more));
    inside.client.send(request, body).await?;
    Ok(sent.load(std::sync::atomic::Ordering::Relaxed))
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot read {}: {error}", path.display()))
}

fn not_utf8(path: &Path) -> Failure {
    Failure::new(format!("{} is not a name in UTF-8: rename it", path.display()))
}
