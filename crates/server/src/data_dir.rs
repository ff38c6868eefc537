//! The data directory: one server at a time, the admin key, the key that seals secrets, and where clients find the server.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sandbank_control::SecretKey;
use serde::{Deserialize, Serialize};

use crate::config::check_admin_key;
use crate::failure::{Failure, Result};

/// Most bytes read of a small file of ours.
const SMALL_FILE_BYTES_MAX: u64 = 4096;

/// A data directory that this process alone uses. The lock ends with the process, however it ends.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// What clients on this machine read to find the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    /// Base address, such as `http://127.0.0.1:7070`.
    pub(crate) url: String,
    /// Address it listens on.
    pub(crate) listen: SocketAddr,
    /// Its process id.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
}

impl ServerFile {
    /// For a server of this process that listens on `listen`. A wildcard address is reached over loopback.
    pub(crate) fn here(listen: SocketAddr) -> Self {
        let mut reach = listen;
        if listen.ip().is_unspecified() {
            reach.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        Self { url: format!("http://{reach}"), listen, pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

impl DataDir {
    /// Makes the directory (0700) where it is missing, and takes it for this process.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Failure::new(format!("cannot use the data directory {}: {error}", path.display()));
        make_private(path).map_err(failed)?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The admin key kept here, or a fresh one made of `random`. The flag says whether it is fresh.
    pub(crate) fn admin_key(&self, random: [u8; 32]) -> Result<(String, bool)> {
        let path = key_path(&self.path);
        match read_key(&path)? {
            Some(key) => {
                tighten(&path, "admin key")?;
                Ok((key, false))
            }
            None => {
                let key = format!("agbx_{}", hex(&random));
                write_private(&path, format!("{key}\n").as_bytes())
                    .map_err(|error| Failure::new(format!("cannot keep the admin key in {}: {error}", path.display())))?;
                Ok((key, true))
            }
        }
    }

    /// The key that seals secrets, kept here since a first start, or made of `random` now.
    pub(crate) fn secret_key(&self, random: [u8; 32]) -> Result<SecretKey> {
        let path = self.path.join("secret.key");
        if let Some(key) = read_secret_key(&path)? {
            tighten(&path, "secret key")?;
            return Ok(key);
        }
        write_private(&path, format!("{}\n", hex(&random)).as_bytes())
            .map_err(|error| Failure::new(format!("cannot keep the secret key in {}: {error}", path.display())))?;
        Ok(SecretKey::new(random))
    }

    /// What a file of this name holds, which others may not read; `None` when there is none.
    pub(crate) fn private(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        let text = read_small(&path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        if text.is_some() {
            tighten(&path, name)?;
        }
        Ok(text)
    }

    /// Keeps a file that others may not read.
    pub(crate) fn keep_private(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        write_private(&path, text.as_bytes()).map_err(|error| Failure::new(format!("cannot keep {}: {error}", path.display())))
    }

    /// An empty directory for files on their way through: what an earlier server left in it is removed.
    pub(crate) fn scratch(&self) -> Result<PathBuf> {
        let path = self.path.join("scratch");
        let failed = |error: io::Error| Failure::new(format!("cannot use the directory {}: {error}", path.display()));
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        make_private(&path).map_err(failed)?;
        Ok(path)
    }

    /// Tells clients where the server listens.
    pub(crate) fn publish(&self, server: &ServerFile) -> Result<()> {
        let path = server_path(&self.path);
        let failed = |detail: &dyn std::fmt::Display| Failure::new(format!("cannot write {}: {detail}", path.display()));
        let body = serde_json::to_vec(server).map_err(|error| failed(&error))?;
        write_private(&path, &body).map_err(|error| failed(&error))
    }

    /// Takes the notice down again; a notice that is gone already is fine.
    pub(crate) fn unpublish(&self) {
        if let Err(error) = std::fs::remove_file(server_path(&self.path))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove server.json");
        }
    }
}

/// What a client finds in `path`: the server's notice and the admin key, as far as they are there.
pub(crate) fn find_server(path: &Path) -> Result<(Option<ServerFile>, Option<String>)> {
    let notice = server_path(path);
    let server =
        match read_small(&notice) {
            Ok(Some(text)) => Some(serde_json::from_str(&text).map_err(|error| {
                Failure::new(format!("{} cannot be understood ({error}): restart the server", notice.display()))
            })?),
            Ok(None) => None,
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot read {}: {error}; run this as the user that runs the server, or set SANDBANK_URL and SANDBANK_KEY",
                    notice.display()
                )));
            }
        };
    Ok((server, read_key(&key_path(path))?))
}

