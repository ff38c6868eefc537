//! An uploaded archive: what is in it, checked, and where each file's bytes are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use sandbank_build::clean_path;
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use crate::background::blocking;
use crate::{Error, Result};

/// Most entries.
const ENTRIES_MAX: usize = 200_000;
/// Most bytes of all names and link targets.
const NAMES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that are read at once.
const PIECE: usize = 256 * 1024;
const DIRECTORY_MODE: u32 = 0o755;

/// An archive whose every entry was looked at.
#[derive(Debug)]
pub(super) struct Upload {
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) kind: EntryKind,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    Dir,
    /// A regular file: where its bytes begin, how many, their digest.
    File {
        at: u64,
        size: u64,
        digest: String,
    },
    Link {
        target: String,
    },
}

impl Upload {
    /// Reads an archive to its end. Blocks.
    pub(super) fn read(file: File) -> Result<Self> {
        let file = Arc::new(file);
        let mut entries = BTreeMap::from([(String::new(), Entry { mode: DIRECTORY_MODE, kind: EntryKind::Dir })]);
        let mut names = 0;
        let mut archive = Archive::new(BufReader::with_capacity(PIECE, SharedFile { file: Arc::clone(&file), at: 0 }));
        for member in archive.entries().map_err(broken)? {
            let mut member = member.map_err(broken)?;
            let path = String::from_utf8(member.path_bytes().into_owned())
                .map_err(|_| Error::invalid("the upload has a name that is not UTF-8"))?;
            let path = clean_path(&path).map_err(|error| Error::invalid(format!("the upload is refused: {error}")))?;
            let Some(entry) = entry_of(&mut member, &path, &entries)? else { continue };
            names += path.len();
            if let EntryKind::Link { target } = &entry.kind {
                names += target.len();
            }
            if entries.len() >= ENTRIES_MAX || names > NAMES_MAX {
                return Err(Error::invalid(format!("the upload has more than {ENTRIES_MAX} entries")));
            }
            add_parents(&mut entries, &path)?;
            entries.insert(path, entry);
        }
        Ok(Self { file, entries })
    }

    pub(super) const fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// A piece of a file's bytes.
    pub(super) async fn piece(&self, at: u64, len: u64) -> Result<Bytes> {
        let (file, len) = (Arc::clone(&self.file), usize::try_from(len).unwrap_or(PIECE).min(PIECE));
        let read = blocking(move || {
            let mut piece = vec![0; len];
            file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
        });
        read.await?.map_err(broken)
    }
}

/// What a member is; `None` for what says something of others.
fn entry_of(member: &mut tar::Entry<'_, impl Read>, path: &str, before: &BTreeMap<String, Entry>) -> Result<Option<Entry>> {
    let refused = |why: &str| Error::invalid(format!("the upload is refused: {path:?} {why}"));
    let mode = member.header().mode().map_err(broken)? & 0o7777;
    let target = |member: &tar::Entry<'_, _>| {
        let target = member.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        String::from_utf8(target).map_err(|_| refused("leads to a name that is not UTF-8"))
    };
    let kind = match member.header().entry_type() {
        EntryType::Directory => EntryKind::Dir,
        EntryType::Regular | EntryType::Continuous => {
            let (at, size) = (member.raw_file_position(), member.size());
            let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; PIECE], size);
            while left > 0 {
                let got = member.read(&mut buffer).map_err(broken)?;
                if got == 0 {
                    return Err(refused("is shorter than the archive says"));
                }
                hash.update(&buffer[..got]);
                left = left.saturating_sub(got as u64);
            }
            EntryKind::File { at, size, digest: super::hex(&hash.finalize()) }
        }
        EntryType::Symlink => EntryKind::Link { target: target(member)? },
        EntryType::Link => {
            let name = clean_path(&target(member)?).map_err(|error| Error::invalid(format!("the upload is refused: {error}")))?;
            match before.get(&name).map(|entry| &entry.kind) {
                Some(kind @ EntryKind::File { .. }) => kind.clone(),
                _ => return Err(refused("is a hard link to no file before it")),
            }
        }
        EntryType::XGlobalHeader => return Ok(None),
        _ => return Err(refused("is no file, directory or link")),
    };
    Ok(Some(Entry { mode, kind }))
}

/// Directories that the archive does not name itself.
fn add_parents(entries: &mut BTreeMap<String, Entry>, path: &str) -> Result<()> {
    for (end, _) in path.match_indices('/') {
        match entries.get(&path[..end]).map(|entry| &entry.kind) {
            Some(EntryKind::Dir) => {}
            Some(_) => {
                return Err(Error::invalid(format!(
                    "the upload is refused: {path:?} lies below {:?}, which is no directory",
                    &path[..end]
                )));
            }
            None => {
                entries.insert(path[..end].to_owned(), Entry { mode: DIRECTORY_MODE, kind: EntryKind::Dir });
            }
        }
    }
    Ok(())
}

fn broken(error: std::io::Error) -> Error {
    Error::invalid(format!("the upload is no tar archive that can be read: {error}"))
}

/// Reads a file that others read too, from its own position.
struct SharedFile {
    file: Arc<File>,
    at: u64,
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
