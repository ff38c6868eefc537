//! Small images, as directories in the form of an OCI layout.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

pub mod server;

use std::io::Write as _;
use std::path::Path;

use sandbank_oci::{Compression, Digest, LayerBlob, Resolved, Source};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A layout in the making.
pub struct Layout {
    pub directory: TempDir,
    entries: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory, entries: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
    }

    /// An image of these layers; its descriptor has a platform.
    pub fn image(&self, architecture: &str, layers: &[(Vec<u8>, Compression)]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": architecture,
            "os": "linux",
            "config": { "Env": ["PATH=/bin", format!("ARCH={architecture}")], "Cmd": ["/bin/sh"], "User": "1000", "WorkingDir": "/w" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(OCI_CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|(tar, compression)| self.layer(tar, *compression)).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        let mut manifest = self.blob(OCI_MANIFEST, manifest.to_string().as_bytes());
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    }

    fn layer(&self, tar: &[u8], compression: Compression) -> Value {
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        self.blob(&format!("{OCI_LAYER}{suffix}"), &compressed(tar, compression))
    }

    pub fn index(&self, images: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images });
        self.blob(OCI_INDEX, index.to_string().as_bytes())
    }

    /// Lists an image under a name.
    pub fn add(&mut self, name: Option<&str>, mut image: Value) {
        if let Some(name) = name {
            image["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.entries.push(image);
        let index = json!({ "schemaVersion": 2, "manifests": self.entries });
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }
}

pub fn compressed(tar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(tar, 3).unwrap(),
    }
}

/// A layer with one file.
pub fn tar_with(name: &str, content: &[u8]) -> Vec<u8> {
    tar_of(&[(name, content)])
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if name.contains("bin/") { 0o755 } else { 0o644 });
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Three layers, one of each compression; `salt` makes them its own, and the second one is large and does not compress.
pub fn three_layers(salt: &str) -> Vec<(Vec<u8>, Compression)> {
    vec![
        (tar_with("etc/one", salt.as_bytes()), Compression::Gzip),
        (tar_with("two", &noise(salt, 3 << 20)), Compression::Zstd),
        (tar_with("three", b"3"), Compression::None),
    ]
}

/// Bytes that do not compress, the same for the same salt.
pub fn noise(salt: &str, len: usize) -> Vec<u8> {
    let mut state =
        salt.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub async fn read_layer(source: &dyn Source, layer: &LayerBlob) -> std::io::Result<Vec<u8>> {
    let mut reader = source.open(layer).await?;
    let mut content = Vec::new();
    reader.read_to_end(&mut content).await?;
    assert_eq!(reader.progress().bytes(), content.len() as u64);
    Ok(content)
}

/// Reads every layer as one who extracts does, on a thread that may block, and compares what comes out with `tars`.
pub async fn assert_layers(source: &dyn Source, resolved: &Resolved, tars: &[(Vec<u8>, Compression)]) {
    assert_eq!(resolved.layers.len(), tars.len());
    for (layer, (tar, _)) in resolved.layers.iter().zip(tars) {
        let reader = source.open(layer).await.unwrap();
        let progress = reader.progress();
        let kept = reader.into_blocking();
        let extract = move || {
            let mut reader = sandbank_oci::Hashing::new(sandbank_oci::decompress(kept, 64 << 20).unwrap());
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut plain).unwrap();
            (plain, reader.finish())
        };
        let (plain, counted) = tokio::task::spawn_blocking(extract).await.unwrap();
        assert_eq!(counted, (layer.diff_id, tar.len() as u64));
        assert_eq!(progress.bytes(), layer.size_bytes, "a layer is read to its end, where it is checked");
        assert!(plain == *tar, "layer {layer:?} has other content");
    }
}
