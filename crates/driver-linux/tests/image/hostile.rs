//! Archives that mean harm, or are broken.

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use sandbank_driver::{DriverError, ImportSource};
use sandbank_driver_linux::image::ImportLimits;
use tar::EntryType;

use crate::tree::{Data, look, xattrs};

/// A member with a name that the tar crate would not let through.
pub(crate) fn member(out: &mut Vec<u8>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    declared(out, kind, name, link, data.len() as u64);
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A header alone, of a member that claims so many bytes.
fn declared(out: &mut Vec<u8>, kind: EntryType, name: &[u8], link: &[u8], size: u64) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name);
    gnu.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    out.extend(header.as_bytes());
}

fn ended(mut archive: Vec<u8>) -> Vec<u8> {
    archive.extend([0; 1024]);
    archive
}

fn one(kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    member(&mut archive, kind, name, link, data);
    ended(archive)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Imports, expects a refusal with these words, and that nothing is left.
fn refused(data: &Data, archive: &[u8], limits: &ImportLimits, words: &[&str]) {
    match data.import_tar_within(archive, limits) {
        Err(DriverError::Invalid { what }) => {
            for word in words {
                assert!(what.contains(word), "{what:?} does not say {word:?}");
            }
        }
        other => panic!("{other:?} instead of a refusal with {words:?}"),
    }
    assert!(data.staging_names().is_empty(), "something is left in staging");
    assert!(data.made_names().is_empty(), "a layer was made");
}

fn refused_by_default(archive: &[u8], words: &[&str]) {
    refused(&Data::new(), archive, &ImportLimits::default(), words);
}

#[test]
fn names_that_lead_out_are_refused_by_name() {
    for name in [&b"../evil"[..], b"a/../../evil", b"..", b"usr/..", b"a/b/../c"] {
        let shown = String::from_utf8_lossy(name).into_owned();
        refused_by_default(&one(EntryType::Regular, name, b"", b"x"), &[&shown, "`..`"]);
    }
    for name in [&b"/etc/passwd"[..], b"/", b"//etc"] {
        refused_by_default(&one(EntryType::Regular, name, b"", b"x"), &[&String::from_utf8_lossy(name), "absolute"]);
    }
}

#[test]
fn a_write_through_a_link_that_leads_out_stays_inside() {
    let data = Data::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes();
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Symlink, b"escape", target, b"");
    member(&mut archive, EntryType::Symlink, b"up", b"../../../../../../../../tmp", b"");
    member(&mut archive, EntryType::Directory, b"tmp", b"", b"");
    member(&mut archive, EntryType::Regular, b"up/evil", b"", b"x");
    let layers = data.import_tar(&ended(archive.clone())).unwrap();
    assert_eq!(fs::read(data.tree(&layers).join("tmp/evil")).unwrap(), b"x");

    member(&mut archive, EntryType::Regular, b"escape/evil", b"", b"x");
    let refused = data.import_tar(&ended(archive)).unwrap_err();
    assert!(refused.to_string().contains("leads nowhere"), "{refused}");
    assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
}

#[test]
fn a_member_over_a_link_replaces_the_link_and_not_what_it_leads_to() {
    let data = Data::new();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Symlink, b"f", victim.as_os_str().as_encoded_bytes(), b"");
    member(&mut archive, EntryType::Regular, b"f", b"", b"new");
    let layers = data.import_tar(&ended(archive)).unwrap();
    assert_eq!(fs::read(data.tree(&layers).join("f")).unwrap(), b"new");
    assert!(!data.tree(&layers).join("f").is_symlink());
    assert_eq!(fs::read(victim).unwrap(), b"untouched");
}

#[test]
fn hard_links_lead_only_to_earlier_files_of_the_archive() {
    for target in [&b"../../../etc/passwd"[..], b"/etc/passwd"] {
        refused_by_default(&one(EntryType::Link, b"f", target, b""), &["link target", "refused"]);
    }
    refused_by_default(&one(EntryType::Link, b"f", b"etc/passwd", b""), &["\"f\"", "\"etc/passwd\"", "not a file before it"]);
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Symlink, b"etc", b"/etc", b"");
    member(&mut archive, EntryType::Link, b"f", b"etc/passwd", b"");
    refused_by_default(&ended(archive), &["not a file before it"]);
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Directory, b"dir", b"", b"");
    member(&mut archive, EntryType::Link, b"f", b"dir", b"");
    refused_by_default(&ended(archive), &["not a file before it"]);
}

#[test]
fn devices_are_left_out_and_pipes_are_kept() {
    let data = Data::new();
    let mut archive = Vec::new();
    for (name, kind) in [(&b"sda"[..], EntryType::Block), (b"mem", EntryType::Char), (b"pipe", EntryType::Fifo)] {
        member(&mut archive, kind, name, b"", b"");
    }
    let layers = data.import_tar(&ended(archive)).unwrap();
    let tree = look(&data.tree(&layers));
    assert!(!tree.contains_key(Path::new("sda")) && !tree.contains_key(Path::new("mem")));
    assert_eq!(tree[Path::new("pipe")].kind, "fifo");
    assert!(!data.tree(&layers).join("sda").exists());
}

