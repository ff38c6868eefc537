//! Imports that must keep everything.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use flate2::{Compression, write::GzEncoder};
use sandbank_driver::{DriverError, ImportSource};
use sandbank_driver_linux::image::{ImportLimits, root_plan};

use crate::tree::{Data, Look, image, look, make_everything};

type Tree = std::collections::BTreeMap<std::path::PathBuf, Look>;

/// GNU tar's archive of a tree, with attributes.
fn gnu_tar(root: &std::path::Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--xattrs-include=*", "--numeric-owner"]).args(arguments);
    let output = command.arg("-C").arg(root).args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// What an import adds to every image.
fn without_added_dirs(mut tree: Tree) -> Tree {
    for dir in ["dev", "proc", "sys", "run"] {
        tree.remove(std::path::Path::new(dir)).unwrap();
    }
    // Making these directories in the root touched it.
    tree.remove(std::path::Path::new("")).unwrap();
    tree
}

fn expected(root: &std::path::Path) -> Tree {
    let mut tree = look(root);
    tree.remove(std::path::Path::new("")).unwrap();
    tree
}

#[test]
fn an_archive_of_gnu_tar_becomes_the_same_tree_in_every_format() {
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let data = Data::new();
    for arguments in [&["--format=pax"][..], &["--format=pax", "--sparse"], &["--format=pax", "--sparse", "--sparse-version=0.1"]]
    {
        let layers = data.import_tar(&gnu_tar(source.path(), arguments)).unwrap();
        assert_eq!(without_added_dirs(look(&data.tree(&layers))), expected(source.path()), "{arguments:?}");
        assert!(!layers.on_host);
    }
}

#[test]
fn the_old_gnu_format_loses_only_what_it_cannot_say() {
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let data = Data::new();
    let mut command = Command::new("tar");
    command.args(["--format=gnu", "--sparse", "--numeric-owner"]).arg("-C").arg(source.path());
    let output = command.args(["-cf", "-", "."]).output().unwrap();
    let layers = data.import_tar(&output.stdout).unwrap();
    let plain = |mut tree: Tree| {
        for look in tree.values_mut() {
            look.xattrs.clear();
            look.modified.1 = 0;
        }
        tree
    };
    assert_eq!(plain(without_added_dirs(look(&data.tree(&layers)))), plain(expected(source.path())));
}

#[test]
fn holes_stay_holes() {
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let data = Data::new();
    let archive = data.import_tar(&gnu_tar(source.path(), &["--format=pax", "--sparse"])).unwrap();
    let directory = ImportSource::Directory(source.path().to_owned());
    let directory = data.store.import(&directory, &ImportLimits::default()).unwrap();
    for layers in [archive, directory] {
        let sparse = data.tree(&layers).join("home/user/sparse").metadata().unwrap();
        assert_eq!(sparse.len(), 20 << 20);
        assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    }
}

#[test]
fn a_directory_becomes_the_same_tree() {
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let data = Data::new();
    let directory = ImportSource::Directory(source.path().to_owned());
    let layers = data.store.import(&directory, &ImportLimits::default()).unwrap();
    assert_eq!(without_added_dirs(look(&data.tree(&layers))), expected(source.path()));
    assert!(layers.layers[0].size_bytes > 0);
}

#[test]
fn the_same_archive_twice_is_one_layer_and_gzip_makes_no_difference_to_the_tree() {
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let data = Data::new();
    let plain = gnu_tar(source.path(), &["--format=pax"]);
    let first = data.import_tar(&plain).unwrap();
    assert_eq!(first, data.import_tar(&plain).unwrap());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zipped = data.import_tar(&gzip.finish().unwrap()).unwrap();
    assert_ne!(first, zipped);
    assert_eq!(look(&data.tree(&first)).len(), look(&data.tree(&zipped)).len());
    assert_eq!(data.made_names().len(), 2);
}

#[test]
fn an_imported_image_has_one_layer_on_the_bare_base_and_the_directories_that_are_mounted_over() {
    let data = Data::new();
    let source = tempfile::tempdir().unwrap();
    fs::create_dir_all(source.path().join("bin")).unwrap();
    let layers = data.import_tar(&gnu_tar(source.path(), &[])).unwrap();
    let plan = root_plan(&data.store, &image(&layers)).unwrap();
    assert_eq!((plan.lowers.len(), &plan.lowers[0]), (2, &data.tree(&layers)));
    assert!(plan.grafts.is_empty());
    for (dir, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)] {
        let found = data.tree(&layers).join(dir).symlink_metadata().unwrap();
        assert!(found.is_dir());
        assert_eq!(found.mode() & 0o7777, mode, "{dir}");
    }
}

#[test]
fn members_may_lie_behind_links_that_the_archive_made() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            archive.append_data(&mut header, name, data).unwrap();
        } else {
            archive.append_link(&mut header, name, link).unwrap();
        }
    };
    add(tar::EntryType::Directory, "usr/lib/", "", b"");
    add(tar::EntryType::Symlink, "lib", "usr/lib", b"");
    add(tar::EntryType::Symlink, "lib64", "/usr/lib", b"");
    add(tar::EntryType::Regular, "lib/a.so", "", b"a");
    add(tar::EntryType::Regular, "lib64/made/on/the/way/b.so", "", b"b");
    add(tar::EntryType::Directory, "lib/", "", b"");
    add(tar::EntryType::Link, "usr/c.so", "lib/a.so", b"");
    let data = Data::new();
    let layers = data.import_tar(&archive.into_inner().unwrap()).unwrap();
    let tree = data.tree(&layers);
    assert!(tree.join("lib").is_symlink());
    assert_eq!(fs::read(tree.join("usr/lib/a.so")).unwrap(), b"a");
    assert_eq!(fs::read(tree.join("usr/lib/made/on/the/way/b.so")).unwrap(), b"b");
    assert_eq!(tree.join("usr/c.so").metadata().unwrap().ino(), tree.join("usr/lib/a.so").metadata().unwrap().ino());
}

#[test]
fn what_is_mounted_below_an_imported_directory_is_left_out() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let source = tempfile::tempdir().unwrap();
    let mounted = source.path().join("mnt");
    fs::create_dir_all(&mounted).unwrap();
    rustix::mount::mount("tmpfs", &mounted, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let _unmount = Unmount(mounted.clone());
    fs::write(mounted.join("secret"), "x").unwrap();
    let data = Data::new();
    let directory = ImportSource::Directory(source.path().to_owned());
    let layers = data.store.import(&directory, &ImportLimits::default()).unwrap();
    assert!(data.tree(&layers).join("mnt").is_dir());
    assert!(!data.tree(&layers).join("mnt/secret").exists());
}

#[test]
fn a_source_that_is_not_there_says_so() {
    let data = Data::new();
    let nowhere = data.path().join("nowhere");
    for source in [ImportSource::Archive(nowhere.clone()), ImportSource::Directory(nowhere)] {
        let error = data.store.import(&source, &ImportLimits::default()).unwrap_err();
        assert!(matches!(&error, DriverError::Invalid { what } if what.contains("there is no")), "{error}");
    }
    assert!(data.staging_names().is_empty());
}
