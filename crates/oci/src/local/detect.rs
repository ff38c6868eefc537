//! What somebody gave us: a layout, an archive of either kind, or a root file system.

use std::io::{self, Read, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use super::files::open_regular;
use super::members::walk;
use crate::decompress::{Compression, decompress};
use crate::{Error, Limits, Result};

/// Directories of a root file system: an image's archive has none of them, so the first one ends the search.
const ROOT_DIRECTORIES: &[&str] = &[
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc", "root", "run", "sbin",
    "srv", "sys", "tmp", "usr", "var",
];

/// Forms in which an image lies on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory with an OCI image layout.
    LayoutDirectory,
    /// Any other directory: a root file system.
    Directory,
    /// A tar of an OCI image layout, compressed or not. `docker save` since Docker 25 writes these.
    OciArchive,
    /// A tar as `docker save` wrote before, compressed or not.
    DockerArchive,
    /// Any other tar, compressed or not: a root file system.
    RootfsTar,
}

/// Looks at `path` and says what it is. Blocks; reads a compressed archive up to the first name that tells, and gives up where
/// that would take more than `limit_bytes` of what it decompresses to.
pub fn detect(path: &Path, limit_bytes: u64) -> Result<Form> {
    let failed = |error: io::Error| Error::io(path, error);
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
        return Ok(if is_layout { Form::LayoutDirectory } else { Form::Directory });
    }
    let mut file = open_regular(path, true).map_err(failed)?;
    let mut magic = Vec::new();
    file.by_ref().take(8).read_to_end(&mut magic).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let mut names = Names::default();
    let found = if Compression::detect(&magic) == Ok(Compression::None) {
        let mut skip = |file: &mut std::fs::File, size_bytes: u64| {
            let size = i64::try_from(size_bytes).map_err(|_| io::ErrorKind::InvalidData)?;
            file.seek(SeekFrom::Current(size)).map(|_| ())
        };
        walk(&mut file, &mut skip, &mut |member| names.see(&member.name))
    } else {
        let mut reader = decompress(file, limit_bytes).map_err(failed)?;
        let mut skip =
            |reader: &mut _, size_bytes: u64| io::copy(&mut Read::take(reader, size_bytes), &mut io::sink()).map(|_| ());
        walk(&mut reader, &mut skip, &mut |member| names.see(&member.name))
    };
    match found {
        Ok(()) => Ok(names.form()),
        Err(error) if Error::within(&error).is_some() || error.kind() != io::ErrorKind::InvalidData => Err(failed(error)),
        Err(error) => {
            let reason = format!("{error}; give an OCI layout, an archive of docker save or of a layout, or a root file system");
            Err(Error::Archive { path: path.to_owned(), reason })
        }
    }
}

#[derive(Default)]
struct Names {
    layout: bool,
    index: bool,
    manifest: bool,
    root: bool,
    seen: usize,
}

impl Names {
    fn see(&mut self, name: &str) -> ControlFlow<()> {
        self.seen += 1;
        match name {
            "oci-layout" => self.layout = true,
            "index.json" => self.index = true,
            "manifest.json" => self.manifest = true,
            _ => {
                let first = name.split('/').next().unwrap_or_default();
                self.root |= ROOT_DIRECTORIES.contains(&first);
            }
        }
        let told = (self.layout && self.index) || self.root || self.seen > Limits::ARCHIVE_MEMBERS_MAX;
        if told { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn form(&self) -> Form {
        if self.root || self.seen > Limits::ARCHIVE_MEMBERS_MAX {
            Form::RootfsTar
        } else if self.layout && self.index {
            Form::OciArchive
        } else if self.manifest {
            Form::DockerArchive
        } else {
            Form::RootfsTar
        }
    }
}