#[test]
fn an_unknown_type_is_refused() {
    refused_by_default(&one(EntryType::new(b'M'), b"part", b"", b""), &["part", "'M'"]);
}

#[test]
fn a_declared_bomb_is_refused_before_it_is_unpacked() {
    let limits = ImportLimits { bytes_max: 1 << 20, ..ImportLimits::default() };
    let mut archive = Vec::new();
    declared(&mut archive, EntryType::Regular, b"bomb", b"", 1 << 40);
    refused(&Data::new(), &ended(archive), &limits, &["1048576", "limit"]);
    let mut archive = Vec::new();
    declared(&mut archive, EntryType::Regular, b"bomb", b"", u64::MAX);
    refused_by_default(&ended(archive), &["beyond all measure"]);
    let limits = ImportLimits { file_bytes_max: 100, ..ImportLimits::default() };
    refused(&Data::new(), &one(EntryType::Regular, b"bomb", b"", &[0; 101]), &limits, &["bomb", "101", "100"]);
}

#[test]
fn a_bomb_of_many_small_files_is_refused_when_it_becomes_too_much() {
    let limits = ImportLimits { bytes_max: 1 << 20, ..ImportLimits::default() };
    let mut archive = Vec::new();
    for index in 0..300 {
        member(&mut archive, EntryType::Regular, format!("f{index}").as_bytes(), b"", &[1; 4096]);
    }
    refused(&Data::new(), &gzip(&ended(archive)), &limits, &["1048576", "limit"]);
}

#[test]
fn a_gzip_bomb_is_refused_wherever_its_zeros_are() {
    let limits = ImportLimits { bytes_max: 1 << 20, entries_max: 10, ..ImportLimits::default() };
    // In a member that is passed over, and after the end mark.
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Fifo, b"pipe", b"", &vec![0; 8 << 20]);
    refused(&Data::new(), &gzip(&ended(archive)), &limits, &["limit"]);
    let mut archive = one(EntryType::Regular, b"f", b"", b"x");
    archive.extend(vec![0; 8 << 20]);
    refused(&Data::new(), &gzip(&archive), &limits, &["limit"]);
}

#[test]
fn too_many_entries_are_refused() {
    let limits = ImportLimits { entries_max: 10, ..ImportLimits::default() };
    let mut archive = Vec::new();
    for index in 0..11 {
        member(&mut archive, EntryType::Regular, format!("f{index}").as_bytes(), b"", b"");
    }
    refused(&Data::new(), &ended(archive), &limits, &["more than 10 files"]);
}

/// One member again and again, made while it is read.
struct Endless {
    member: Vec<u8>,
    read_bytes: u64,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let at = usize::try_from(self.read_bytes).unwrap() % self.member.len();
        let count = (&self.member[at..]).read(buffer)?;
        self.read_bytes += count as u64;
        Ok(count)
    }
}

/// Adds a layer of endlessly many of these members; gives what is said of it, and how much of it was read. Memory stays bounded.
fn refused_at_the_limit(kind: EntryType, name: &[u8], data: &[u8]) -> (String, u64) {
    let data_dir = Data::new();
    let mut archive = Endless { member: Vec::new(), read_bytes: 0 };
    member(&mut archive.member, kind, name, b"", data);
    // Forgets the peak so far (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_kib();
    let digest = format!("sha256:{}", "0".repeat(64));
    let error = data_dir.store.add_layer(&digest, &mut archive, &ImportLimits::default()).unwrap_err();
    let grown = peak_kib() - before;
    assert!(grown < 64 << 10, "it took {grown} KiB of memory");
    assert!(data_dir.staging_names().is_empty() && data_dir.made_names().is_empty());
    let DriverError::Invalid { what } = error else { panic!("{error}") };
    (what, archive.read_bytes)
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn endless_entries_end_at_the_limit() {
    let entries_max = ImportLimits::default().entries_max;
    // The cheapest entry there is: a header of something that is left out.
    let (what, read_bytes) = refused_at_the_limit(EntryType::Char, b"d", b"");
    assert!(what.contains(&format!("more than {entries_max} files")), "{what}");
    assert_eq!(read_bytes, (entries_max + 1) * 512);
}

#[test]
fn endless_headers_without_a_file_end_soon() {
    for (kind, data) in [(EntryType::XHeader, &b"9 path=a\n"[..]), (EntryType::GNULongName, b"a"), (EntryType::new(b'V'), b"")] {
        let (what, read_bytes) = refused_at_the_limit(kind, b"x", data);
        assert!(what.contains("too many headers") && read_bytes < 100 * 1024, "{what} after {read_bytes} bytes");
    }
}

#[test]
fn names_and_extended_headers_that_claim_gigabytes_are_refused_unread() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
        let mut archive = Vec::new();
        declared(&mut archive, kind, b"long", b"", 8 << 30);
        refused_by_default(&ended(archive), &["name or extended header of 8589934592 bytes"]);
    }
}

