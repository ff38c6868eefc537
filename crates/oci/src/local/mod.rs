//! Images on a disk: OCI image layouts (`image-layout.md`), archives of them, and archives of `docker save`.

mod detect;
mod docker;
mod files;
mod members;

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

pub use detect::{Form, detect};
use files::{FileRange, blocking, open_regular};
use members::Members;

use crate::decompress::{Compression, decompress};
use crate::manifest::{self, Documents, Raw, malformed, shown};
use crate::reference::{DOCKER_REGISTRY, Reference};
use crate::source::{LayerBlob, LayerReader, Limits, Resolved, Source};
use crate::wire::{self, Descriptor, DockerImage, Document};
use crate::{Digest, Error, Platform, Result};

/// Where a compressed archive is decompressed to: layers are read in any order, which a compressed stream does not allow.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// A directory on a disk with room. The file in it has no name and is gone when the source is, or the process.
    pub directory: PathBuf,
    /// Most bytes of the decompressed archive.
    pub limit_bytes: u64,
}

/// One image on a disk.
pub struct LocalSource {
    path: PathBuf,
    /// As errors and people say it.
    name: String,
    blobs: Blobs,
    root: Root,
}

/// Where content lies.
#[derive(Clone)]
enum Blobs {
    Directory(PathBuf),
    Archive { file: Arc<File>, members: Arc<Members> },
}

/// What the image's name stands for.
enum Root {
    Manifest(Descriptor),
    /// The layout's own index lists one image's variants.
    Index(Vec<u8>),
    Docker(DockerImage),
}

impl LocalSource {
    /// What the archive or layout itself calls the image, if it does.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match &self.root {
            Root::Manifest(descriptor) => names_of(descriptor),
            Root::Index(_) => Vec::new(),
            Root::Docker(image) => image.repo_tags.clone(),
        }
    }

    /// Opens a layout directory: the image of that name, or its only one.
    pub async fn open_layout(directory: &Path, name: Option<&str>) -> Result<Self> {
        let (path, name) = (directory.to_owned(), name.map(str::to_owned));
        blocking(directory, move || {
            let blobs = Blobs::Directory(path.clone());
            Self::with_blobs(path, blobs, name.as_deref())
        })
        .await
    }

    /// Opens an archive of a layout or of `docker save`, compressed or not: the image of that name, or its only one.
    pub async fn open_archive(archive: &Path, name: Option<&str>, scratch: &Scratch) -> Result<Self> {
        let (path, name, scratch) = (archive.to_owned(), name.map(str::to_owned), scratch.clone());
        blocking(archive, move || {
            let blobs = Blobs::of_archive(&path, &scratch)?;
            Self::with_blobs(path, blobs, name.as_deref())
        })
        .await
    }

    fn with_blobs(path: PathBuf, blobs: Blobs, name: Option<&str>) -> Result<Self> {
        let shown = name.map_or_else(|| path.display().to_string(), str::to_owned);
        let layout = blobs.small(&path, "oci-layout")?;
        let root = match (layout, blobs.small(&path, "index.json")?, blobs.small(&path, "manifest.json")?) {
            (Some(layout), Some(index), _) => {
                check_layout_version(&layout, &shown)?;
                choose_in_index(&path, index, name)?
            }
            // Its paths are free text, which only an archive's own names may answer.
            (_, _, Some(manifest)) if matches!(blobs, Blobs::Archive { .. }) => {
                Root::Docker(docker::choose(&path, &manifest, name)?)
            }
            _ => {
                let reason = "holds no image: neither oci-layout and index.json nor manifest.json".to_owned();
                return Err(Error::Archive { path, reason });
            }
        };
        Ok(Self { path, name: shown, blobs, root })
    }

    fn missing(&self, digest: Digest, what: &str) -> Error {
        malformed(&self.name, what, format!("{digest} is not in {}", self.path.display()))
    }
}

