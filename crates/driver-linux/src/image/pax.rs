//! PAX extended headers (POSIX pax, "Extended Header Keywords") and the sparse maps of GNU tar ("Sparse Formats" in its manual).

use std::collections::BTreeMap;

use sandbank_driver::DriverError;

use super::error::{invalid, shown};

/// Keywords and values of an extended header.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Most runs of data in a sparse file.
pub(super) const REGIONS_MAX: usize = 100_000;

fn broken(what: &str) -> DriverError {
    invalid(format!("the archive is broken: {what}"))
}

/// Parses `<length> <keyword>=<value>\n` records.
pub(super) fn parse_records(mut body: &[u8]) -> Result<Records, DriverError> {
    let mut records = Records::new();
    while !body.is_empty() {
        let malformed = || broken("a malformed extended header");
        let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = decimal(&body[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
        if length > body.len() || length < space + 3 || body[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &body[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        body = &body[length..];
    }
    Ok(records)
}

/// A decimal number without sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// A number record.
pub(super) fn number(records: &Records, keyword: &str) -> Result<Option<u64>, DriverError> {
    let Some(value) = records.get(keyword.as_bytes()) else { return Ok(None) };
    let refused = || broken(&format!("the extended header says {keyword} is {}", shown(value)));
    decimal(value).map(Some).ok_or_else(refused)
}

/// A time record: seconds, maybe negative, maybe with a fraction. As (seconds, nanoseconds since then).
pub(super) fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// The map of format 0.1: `offset,length,offset,length,…`.
pub(super) fn sparse_map(value: &[u8]) -> Result<Vec<Region>, DriverError> {
    let numbers = value.split(|byte| *byte == b',').filter(|part| !part.is_empty()).map(decimal);
    let numbers: Option<Vec<u64>> = numbers.take(2 * REGIONS_MAX + 2).collect();
    regions_of(&numbers.ok_or_else(|| broken("a malformed map of a sparse file"))?)
}

/// Pairs numbers up.
pub(super) fn regions_of(numbers: &[u64]) -> Result<Vec<Region>, DriverError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(broken("a malformed map of a sparse file"));
    }
    if pairs.len() > REGIONS_MAX {
        return Err(invalid(format!("the archive has a sparse file of more than {REGIONS_MAX} pieces")));
    }
    Ok(pairs.iter().map(|&[offset, length]| Region { offset, length }).collect())
}

/// Checks that runs ascend, do not overlap and end within the file, and that together they are `stored` bytes.
pub(super) fn check_regions(regions: &[Region], size: u64, stored: u64) -> Result<(), DriverError> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for region in regions {
        let region_end = region.offset.checked_add(region.length).filter(|end| *end <= size);
        match region_end {
            Some(region_end) if region.offset >= end => end = region_end,
            _ => return Err(broken("the map of a sparse file overlaps itself or the file's end")),
        }
        sum += region.length;
    }
    if sum == stored { Ok(()) } else { Err(broken("the map of a sparse file does not fit its data")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn records_are_cut_by_their_lengths() {
        let records = parse_records(b"12 path=a=b\n23 SCHILY.xattr.a=\0\n\xff1\n").unwrap();
        assert_eq!(records[&b"path"[..]], b"a=b");
        assert_eq!(records[&b"SCHILY.xattr.a"[..]], b"\0\n\xff1");
    }

    #[test]
    fn records_with_wrong_lengths_are_refused() {
        for bad in [&b"99 path=a\n"[..], b"path=a\n", b"2 \n", b"0 a=b\n", b"8 a=bcde", b"7 abcd\n", b"-7 a=b\n", b" a=b\n"] {
            assert!(parse_records(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn sparse_maps_must_ascend_fit_and_add_up() {
        let map = sparse_map(b"0,5,10,5").unwrap();
        assert!(check_regions(&map, 15, 10).is_ok());
        assert!(check_regions(&map, 14, 10).is_err());
        assert!(check_regions(&map, 15, 11).is_err());
        assert!(check_regions(&sparse_map(b"10,5,0,5").unwrap(), 15, 10).is_err());
        assert!(sparse_map(b"1,2,3").is_err());
        assert!(sparse_map(b"1,x").is_err());
        assert!(check_regions(&[Region { offset: u64::MAX, length: 2 }], u64::MAX, 2).is_err());
    }
}