#[test]
fn an_archive_that_ends_early_is_refused() {
    let whole = one(EntryType::Regular, b"f", b"", &[7; 3000]);
    for cut in [100, 512, 600, 2000, whole.len() - 1024] {
        refused_by_default(&whole[..cut], &["ends in the middle"]);
    }
    let zipped = gzip(&whole);
    for cut in [5, zipped.len() / 2, zipped.len() - 4] {
        refused_by_default(&zipped[..cut], &["archive"]);
    }
    let mut wrong_sum = zipped.clone();
    let last = wrong_sum.len() - 6;
    wrong_sum[last] ^= 0xff;
    refused_by_default(&wrong_sum, &["archive cannot be read"]);
}

#[test]
fn what_is_no_tar_archive_is_named() {
    refused_by_default(b"", &["ends in the middle"]);
    refused_by_default(&[b'x'; 2048], &["checksum"]);
    refused_by_default(&[&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 600]].concat(), &["zstd", "zstd -d"]);
    refused_by_default(&[&b"PK\x03\x04"[..], &[0; 600]].concat(), &["zip"]);
    refused_by_default(&ended(Vec::new()), &["nothing in it"]);
}

#[test]
fn image_archives_are_told_from_root_filesystems() {
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Regular, b"manifest.json", b"", b"[]");
    member(&mut archive, EntryType::Regular, b"abc/layer.tar", b"", b"");
    refused_by_default(&ended(archive), &["the content of a `docker save` archive: import the archive itself"]);
    let mut archive = Vec::new();
    member(&mut archive, EntryType::Regular, b"oci-layout", b"", b"{}");
    member(&mut archive, EntryType::Directory, b"blobs", b"", b"");
    refused_by_default(&ended(archive), &["OCI image layout"]);
}

#[test]
fn mount_points_must_be_directories() {
    for name in ["dev", "proc", "sys", "run", "tmp"] {
        let archive = one(EntryType::Symlink, name.as_bytes(), b"/etc", b"");
        refused_by_default(&archive, &[&format!("/{name} of the root filesystem must be a directory")]);
    }
    let data = Data::new();
    let source = tempfile::tempdir().unwrap();
    symlink("/", source.path().join("proc")).unwrap();
    let source = ImportSource::Directory(source.path().to_owned());
    assert!(matches!(data.store.import(&source, &ImportLimits::default()), Err(DriverError::Invalid { .. })));
}

#[test]
fn overlay_marks_access_lists_and_broken_capabilities_are_not_taken_from_an_archive() {
    let mut body = Vec::new();
    for (keyword, value) in [
        ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.metacopy", b""),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.security.capability", b"short"),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
        ("SCHILY.xattr.user.fine", b"yes"),
    ] {
        let rest = 1 + keyword.len() + 1 + value.len() + 1;
        let length = (rest + 2..).find(|length| length.to_string().len() + rest == *length).unwrap();
        body.extend(format!("{length} {keyword}=").bytes());
        body.extend(value);
        body.push(b'\n');
    }
    let mut archive = Vec::new();
    for (kind, name) in [(EntryType::Regular, &b"f"[..]), (EntryType::Directory, b"d")] {
        member(&mut archive, EntryType::XHeader, b"x", b"", &body);
        member(&mut archive, kind, name, b"", b"");
    }
    let data = Data::new();
    let layers = data.import_tar(&ended(archive)).unwrap();
    for name in ["f", "d"] {
        let found = xattrs(&data.tree(&layers).join(name));
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["user.fine"], "{name}");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let pax = |map: &str, size: u64, data: &[u8]| {
        let mut body = Vec::new();
        for (keyword, value) in [("GNU.sparse.map", map), ("GNU.sparse.size", &size.to_string())] {
            let rest = 1 + keyword.len() + 1 + value.len() + 1;
            let length = (rest + 1..).find(|length| length.to_string().len() + rest == *length).unwrap();
            body.extend(format!("{length} {keyword}={value}\n").bytes());
        }
        let mut archive = Vec::new();
        member(&mut archive, EntryType::XHeader, b"x", b"", &body);
        member(&mut archive, EntryType::Regular, b"sparse", b"", data);
        ended(archive)
    };
    refused_by_default(&pax("0,4,2,4", 100, b"12345678"), &["map of a sparse file"]);
    refused_by_default(&pax("0,4,98,4", 100, b"12345678"), &["map of a sparse file"]);
    refused_by_default(&pax("0,4", 100, b"12345678"), &["map of a sparse file"]);
    refused_by_default(&pax("0,18446744073709551615", 100, b"12345678"), &["map of a sparse file"]);
    refused_by_default(&pax("0,8", u64::MAX, b"12345678"), &["limit for one file"]);
    let data = Data::new();
    let layers = data.import_tar(&pax("0,4,90,4", 100, b"12345678")).unwrap();
    let content = fs::read(data.tree(&layers).join("sparse")).unwrap();
    assert_eq!((content.len(), &content[..4], &content[90..94]), (100, &b"1234"[..], &b"5678"[..]));
}
