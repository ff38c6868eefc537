//! What a sandbox changed becomes a layer.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use sandbank_driver::NewLayers;
use sandbank_driver_linux::image::root_plan;

use crate::tree::{Data, capability_v2, image, look, make_everything, set_xattr, xattrs};

fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// A sandbox's directory with an upper for `/` and one for `usr`.
fn sandbox(data: &Data) -> (PathBuf, PathBuf, PathBuf) {
    let dir = data.path().join("sandbox");
    let (upper, usr) = (dir.join("upper"), dir.join("grafts/usr/upper"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&usr).unwrap();
    (dir, upper, usr)
}

fn host_image(data: &Data) -> NewLayers {
    data.store.builtin_image()
}

#[test]
fn a_commit_keeps_everything_and_the_graft_becomes_the_layers_usr() {
    let data = Data::new();
    let (dir, upper, usr) = sandbox(&data);
    make_everything(&upper);
    fs::remove_dir_all(upper.join("usr")).unwrap();
    make_everything(&usr);
    let layers = data.store.commit(&dir, &image(&host_image(&data))).unwrap();
    assert!(layers.on_host);
    let tree = data.tree(&layers);
    assert_eq!(look(&tree.join("usr")), look(&usr));
    let mut committed = look(&tree);
    committed.retain(|path, _| !path.starts_with("usr") && !path.as_os_str().is_empty());
    let mut expected = look(&upper);
    expected.remove(Path::new(""));
    assert_eq!(committed, expected);
    assert_eq!(tree.metadata().unwrap().mode(), upper.metadata().unwrap().mode());
    let sparse = tree.join("home/user/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20);
}

#[test]
fn whiteouts_and_opaque_marks_stay_and_other_overlay_attributes_go() {
    if !crate::tree::is_root() {
        return;
    }
    let data = Data::new();
    let (dir, upper, usr) = sandbox(&data);
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::create_dir_all(usr.join("share")).unwrap();
    whiteout(&upper.join("etc/motd"));
    whiteout(&usr.join("bin"));
    set_xattr(&upper.join("etc"), "trusted.overlay.opaque", b"y");
    set_xattr(&upper.join("etc"), "trusted.overlay.origin", b"\0abc");
    set_xattr(&upper.join("etc"), "trusted.overlay.redirect", b"/root");
    set_xattr(&usr.join("share"), "trusted.overlay.opaque", b"y");
    fs::write(upper.join("file"), "x").unwrap();
    set_xattr(&upper.join("file"), "trusted.overlay.metacopy", b"");
    set_xattr(&upper.join("file"), "user.mine", b"1");
    let tree = data.tree(&data.store.commit(&dir, &image(&host_image(&data))).unwrap());
    for name in ["etc/motd", "usr/bin"] {
        let found = tree.join(name).symlink_metadata().unwrap();
        assert_eq!((found.mode() & libc::S_IFMT, found.rdev()), (libc::S_IFCHR, 0), "{name}");
    }
    let keys = |name: &str| xattrs(&tree.join(name)).into_keys().collect::<Vec<_>>();
    assert_eq!(keys("etc"), ["trusted.overlay.opaque"]);
    assert_eq!(keys("usr/share"), ["trusted.overlay.opaque"]);
    assert_eq!(keys("file"), ["user.mine"]);
}

#[test]
fn file_capabilities_lose_the_namespace_that_they_were_made_in() {
    if !crate::tree::is_root() {
        return;
    }
    let data = Data::new();
    let (dir, upper, _) = sandbox(&data);
    fs::write(upper.join("ping"), "x").unwrap();
    let mut version_3 = capability_v2();
    version_3[3] = 3;
    version_3.extend(100_000u32.to_le_bytes());
    set_xattr(&upper.join("ping"), "security.capability", &version_3);
    let tree = data.tree(&data.store.commit(&dir, &image(&host_image(&data))).unwrap());
    let found = xattrs(&tree.join("ping"));
    assert_eq!(found.values().collect::<Vec<_>>(), [&capability_v2()]);
}

#[test]
fn a_second_commit_lies_on_the_first_and_the_plan_has_them_top_first() {
    let data = Data::new();
    let (dir, upper, usr) = sandbox(&data);
    fs::write(upper.join("first"), "1").unwrap();
    let first = data.store.commit(&dir, &image(&host_image(&data))).unwrap();
    fs::write(usr.join("second"), "2").unwrap();
    let second = data.store.commit(&dir, &image(&first)).unwrap();
    assert_eq!(second.layers[0], first.layers[0]);
    let plan = root_plan(&data.store, &image(&second)).unwrap();
    assert_eq!(plan.lowers.len(), 3);
    assert_eq!(plan.lowers[0], data.tree(&second));
    assert_eq!(plan.lowers[1], data.tree(&first));
    let usr = plan.grafts.iter().find(|graft| graft.target == Path::new("usr")).unwrap();
    assert_eq!(usr.lowers, [data.tree(&second).join("usr"), PathBuf::from("/usr")]);
}

#[test]
fn what_lies_under_the_launchers_mounts_is_not_committed() {
    let data = Data::new();
    let (dir, upper, _) = sandbox(&data);
    for name in ["dev", "proc", "sys", "usr"] {
        symlink("/etc", upper.join(name)).unwrap();
    }
    fs::write(upper.join("kept"), "x").unwrap();
    let tree = data.tree(&data.store.commit(&dir, &image(&host_image(&data))).unwrap());
    assert_eq!(crate::tree::names(&tree), ["kept"]);
}

#[test]
fn a_sandbox_that_goes_on_writing_does_not_change_the_layer() {
    let data = Data::new();
    let (dir, upper, _) = sandbox(&data);
    fs::write(upper.join("file"), "before").unwrap();
    let tree = data.tree(&data.store.commit(&dir, &image(&host_image(&data))).unwrap());
    fs::OpenOptions::new()
        .append(true)
        .open(upper.join("file"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b" after"))
        .unwrap();
    assert_eq!(fs::read(tree.join("file")).unwrap(), b"before");
}

#[test]
fn a_hostile_tree_is_committed_and_removed_whatever_its_depth_and_contents() {
    let data = Data::new();
    let (dir, upper, _) = sandbox(&data);
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    symlink("/etc/passwd", upper.join("link-out")).unwrap();
    symlink("loop", upper.join("loop")).unwrap();
    // Deeper than any path can be long, and than a process may have open files.
    let mut here = rustix::fs::openat(CWD, &upper, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "deep", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "deep", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&here, "bottom", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR).unwrap();
    let layers = data.store.commit(&dir, &image(&host_image(&data))).unwrap();
    let tree = data.tree(&layers);
    assert_eq!(fs::read_link(tree.join("link-out")).unwrap(), Path::new("/etc/passwd"));
    assert!(!tree.join("socket").exists());
    let mut copied = rustix::fs::openat(CWD, &tree, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for _ in 0..3000 {
        copied = rustix::fs::openat(&copied, "deep", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    assert!(rustix::fs::statat(&copied, "bottom", rustix::fs::AtFlags::empty()).is_ok());
    drop((here, copied));
    let id = layers.layers[0].id.clone();
    data.store.retain_layers(&[id], &[]).unwrap();
    data.store.retain_layers(&[], &[]).unwrap();
    assert!(data.made_names().is_empty());
    assert!(data.staging_names().is_empty());
}
