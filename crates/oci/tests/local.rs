//! Images on a disk: layouts, archives, `docker save`, and what we write ourselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbank_model::ImageConfig;
use sandbank_oci::{
    Compression, Digest, Error, ExportImage, Form, LayerTar, LocalSource, Platform, Reference, Scratch, Source, detect,
    stream_archive, write_archive,
};
use serde_json::json;
use support::{Layout, OCI_LAYER, OCI_MANIFEST, assert_layers, compressed, read_layer, tar_of, tar_with, three_layers};
use tempfile::TempDir;

/// Most bytes that an archive decompresses to.
const LIMIT: u64 = 64 << 20;

fn scratch(directory: &TempDir) -> Scratch {
    Scratch { directory: directory.path().to_owned(), limit_bytes: LIMIT }
}

fn amd64() -> Platform {
    Platform::linux_amd64()
}

async fn failure(source: Result<LocalSource, Error>) -> String {
    match source {
        Err(error) => error.to_string(),
        Ok(source) => source.resolve(&amd64()).await.unwrap_err().to_string(),
    }
}

/// Packs a directory's files into a tar, in the order of `first` and then by name.
fn pack(directory: &Path, first: &[&str]) -> Vec<u8> {
    let mut names: Vec<String> = first.iter().map(|name| (*name).to_owned()).collect();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        for entry in std::fs::read_dir(directory.join(&below)).unwrap() {
            let entry = entry.unwrap();
            let name = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                pending.push(name);
            } else if !first.contains(&name.to_str().unwrap()) {
                names.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    let contents: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(directory.join(name)).unwrap()).collect();
    tar_of(&names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_layout_gives_the_variant_that_fits() {
    let mut layout = Layout::new();
    let (ours, theirs) = (three_layers("amd"), three_layers("arm"));
    let index = layout.index(&[layout.image("arm64", &theirs), layout.image("amd64", &ours)]);
    layout.add(Some("1"), index);
    layout.add(Some("2"), layout.image("arm64", &theirs));

    let source = LocalSource::open_layout(layout.path(), Some("1")).await.unwrap();
    let resolved = source.resolve(&amd64()).await.unwrap();
    assert_eq!(resolved.config.env["ARCH"], "amd64");
    assert_eq!(resolved.config.workdir.as_deref(), Some("/w"));
    assert_eq!(resolved.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_ne!(resolved.root_digest, resolved.manifest_digest);
    assert_layers(&source, &resolved, &ours).await;
    let resolved = source.resolve(&Platform::linux_arm64()).await.unwrap();
    assert_eq!(resolved.config.env["ARCH"], "arm64");

    let open = |name| LocalSource::open_layout(layout.path(), name);
    assert!(failure(open(Some("2")).await).await.contains("has nothing for linux/amd64; it has linux/arm64"));
    assert!(failure(open(Some("3")).await).await.contains("has no image 3; it has 1, 2"));
    assert!(failure(open(None).await).await.contains("has several images; name one of 1, 2"));
}

#[tokio::test]
async fn an_archive_may_be_compressed_and_in_any_order() {
    let mut layout = Layout::new();
    let tars = three_layers("x");
    layout.add(None, layout.image("amd64", &tars));
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image.tar");
    for first in [&["index.json", "oci-layout"][..], &[]] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            std::fs::write(&path, compressed(&pack(layout.path(), first), compression)).unwrap();
            assert_eq!(detect(&path, LIMIT).unwrap(), Form::OciArchive);
            let source = LocalSource::open_archive(&path, None, &scratch(&directory)).await.unwrap();
            let resolved = source.resolve(&amd64()).await.unwrap();
            assert_layers(&source, &resolved, &tars).await;
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "the scratch file has no name");
    let small = Scratch { directory: directory.path().to_owned(), limit_bytes: 1000 };
    assert!(failure(LocalSource::open_archive(&path, None, &small).await).await.contains("more than 1000 bytes"));
}

/// An archive as Docker wrote it before version 25, with a layer that is a link to another.
fn docker_archive(tars: &[(Vec<u8>, Compression)]) -> Vec<u8> {
    let kept: Vec<Vec<u8>> = tars.iter().map(|(tar, compression)| compressed(tar, *compression)).collect();
    let mut diff_ids: Vec<String> = tars.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
    diff_ids.push(diff_ids[0].clone());
    let config =
        json!({ "os": "linux", "architecture": "amd64", "config": { "Env": ["A=b"] }, "rootfs": { "diff_ids": diff_ids } })
            .to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut layers: Vec<String> = (0..tars.len()).map(|number| format!("{number}{number}/layer.tar")).collect();
    layers.push("zz/layer.tar".to_owned());
    let manifest = json!([{ "Config": config_name, "RepoTags": ["app:1", "docker.io/me/app:2"], "Layers": layers }]).to_string();
    let mut files: Vec<(&str, &[u8])> = layers.iter().map(String::as_str).zip(kept.iter().map(Vec::as_slice)).collect();
    files.push((&config_name, config.as_bytes()));
    files.push(("manifest.json", manifest.as_bytes()));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "zz/layer.tar", "../00/layer.tar").unwrap();
    let link = builder.into_inner().unwrap();
    [&link[..512], &tar_of(&files)].concat()
}

#[tokio::test]
async fn docker_save_archives_are_read() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("save.tar");
    let mut tars = three_layers("docker");
    std::fs::write(&path, docker_archive(&tars)).unwrap();
    tars.push(tars[0].clone());
    assert_eq!(detect(&path, LIMIT).unwrap(), Form::DockerArchive);
    for name in [None, Some("app:1"), Some("me/app:2"), Some("docker.io/library/app:1")] {
        let source = LocalSource::open_archive(&path, name, &scratch(&directory)).await.unwrap();
        let resolved = source.resolve(&amd64()).await.unwrap();
        assert_eq!(resolved.config.env["A"], "b");
        assert_layers(&source, &resolved, &tars).await;
    }
    let missing = LocalSource::open_archive(&path, Some("app:3"), &scratch(&directory)).await;
    assert!(failure(missing).await.contains("has no image app:3; it has app:1"));
}

