//! The members of a tar file, found by walking its headers once.
//!
//! Not by `tar::Archive`: that one reads long names into memory whatever length they claim, and walks only what it can unpack.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::ControlFlow;

use tar::EntryType;

use crate::Limits;

const BLOCK: u64 = 512;
/// Bytes of a name that is kept outside of its header, or of a set of PAX records.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Headers that a member has before its own.
const EXTENSIONS_MAX: usize = 16;
/// Bytes of all names together.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// Symlinks that lead to one another.
const LINKS_MAX: usize = 8;

/// One member.
pub(crate) struct Member {
    /// Without `./` in front; as written otherwise.
    pub(crate) name: String,
    pub(crate) kind: EntryType,
    /// Where a link leads.
    link: Option<String>,
    offset: u64,
    size_bytes: u64,
}

/// Where a member's content is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
}

/// Regular members and links by name.
#[derive(Debug, Default)]
pub(crate) struct Members {
    files: HashMap<String, Range>,
    links: HashMap<String, String>,
}

impl Members {
    /// Walks `reader`, an uncompressed tar; `skip` passes over content. The later of two members of one name counts, as it does
    /// when unpacking.
    pub(crate) fn index<R: Read>(reader: &mut R, skip: &mut dyn FnMut(&mut R, u64) -> io::Result<()>) -> io::Result<Self> {
        let mut members = Self::default();
        let (mut count, mut names_bytes) = (0, 0);
        let mut too_many = false;
        walk(reader, skip, &mut |member| {
            count += 1;
            names_bytes += member.name.len() + member.link.as_ref().map_or(0, String::len);
            too_many = count > Limits::ARCHIVE_MEMBERS_MAX || names_bytes > NAMES_BYTES_MAX;
            if too_many {
                return ControlFlow::Break(());
            }
            members.add(member);
            ControlFlow::Continue(())
        })?;
        if too_many {
            return Err(invalid(format!(
                "has more than {} members, or names of more than {NAMES_BYTES_MAX} bytes: no image has so many parts",
                Limits::ARCHIVE_MEMBERS_MAX
            )));
        }
        Ok(members)
    }

    fn add(&mut self, member: Member) {
        let Some(name) = resolve("", &member.name) else { return };
        match (member.kind, member.link) {
            (EntryType::Regular | EntryType::Continuous, _) => {
                self.links.remove(&name);
                self.files.insert(name, Range { offset: member.offset, size_bytes: member.size_bytes });
            }
            (EntryType::Symlink, Some(link)) => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                if let Some(target) = resolve(directory, &link) {
                    self.files.remove(&name);
                    self.links.insert(name, target);
                }
            }
            (EntryType::Link, Some(link)) => {
                if let Some(target) = resolve("", &link) {
                    self.files.remove(&name);
                    self.links.insert(name, target);
                }
            }
            _ => {}
        }
    }

    /// The content of the member of that name; links are followed within the archive only.
    pub(crate) fn get(&self, name: &str) -> Option<Range> {
        let mut name = resolve("", name)?;
        for _ in 0..=LINKS_MAX {
            if let Some(range) = self.files.get(&name) {
                return Some(*range);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }
}

/// `path` seen from `directory`, without `.` and `..`; `None` where it leads out of the archive.
fn resolve(directory: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/")).filter(|path| !path.is_empty())
}

/// Calls `visit` for every member until it breaks off or the archive ends.
pub(crate) fn walk<R: Read>(
    reader: &mut R,
    skip: &mut dyn FnMut(&mut R, u64) -> io::Result<()>,
    visit: &mut dyn FnMut(Member) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut position = 0;
    let mut pending = Extension::default();
    let mut extensions = 0;
    while let Some(header) = read_header(reader)? {
        position += BLOCK;
        let kind = header.entry_type();
        let mut size_bytes = header.entry_size().map_err(|_| invalid("has a member without a readable size".to_owned()))?;
        if matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader) {
            let content = read_extension(reader, size_bytes)?;
            position += padded(size_bytes);
            pending.add(kind, &content);
            extensions += 1;
            if extensions > EXTENSIONS_MAX {
                return Err(invalid("has a member with too many headers".to_owned()));
            }
            continue;
        }
        extensions = 0;
        let extension = std::mem::take(&mut pending);
        size_bytes = extension.size_bytes.unwrap_or(size_bytes);
        if kind == EntryType::GNUSparse {
            position += skip_sparse_map(reader, &header)?;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = extension.name.unwrap_or_else(|| text(&header.path_bytes()));
        let link = extension.link.or_else(|| header.link_name_bytes().map(|link| text(&link)));
        let has_content = !matches!(kind, EntryType::Link | EntryType::Symlink | EntryType::Directory | EntryType::Char)
            && !matches!(kind, EntryType::Block | EntryType::Fifo);
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if kind != EntryType::XGlobalHeader && visit(Member { name, kind, link, offset: position, size_bytes }).is_break() {
            return Ok(());
        }
        if has_content {
            let whole = padded(size_bytes);
            skip(reader, whole)?;
            position = position.checked_add(whole).ok_or_else(|| invalid("has a member of an impossible size".to_owned()))?;
        }
    }
    Ok(())
}

/// What the next member's header does not hold itself.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    link: Option<String>,
    size_bytes: Option<u64>,
}

