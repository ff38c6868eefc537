//! Reading a tar archive from an untrusted stream, member by member.
//!
//! Only headers are the tar crate's; walking is done here, because every length in an archive is the writer's word: names, extended
//! headers and sparse maps are bounded before they are read into memory.

use std::io::{self, Read};

use rustix::fs::Timespec;
use sandbank_driver::DriverError;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::error::{failed, invalid, shown};
use super::pax::{self, REGIONS_MAX, Records, Region};

const BLOCK: u64 = 512;
/// Most bytes of a long name (GNU `L` and `K` members); Linux takes paths of up to 4096.
const NAME_BYTES_MAX: u64 = 16 * 1024;
/// Most bytes of an extended header: room for attributes of 64 KiB and long sparse maps.
const EXTENDED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most headers that only belong to the next member. Writers use three or four; an archive of nothing else would be read for hours
/// without ever coming to the limit of its entries.
const PREFIXES_MAX: usize = 64;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// With the runs of data that are stored, for a sparse one.
    File {
        regions: Option<Vec<Region>>,
    },
    Dir,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    Fifo,
    Device,
}

/// One member of an archive, with its name as the archive spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timespec,
    /// Bytes of the file when it is unpacked.
    pub(super) size: u64,
    /// Extended attributes.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How an archive may end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the end mark: what ends otherwise was not copied completely.
    Marked,
    /// Also behind any member's data, without padding and end mark, as some writers leave it (`umoci insert` for one). Only for
    /// archives whose digest is checked, which tells of everything that is missing.
    Anywhere,
}

/// An archive being read.
pub(super) struct Members<R> {
    reader: R,
    end: End,
    /// Bytes of the present member's data that were not read yet, and the padding after them.
    data_left: u64,
    padding: u64,
    /// Records that count for all members from here on.
    global: Records,
}

fn broken(what: impl AsRef<str>) -> DriverError {
    invalid(format!("the archive is broken: {}", what.as_ref()))
}

/// A failed read: an archive that ends early is the archive's fault, everything else the machine's.
fn read_failed(error: io::Error) -> DriverError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => broken("it ends in the middle; it was probably not copied completely"),
        // What decompressors and the limits of `archive::Bounded` say.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => invalid(format!("the archive cannot be read: {error}")),
        io::ErrorKind::FileTooLarge => invalid(error.to_string()),
        _ => failed(|| "read the archive".to_owned())(error),
    }
}

/// Names and records that precede a member and belong to it.
#[derive(Default)]
struct Prefix {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
}

impl<R: Read> Members<R> {
    pub(super) fn new(reader: R, end: End) -> Self {
        Self { reader, end, data_left: 0, padding: 0, global: Records::new() }
    }

    /// The underlying stream, after the end mark.
    pub(super) fn into_inner(self) -> R {
        self.reader
    }

