//! Images in and out: what forms are taken, what they are called, and what is left of what is refused.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sandbank_control::{Compression, ErrorKind, ImageArchive, ImageImport};
use sandbank_model::{Image, ImageConfig, ImageSource, Role};
use sandbank_oci::{ExportImage, LayerTar, Platform, Reference, write_archive};

use crate::support::{World, eventually, image};

/// An archive of one image with these layers' contents.
fn archive(path: &Path, names: &[&str], layers: &[&'static [u8]]) {
    let config = ImageConfig { command: vec!["/hello".to_owned()], user: Some("7".to_owned()), ..ImageConfig::default() };
    let layer = |content: &&'static [u8]| -> Box<dyn LayerTar> {
        let content = *content;
        Box::new(move || Ok(Box::new(content) as Box<dyn std::io::Read>))
    };
    let image = ExportImage {
        names: names.iter().map(|name| Reference::parse(name, "docker.io").unwrap()).collect(),
        config: &config,
        platform: Platform::host(),
        created: None,
        layers: layers.iter().map(layer).collect(),
    };
    write_archive(path, &image, Compression::Gzip).unwrap();
}

fn import(path: PathBuf) -> ImageImport {
    ImageImport { name: None, path, reference: None, global: true }
}

async fn whole(mut archive: ImageArchive) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = archive.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.len() as u64, archive.size_bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_goes_in_with_its_name_and_comes_out_the_same() {
    let world = World::new().await;
    let (admin, user) = (world.admin().await, world.owner("ann").await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    archive(&path, &["team/tool:1"], &[b"lower", b"upper", b"lower"]);
    let taken = world.control.image_import(&admin, import(path)).await.unwrap();
    assert_eq!(taken.name, image("team/tool:1"));
    assert!(matches!(&taken.source, ImageSource::Loaded { config_digest } if config_digest.starts_with("sha256:")));
    assert_eq!((taken.config.command.clone(), taken.config.user.as_deref()), (vec!["/hello".to_owned()], Some("7")));
    assert_eq!(taken.layers.len(), 2, "a layer that is there twice counts where it is uppermost");

    let name = image("team/tool:1");
    let out = world.control.image_export(&user, &name, Compression::Zstd).await.unwrap();
    assert_eq!(out.file_name, "team_tool_1.tar");
    let bytes = whole(out).await;
    let again = whole(world.control.image_export(&user, &name, Compression::Zstd).await.unwrap()).await;
    assert_eq!(bytes, again);
    let copy = dir.path().join("copy.tar");
    fs::write(&copy, bytes).unwrap();
    let renamed = ImageImport { name: Some(image("copy")), ..import(copy) };
    let copied = world.control.image_import(&admin, renamed).await.unwrap();
    assert_eq!((copied.layers, copied.config), (taken.layers, taken.config));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_references_are_asked_for_where_they_are_missing() {
    let world = World::new().await;
    let admin = world.admin().await;
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    fs::create_dir_all(rootfs.join("etc")).unwrap();
    let (nameless, several) = (dir.path().join("nameless.tar"), dir.path().join("several.tar"));
    archive(&nameless, &[], &[b"x"]);
    archive(&several, &["a:1", "b:2"], &[b"x"]);
    let wrong = [
        (import(rootfs.clone()), "has no name"),
        (ImageImport { name: Some(image("a")), reference: Some("b".to_owned()), ..import(rootfs) }, "leave the reference out"),
        (import(nameless.clone()), "no name for its image"),
        (import(several.clone()), "several images; name one of"),
        (ImageImport { reference: Some("c:3".to_owned()), ..import(several.clone()) }, "no image"),
        (import(dir.path().join("nowhere")), "nowhere"),
        (import(PathBuf::from("relative.tar")), "not an absolute path"),
    ];
    for (request, says) in wrong {
        let error = world.control.image_import(&admin, request).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(says), "{says}: {error}");
    }
    let chosen = ImageImport { reference: Some("b:2".to_owned()), ..import(several) };
    assert_eq!(world.control.image_import(&admin, chosen).await.unwrap().name, image("b:2"));
    let user = world.user("eve", Role::Owner).await;
    let error = world.control.image_import(&user, import(nameless)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Forbidden);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_archive_is_refused_with_its_name_and_nothing_is_recorded() {
    let world = World::new().await;
    let admin = world.admin().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    archive(&path, &["a:1"], &[b"some content that is compressed"]);
    let mut bytes = Vec::new();
    fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    // The first member is the layer: its data begins behind one header.
    bytes[512 + 14] ^= 0xff;
    fs::write(&path, &bytes).unwrap();
    let error = world.control.image_import(&admin, import(path.clone())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("layer"), "{error}");
    bytes.truncate(700);
    fs::write(&path, &bytes).unwrap();
    world.control.image_import(&admin, import(path)).await.unwrap_err();
    let left: Vec<Image> = world.control.image_list(&admin).await.unwrap();
    assert_eq!(left.iter().map(|image| image.name.to_string()).collect::<Vec<_>>(), ["host"]);
    assert_eq!(world.control.images_usage(&admin).await.unwrap().layers, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_on_the_host_is_not_given_away_and_others_images_look_missing() {
    let world = World::new().await;
    let (admin, user) = (world.admin().await, world.owner("ann").await);
    let error = world.control.image_export(&user, &image("host"), Compression::None).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("/usr is this machine's own"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    archive(&path, &["private:1"], &[b"x"]);
    world.control.image_import(&admin, ImageImport { global: false, ..import(path) }).await.unwrap();
    let error = world.control.image_export(&user, &image("private:1"), Compression::None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_archives_are_held_at_once() {
    let world = World::new().await;
    let admin = world.admin().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    archive(&path, &["a:1"], &[b"x"]);
    world.control.image_import(&admin, import(path)).await.unwrap();
    let mut held = Vec::new();
    let refused = loop {
        match world.control.image_export(&admin, &image("a:1"), Compression::None).await {
            Ok(archive) => held.push(archive),
            Err(error) => break error,
        }
        assert!(held.len() < 100);
    };
    assert_eq!(refused.kind, ErrorKind::NoCapacity);
    held.pop();
    world.control.image_export(&admin, &image("a:1"), Compression::None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_tells_shared_from_own_and_pruning_removes_what_nothing_uses() {
    let world = World::new().await;
    let (admin, user) = (world.admin().await, world.owner("ann").await);
    let dir = tempfile::tempdir().unwrap();
    for (file, name, layers) in [("a", "a:1", [&b"base"[..], b"a"]), ("b", "b:1", [b"base", b"b"])] {
        let path = dir.path().join(file);
        archive(&path, &[name], &layers);
        world.control.image_import(&admin, import(path)).await.unwrap();
    }
    let usage = world.control.images_usage(&admin).await.unwrap();
    assert_eq!((usage.layers, usage.unused_bytes, usage.images.len()), (3, 0, 3));
    assert_eq!(world.control.images_usage(&user).await.unwrap_err().kind, ErrorKind::Forbidden);
    assert_eq!(world.control.images_prune(&user).await.unwrap_err().kind, ErrorKind::Forbidden);
    assert_eq!(world.control.images_prune(&admin).await.unwrap().layers, 0);
    world.control.image_delete(&admin, &image("a:1")).await.unwrap();
    world.control.images_prune(&admin).await.unwrap();
    eventually("the layer is gone", || async { world.control.images_usage(&admin).await.unwrap().layers == 2 }).await;
}