impl Extension {
    fn add(&mut self, kind: EntryType, content: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        match kind {
            EntryType::GNULongName => self.name = Some(text(content)),
            EntryType::GNULongLink => self.link = Some(text(content)),
            _ => {
                for extension in tar::PaxExtensions::new(content).flatten() {
                    match extension.key_bytes() {
                        b"path" => self.name = Some(text(extension.value_bytes())),
                        b"linkpath" => self.link = Some(text(extension.value_bytes())),
                        b"size" => self.size_bytes = extension.value().ok().and_then(|size| size.parse().ok()),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// The next header; `None` at the end, with or without the blocks of zeros that should be there.
fn read_header<R: Read>(reader: &mut R) -> io::Result<Option<tar::Header>> {
    let mut header = tar::Header::new_old();
    let bytes = header.as_mut_bytes();
    let mut filled = 0;
    while filled < bytes.len() {
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled == 0 || (filled == bytes.len() && bytes.iter().all(|byte| *byte == 0)) {
        return Ok(None);
    }
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    // The checksum's own field counts as eight spaces.
    let actual = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
    if filled < bytes.len() || header.cksum().ok() != Some(actual) {
        return Err(invalid("is no tar archive, or a damaged one".to_owned()));
    }
    Ok(Some(header))
}

fn read_extension<R: Read>(reader: &mut R, size_bytes: u64) -> io::Result<Vec<u8>> {
    if size_bytes > EXTENSION_BYTES_MAX {
        return Err(invalid(format!("has a member whose name has more than {EXTENSION_BYTES_MAX} bytes")));
    }
    let mut content = Vec::new();
    reader.take(padded(size_bytes)).read_to_end(&mut content)?;
    content.truncate(usize::try_from(size_bytes).unwrap_or(usize::MAX));
    Ok(content)
}

/// Passes over the blocks that continue a sparse member's map, and says how many bytes they were.
fn skip_sparse_map<R: Read>(reader: &mut R, header: &tar::Header) -> io::Result<u64> {
    let mut passed = 0;
    let mut more = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
    while more {
        let mut block = tar::GnuExtSparseHeader::new();
        reader.read_exact(block.as_mut_bytes())?;
        passed += BLOCK;
        more = block.is_extended();
    }
    Ok(passed)
}

fn padded(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn skip(reader: &mut &[u8], size_bytes: u64) -> io::Result<()> {
        *reader = &reader[usize::try_from(size_bytes).unwrap_or(usize::MAX).min(reader.len())..];
        Ok(())
    }

    fn header(kind: EntryType, size_bytes: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size_bytes);
        header
    }

    #[test]
    fn members_are_found_by_name_and_links_stay_inside() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/layer.tar", "d".repeat(150));
        for (name, content) in [("./a/layer.tar", "first"), (long.as_str(), "second"), ("manifest.json", "[]")] {
            builder.append_data(&mut header(EntryType::Regular, content.len() as u64), name, content.as_bytes()).unwrap();
        }
        for (name, target) in [
            ("b/layer.tar", "../a/layer.tar"),
            ("c/layer.tar", "../../etc/passwd"),
            ("d/layer.tar", "/etc/passwd"),
            ("e", "f"),
            ("f", "e"),
        ] {
            builder.append_link(&mut header(EntryType::Symlink, 0), name, target).unwrap();
        }
        let file = builder.into_inner().unwrap();
        let members = Members::index(&mut file.as_slice(), &mut skip).unwrap();
        let content = |name: &str| {
            let Range { offset, size_bytes } = members.get(name)?;
            let (offset, size) = (usize::try_from(offset).unwrap(), usize::try_from(size_bytes).unwrap());
            Some(String::from_utf8(file[offset..offset + size].to_vec()).unwrap())
        };
        assert_eq!(content("a/layer.tar").as_deref(), Some("first"));
        assert_eq!(content(&long).as_deref(), Some("second"));
        assert_eq!(content("b/layer.tar").as_deref(), Some("first"));
        assert_eq!(content("./manifest.json").as_deref(), Some("[]"));
        for missing in ["c/layer.tar", "d/layer.tar", "e", "../manifest.json", "/manifest.json", ""] {
            assert_eq!(content(missing), None, "{missing}");
        }
    }

    #[test]
    fn what_is_no_tar_and_endless_names_are_refused() {
        assert!(Members::index(&mut &[7; 2000][..], &mut skip).is_err());
        assert!(Members::index(&mut &b"short"[..], &mut skip).is_err());
        let mut long = header(EntryType::GNULongName, 10 << 20);
        long.set_cksum();
        assert!(Members::index(&mut &long.as_bytes()[..], &mut skip).unwrap_err().to_string().contains("name"));
    }

    proptest! {
        #[test]
        fn no_damage_panics(at in prop::collection::vec((0_usize..4096, any::<u8>()), 0..8), cut in 0_usize..4096) {
            let mut builder = tar::Builder::new(Vec::new());
            let long = "d".repeat(150);
            for name in ["a", long.as_str(), "b/c"] {
                builder.append_data(&mut header(EntryType::Regular, 3), name, &b"xyz"[..]).unwrap();
            }
            let mut file = builder.into_inner().unwrap();
            for (position, byte) in at {
                if let Some(damaged) = file.get_mut(position) {
                    *damaged = byte;
                    // So that the damage is not all found by the sum.
                    let start = position / 512 * 512;
                    let mut fixed = tar::Header::new_old();
                    fixed.as_mut_bytes().copy_from_slice(&file[start..start + 512]);
                    fixed.set_cksum();
                    file[start..start + 512].copy_from_slice(fixed.as_bytes());
                }
            }
            file.truncate(file.len().saturating_sub(cut));
            let _ = Members::index(&mut file.as_slice(), &mut skip);
        }
    }
}
