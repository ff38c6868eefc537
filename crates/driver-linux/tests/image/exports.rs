//! Layers on their way out: what was unpacked comes out as it went in, and others can read it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode};
use sandbank_driver::{DriverError, ImportSource};
use sandbank_driver_linux::image::ImportLimits;
use sandbank_model::Layer;
use sha2::{Digest as _, Sha256};

use crate::tree::{Data, Look, is_root, look, make_everything, set_xattr, xattrs};

fn tree_of(data: &Data, layer: &Layer) -> PathBuf {
    data.path().join("images/layers").join(&layer.id).join("fs")
}

fn export(data: &Data, layer: &Layer) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    data.store.read_layer(layer).unwrap().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn add(data: &Data, archive: &[u8]) -> Layer {
    let digits: String = Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect();
    data.store.add_layer(&format!("sha256:{digits}"), archive, &ImportLimits::default()).unwrap()
}

fn import(data: &Data, directory: &Path) -> Layer {
    let layers = data.store.import(&ImportSource::Directory(directory.to_owned()), &ImportLimits::default()).unwrap();
    layers.layers.into_iter().next_back().unwrap()
}

/// A tree as a layer, without the checks that an import makes: a layer need not be a root filesystem.
fn layer_of(data: &Data, fill: impl FnOnce(&Path)) -> Layer {
    let layer = import_of_nothing(data);
    fill(&tree_of(data, &layer));
    layer
}

fn import_of_nothing(data: &Data) -> Layer {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("etc")).unwrap();
    import(data, source.path())
}

/// Name by name: a whole tree fills a screen.
fn assert_same(found: &BTreeMap<PathBuf, Look>, expected: &BTreeMap<PathBuf, Look>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, look) in expected {
        let short = |look: &Look| Look { content: look.content[..look.content.len().min(100)].to_vec(), ..look.clone() };
        assert_eq!(short(&found[path]), short(look), "{}", path.display());
        assert!(found[path] == *look, "{} differs in its content", path.display());
    }
}

#[test]
fn what_goes_out_comes_in_again_as_it_was() {
    let data = Data::new();
    let layer = layer_of(&data, |tree| {
        make_everything(tree);
        set_xattr(&tree.join("etc/motd"), "user.a=b%3D", b"odd name");
        fs::write(tree.join("x".repeat(100)), "a name of 100 bytes").unwrap();
        fs::create_dir(tree.join("d".repeat(100))).unwrap();
        fs::write(tree.join(std::ffi::OsString::from_vec_of(b"not\xffutf8")), "x").unwrap();
        let old = fs::File::open(tree.join("etc/motd")).unwrap();
        old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(tree.join("usr/bin"), Some(3_000_000_000), Some(2_097_152)).unwrap();
        }
    });
    let archive = export(&data, &layer).unwrap();
    let again = add(&data, &archive);
    let (before, after) = (look(&tree_of(&data, &layer)), look(&tree_of(&data, &again)));
    if is_root() {
        assert_same(&after, &before);
    }
    assert!(archive.len() < 4 << 20, "holes are left out");
    assert_eq!(export(&data, &again).unwrap(), archive, "the same layer gives the same bytes");
}

trait FromBytes {
    fn from_vec_of(bytes: &[u8]) -> Self;
}

impl FromBytes for std::ffi::OsString {
    fn from_vec_of(bytes: &[u8]) -> Self {
        std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
    }
}