/// The key that seals secrets, from a file that holds nothing else; `None` when there is no such file.
pub(crate) fn read_secret_key(path: &Path) -> Result<Option<SecretKey>> {
    let text =
        read_small(path).map_err(|error| Failure::new(format!("cannot read the secret key {}: {error}", path.display())))?;
    text.map(|text| parse_secret_key(&text, &format!("what {} holds", path.display()))).transpose()
}

/// 64 hexadecimal digits. `what` names the place where they stand; what stands there is never shown.
pub(crate) fn parse_secret_key(text: &str, what: &str) -> Result<SecretKey> {
    SecretKey::from_hex(text.trim()).ok_or_else(|| {
        Failure::new(format!("{what} is not a secret key: give 64 hexadecimal digits, such as `openssl rand -hex 32` makes"))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_path(dir: &Path) -> PathBuf {
    dir.join("admin.key")
}

fn server_path(dir: &Path) -> PathBuf {
    dir.join("server.json")
}

fn in_use(path: &Path, lock: &mut File) -> Failure {
    let mut text = String::new();
    let owner = match lock.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("pid {}", text.trim()),
        _ => "another process".to_owned(),
    };
    Failure::new(format!(
        "the data directory {} is already in use by {owner}: stop that server, or give this one its own --data-dir",
        path.display()
    ))
}

/// Makes `path` and its parents; `path` itself is for its owner only.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => tighten_dir(path),
        other => other,
    }
}

/// A directory that others could read holds secrets from now on.
fn tighten_dir(path: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(path)?.mode();
    if mode & 0o077 == 0 { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(0o700)) }
}

fn tighten(path: &Path, what: &str) -> Result<()> {
    let failed = |error: io::Error| Failure::new(format!("cannot protect {}: {error}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the {what} was readable by others: set to 0600; make a new one if it may have been seen");
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<Option<String>> {
    let text =
        read_small(path).map_err(|error| Failure::new(format!("cannot read the admin key {}: {error}", path.display())))?;
    let Some(text) = text else { return Ok(None) };
    let key = text.trim().to_owned();
    check_admin_key(&key, &format!("what {} holds", path.display()))?;
    Ok(Some(key))
}

fn read_small(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Puts `body` at `path` in one step, never readable by others, and on disk when this returns. The caller holds the lock, so
/// the temporary name is its own.
fn write_private(path: &Path, body: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(body)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_first_start_makes_a_key_and_later_ones_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let data = DataDir::open(&path).unwrap();
        let (key, fresh) = data.admin_key([7; 32]).unwrap();
        assert!(fresh);
        assert_eq!(key, format!("agbx_{}", "07".repeat(32)));
        assert_eq!(data.admin_key([8; 32]).unwrap(), (key, false));
        assert_eq!(std::fs::metadata(path.join("admin.key")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_server_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("already in use by pid {}", std::process::id())), "{refused}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_key_that_others_could_read_is_protected_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.admin_key([1; 32]).unwrap();
        let path = dir.path().join("admin.key");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        data.admin_key([1; 32]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("admin.key"), "agbx_tooshort").unwrap();
        let refused = data.admin_key([1; 32]).unwrap_err().to_string();
        assert!(refused.contains("admin.key") && !refused.contains("tooshort"), "{refused}");
    }

    #[test]
    fn a_secret_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let path = dir.path().join("secret.key");
        data.secret_key([0xa1; 32]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", "a1".repeat(32)));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        data.secret_key([2; 32]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", "a1".repeat(32)), "never replaced");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_secret_key_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        for damaged in ["", "abad1dea"] {
            std::fs::write(dir.path().join("secret.key"), damaged).unwrap();
            let refused = data.secret_key([1; 32]).unwrap_err().to_string();
            assert!(refused.contains("secret.key") && !refused.contains("abad1dea"), "{refused}");
        }
    }

    #[test]
    fn clients_find_the_server_and_the_key() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_server(dir.path()).unwrap(), (None, None));
        let data = DataDir::open(dir.path()).unwrap();
        let (key, _) = data.admin_key([1; 32]).unwrap();
        let notice = ServerFile::here("0.0.0.0:7070".parse().unwrap());
        assert_eq!(notice.url, "http://127.0.0.1:7070");
        data.publish(&notice).unwrap();
        assert_eq!(find_server(dir.path()).unwrap(), (Some(notice), Some(key)));
        data.unpublish();
        assert_eq!(find_server(dir.path()).unwrap().0, None);
    }
}
