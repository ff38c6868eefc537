//! Uploads that builds copy from: archives in the data directory, one directory a tenant.

use std::fs::{DirEntry, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use sandbank_model::{Role, TenantId, Timestamp};
use sha2::{Digest, Sha256};

use super::archive::Upload;
use crate::background::blocking;
use crate::control::{Control, Inner};
use crate::types::{BuildContext, Caller};
use crate::{Error, ErrorKind, Result};

/// Uploads of one tenant may have so many times the bytes that one may have; then the oldest go.
const TENANT_SHARE: u64 = 4;
/// What the names of unfinished uploads begin with.
const INCOMING: &str = ".incoming-";

/// An upload under way. Dropping it before `finish` leaves nothing.
pub struct ContextWriter {
    inner: std::sync::Arc<Inner>,
    tenant: TenantId,
    path: PathBuf,
    file: Option<File>,
    hash: Sha256,
    size: u64,
}

impl std::fmt::Debug for ContextWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContextWriter").finish_non_exhaustive()
    }
}

impl Control {
    /// Begins an upload: a tar archive, plain or compressed with gzip.
    pub async fn context_begin(&self, caller: &Caller) -> Result<ContextWriter> {
        caller.require(Role::Member, "uploading files for builds")?;
        let inner = &self.inner;
        let (tenant, dir) = (caller.principal.tenant, inner.contexts_of(caller.principal.tenant)?);
        let path = dir.join(format!("{INCOMING}{}", super::hex(&inner.random::<16>())));
        let made = blocking({
            let path = path.clone();
            move || {
                std::fs::create_dir_all(&dir).and_then(|()| File::options().read(true).write(true).create_new(true).open(path))
            }
        });
        let file = made.await?.map_err(|error| failed("an upload cannot be kept", &error))?;
        Ok(ContextWriter { inner: std::sync::Arc::clone(inner), tenant, path, file: Some(file), hash: Sha256::new(), size: 0 })
    }

    /// Whether this upload is there for the caller.
    pub async fn context_exists(&self, caller: &Caller, id: &str) -> Result<bool> {
        check_id(id)?;
        let path = self.inner.contexts_of(caller.principal.tenant)?.join(file_name(id));
        blocking(move || path.exists()).await
    }
}

impl ContextWriter {
    /// Adds a piece.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.size += data.len() as u64;
        let max = self.inner.settings.builds.context_bytes_max;
        if self.size > max {
            return Err(too_large(max));
        }
        self.hash.update(&data);
        let Some(mut file) = self.file.take() else { return Err(Error::invalid("the upload has failed already")) };
        let (file, written) = blocking(move || {
            let written = file.write_all(&data);
            (file, written)
        })
        .await?;
        self.file = Some(file);
        written.map_err(|error| failed("an upload cannot be kept", &error))
    }

    /// Checks and keeps it, by the digest of what was sent, or under the name that is given (64 hexadecimal digits).
    pub async fn finish(mut self, id: Option<String>) -> Result<BuildContext> {
        let digest = super::hex(&std::mem::take(&mut self.hash).finalize());
        let id = id.unwrap_or(digest);
        check_id(&id)?;
        let Some(file) = self.file.take() else { return Err(Error::invalid("the upload has failed already")) };
        let dir = self.inner.contexts_of(self.tenant)?;
        let (settings, now) = (self.inner.settings.builds.clone(), self.inner.now());
        let (from, to) = (self.path.clone(), dir.join(file_name(&id)));
        let size_bytes = blocking(move || {
            let file = plain(file, &from, settings.context_bytes_max)?;
            let size = file.metadata().map_err(|error| failed("an upload cannot be read", &error))?.len();
            let at = UNIX_EPOCH + Duration::from_millis(now.as_millis());
            file.set_modified(at).and_then(|()| file.sync_all()).map_err(|error| failed("an upload cannot be kept", &error))?;
            Upload::read(file)?;
            std::fs::rename(&from, &to).map_err(|error| failed("an upload cannot be kept", &error))?;
            let most = settings.context_bytes_max.saturating_mul(TENANT_SHARE);
            sweep(&dir, now, settings.context_life, most);
            Ok::<_, Error>(size)
        })
        .await??;
        Ok(BuildContext { id, size_bytes })
    }
}

