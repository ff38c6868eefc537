#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;

fn made_host() -> TempDir {
    let host = TempDir::new().unwrap();
    for dir in ["usr/bin", "etc/ssl/certs", "etc/ssl/private", "etc/skel", "root", "home/someone", "lib32"] {
        fs::create_dir_all(host.path().join(dir)).unwrap();
    }
    symlink("usr/lib", host.path().join("lib")).unwrap();
    symlink("/usr/bin", host.path().join("bin")).unwrap();
    symlink("/opt/secrets", host.path().join("sbin")).unwrap();
    for file in ["usr/bin/sudo", "etc/ssl/certs/a.pem", "etc/ssl/private/key.pem", "etc/services", "etc/skel/.bashrc"] {
        fs::write(host.path().join(file), file).unwrap();
    }
    host
}

fn node<'a>(base: &'a Base, path: &str) -> Option<&'a Node> {
    base.nodes.iter().find(|node| node.path == Path::new(path))
}

#[test]
fn directories_become_grafts_and_links_among_them_stay_links() {
    let host = made_host();
    let base = Base::of(host.path());
    assert_eq!(base.grafts, [PathBuf::from("usr"), PathBuf::from("lib32")]);
    assert_eq!(node(&base, "lib").unwrap().kind, NodeKind::Symlink("usr/lib".into()));
    assert_eq!(node(&base, "bin").unwrap().kind, NodeKind::Symlink("usr/bin".into()));
    assert!(node(&base, "sbin").is_none(), "a link out of the system directories is left out");
}

#[test]
fn parents_come_before_what_is_in_them_and_nothing_comes_twice() {
    let host = made_host();
    for base in [Base::of(host.path()), Base::of_this_machine()] {
        let mut seen = std::collections::BTreeSet::from([PathBuf::new()]);
        for node in &base.nodes {
            assert!(seen.contains(node.path.parent().unwrap()), "{}", node.path.display());
            assert!(seen.insert(node.path.clone()), "{}", node.path.display());
        }
    }
}

#[test]
fn what_is_private_on_the_host_stays_there() {
    let host = made_host();
    let services = host.path().join("etc/services");
    fs::set_permissions(&services, fs::Permissions::from_mode(0o640)).unwrap();
    let base = Base::of(host.path());
    assert!(node(&base, "etc/services").is_none());
    assert!(node(&base, "etc/ssl/certs/a.pem").is_some());
    for node in &base.nodes {
        let path = node.path.display().to_string();
        assert!(!path.contains("private") && !path.contains("someone") && !path.starts_with("opt/"), "{path}");
    }
}

#[test]
fn users_are_root_and_user_and_every_password_is_locked() {
    let base = Base::of(made_host().path());
    let NodeKind::File(passwd) = &node(&base, "etc/passwd").unwrap().kind else { panic!() };
    let passwd = String::from_utf8(passwd.clone()).unwrap();
    assert!(passwd.contains("user:x:1000:1000:user:/home/user:/bin/bash\n"));
    let shadow = node(&base, "etc/shadow").unwrap();
    assert_eq!(shadow.mode, 0o640);
    let NodeKind::File(shadow) = &shadow.kind else { panic!() };
    assert!(String::from_utf8_lossy(shadow).lines().all(|line| line.split(':').nth(1) == Some("*")));
    assert_eq!(node(&base, "home/user").unwrap().owner, 1000);
    assert_eq!(node(&base, "etc/sudoers.d/user").unwrap().mode, 0o440);
    assert_eq!(node(&base, "tmp").unwrap().mode, 0o1777);
    assert_eq!(node(&base, "root").unwrap().mode, 0o700);
}

#[test]
fn the_layer_id_changes_with_the_content_and_only_then() {
    let host = made_host();
    let before = Base::of(host.path()).layer_id();
    assert_eq!(before, Base::of(host.path()).layer_id());
    fs::write(host.path().join("etc/services"), "other").unwrap();
    assert_ne!(before, Base::of(host.path()).layer_id());
}
