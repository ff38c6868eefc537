//! Images to give away: a tar of an OCI image layout that `docker load` takes too.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sandbank_model::ImageConfig;
use serde_json::json;

use crate::config::{ImageDetails, write_config};
use crate::digest::{Hasher, HashingWriter};
use crate::reference::Reference;
use crate::wire::{self, Descriptor, DockerImage, Document};
use crate::{Compression, Digest, Error, Hashing, Platform, Result};

/// What `zstd` itself uses.
const ZSTD_LEVEL: i32 = 3;
const BLOCK: u64 = 512;

/// Gives one layer's tar stream, from its beginning each time it is asked.
pub trait LayerTar {
    /// The uncompressed stream.
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;
}

impl<F: Fn() -> io::Result<Box<dyn Read>>> LayerTar for F {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        self()
    }
}

/// An image to write.
pub struct ExportImage<'a> {
    /// What it is called in the archive; none: it has no name.
    pub names: Vec<Reference>,
    /// What processes get.
    pub config: &'a ImageConfig,
    /// What it runs on.
    pub platform: Platform,
    /// When it was made (RFC 3339).
    pub created: Option<String>,
    /// Lowest first.
    pub layers: Vec<Box<dyn LayerTar + 'a>>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Of the manifest.
    pub manifest_digest: Digest,
    /// Of the configuration: the image's id in Docker's words.
    pub config_digest: Digest,
    /// Of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Bytes of the whole archive.
    pub size_bytes: u64,
}

