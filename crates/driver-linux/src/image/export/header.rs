//! Writing members' headers: ustar (POSIX), with extended headers for what does not fit.

use std::borrow::Cow;
use std::io;

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::super::file::Meta;
use super::super::pax::Region;

const BLOCK: usize = 512;
/// Bytes of a name or link target in an ustar header.
const NAME_LEN: usize = 100;
/// Largest owner in seven octal digits, and largest size and time in eleven.
const ID_MAX: u32 = 0o7_777_777;
const NUMBER_MAX: u64 = 0o77_777_777_777;

/// A member to write.
pub(super) struct Entry<'a> {
    pub(super) kind: EntryType,
    /// Without a slash at its end.
    pub(super) path: &'a [u8],
    /// Of a link.
    pub(super) target: &'a [u8],
    pub(super) meta: Meta,
    /// Of a file.
    pub(super) size: u64,
    /// Sorted.
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Runs of data, where holes are left out.
    pub(super) regions: Option<&'a [Region]>,
}

/// Keywords and values for an extended header.
#[derive(Default)]
struct Extended(Vec<u8>);

impl Extended {
    /// `<length> <keyword>=<value>\n`, where the length counts its own digits.
    fn add(&mut self, keyword: &[u8], value: &[u8]) {
        let rest = 1 + keyword.len() + 1 + value.len() + 1;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", keyword, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    fn add_number(&mut self, keyword: &str, number: impl ToString) {
        self.add(keyword.as_bytes(), number.to_string().as_bytes());
    }
}

/// Appends the headers of `entry` to `out`: all that comes before its data, the map of a sparse file too.
pub(super) fn write(entry: &Entry<'_>, out: &mut Vec<u8>) -> io::Result<()> {
    let map = entry.regions.map(sparse_map);
    let stored = match entry.regions {
        Some(regions) => regions.iter().map(|region| region.length).sum::<u64>() + map.as_ref().map_or(0, Vec::len) as u64,
        None => entry.size,
    };
    let extended = extended(entry, stored);
    if !extended.0.is_empty() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        set_name(&mut header, b"././@PaxHeader");
        finish(&mut header, 0o644, 0, 0, 0, extended.0.len() as u64);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&extended.0);
        pad(out);
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    let mut name = Cow::Borrowed(entry.path);
    if entry.kind == EntryType::Directory {
        name.to_mut().push(b'/');
    }
    set_name(&mut header, &name);
    if let Some(ustar) = header.as_ustar_mut() {
        let length = entry.target.len().min(NAME_LEN);
        ustar.linkname[..length].copy_from_slice(&entry.target[..length]);
    }
    let Meta { uid, gid, mode, modified } = entry.meta;
    let seconds = u64::try_from(modified.tv_sec).unwrap_or(0).min(NUMBER_MAX);
    finish(&mut header, mode, uid.min(ID_MAX), gid.min(ID_MAX), seconds, stored.min(NUMBER_MAX));
    out.extend_from_slice(header.as_bytes());
    if let Some(map) = map {
        out.extend_from_slice(&map);
    }
    Ok(())
}

fn extended(entry: &Entry<'_>, stored: u64) -> Extended {
    let mut extended = Extended::default();
    let slash = usize::from(entry.kind == EntryType::Directory);
    let long = entry.path.len() + slash > NAME_LEN;
    match entry.regions {
        Some(_) => {
            extended.add(b"GNU.sparse.major", b"1");
            extended.add(b"GNU.sparse.minor", b"0");
            extended.add(b"GNU.sparse.name", entry.path);
            extended.add_number("GNU.sparse.realsize", entry.size);
            // For readers that look at the usual name only.
            if long {
                extended.add(b"path", entry.path);
            }
        }
        None if long => extended.add(b"path", &[entry.path, &b"/"[..slash]].concat()),
        None => {}
    }
    if entry.target.len() > NAME_LEN {
        extended.add(b"linkpath", entry.target);
    }
    if stored > NUMBER_MAX {
        extended.add_number("size", stored);
    }
    for (keyword, id) in [("uid", entry.meta.uid), ("gid", entry.meta.gid)] {
        if id > ID_MAX {
            extended.add_number(keyword, id);
        }
    }
    if let Some(time) = time(&entry.meta.modified) {
        extended.add(b"mtime", time.as_bytes());
    }
    for (name, value) in entry.xattrs {
        extended.add(&[b"SCHILY.xattr.", &keyword_of(name)[..]].concat(), value);
    }
    extended
}

/// A time that an ustar header cannot say: before 1970, far from now, or with a fraction.
fn time(modified: &Timespec) -> Option<String> {
    let (seconds, nanoseconds) = (i128::from(modified.tv_sec), i128::from(modified.tv_nsec));
    if nanoseconds == 0 && (0..=i128::from(NUMBER_MAX)).contains(&seconds) {
        return None;
    }
    let total = seconds * 1_000_000_000 + nanoseconds;
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{fraction:09}");
    Some(text.trim_end_matches('0').trim_end_matches('.').to_owned())
}

/// A keyword ends at the first `=`, so that one in a name is written in another way: GNU tar's (`xattr_encode_keyword`).
fn keyword_of(name: &[u8]) -> Vec<u8> {
    let mut keyword = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'%' => keyword.extend_from_slice(b"%25"),
            b'=' => keyword.extend_from_slice(b"%3D"),
            other => keyword.push(*other),
        }
    }
    keyword
}

/// The map of a sparse file, which comes before its data: numbers with a line each, padded to blocks (GNU tar's manual, "PAX
/// Format, Version 1.0").
fn sparse_map(regions: &[Region]) -> Vec<u8> {
    let mut map = format!("{}\n", regions.len());
    for region in regions {
        map.push_str(&format!("{}\n{}\n", region.offset, region.length));
    }
    let mut map = map.into_bytes();
    pad(&mut map);
    map
}

fn set_name(header: &mut Header, name: &[u8]) {
    let length = name.len().min(NAME_LEN);
    header.as_old_mut().name[..length].copy_from_slice(&name[..length]);
}

fn finish(header: &mut Header, mode: u32, uid: u32, gid: u32, seconds: u64, size: u64) {
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(seconds);
    header.set_size(size);
    header.set_cksum();
}

/// Fills the last block up.
pub(super) fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_counts_its_own_digits() {
        for length in [0, 1, 80, 86, 87, 88, 89, 90, 980, 985, 986, 987, 988, 990, 9_980, 9_990] {
            let mut extended = Extended::default();
            extended.add(b"path", &vec![b'x'; length]);
            let text = String::from_utf8_lossy(&extended.0).into_owned();
            let said: usize = text.split(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
            assert_eq!(said, extended.0.len(), "{length}");
        }
    }

    #[test]
    fn times_that_do_not_fit_are_written_out() {
        let shown = |tv_sec, tv_nsec| time(&Timespec { tv_sec, tv_nsec });
        assert_eq!(shown(12, 0), None);
        assert_eq!(shown(0, 1).as_deref(), Some("0.000000001"));
        assert_eq!(shown(12, 500_000_000).as_deref(), Some("12.5"));
        assert_eq!(shown(-1, 0).as_deref(), Some("-1"));
        assert_eq!(shown(-10, 0).as_deref(), Some("-10"));
        assert_eq!(shown(-2, 750_000_000).as_deref(), Some("-1.25"));
        assert_eq!(shown(1 << 40, 0).as_deref(), Some("1099511627776"));
    }
}