    /// The next member; what was not read of the last one is passed over. `None` at the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Member>, DriverError> {
        self.skip_rest()?;
        let mut prefix = Prefix::default();
        for _ in 0..=PREFIXES_MAX {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| broken("a member's size is not a number"))?;
            match header.entry_type() {
                EntryType::GNULongName => prefix.name = Some(self.long_name(size)?),
                EntryType::GNULongLink => prefix.link = Some(self.long_name(size)?),
                EntryType::XHeader => prefix.records = pax::parse_records(&self.body(size, EXTENDED_BYTES_MAX)?)?,
                EntryType::XGlobalHeader => self.global = pax::parse_records(&self.body(size, EXTENDED_BYTES_MAX)?)?,
                // A volume's label.
                label if label.as_byte() == b'V' => self.begin_data(size)?,
                _ => return self.member(&header, size, prefix).map(Some),
            }
            self.skip_rest()?;
        }
        Err(broken("too many headers without a file"))
    }

    /// Reads some of the present member's stored data.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, DriverError> {
        let want = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        self.reader.read_exact(&mut buffer[..want]).map_err(read_failed)?;
        self.data_left -= want as u64;
        Ok(want)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), DriverError> {
        // Rounding up must not overflow either.
        let padded = size.checked_next_multiple_of(BLOCK).ok_or_else(|| broken("a member's size is beyond all measure"))?;
        (self.data_left, self.padding) = (size, padded - size);
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), DriverError> {
        let rest = self.data_left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink()).map_err(read_failed)?;
        let needed = if self.end == End::Anywhere { self.data_left } else { rest };
        if skipped < needed {
            return Err(read_failed(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block; `None` at the end: the mark of two zero blocks, or where it may end without.
    fn header(&mut self) -> Result<Option<Header>, DriverError> {
        let mut header = Header::new_old();
        if !self.read_header(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut summed = header.clone();
        summed.set_cksum();
        if header.cksum().ok() != summed.cksum().ok() {
            return Err(broken("a header's checksum is wrong (is it a tar archive at all?)"));
        }
        Ok(Some(header))
    }

    /// Fills `block`; `false` where the archive has ended instead, and may.
    fn read_header(&mut self, block: &mut [u8]) -> Result<bool, DriverError> {
        let read = io::copy(&mut self.reader.by_ref().take(block.len() as u64), &mut &mut *block).map_err(read_failed)?;
        match read {
            0 if self.end == End::Anywhere => Ok(false),
            read if read < block.len() as u64 => Err(read_failed(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(true),
        }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, DriverError> {
        let mut name = self.body(size, NAME_BYTES_MAX)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// A whole member's data in memory.
    fn body(&mut self, size: u64, max: u64) -> Result<Vec<u8>, DriverError> {
        if size > max {
            return Err(invalid(format!("the archive has a name or extended header of {size} bytes; at most {max} are taken")));
        }
        self.begin_data(size)?;
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        self.read_data(&mut body)?;
        Ok(body)
    }

    fn member(&mut self, header: &Header, header_size: u64, prefix: Prefix) -> Result<Member, DriverError> {
        let mut records = self.global.clone();
        records.extend(prefix.records);
        let sparse_name = records.get(&b"GNU.sparse.name"[..]).or_else(|| records.get(&b"path"[..])).cloned();
        let name = sparse_name.or(prefix.name).unwrap_or_else(|| header.path_bytes().into_owned());
        let stored = pax::number(&records, "size")?.unwrap_or(header_size);
        let target = || {
            let recorded = records.get(&b"linkpath"[..]).cloned().or(prefix.link.clone());
            recorded.or_else(|| header.link_name_bytes().map(|target| target.into_owned())).unwrap_or_default()
        };
        let field = |raw: &[u8], value: io::Result<u64>, what: &str| {
            // Some writers leave fields blank that say nothing.
            let blank = raw.iter().all(|byte| matches!(byte, 0 | b' '));
            let value = if blank { Ok(0) } else { value };
            value.map_err(|_| broken(format!("{} has no readable {what}", shown(&name))))
        };
        let id = |keyword: &str, raw: &[u8], value: io::Result<u64>| {
            let id = pax::number(&records, keyword)?.map_or_else(|| field(raw, value, keyword), Ok)?;
            u32::try_from(id).map_err(|_| broken(format!("{} belongs to {keyword} {id}", shown(&name))))
        };
        let raw = header.as_old();
        let mode = field(&raw.mode, header.mode().map(u64::from), "mode")?;
        let mut member = Member {
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id("uid", &raw.uid, header.uid())?,
            gid: id("gid", &raw.gid, header.gid())?,
            modified: modified(&records, field(&raw.mtime, header.mtime(), "time")?),
            size: 0,
            xattrs: xattrs(&records),
            kind: Kind::Dir,
            name: name.clone(),
        };
        member.kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => {
                (member.size, member.kind) = self.file(&records, stored)?;
                return Ok(member);
            }
            EntryType::GNUSparse => {
                (member.size, member.kind) = self.gnu_sparse(header, stored)?;
                return Ok(member);
            }
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink { target: target() },
            EntryType::Link => Kind::HardLink { target: target() },
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            other => {
                let byte = other.as_byte();
                return Err(invalid(format!("{} is of the unknown type {:?}", shown(&name), char::from(byte))));
            }
        };
        // Only files have data; what others declare is passed over.
        self.begin_data(stored)?;
        Ok(member)
    }

    /// A plain file, or a sparse one of GNU tar's PAX formats.
    fn file(&mut self, records: &Records, stored: u64) -> Result<(u64, Kind), DriverError> {
        self.begin_data(stored)?;
        let real_size = pax::number(records, "GNU.sparse.realsize")?.or(pax::number(records, "GNU.sparse.size")?);
        let regions = if records.get(&b"GNU.sparse.major"[..]).is_some_and(|major| major == b"1") {
            self.inline_map()?
        } else if let Some(map) = records.get(&b"GNU.sparse.map"[..]) {
            pax::sparse_map(map)?
        } else if records.keys().any(|keyword| keyword.starts_with(b"GNU.sparse.")) {
            return Err(invalid(
                "the archive has sparse files in GNU tar's old format 0.0; make it again with --sparse-version=1.0",
            ));
        } else {
            return Ok((stored, Kind::File { regions: None }));
        };
        let size = real_size.ok_or_else(|| broken("a sparse file without a size"))?;
        pax::check_regions(&regions, size, self.data_left)?;
        Ok((size, Kind::File { regions: Some(regions) }))
    }

    /// The map of format 1.0: decimal lines at the beginning of the data, filled up to whole blocks.
    fn inline_map(&mut self) -> Result<Vec<Region>, DriverError> {
        let malformed = || broken("a malformed map of a sparse file");
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut line = Vec::new();
        let mut block = [0; BLOCK as usize];
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            if self.read_data(&mut block)? < block.len() {
                return Err(malformed());
            }
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(malformed());
                    }
                    continue;
                }
                let value = pax::decimal(&line).ok_or_else(malformed)?;
                line.clear();
                match wanted {
                    Some(_) => numbers.push(value),
                    None => {
                        let pairs = usize::try_from(value).ok().filter(|pairs| *pairs <= REGIONS_MAX);
                        let too_many = || invalid(format!("the archive has a sparse file of more than {REGIONS_MAX} pieces"));
                        wanted = Some(2 * pairs.ok_or_else(too_many)?);
                    }
                }
            }
        }
        pax::regions_of(&numbers)
    }

    /// A sparse file of the old GNU format: the map is in the header and in blocks after it.
    fn gnu_sparse(&mut self, header: &Header, stored: u64) -> Result<(u64, Kind), DriverError> {
        let malformed = |_| broken("a malformed map of a sparse file");
        let gnu = header.as_gnu().ok_or_else(|| broken("a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(malformed)?;
        let mut numbers = Vec::new();
        let mut add = |part: &tar::GnuSparseHeader| {
            if !part.is_empty() {
                numbers.push(part.offset().map_err(malformed)?);
                numbers.push(part.length().map_err(malformed)?);
            }
            if numbers.len() > 2 * REGIONS_MAX {
                return Err(invalid(format!("the archive has a sparse file of more than {REGIONS_MAX} pieces")));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.reader.read_exact(block.as_mut_bytes()).map_err(read_failed)?;
            block.sparse().iter().try_for_each(&mut add)?;
            extended = block.is_extended();
        }
        let regions = pax::regions_of(&numbers)?;
        self.begin_data(stored)?;
        pax::check_regions(&regions, size, stored)?;
        Ok((size, Kind::File { regions: Some(regions) }))
    }
}

fn modified(records: &Records, header_seconds: u64) -> Timespec {
    let recorded = records.get(&b"mtime"[..]).and_then(|value| pax::time(value));
    let (tv_sec, tv_nsec) = recorded.unwrap_or((i64::try_from(header_seconds).unwrap_or(0), 0));
    Timespec { tv_sec, tv_nsec: tv_nsec.into() }
}

fn xattrs(records: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    let named =
        |(keyword, value): (&Vec<u8>, &Vec<u8>)| Some((xattr_name(keyword.strip_prefix(b"SCHILY.xattr.")?), value.clone()));
    records.iter().filter_map(named).collect()
}

/// A keyword cannot hold `=`, so GNU tar writes `%3D` for it, and `%25` for the sign itself.
fn xattr_name(mut keyword: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(keyword.len());
    while let Some((first, rest)) = keyword.split_first() {
        let (byte, length) = match keyword {
            [b'%', b'3', b'D', ..] => (b'=', 3),
            [b'%', b'2', b'5', ..] => (b'%', 3),
            _ => (*first, 1),
        };
        name.push(byte);
        keyword = &rest[length - 1..];
    }
    name
}