impl Drop for ContextWriter {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Inner {
    fn contexts_of(&self, tenant: TenantId) -> Result<PathBuf> {
        let none = || Error::new(ErrorKind::Unsupported, "this server keeps no uploads for builds");
        Ok(self.settings.builds.contexts_dir.as_ref().ok_or_else(none)?.join(tenant.to_string()))
    }

    /// Opens an upload of this tenant. What was opened stays readable when the upload is dropped.
    pub(super) async fn context_open(&self, tenant: TenantId, id: &str) -> Result<Upload> {
        check_id(id)?;
        let path = self.contexts_of(tenant)?.join(file_name(id));
        let missing = format!("there is no upload {id} any more: send it again (POST /v1/contexts)");
        blocking(move || match File::open(&path) {
            Ok(file) => Upload::read(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::invalid(missing)),
            Err(error) => Err(failed("an upload cannot be read", &error)),
        })
        .await?
    }

    /// Drops uploads that are older than they are kept.
    pub(crate) async fn sweep_contexts(&self) {
        let Some(dir) = self.settings.builds.contexts_dir.clone() else { return };
        let (now, life) = (self.now(), self.settings.builds.context_life);
        let swept = blocking(move || {
            entries_of(&dir).for_each(|tenant| sweep(&tenant.path(), now, life, u64::MAX));
        });
        // On the way down the next start does it.
        let _ = swept.await;
    }

    /// Drops uploads that an earlier server had not finished.
    pub(super) async fn drop_unfinished_contexts(&self) -> Result<()> {
        let Some(dir) = self.settings.builds.contexts_dir.clone() else { return Ok(()) };
        blocking(move || {
            for tenant in entries_of(&dir) {
                for entry in entries_of(&tenant.path()).filter(is_unfinished) {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        })
        .await
    }
}

fn is_unfinished(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(INCOMING)
}

fn entries_of(dir: &Path) -> impl Iterator<Item = DirEntry> {
    std::fs::read_dir(dir).into_iter().flatten().flatten()
}

/// Drops what is too old, then the oldest until what is left has at most so many bytes.
fn sweep(dir: &Path, now: Timestamp, life: Duration, bytes_max: u64) {
    let now = UNIX_EPOCH + Duration::from_millis(now.as_millis());
    let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in entries_of(dir) {
        let Ok(metadata) = entry.metadata() else { continue };
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        if is_unfinished(&entry) {
            continue;
        }
        if now.duration_since(modified).unwrap_or_default() > life {
            let _ = std::fs::remove_file(entry.path());
        } else {
            kept.push((modified, metadata.len(), entry.path()));
        }
    }
    kept.sort();
    let mut total: u64 = kept.iter().map(|(_, size, _)| size).sum();
    // The newest always stays.
    kept.pop();
    for (_, size, path) in kept {
        if total <= bytes_max {
            return;
        }
        let _ = std::fs::remove_file(path);
        total -= size;
    }
}

/// The archive without compression, at the same path.
fn plain(mut file: File, path: &Path, max: u64) -> Result<File> {
    let unreadable = |error: std::io::Error| failed("an upload cannot be read", &error);
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let got = file.read(&mut magic).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    if magic[..got] != [0x1f, 0x8b] {
        return Ok(file);
    }
    std::fs::remove_file(path).map_err(unreadable)?;
    let mut unpacked = File::options().read(true).write(true).create_new(true).open(path).map_err(unreadable)?;
    let mut source = MultiGzDecoder::new(file).take(max.saturating_add(1));
    let size = std::io::copy(&mut source, &mut unpacked).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            Error::invalid(format!("the upload is not whole: {error}"))
        }
        _ => failed("an upload cannot be kept", &error),
    })?;
    if size > max { Err(too_large(max)) } else { Ok(unpacked) }
}

fn too_large(max: u64) -> Error {
    Error::invalid(format!("the upload has more than {max} bytes: leave files out with a .dockerignore"))
}

fn check_id(id: &str) -> Result<()> {
    if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(());
    }
    let shown: String = id.chars().take(80).collect();
    Err(Error::invalid(format!("{shown:?} names no upload: its id has 64 hexadecimal digits")))
}

fn file_name(id: &str) -> String {
    format!("{id}.tar")
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what}: {error}"))
}
