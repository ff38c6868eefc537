//! Layers of images from elsewhere: marks become overlayfs's, digests are checked, nothing is left of what is refused.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sandbank_driver::DriverError;
use sandbank_driver_linux::image::{ImportLimits, root_plan};
use sandbank_model::Layer;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::tree::{Data, image, is_root};

/// A layer's archive of (name, content) in this order; a name with a slash at its end is a directory.
fn archive(members: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_ustar();
        let kind = if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular };
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn diff_id(archive: &[u8]) -> String {
    let digits: String = Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn add(data: &Data, archive: &[u8]) -> Result<Layer, DriverError> {
    data.store.add_layer(&diff_id(archive), archive, &ImportLimits::default())
}

fn tree_of(data: &Data, layer: &Layer) -> PathBuf {
    data.path().join("images/layers").join(&layer.id).join("fs")
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let name = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    let mut value = [0; 8];
    rustix::fs::getxattr(path, name, &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
}

#[test]
fn marks_become_overlayfs_s_whichever_comes_first() {
    let data = Data::new();
    let layer = add(
        &data,
        &archive(&[
            ("etc/", ""),
            ("etc/.wh.motd", ""),
            ("var/", ""),
            ("var/.wh..wh..opq", ""),
            ("var/kept", "mine"),
            // The old directory goes, a new one comes: in both orders.
            (".wh.first", ""),
            ("first/", ""),
            ("first/new", "1"),
            ("second/", ""),
            ("second/new", "2"),
            (".wh.second", ""),
            // It is filled without being named.
            (".wh.third", ""),
            ("third/deep/new", "3"),
            // A file of this layer stays, whatever it replaces.
            ("file", "new"),
            (".wh.file", ""),
            (".wh..wh.plnk", "a note of aufs"),
            ("plain/.whatever", "no mark"),
        ]),
    )
    .unwrap();
    let tree = tree_of(&data, &layer);
    assert!(is_whiteout(&tree.join("etc/motd")));
    assert!(!tree.join("etc/.wh.motd").exists());
    assert!(!is_opaque(&tree.join("etc")));
    assert!(is_opaque(&tree.join("var")) && fs::read(tree.join("var/kept")).unwrap() == b"mine");
    for (dir, file) in [("first", "new"), ("second", "new"), ("third", "deep/new")] {
        assert!(is_opaque(&tree.join(dir)) && tree.join(dir).join(file).exists(), "{dir}");
    }
    assert!(!is_opaque(&tree.join("third/deep")));
    assert_eq!(fs::read(tree.join("file")).unwrap(), b"new");
    assert_eq!(fs::read(tree.join("plain/.whatever")).unwrap(), b"no mark");
    assert!(!tree.join(".wh..wh.plnk").exists());
}

#[test]
fn the_last_member_about_a_directory_counts() {
    let data = Data::new();
    let mut builder = Builder::new(Vec::new());
    for (name, mode) in [("./", 0o700), ("etc/", 0o700), ("etc/new/", 0o500), ("etc/", 0o751), ("./", 0o755)] {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        header.set_mtime(u64::from(mode));
        builder.append_data(&mut header, name, &[][..]).unwrap();
    }
    let tree = tree_of(&data, &add(&data, &builder.into_inner().unwrap()).unwrap());
    for (name, mode) in [("", 0o755), ("etc", 0o751), ("etc/new", 0o500)] {
        let found = fs::metadata(tree.join(name)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, i64::from(mode)), "{name}");
    }
}

#[test]
fn a_rootfs_may_have_names_that_look_like_marks() {
    let data = Data::new();
    let layers = data.import_tar(&archive(&[("bin/", ""), ("bin/.wh.x", "a file")])).unwrap();
    assert_eq!(fs::read(data.tree(&layers).join("bin/.wh.x")).unwrap(), b"a file");
}

#[test]
fn a_layer_is_kept_once_and_found_by_its_digest() {
    let data = Data::new();
    let bytes = archive(&[("a", "1")]);
    assert_eq!(data.store.find_layer(&diff_id(&bytes)), None);
    let before = data.layer_names().len();
    let first = add(&data, &bytes).unwrap();
    assert_eq!(add(&data, &bytes).unwrap(), first);
    assert_eq!(data.store.find_layer(&diff_id(&bytes)), Some(first.clone()));
    assert_eq!(data.layer_names().len(), before + 1);
    data.store.retain_layers(&[], &[]).unwrap();
    assert_eq!(data.store.find_layer(&diff_id(&bytes)), Some(first), "nobody could name it as used yet");
    assert_eq!(data.store.find_layer("sha256:../../etc"), None);
}

#[test]
fn another_digest_is_refused_and_nothing_is_left() {
    let data = Data::new();
    let before = data.layer_names();
    let said = diff_id(b"something else");
    let error = data.store.add_layer(&said, &archive(&[("a", "1")])[..], &ImportLimits::default()).unwrap_err();
    assert!(matches!(&error, DriverError::Invalid { what } if what.contains(&said)), "{error}");
    // A byte behind the end mark changes the digest.
    let mut longer = archive(&[("a", "1")]);
    let right = diff_id(&longer);
    longer.push(0);
    data.store.add_layer(&right, &longer[..], &ImportLimits::default()).unwrap_err();
    for broken in ["sha256:abc", "md5:0123", "", &right.to_uppercase()] {
        let error = data.store.add_layer(broken, &longer[..], &ImportLimits::default()).unwrap_err();
        assert!(matches!(error, DriverError::Invalid { .. }), "{broken}: {error}");
    }
    assert_eq!((data.layer_names(), data.staging_names()), (before, vec![]));
}

#[test]
fn a_layer_stays_in_its_directory_and_within_its_limits() {
    let data = Data::new();
    let before = data.layer_names();
    let hostile = [
        archive(&[("a/", ""), ("a/.wh.", "")]),
        archive(&[("a/", ""), ("a/.wh...", "")]),
        archive(&[("a/", ""), ("a/.wh..", "")]),
    ];
    for bytes in hostile {
        let error = add(&data, &bytes).unwrap_err();
        assert!(matches!(&error, DriverError::Invalid { what } if what.contains("takes nothing away")), "{error}");
    }
    let limits = ImportLimits { bytes_max: 10_000, entries_max: 3, ..ImportLimits::default() };
    let big = "x".repeat(20_000);
    for bytes in [archive(&[("big", &big)]), archive(&[("a", ""), ("b", ""), ("c", ""), ("d", "")])] {
        let error = data.store.add_layer(&diff_id(&bytes), &bytes[..], &limits).unwrap_err();
        assert!(matches!(&error, DriverError::Invalid { what } if what.contains("limit")), "{error}");
    }
    let cut = &archive(&[("big", &big)])[..5000];
    assert!(matches!(add(&data, cut).unwrap_err(), DriverError::Invalid { .. }));
    assert_eq!((data.layer_names(), data.staging_names()), (before, vec![]));
}

/// One member, named and linked as the tar crate would not.
fn member(kind: EntryType, name: &str, link: &str) -> Vec<u8> {
    let mut out = Vec::new();
    crate::hostile::member(&mut out, kind, name.as_bytes(), link.as_bytes(), b"");
    out
}

fn ended(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

#[test]
fn a_layer_that_leads_out_is_refused_or_stays_inside() {
    let data = Data::new();
    let victim = data.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "untouched").unwrap();
    let file = |name: &str| member(EntryType::Regular, name, "");
    for name in ["../x", "a/../../x", "/x", "../.wh.x", "/.wh.x", "../.wh..wh..opq", "a/../.wh.x"] {
        let error = add(&data, &ended(&[file(name)])).unwrap_err();
        assert!(matches!(&error, DriverError::Invalid { what } if what.contains("refused")), "{name}: {error}");
    }
    for target in ["../../victim/file", "/etc/passwd", "etc/passwd"] {
        let error = add(&data, &ended(&[member(EntryType::Link, "x", target)])).unwrap_err();
        assert!(matches!(&error, DriverError::Invalid { what } if what.contains("link")), "{target}: {error}");
    }
    // Through links that lead out, everything is where they lead inside.
    let out = member(EntryType::Symlink, "out", "../../../../../victim");
    let inside = member(EntryType::Directory, "victim/", "");
    let marks = ["out/.wh.file", "out/new", "out/.wh..wh..opq"].map(file);
    let layer = add(&data, &ended(&[vec![out, inside], marks.to_vec()].concat())).unwrap();
    let tree = tree_of(&data, &layer).join("victim");
    assert!(is_whiteout(&tree.join("file")) && tree.join("new").exists() && is_opaque(&tree));
    assert_eq!(fs::read(victim.join("file")).unwrap(), b"untouched");
    assert!(!victim.join("new").exists() && !is_opaque(&victim));
    // A device is nothing, not even when it looks like overlayfs's whiteout.
    let layer = add(&data, &ended(&[member(EntryType::Char, "etc", ""), member(EntryType::Block, "bin", "")])).unwrap();
    assert_eq!(fs::read_dir(tree_of(&data, &layer)).unwrap().count(), 0);
    assert!(data.staging_names().is_empty());
}

#[test]
fn an_image_from_elsewhere_lies_on_the_bare_base() {
    let data = Data::new();
    let layer = add(&data, &archive(&[("hello", "a program")])).unwrap();
    let mut tested = image(&data.store.builtin_image());
    (tested.layers, tested.on_host) = (vec![layer.clone()], false);
    let plan = root_plan(&data.store, &tested).unwrap();
    assert_eq!(plan.lowers.len(), 2);
    assert_eq!(plan.lowers[0], tree_of(&data, &layer));
    for needed in ["dev", "proc", "sys", "tmp", "etc/passwd", "etc/hosts"] {
        assert!(plan.lowers[1].join(needed).exists(), "{needed}");
    }
    assert!(plan.grafts.is_empty());
    data.store.retain_layers(&[], &[]).unwrap();
    assert!(plan.lowers[1].exists(), "a base is never removed");
}

/// As `umoci insert` writes them. What is missing besides shows in the digest, and data that is missing at once.
#[test]
fn a_layer_may_end_without_padding_and_mark_but_not_within_a_file() {
    let data = Data::new();
    let whole = archive(&[("first", "1"), ("second", "22")]);
    // Header and data of the first with its padding, header of the second.
    let second_data = 3 * 512;
    for end in [second_data + 2, second_data + 100, second_data + 512, second_data + 512 + 512] {
        let layer = add(&data, &whole[..end]).unwrap();
        assert_eq!(fs::read_to_string(tree_of(&data, &layer).join("second")).unwrap(), "22");
        let told = data.store.add_layer(&diff_id(&whole), &whole[..end], &ImportLimits::default()).unwrap_err();
        assert!(told.to_string().contains("its digest is"), "{told}");
    }
    for end in [second_data + 1, second_data, second_data - 1] {
        let refused = add(&data, &whole[..end]).unwrap_err();
        assert!(refused.to_string().contains("ends in the middle"), "{end}: {refused}");
    }
}