impl Blobs {
    fn of_archive(path: &Path, scratch: &Scratch) -> Result<Self> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData if Error::within(&error).is_none() => {
                Error::Archive { path: path.to_owned(), reason: error.to_string() }
            }
            _ => Error::io(path, error),
        };
        let mut file = open_regular(path, true).map_err(failed)?;
        let mut magic = Vec::new();
        file.by_ref().take(8).read_to_end(&mut magic).map_err(failed)?;
        file.rewind().map_err(failed)?;
        if Compression::detect(&magic) != Ok(Compression::None) {
            let mut reader = decompress(file, scratch.limit_bytes).map_err(failed)?;
            let mut plain = tempfile::tempfile_in(&scratch.directory).map_err(|error| Error::io(&scratch.directory, error))?;
            io::copy(&mut reader, &mut plain).map_err(failed)?;
            plain.rewind().map_err(failed)?;
            file = plain;
        }
        let end = file.metadata().map_err(failed)?.len();
        // A header may claim more than there is; reading such a member ends early and fails its check.
        let mut skip = |file: &mut File, size_bytes: u64| {
            let next = file.stream_position()?.saturating_add(size_bytes).min(end);
            file.seek(SeekFrom::Start(next)).map(|_| ())
        };
        let members = Members::index(&mut file, &mut skip).map_err(failed)?;
        Ok(Self::Archive { file: Arc::new(file), members: Arc::new(members) })
    }

    /// A part by its path, which must be one of ours: fixed, or made from a digest. Blocks.
    fn find(&self, path: &str) -> io::Result<Option<FileRange>> {
        match self {
            Self::Directory(directory) => match open_regular(&directory.join(path), false) {
                Ok(file) => FileRange::whole(file).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Archive { file, members } => Ok(members.get(path).map(|range| FileRange { file: file.clone(), range })),
        }
    }

    /// A document, whole.
    fn small(&self, source: &Path, path: &str) -> Result<Option<Vec<u8>>> {
        let failed = |error| Error::io(source.join(path), error);
        let Some(found) = self.find(path).map_err(failed)? else { return Ok(None) };
        if found.range.size_bytes > Limits::DOCUMENT_BYTES_MAX as u64 {
            let (image, limit_bytes) = (source.display().to_string(), Limits::DOCUMENT_BYTES_MAX as u64);
            return Err(Error::TooLarge { image, what: path.to_owned(), limit_bytes });
        }
        let mut content = Vec::new();
        found.reader().read_to_end(&mut content).map_err(failed)?;
        Ok(Some(content))
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn check_layout_version(layout: &[u8], image: &str) -> Result<()> {
    let version = serde_json::from_slice::<serde_json::Value>(layout).ok();
    let version = version.as_ref().and_then(|layout| layout["imageLayoutVersion"].as_str()).unwrap_or_default();
    if version.starts_with("1.") {
        return Ok(());
    }
    Err(Error::Unsupported { image: image.to_owned(), what: format!("its layout version {:?}", shown(version)) })
}

/// The index's entry of that name, or what is in it if it is one image.
fn choose_in_index(path: &Path, content: Vec<u8>, name: Option<&str>) -> Result<Root> {
    let image = path.display().to_string();
    let index: Document = serde_json::from_slice(&content).map_err(|error| malformed(&image, "index.json", error.to_string()))?;
    let entries = index.manifests.unwrap_or_default();
    if entries.len() > Limits::INDEX_ENTRIES_MAX {
        return Err(malformed(&image, "index.json", format!("more than {} entries", Limits::INDEX_ENTRIES_MAX)));
    }
    let all = || entries.iter().flat_map(names_of);
    if let Some(name) = name {
        let chosen = entries.iter().find(|entry| names_of(entry).iter().any(|own| own == name));
        let chosen = chosen.or_else(|| entries.iter().find(|entry| names_of(entry).iter().any(|own| same_image(own, name))));
        return chosen.cloned().map(Root::Manifest).ok_or_else(|| no_such(path, name, all()));
    }
    match entries.as_slice() {
        [only] => Ok(Root::Manifest(only.clone())),
        [] => Err(Error::Archive { path: path.to_owned(), reason: "lists no image".to_owned() }),
        several if several.iter().all(|entry| names_of(entry).is_empty() && entry.platform.is_some()) => Ok(Root::Index(content)),
        _ => Err(several_images(path, all())),
    }
}

/// The full name first: the other is often a tag only.
fn names_of(entry: &Descriptor) -> Vec<String> {
    [wire::CONTAINERD_NAME, wire::REF_NAME].iter().filter_map(|key| entry.annotations.get(*key).cloned()).collect()
}

/// Two spellings of one image, as Docker reads them.
fn same_image(one: &str, other: &str) -> bool {
    let read = |name: &str| Reference::parse(name, DOCKER_REGISTRY).ok();
    one == other || read(one).is_some_and(|one| read(other) == Some(one))
}

fn no_such(path: &Path, name: &str, names: impl Iterator<Item = String>) -> Error {
    Error::Choice { path: path.to_owned(), reason: format!("has no image {}; it has {}", shown(name), listed(names)) }
}

fn several_images(path: &Path, names: impl Iterator<Item = String>) -> Error {
    Error::Choice { path: path.to_owned(), reason: format!("has several images; name one of {}", listed(names)) }
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.take(32).map(|name| shown(&name)).collect();
    if names.is_empty() { "none with a name".to_owned() } else { names.join(", ") }
}

/// [`LocalSource`] seen from one platform's resolution: documents by digest.
struct LocalDocuments {
    path: PathBuf,
    name: String,
    blobs: Blobs,
}

#[async_trait]
impl Documents for LocalDocuments {
    fn image(&self) -> String {
        self.name.clone()
    }

    async fn document(&self, what: &str, digest: Digest, _: u64, _: bool) -> Result<Vec<u8>> {
        let (path, blobs) = (self.path.clone(), self.blobs.clone());
        let content = blocking(&self.path, move || blobs.small(&path, &blob_path(digest))).await?;
        content.ok_or_else(|| malformed(&self.name, what, format!("{digest} is not in {}", self.path.display())))
    }
}

#[async_trait]
impl Source for LocalSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let (path, name, blobs) = (self.path.clone(), self.name.clone(), self.blobs.clone());
        let documents = LocalDocuments { path: path.clone(), name: name.clone(), blobs: blobs.clone() };
        let root = match &self.root {
            Root::Docker(image) => {
                let (image, platform) = (image.clone(), platform.clone());
                return blocking(&self.path, move || docker::resolve(&path, &name, &blobs, &image, &platform)).await;
            }
            Root::Index(content) => {
                Raw { content: content.clone(), media_type: wire::OCI_INDEX.to_owned(), digest: Digest::of(content) }
            }
            Root::Manifest(descriptor) => manifest::fetch_root(&documents, descriptor).await?,
        };
        manifest::resolve(&documents, root, platform).await
    }

    async fn open(&self, layer: &LayerBlob) -> Result<LayerReader> {
        let (path, blobs, digest) = (self.path.clone(), self.blobs.clone(), layer.digest);
        let docker = match &self.root {
            Root::Docker(image) => Some((image.clone(), layer.diff_id)),
            _ => None,
        };
        let found = blocking(&self.path, move || match docker {
            Some((image, diff_id)) => docker::find_layer(&path, &blobs, &image, diff_id),
            None => blobs.find(&blob_path(digest)).map_err(|error| Error::io(path, error)),
        })
        .await?;
        let found = found.ok_or_else(|| self.missing(digest, "a layer"))?;
        Ok(LayerReader::new(found.stream(), self.name.clone(), layer.clone()))
    }
}
