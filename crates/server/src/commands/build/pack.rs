//! A directory as a tar archive, without what its `.dockerignore` leaves out.

use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sandbank_build::Ignore;
use tar::{Builder, EntryType, Header};

use crate::failure::{Failure, Result};

/// Writes the archive to its end. The same directory makes the same archive: names in order, no times, no owners. Blocks.
pub(super) fn pack(top: &Path, ignore: &Ignore, to: impl Write) -> Result<()> {
    let mut packer = Packer { builder: Builder::new(to), top, ignore };
    packer.directory("")?;
    // A server that refused the rest has said why.
    let _ = packer.builder.into_inner().and_then(|mut to| to.flush());
    Ok(())
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    top: &'a Path,
    ignore: &'a Ignore,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, path: &str) -> Result<()> {
        let directory = self.top.join(path);
        let unreadable = |error: io::Error| Failure::new(format!("cannot read {}: {error}", directory.display()));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let name = name
                .into_string()
                .map_err(|name| Failure::new(format!("{} is not a name in UTF-8: rename it", directory.join(name).display())))?;
            names.push(name);
        }
        names.sort();
        for name in names {
            let below = if path.is_empty() { name } else { format!("{path}/{name}") };
            let metadata = std::fs::symlink_metadata(self.top.join(&below))
                .map_err(|error| Failure::new(format!("cannot read {}: {error}", self.top.join(&below).display())))?;
            let ignored = self.ignore.ignores(&below);
            if !ignored {
                self.entry(&below, &metadata)?;
            }
            if metadata.is_dir() && (!ignored || self.ignore.may_hold_exceptions()) {
                self.directory(&below)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, metadata: &Metadata) -> Result<()> {
        let real = self.top.join(path);
        let failed = |error: io::Error| Failure::new(format!("cannot pack {}: {error}", real.display()));
        let mut header = Header::new_gnu();
        header.set_mode(metadata.permissions().mode() & 0o7777);
        header.set_size(0);
        let packed = if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, format!("{path}/"), io::empty())
        } else if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = std::fs::read_link(&real).map_err(failed)?;
            self.builder.append_link(&mut header, path, target)
        } else if metadata.is_file() {
            let file = std::fs::File::open(&real).map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            header.set_size(size);
            // A file that grows while it is read must not break the archive.
            self.builder.append_data(&mut header, path, io::Read::take(file, size))
        } else {
            // Sockets, pipes and devices are no content.
            return Ok(());
        };
        match packed {
            // The server stopped reading: its answer says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            packed => packed.map_err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_archive_holds_what_is_not_ignored_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        ["b.txt", "a.txt", "logs/x.log", "logs/keep.log", "target/deep/out"].into_iter().for_each(put);
        std::os::unix::fs::symlink("a.txt", dir.path().join("link")).unwrap();
        let ignore = Ignore::parse("target\nlogs\n!logs/keep.log\n").unwrap();
        let mut archive = Vec::new();
        pack(dir.path(), &ignore, &mut archive).unwrap();
        let mut again = Vec::new();
        pack(dir.path(), &ignore, &mut again).unwrap();
        assert!(archive == again, "the same directory makes the same archive");
        let mut reader = tar::Archive::new(archive.as_slice());
        let names: Vec<String> =
            reader.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["a.txt", "b.txt", "link", "logs/keep.log"]);
    }
}