#[test]
fn marks_go_out_as_names_and_come_in_as_marks() {
    if !is_root() {
        return;
    }
    let data = Data::new();
    let layer = layer_of(&data, |tree| {
        fs::create_dir_all(tree.join("var/lib")).unwrap();
        fs::write(tree.join("var/lib/new"), "1").unwrap();
        set_xattr(&tree.join("var/lib"), "trusted.overlay.opaque", b"y");
        let whiteout = |path: &str| {
            rustix::fs::mknodat(CWD, tree.join(path), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        };
        whiteout("etc/gone");
        whiteout("at-the-top");
        // The kernel gives several whiteouts one inode.
        fs::hard_link(tree.join("at-the-top"), tree.join("at-the-top-too")).unwrap();
        whiteout(&"w".repeat(200));
    });
    let archive = export(&data, &layer).unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        names.push(String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap());
    }
    for mark in ["etc/.wh.gone", ".wh.at-the-top", ".wh.at-the-top-too", "var/lib/.wh..wh..opq"] {
        assert!(names.iter().any(|name| name == mark), "{mark}: {names:?}");
    }
    let again = add(&data, &archive);
    let mut expected = look(&tree_of(&data, &layer));
    let mut found = look(&tree_of(&data, &again));
    for looks in [&mut expected, &mut found] {
        // Marks have no time of their own, and which inode they are is nobody's business.
        for look in looks.values_mut().filter(|look| look.kind == "whiteout") {
            (look.modified, look.same_as) = ((0, 0), None);
        }
    }
    assert_same(&found, &expected);
    assert_eq!(xattrs(&tree_of(&data, &again).join("var/lib")), xattrs(&tree_of(&data, &layer).join("var/lib")));
    assert_eq!(export(&data, &again).unwrap(), archive);
}

/// Unpacks with a foreign program; `None`: it is not on this machine.
fn unpack_with(program: &str, args: &[&str], archive: &[u8], into: &Path) -> Option<()> {
    let path = into.with_extension("tar");
    fs::write(&path, archive).unwrap();
    fs::create_dir(into).unwrap();
    let mut command = Command::new(program);
    command.args(args).arg("-f").arg(&path).arg("-C").arg(into).stderr(Stdio::inherit());
    match command.status() {
        Ok(status) => assert!(status.success(), "{program}: {status}"),
        Err(_) => {
            eprintln!("skipped: there is no {program} on this machine");
            return None;
        }
    }
    Some(())
}

#[test]
fn gnu_tar_unpacks_the_same_tree() {
    if !is_root() {
        return;
    }
    let data = Data::new();
    let layer = layer_of(&data, make_everything);
    let archive = export(&data, &layer).unwrap();
    let into = data.path().join("unpacked");
    let args = ["-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "--delay-directory-restore"];
    if unpack_with("tar", &args, &archive, &into).is_none() {
        return;
    }
    assert_same(&look(&into), &look(&tree_of(&data, &layer)));
}

#[test]
fn what_cannot_be_said_in_an_image_is_an_error_and_never_a_shorter_archive() {
    let data = Data::new();
    let marked = layer_of(&data, |tree| fs::write(tree.join("etc/.wh.x"), "a file").unwrap());
    let error = export(&data, &marked).unwrap_err().to_string();
    assert!(error.contains("etc/.wh.x") && error.contains("rename it"), "{error}");
    let mut stream = data.store.read_layer(&marked).unwrap();
    let mut sink = Vec::new();
    stream.read_to_end(&mut sink).unwrap_err();
    stream.read_to_end(&mut sink).unwrap_err();

    let deep = layer_of(&data, |tree| {
        let mut dir = rustix::fs::open(tree, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..25 {
            let name = "d".repeat(200);
            rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, &*name, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
    });
    let error = export(&data, &deep).unwrap_err().to_string();
    assert!(error.contains("4095 bytes"), "{error}");
}

#[test]
fn a_layer_that_is_not_there_says_so_and_links_are_not_followed() {
    let data = Data::new();
    for id in ["layer-0", "../../etc", ""] {
        let layer = Layer { id: id.to_owned(), size_bytes: 0 };
        let error = data.store.read_layer(&layer).err().unwrap();
        assert!(matches!(error, DriverError::ImageMissing { .. }), "{error}");
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "the host's secret").unwrap();
    let layer = layer_of(&data, |tree| {
        symlink(outside.path(), tree.join("way-out")).unwrap();
        symlink(outside.path().join("secret"), tree.join("file-out")).unwrap();
    });
    let archive = export(&data, &layer).unwrap();
    assert!(!archive.windows(17).any(|window| window == b"the host's secret"));
}