#[test]
fn what_is_no_image_is_a_root_file_system_or_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("x");
    assert_eq!(detect(directory.path(), LIMIT).unwrap(), Form::Directory);
    for compression in [Compression::None, Compression::Gzip] {
        std::fs::write(&path, compressed(&tar_of(&[("./etc/passwd", b"x"), ("manifest.json", b"[]")]), compression)).unwrap();
        assert_eq!(detect(&path, LIMIT).unwrap(), Form::RootfsTar);
    }
    std::fs::write(&path, b"hello, this is no archive at all").unwrap();
    assert!(detect(&path, LIMIT).unwrap_err().to_string().contains("no tar archive"));
    assert!(matches!(detect(&directory.path().join("missing"), LIMIT), Err(Error::Io { .. })));
    let layout = Layout::new();
    std::fs::write(layout.path().join("index.json"), "{}").unwrap();
    assert_eq!(detect(layout.path(), LIMIT).unwrap(), Form::LayoutDirectory);
}

#[tokio::test]
async fn damage_is_seen_and_named() {
    let mut layout = Layout::new();
    layout.add(None, layout.image("amd64", &three_layers("x")));
    let source = LocalSource::open_layout(layout.path(), None).await.unwrap();
    let resolved = source.resolve(&amd64()).await.unwrap();
    let layer = &resolved.layers[1];
    let path = layout.path().join("blobs/sha256").join(layer.digest.hex());
    let whole = std::fs::read(&path).unwrap();

    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    for (content, says) in
        [(&flipped[..], "was promised"), (&whole[..50], "has 50 bytes"), (&[&whole[..], b"x"].concat(), "has more")]
    {
        std::fs::write(&path, content).unwrap();
        let error = read_layer(&source, layer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let text = Error::within(&error).unwrap().to_string();
        assert!(text.contains(says) && text.contains(&layer.digest.to_string()), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(read_layer(&source, layer).await.unwrap_err().to_string().contains("is not in"));

    let outside = layout.path().join("outside");
    std::fs::write(&outside, &whole).unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    assert!(read_layer(&source, layer).await.is_err(), "links are not followed, whatever they lead to");

    let manifest = layout.path().join("blobs/sha256").join(resolved.manifest_digest.hex());
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("+zstd", "+gzip")).unwrap();
    assert!(source.resolve(&amd64()).await.unwrap_err().to_string().contains("was promised"));
}

#[tokio::test]
async fn parts_that_we_do_not_take_are_refused_by_name() {
    let layer = tar_with("a", b"b");
    let image = |media_type: &str| {
        let mut layout = Layout::new();
        let config = layout.blob(support::OCI_CONFIG, b"{}");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layout.blob(media_type, &layer)] });
        layout.add(None, layout.blob(OCI_MANIFEST, manifest.to_string().as_bytes()));
        layout
    };
    for (media_type, says) in [
        (format!("{OCI_LAYER}+gzip+encrypted"), "encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".to_owned(), "foreign layer"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned(), "foreign layer"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip".to_owned(), "helm.chart"),
        (String::new(), "media type"),
        (OCI_LAYER.to_owned(), "1 layers in the manifest, 0 in the configuration"),
    ] {
        let layout = image(&media_type);
        let error = failure(LocalSource::open_layout(layout.path(), None).await).await;
        assert!(error.contains(says), "{error}");
    }
    let cases = [
        (json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
        (json!({ "schemaVersion": 2 }), "neither a manifest nor an index"),
        (
            json!({ "schemaVersion": 2, "config": { "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": Digest::of(b"").to_string(), "size": 0 } }),
            "artifact",
        ),
        (json!({ "schemaVersion": 2, "config": { "digest": Digest::of(b"").to_string(), "size": 5 << 20 } }), "larger than"),
        (json!({ "schemaVersion": 2, "config": { "digest": "sha256:../../../../../etc/passwd", "size": 1 } }), "not a digest"),
        (json!({ "schemaVersion": 2, "manifests": [] }), "no image at all"),
    ];
    for (manifest, says) in cases {
        let mut layout = Layout::new();
        layout.add(None, layout.blob(OCI_MANIFEST, manifest.to_string().as_bytes()));
        let error = failure(LocalSource::open_layout(layout.path(), None).await).await;
        assert!(error.contains(says), "{error}");
    }
    let mut layout = Layout::new();
    let many = layout.index(&vec![layout.image("arm64", &[]); 1025]);
    layout.add(None, many);
    assert!(failure(LocalSource::open_layout(layout.path(), None).await).await.contains("1025 entries"));
    let layers = vec![(layer.clone(), Compression::None); 128];
    let mut layout = Layout::new();
    layout.add(None, layout.image("amd64", &layers));
    assert!(failure(LocalSource::open_layout(layout.path(), None).await).await.contains("128 layers"));
}

#[tokio::test]
async fn a_directory_with_dockers_manifest_is_not_followed_to_its_paths() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("manifest.json"), r#"[{"Config":"/etc/passwd","Layers":["../../etc/passwd"]}]"#)
        .unwrap();
    assert!(failure(LocalSource::open_layout(directory.path(), None).await).await.contains("holds no image"));
}

