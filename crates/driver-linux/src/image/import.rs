//! Root filesystems from outside.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use sandbank_driver::{DriverError, ImportSource, NewLayers};
use sandbank_model::ImageConfig;

use super::ImageStore;
use super::archive::Archive;
use super::copy::{Copied, Copier, CopyAs, open_source};
use super::error::{failed, invalid, shown};
use super::members::{End, Members};
use super::staging::{Lasting, Staging, random_name};
use super::unpack::{UnpackAs, Unpacker};

/// How much may be imported or committed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportLimits {
    /// Files, directories and links.
    pub entries_max: u64,
    /// Bytes on disk, and bytes of archive after decompression.
    pub bytes_max: u64,
    /// Bytes that one file may claim to have, holes included.
    pub file_bytes_max: u64,
}

impl Default for ImportLimits {
    /// 4 million entries, 256 GiB in all, 1 TiB for one (sparse) file.
    fn default() -> Self {
        Self { entries_max: 4_000_000, bytes_max: 256 << 30, file_bytes_max: 1 << 40 }
    }
}

impl ImportLimits {
    /// Most bytes of an archive after decompression: headers and padding take at most a few blocks an entry more than the files.
    pub(super) fn stream_bytes_max(&self) -> u64 {
        self.bytes_max.saturating_add(self.entries_max.saturating_mul(2048)).saturating_add(1 << 20)
    }

    pub(super) fn check_entries(&self, entries: u64) -> Result<(), DriverError> {
        if entries > self.entries_max {
            return Err(invalid(format!("there are more than {} files, which is the limit", self.entries_max)));
        }
        Ok(())
    }

    pub(super) fn check_bytes(&self, bytes: u64) -> Result<(), DriverError> {
        if bytes > self.bytes_max {
            return Err(invalid(format!("the files have more than {} bytes together, which is the limit", self.bytes_max)));
        }
        Ok(())
    }

    pub(super) fn check_file_size(&self, name: &[u8], bytes: u64) -> Result<(), DriverError> {
        if bytes > self.file_bytes_max {
            let (name, max) = (shown(name), self.file_bytes_max);
            return Err(invalid(format!("{name} claims {bytes} bytes; the limit for one file is {max}")));
        }
        Ok(())
    }
}

/// Grows when unpacking changes what comes of the same archive.
const UNPACK_VERSION: u32 = 2;

/// Directories that every image has, because the launcher mounts over them or puts sockets and files there, with their modes.
const NEEDED_DIRS: [(&str, u32); 5] = [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)];

impl ImageStore {
    /// Imports a root filesystem as one layer.
    ///
    /// Modes (with set-user-id bits), owners, times, hard links, symbolic links, named pipes, holes, users' attributes and file capabilities
    /// are kept; devices and sockets are left out. A directory is taken without what is mounted below it.
    ///
    /// # Errors
    /// [`DriverError::Invalid`] with the offending name for what cannot be used; nothing is left of a failed import.
    pub fn import(&self, source: &ImportSource, limits: &ImportLimits) -> Result<NewLayers, DriverError> {
        let staging = Staging::new(self)?;
        let tree = staging.tree()?;
        let (id, bytes, skipped) = match source {
            ImportSource::Archive(path) => import_archive(path, &tree, limits)?,
            ImportSource::Directory(path) => import_directory(path, &tree, &staging, limits)?,
        };
        check_is_rootfs(&tree)?;
        make_needed_dirs(&tree)?;
        if skipped > 0 {
            tracing::warn!(skipped, "devices and sockets were left out of the imported image");
        }
        let layer = staging.publish(self, &id, bytes, Lasting::OnDisk)?;
        Ok(NewLayers { layers: vec![layer], on_host: false, config: ImageConfig::default() })
    }
}

/// Unpacks an archive; its digest names the layer, so that the same archive is kept once.
fn import_archive(path: &Path, tree: &OwnedFd, limits: &ImportLimits) -> Result<(String, u64, u64), DriverError> {
    let mut members = Members::new(Archive::open(path, limits.stream_bytes_max())?, End::Marked);
    let mut unpacker = Unpacker::new(tree, limits, UnpackAs::Rootfs);
    unpacker.unpack(&mut members)?;
    let (bytes, skipped) = (unpacker.bytes, unpacker.skipped);
    let digest = members.into_inner().finish()?;
    Ok((format!("sha256-{digest}-{UNPACK_VERSION}"), bytes, skipped))
}

fn import_directory(
    path: &Path,
    tree: &OwnedFd,
    staging: &Staging,
    limits: &ImportLimits,
) -> Result<(String, u64, u64), DriverError> {
    let from = open_source(path).map_err(|error| match error {
        Errno::NOENT => invalid(format!("there is no directory {}", path.display())),
        Errno::NOTDIR => invalid(format!("{} is not a directory", path.display())),
        error => failed(|| format!("open {}", path.display()))(error),
    })?;
    let links = staging.links()?;
    let mut copied = Copied::default();
    let to = tree.try_clone().map_err(failed(|| "open the new layer".to_owned()))?;
    Copier { links: &links, copy_as: CopyAs::Rootfs, limits, copied: &mut copied }.copy(from, to, &[])?;
    Ok((format!("dir-{}", random_name()?), copied.bytes, copied.skipped))
}

/// Refuses what is an archive of an image rather than of a root filesystem, and what is empty.
fn check_is_rootfs(tree: &OwnedFd) -> Result<(), DriverError> {
    let has = |name: &str| rustix::fs::statat(tree, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let has_system = ["bin", "usr", "etc", "lib"].into_iter().any(has);
    if !has_system && (has("manifest.json") || has("repositories")) {
        return Err(invalid(
            "this is no root filesystem but the content of a `docker save` archive: import the archive itself, or pack it again \
             with `tar -C DIR -cf image.tar .`",
        ));
    }
    if !has_system && has("oci-layout") {
        return Err(invalid(
            "this is no root filesystem but a part of an OCI image layout, whose index.json is missing: copy the layout again, \
             with `skopeo copy` for example",
        ));
    }
    let step = || "list the new layer".to_owned();
    let mut entries = rustix::fs::Dir::read_from(tree).map_err(failed(step))?;
    while let Some(entry) = entries.read() {
        if !super::remove::is_dots(entry.map_err(failed(step))?.file_name()) {
            return Ok(());
        }
    }
    Err(invalid("there is nothing in it"))
}

fn make_needed_dirs(tree: &OwnedFd) -> Result<(), DriverError> {
    for (name, mode) in NEEDED_DIRS {
        let step = || format!("make /{name} of the new layer");
        match rustix::fs::statat(tree, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {}
            Ok(_) => return Err(invalid(format!("/{name} of the root filesystem must be a directory, not a file or a link"))),
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(tree, name, Mode::RWXU).map_err(failed(step))?;
                rustix::fs::chmodat(tree, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed(step))?;
            }
            Err(error) => return Err(failed(step)(error)),
        }
    }
    Ok(())
}