/// Writes `image` to `path`, which is there whole or not at all. Blocks.
pub fn write_archive(path: &Path, image: &ExportImage<'_>, compression: Compression) -> Result<Exported> {
    let failed = |error: io::Error| Error::io(path, error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".export-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    let exported = write_to(file.as_file_mut(), image, compression).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(exported)
}

/// Writes `image` to `writer` by way of a nameless file in `scratch`: a tar says sizes and digests before the content. Blocks.
pub fn stream_archive(
    writer: &mut dyn Write,
    image: &ExportImage<'_>,
    compression: Compression,
    scratch: &Path,
) -> Result<Exported> {
    let (mut file, exported) = spool_archive(image, compression, scratch)?;
    io::copy(&mut file, writer).map_err(|error| Error::io(scratch, error))?;
    Ok(exported)
}

/// Writes `image` to a nameless file in `scratch`, to be read from its beginning: whole, or there is none. Blocks.
pub fn spool_archive(image: &ExportImage<'_>, compression: Compression, scratch: &Path) -> Result<(File, Exported)> {
    let failed = |error: io::Error| Error::io(scratch, error);
    let mut file: File = tempfile::tempfile_in(scratch).map_err(failed)?;
    let exported = write_to(&mut file, image, compression).map_err(failed)?;
    file.rewind().map_err(failed)?;
    Ok((file, exported))
}

fn write_to(file: &mut File, image: &ExportImage<'_>, compression: Compression) -> io::Result<Exported> {
    let mut archive = Archive { file, blobs: HashSet::new() };
    let mut diff_ids = Vec::with_capacity(image.layers.len());
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let (diff_id, descriptor) = archive.add_layer(&mut *layer.open()?, compression)?;
        diff_ids.push(diff_id);
        layers.push(descriptor);
    }
    let details = ImageDetails {
        config: image.config.clone(),
        platform: image.platform.clone(),
        created: image.created.clone(),
        diff_ids: diff_ids.clone(),
    };
    let config = archive.add_document(&write_config(&details), wire::OCI_CONFIG)?;
    let paths = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
    let docker = DockerImage {
        config: blob_path(&config.digest),
        repo_tags: image.names.iter().filter(|name| name.tag().is_some()).map(docker_name).collect(),
        layers: paths,
    };
    let manifest = Document {
        schema_version: 2,
        media_type: Some(wire::OCI_MANIFEST.to_owned()),
        manifests: None,
        config: Some(config.clone()),
        layers: Some(layers),
    };
    let manifest = archive.add_document(&serde_json::to_vec(&manifest)?, wire::OCI_MANIFEST)?;
    let index = Document {
        schema_version: 2,
        media_type: Some(wire::OCI_INDEX.to_owned()),
        manifests: Some(index_entries(image, &manifest)),
        config: None,
        layers: None,
    };
    archive.add_file("index.json", &serde_json::to_vec(&index)?)?;
    archive.add_file("manifest.json", &serde_json::to_vec(&[docker])?)?;
    archive.add_file("oci-layout", &serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
    let size_bytes = archive.finish()?;
    let digest = |descriptor: &Descriptor| descriptor.digest.parse().map_err(io::Error::other);
    Ok(Exported { manifest_digest: digest(&manifest)?, config_digest: digest(&config)?, diff_ids, size_bytes })
}

/// One entry a name: that is how a layout gives one image several.
fn index_entries(image: &ExportImage<'_>, manifest: &Descriptor) -> Vec<Descriptor> {
    let entry = |name: Option<&Reference>| {
        let annotations = name.map(|name| {
            let tag = name.tag().map_or_else(|| name.to_string(), str::to_owned);
            [(wire::CONTAINERD_NAME.to_owned(), name.to_string()), (wire::REF_NAME.to_owned(), tag)].into()
        });
        let annotations = annotations.unwrap_or_default();
        Descriptor { platform: Some(image.platform.clone()), annotations, ..manifest.clone() }
    };
    if image.names.is_empty() { vec![entry(None)] } else { image.names.iter().map(|name| entry(Some(name))).collect() }
}

/// As `docker images` shows it, without a digest.
fn docker_name(name: &Reference) -> String {
    let familiar = name.familiar(crate::DOCKER_REGISTRY);
    familiar.split('@').next().unwrap_or_default().to_owned()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// A tar that is written front to back, but for headers of members whose size and name show only at their end.
struct Archive<'a> {
    file: &'a mut File,
    blobs: HashSet<String>,
}

impl Archive<'_> {
    fn add_layer(&mut self, layer: &mut dyn Read, compression: Compression) -> io::Result<(Digest, Descriptor)> {
        let header_at = self.file.stream_position()?;
        self.file.write_all(&[0; BLOCK as usize])?;
        let (diff_id, digest, size) = write_layer(self.file, layer, compression)?;
        let path = blob_path(&digest);
        if self.blobs.insert(path.clone()) {
            self.pad(size)?;
            let end = self.file.stream_position()?;
            self.file.seek(SeekFrom::Start(header_at))?;
            self.file.write_all(header(&path, size)?.as_bytes())?;
            self.file.seek(SeekFrom::Start(end))?;
        } else {
            // The same layer twice lies in the archive once.
            self.file.seek(SeekFrom::Start(header_at))?;
            self.file.set_len(header_at)?;
        }
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let media_type = format!("{}{suffix}", wire::OCI_LAYER);
        Ok((diff_id, Descriptor { media_type, digest, size, platform: None, annotations: Default::default() }))
    }

    fn add_document(&mut self, content: &[u8], media_type: &str) -> io::Result<Descriptor> {
        let digest = Digest::of(content).to_string();
        let path = blob_path(&digest);
        if self.blobs.insert(path.clone()) {
            self.add_file(&path, content)?;
        }
        let size = content.len() as u64;
        Ok(Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: Default::default() })
    }

    fn add_file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.file.write_all(header(path, content.len() as u64)?.as_bytes())?;
        self.file.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.file.write_all(&[0; BLOCK as usize][..rest])
    }

    /// Two blocks of zeros end a tar.
    fn finish(self) -> io::Result<u64> {
        self.file.write_all(&[0; 2 * BLOCK as usize])?;
        self.file.flush()?;
        self.file.stream_position()
    }
}

/// Writes a layer as it will be kept; says its diff id, its digest and its bytes.
fn write_layer(file: &mut File, layer: &mut dyn Read, compression: Compression) -> io::Result<(Digest, String, u64)> {
    let sink = HashingWriter { inner: io::BufWriter::new(file), hasher: Hasher::default() };
    let mut layer = Hashing::new(layer);
    let mut sink = compress(&mut layer, sink, compression)?;
    sink.flush()?;
    let (diff_id, _) = layer.finish();
    let size = sink.hasher.size_bytes();
    Ok((diff_id, sink.hasher.digest().to_string(), size))
}

fn compress<W: Write>(layer: &mut dyn Read, mut sink: W, compression: Compression) -> io::Result<W> {
    match compression {
        Compression::None => io::copy(layer, &mut sink).map(|_| sink),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(sink, flate2::Compression::default());
            io::copy(layer, &mut encoder)?;
            encoder.finish()
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(sink, ZSTD_LEVEL)?;
            io::copy(layer, &mut encoder)?;
            encoder.finish()
        }
    }
}

/// The same for the same content whoever writes it and when.
fn header(path: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}