struct Tar(Vec<u8>);

impl LayerTar for Tar {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }
}

fn export<'a>(config: &'a ImageConfig, tars: &[(Vec<u8>, Compression)]) -> ExportImage<'a> {
    ExportImage {
        names: ["app:1", "ghcr.io/me/app:2"].map(|name| Reference::parse(name, "docker.io").unwrap()).into(),
        config,
        platform: amd64(),
        created: Some("2026-01-02T03:04:05Z".to_owned()),
        layers: tars.iter().map(|(tar, _)| Box::new(Tar(tar.clone())) as Box<dyn LayerTar>).collect(),
    }
}

#[tokio::test]
async fn what_we_write_we_read() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("out.tar");
    let mut tars = three_layers("export");
    tars.push(tars[1].clone());
    let config = ImageConfig {
        entrypoint: vec!["/init".to_owned()],
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..ImageConfig::default()
    };
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let exported = write_archive(&path, &export(&config, &tars), compression).unwrap();
        assert_eq!(exported.size_bytes, std::fs::metadata(&path).unwrap().len());
        assert!(exported.size_bytes < 7 << 20, "a layer that is there twice is kept once");
        let mut streamed = Vec::new();
        let again = stream_archive(&mut streamed, &export(&config, &tars), compression, directory.path()).unwrap();
        assert_eq!(again, exported);
        assert!(streamed == std::fs::read(&path).unwrap());
        for name in ["app:1", "ghcr.io/me/app:2"] {
            let source = LocalSource::open_archive(&path, Some(name), &scratch(&directory)).await.unwrap();
            let resolved = source.resolve(&amd64()).await.unwrap();
            assert_eq!((resolved.config_digest, resolved.manifest_digest), (exported.config_digest, exported.manifest_digest));
            assert_eq!(resolved.config, config);
            assert_eq!(resolved.layers[0].compression, compression);
            assert_layers(&source, &resolved, &tars).await;
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing half written is left");
}

#[tokio::test]
async fn skopeo_reads_what_we_write_and_we_read_what_skopeo_writes() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("skipped: skopeo is not installed (Debian package skopeo)");
        return;
    }
    let directory = TempDir::new().unwrap();
    let ours = directory.path().join("ours.tar");
    let tars: Vec<_> = three_layers("skopeo").into_iter().collect();
    let config = ImageConfig { command: vec!["sh".to_owned()], ..ImageConfig::default() };
    let exported = write_archive(&ours, &export(&config, &tars), Compression::Gzip).unwrap();
    for (from, name, to, form) in [
        ("docker-archive", "app:1", "docker-archive", Form::DockerArchive),
        ("oci-archive", "1", "oci-archive", Form::OciArchive),
    ] {
        let theirs = directory.path().join(to);
        let from = format!("{from}:{}:{name}", ours.display());
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir", directory.path().to_str().unwrap(), "copy", &from])
            .arg(format!("{to}:{}:app:1", theirs.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(detect(&theirs, LIMIT).unwrap(), form);
        let source = LocalSource::open_archive(&theirs, Some("app:1"), &scratch(&directory)).await.unwrap();
        let resolved = source.resolve(&amd64()).await.unwrap();
        assert_eq!(resolved.config_digest, exported.config_digest, "an image keeps its id on the way");
        assert_layers(&source, &resolved, &tars).await;
    }
}
