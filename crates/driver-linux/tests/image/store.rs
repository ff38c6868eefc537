//! Layers in the store: what is kept, what goes, what a crash leaves.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use sandbank_driver::{DriverError, ImportSource, NewLayers};
use sandbank_driver_linux::image::{ImageStore, ImportLimits, remove_tree, root_plan};

use crate::tree::{Data, image, is_root};

fn import(data: &Data, content: &str) -> NewLayers {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("bin")).unwrap();
    fs::write(source.path().join("bin/it"), content).unwrap();
    data.store.import(&ImportSource::Directory(source.path().to_owned()), &ImportLimits::default()).unwrap()
}

fn id(layers: &NewLayers) -> String {
    layers.layers.last().unwrap().id.clone()
}

#[test]
fn the_host_image_is_a_base_with_the_hosts_directories_over_it() {
    let data = Data::new();
    let builtin = data.store.builtin_image();
    assert!(builtin.on_host && builtin.layers.is_empty());
    let plan = root_plan(&data.store, &image(&builtin)).unwrap();
    let [base] = &plan.lowers[..] else { panic!("{plan:?}") };
    let usr = plan.grafts.iter().find(|graft| graft.target == Path::new("usr")).unwrap();
    assert_eq!(usr.lowers, [Path::new("/usr")]);
    for dir in ["etc", "dev", "proc", "sys", "run", "tmp", "var/tmp", "home/user", "root", "opt", "usr"] {
        assert!(base.join(dir).symlink_metadata().unwrap().is_dir(), "{dir}");
    }
    assert_eq!(base.join("usr").read_dir().unwrap().count(), 0);
    assert!(base.join("etc/resolv.conf").is_file() && base.join("etc/ssl/certs").is_dir());
    for secret in ["etc/shadow-", "etc/ssh", "etc/ssl/private", "etc/machine-id", "root/.ssh", "home/user/.ssh"] {
        assert!(!base.join(secret).exists(), "{secret}");
    }
    if is_root() {
        assert_eq!(base.join("home/user").metadata().unwrap().uid(), 1000);
        assert_eq!(base.join("root").metadata().unwrap().mode() & 0o7777, 0o700);
    }
}

#[test]
fn the_base_is_made_once_and_the_store_is_private() {
    let data = Data::new();
    let bases = data.base_names();
    let made = || bases.each_ref().map(|base| data.path().join("images/layers").join(base).metadata().unwrap().ino());
    let before = made();
    ImageStore::open(data.path()).unwrap();
    assert_eq!((data.layer_names(), made()), (bases.to_vec(), before));
    assert_eq!(data.path().join("images").metadata().unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_base_of_another_boot_is_made_anew_for_it_was_never_flushed() {
    let data = Data::new();
    let layers = data.base_names().map(|base| data.path().join("images/layers").join(base));
    for layer in &layers {
        fs::write(layer.join("layer.json"), r#"{"format":1,"size_bytes":1,"boot_id":"another"}"#).unwrap();
        fs::write(layer.join("fs/etc/passwd"), "").unwrap();
    }
    ImageStore::open(data.path()).unwrap();
    for layer in &layers {
        assert!(!fs::read(layer.join("fs/etc/passwd")).unwrap().is_empty());
    }
}

#[test]
fn what_a_crash_left_in_staging_is_removed_at_the_next_start() {
    let data = Data::new();
    let left = data.path().join("images/staging/0123/fs/some/where");
    fs::create_dir_all(&left).unwrap();
    symlink("/etc", left.join("link")).unwrap();
    fs::set_permissions(data.path().join("images/staging/0123/fs"), fs::Permissions::from_mode(0o000)).unwrap();
    ImageStore::open(data.path()).unwrap();
    assert!(data.staging_names().is_empty());
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn layers_that_nobody_uses_go_and_the_others_stay() {
    let data = Data::new();
    let [used, in_use, unused] = ["1", "2", "3"].map(|content| import(&data, content));
    // After a restart nothing is fresh any more.
    let store = ImageStore::open(data.path()).unwrap();
    store.retain_layers(&[id(&used)], &[id(&in_use)]).unwrap();
    let left = data.layer_names();
    assert_eq!(data.made_names().len(), 2, "{left:?}");
    assert!(left.contains(&id(&used)) && left.contains(&id(&in_use)) && !left.contains(&id(&unused)));
    assert!(data.base_names().iter().all(|base| left.contains(base)));
    store.retain_layers(&[id(&used)], &[id(&in_use)]).unwrap();
    assert_eq!(data.layer_names(), left);
}

#[test]
fn a_fresh_layer_is_spared_until_it_was_named_as_used() {
    let data = Data::new();
    let fresh = import(&data, "1");
    data.store.retain_layers(&[], &[]).unwrap();
    assert!(data.layer_names().contains(&id(&fresh)));
    data.store.retain_layers(&[id(&fresh)], &[]).unwrap();
    assert!(data.layer_names().contains(&id(&fresh)));
    data.store.retain_layers(&[], &[]).unwrap();
    assert!(!data.layer_names().contains(&id(&fresh)));
}

#[test]
fn a_fresh_layer_that_was_given_up_goes_at_once() {
    let data = Data::new();
    let (used, given_up) = (import(&data, "used"), import(&data, "given up"));
    data.store.release_layers(&[id(&used), id(&given_up)]);
    data.store.retain_layers(&[id(&used)], &[]).unwrap();
    assert_eq!(data.made_names(), [id(&used)]);
}

#[test]
fn a_missing_layer_is_said_by_name() {
    let data = Data::new();
    let layers = import(&data, "1");
    remove_tree(&data.path().join("images/layers").join(id(&layers))).unwrap();
    let error = root_plan(&data.store, &image(&layers)).unwrap_err();
    assert!(
        matches!(&error, DriverError::ImageMissing { image, detail } if image == "tested:1" && detail.contains(&id(&layers))),
        "{error}"
    );
}

#[test]
fn a_layer_id_cannot_lead_out_of_the_store() {
    let data = Data::new();
    for bad in ["..", "../..", "", "a/b", "/etc"] {
        let mut layers = import(&data, "1");
        layers.layers[0].id = bad.to_owned();
        assert!(matches!(root_plan(&data.store, &image(&layers)), Err(DriverError::ImageMissing { .. })), "{bad}");
    }
}

#[test]
fn a_plan_tells_which_layers_it_is_made_of() {
    let data = Data::new();
    let layers = import(&data, "1");
    let plan = root_plan(&data.store, &image(&layers)).unwrap();
    assert_eq!(data.store.layer_of(&plan.lowers[0]), Some(id(&layers)));
    assert_eq!(data.store.layer_of(Path::new("/usr")), None);
    let host = root_plan(&data.store, &image(&data.store.builtin_image())).unwrap();
    assert!(data.store.layer_of(&host.lowers[0]).unwrap().starts_with("host-"));
}

#[test]
fn removing_takes_links_and_not_what_they_lead_to() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "x").unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir_all(tree.join(".removed-1/.removed-2")).unwrap();
    symlink(&kept, tree.join("a/link")).unwrap();
    symlink(&kept, dir.path().join("top-link")).unwrap();
    for gone in [tree, dir.path().join("top-link"), dir.path().join("never-was")] {
        remove_tree(&gone).unwrap();
        assert!(gone.symlink_metadata().is_err());
    }
    assert_eq!(fs::read(kept.join("file")).unwrap(), b"x");
}
