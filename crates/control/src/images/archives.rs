//! Images in and out as files: layouts, archives and root file systems on the server's own disk; archives for everybody.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sandbank_driver::{Capability, Driver, ImportSource, NewLayers};
use sandbank_model::{Image, ImageName, ImageSource, Layer};
use sandbank_oci::{
    Compression, DOCKER_REGISTRY, ExportImage, Form, LayerTar, LocalSource, Platform, Reference, Scratch, Source as _, detect,
    spool_archive,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::layers::{LayersProgress, take_layers};
use crate::background::blocking;
use crate::control::{Control, Inner};
use crate::pulls::Registries;
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// Most bytes that a compressed archive of an image decompresses to on the server's disk.
const ARCHIVE_BYTES_MAX: u64 = 256 << 30;
/// An archive that nobody takes any more is given up after so long: it holds disk space and a place.
const UNTAKEN_MAX: Duration = Duration::from_secs(120);
/// Bytes that are read of an archive at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// An image to import from the server's own file system.
#[derive(Debug, Clone)]
pub struct ImageImport {
    /// Its name here. None: what the archive calls it, if it has one name for it.
    pub name: Option<ImageName>,
    /// A directory or a file; absolute.
    pub path: PathBuf,
    /// Which of an archive's images; none: its only one.
    pub reference: Option<String>,
    /// For everybody, not for the caller's tenant only.
    pub global: bool,
}

/// What was found in a file or directory.
struct Imported {
    name: ImageName,
    layers: NewLayers,
    source: ImageSource,
}

impl Control {
    /// Imports an image from the server's own file system, whatever form it has there: a root file system as a directory or a
    /// tar, an OCI layout or an archive of one, an archive of `docker save`. Admins only.
    pub async fn image_import(&self, caller: &Caller, request: ImageImport) -> Result<Image> {
        caller.require_admin()?;
        let inner = &self.inner;
        let driver = inner.driver(&inner.settings.default_driver)?;
        driver.capabilities().require(Capability::ImportImage)?;
        let ImageImport { name, path, reference, global } = request;
        if !path.is_absolute() {
            return Err(Error::invalid(format!("{} is not an absolute path on the server", path.display())));
        }
        let form = blocking({
            let path = path.clone();
            move || detect(&path, ARCHIVE_BYTES_MAX)
        })
        .await??;
        let layers = inner.layers_in_use.read().await;
        let imported = match form {
            Form::Directory => import_rootfs(driver, name, reference, ImportSource::Directory(path)).await,
            Form::RootfsTar => import_rootfs(driver, name, reference, ImportSource::Archive(path)).await,
            Form::LayoutDirectory | Form::OciArchive | Form::DockerArchive => {
                import_image(inner, driver, name, reference, form, &path).await
            }
        };
        let imported = match imported {
            Ok(imported) => imported,
            Err(error) => {
                drop(layers);
                inner.collect_layers_later();
                return Err(error);
            }
        };
        let image = Image {
            name: imported.name,
            tenant: (!global).then_some(caller.principal.tenant),
            layers: imported.layers.layers,
            on_host: imported.layers.on_host,
            config: imported.layers.config,
            source: imported.source,
            created_at: inner.now(),
        };
        inner.record_image(image, layers).await
    }

    /// The image as an OCI archive that `docker load`, `podman load` and `skopeo` take. It is made before this returns; the same
    /// image gives the same bytes.
    pub async fn image_export(&self, caller: &Caller, name: &ImageName, compression: Compression) -> Result<ImageArchive> {
        let inner = &self.inner;
        let image = self.image_get(caller, name).await?;
        if image.on_host {
            return Err(Error::invalid(format!(
                "image {name} cannot be exported: its /usr is this machine's own and no part of the image; export images that \
                 were imported, pulled or built"
            )));
        }
        let driver = Arc::clone(inner.driver(&inner.settings.default_driver)?);
        let place = Arc::clone(&inner.export_places).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::NoCapacity, "as many images as may be are being exported: try again in a moment")
        })?;
        let layers = inner.layers_in_use.clone().read_owned().await;
        let (given_up, scratch) = (CancellationToken::new(), inner.settings.scratch_dir.clone());
        // The writer on another thread hears of it when nobody wants the archive any more.
        let _until_dropped = given_up.clone().drop_guard();
        let (name, file_name) = (reference(inner.settings.pulls.registries.as_ref(), &image.name), file_name(&image.name));
        let (file, size_bytes, place) = blocking(move || {
            let (file, size_bytes) = spool(&driver, &image, name, compression, &scratch, &given_up)?;
            // Held up to here also when nobody waits any more.
            drop(layers);
            Ok::<_, Error>((file, size_bytes, place))
        })
        .await??;
        Ok(ImageArchive::new(inner, file_name, size_bytes, Held { file, _place: place }))
    }
}

async fn import_rootfs(
    driver: &Arc<dyn Driver>,
    name: Option<ImageName>,
    reference: Option<String>,
    source: ImportSource,
) -> Result<Imported> {
    let (ImportSource::Archive(path) | ImportSource::Directory(path)) = &source;
    let path = path.display().to_string();
    if reference.is_some() {
        return Err(Error::invalid(format!("{path} is a root file system, not an archive of images: leave the reference out")));
    }
    let name = name.ok_or_else(|| Error::invalid(format!("{path} is a root file system, which has no name: give one")))?;
    let layers = driver.import_image(source).await?;
    Ok(Imported { name, layers, source: ImageSource::Imported })
}

async fn import_image(
    inner: &Arc<Inner>,
    driver: &Arc<dyn Driver>,
    name: Option<ImageName>,
    reference: Option<String>,
    form: Form,
    path: &Path,
) -> Result<Imported> {
    let scratch = Scratch { directory: inner.settings.scratch_dir.clone(), limit_bytes: ARCHIVE_BYTES_MAX };
    let source = match form {
        Form::LayoutDirectory => LocalSource::open_layout(path, reference.as_deref()).await?,
        _ => LocalSource::open_archive(path, reference.as_deref(), &scratch).await?,
    };
    let name = match name {
        Some(name) => name,
        None => own_name(inner.settings.pulls.registries.as_ref(), path, reference, source.names())?,
    };
    let resolved = source.resolve(&Platform::host()).await?;
    let layers = take_layers(inner, driver, &source, &resolved, &LayersProgress::default()).await?;
    let source = ImageSource::Loaded { config_digest: resolved.config_digest.to_string() };
    Ok(Imported { name, layers: NewLayers { layers, on_host: false, config: resolved.config }, source })
}

/// The one name that an archive has for its image.
fn own_name(registries: Known<'_>, path: &Path, reference: Option<String>, names: Vec<String>) -> Result<ImageName> {
    let path = path.display();
    // A layout may know no more than a tag, which is no name.
    let whole = |name: &String| name.contains([':', '/']);
    let mut known: Vec<String> = names.iter().filter(|name| whole(name)).map(|name| familiar(registries, name)).collect();
    if let Some(wanted) = reference.filter(whole) {
        known = vec![familiar(registries, &wanted)];
    }
    known.sort();
    known.dedup();
    match known.as_slice() {
        [only] => only.parse().map_err(|error| Error::invalid(format!("{path} calls its image {only:?}: {error}; give a name"))),
        [] => Err(Error::invalid(format!("{path} has no name for its image: give one"))),
        several => Err(Error::invalid(format!("{path} has several names for its image, {}: give one", several.join(", ")))),
    }
}

type Known<'a> = Option<&'a Arc<dyn Registries>>;

/// As people write it here: `python:3.12` for `docker.io/library/python:3.12`. Whoever made an archive left out Docker's own
/// registry, whatever the default is here.
fn familiar(registries: Known<'_>, name: &str) -> String {
    let Ok(read) = Reference::parse(name, DOCKER_REGISTRY) else {
        return name.chars().take(ImageName::LEN_MAX + 1).collect();
    };
    registries.map_or_else(|| read.familiar(DOCKER_REGISTRY), |registries| registries.familiar(&read))
}

/// The whole name of an image that is called so here.
fn reference(registries: Known<'_>, name: &ImageName) -> Option<Reference> {
    let default = || Reference::parse(name.as_str(), DOCKER_REGISTRY);
    registries.map_or_else(default, |registries| registries.reference(name.as_str())).ok()
}

fn file_name(name: &ImageName) -> String {
    let plain = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c), "_");
    format!("{plain}.tar")
}

/// Writes the archive to a nameless file. Blocks.
fn spool(
    driver: &Arc<dyn Driver>,
    image: &Image,
    name: Option<Reference>,
    compression: Compression,
    scratch: &Path,
    given_up: &CancellationToken,
) -> Result<(File, u64)> {
    let failure: Failure = Arc::default();
    let layer = |layer: &Layer| -> Box<dyn LayerTar> {
        let (driver, layer) = (Arc::clone(driver), layer.clone());
        Box::new(StoredLayer { driver, layer, given_up: given_up.clone(), failure: Arc::clone(&failure) })
    };
    let millis = i64::try_from(image.created_at.as_millis()).unwrap_or(i64::MAX);
    let export = ExportImage {
        names: name.into_iter().collect(),
        config: &image.config,
        platform: Platform::host(),
        created: jiff::Timestamp::from_millisecond(millis).ok().map(|created| created.to_string()),
        layers: image.layers.iter().map(layer).collect(),
    };
    let spooled = spool_archive(&export, compression, scratch);
    match (spooled, failure.lock().take()) {
        (Ok((file, exported)), None) => Ok((file, exported.size_bytes)),
        (_, Some(error)) => Err(Error { message: format!("image {}: {}", image.name, error.message), ..error }),
        (Err(error), None) => Err(error.into()),
    }
}

type Failure = Arc<Mutex<Option<Error>>>;

/// A layer in the driver's store.
struct StoredLayer {
    driver: Arc<dyn Driver>,
    layer: Layer,
    given_up: CancellationToken,
    failure: Failure,
}

impl LayerTar for StoredLayer {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match self.driver.read_layer(&self.layer) {
            Ok(reader) => Ok(Box::new(StoredReader { reader, layer: self })),
            Err(error) => {
                let message = error.to_string();
                self.failure.lock().get_or_insert(error.into());
                Err(io::Error::other(message))
            }
        }
    }
}

struct StoredReader<'a> {
    reader: Box<dyn Read + Send>,
    layer: &'a StoredLayer,
}

impl Read for StoredReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.layer.given_up.is_cancelled() {
            return Err(io::Error::other("the archive is no longer wanted"));
        }
        self.reader.read(buffer).inspect_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return;
            }
            let kind = match error.kind() {
                io::ErrorKind::InvalidFilename | io::ErrorKind::FileTooLarge => ErrorKind::Invalid,
                _ => ErrorKind::Unavailable,
            };
            self.layer.failure.lock().get_or_insert(Error::new(kind, error.to_string()));
        })
    }
}

/// What an archive holds while it is taken.
struct Held {
    file: File,
    _place: OwnedSemaphorePermit,
}

/// An exported image on its way to whoever asked. It is on the server's disk without a name, and gone when this is, or when it
/// was not asked for anything for two minutes.
pub struct ImageArchive {
    /// What to call the file: letters, digits and `._-`.
    pub file_name: String,
    /// All its bytes.
    pub size_bytes: u64,
    left_bytes: u64,
    held: Arc<Mutex<Option<Held>>>,
    taken: Arc<AtomicBool>,
}

impl std::fmt::Debug for ImageArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageArchive").field("file_name", &self.file_name).field("size_bytes", &self.size_bytes).finish()
    }
}

impl ImageArchive {
    fn new(inner: &Arc<Inner>, file_name: String, size_bytes: u64, held: Held) -> Self {
        let archive = Self { file_name, size_bytes, left_bytes: size_bytes, held: Arc::default(), taken: Arc::default() };
        *archive.held.lock() = Some(held);
        let (weak, taken) = (Arc::downgrade(&archive.held), Arc::clone(&archive.taken));
        // A client that stops reading is not heard of: somebody else has to look.
        let tasks = inner.tasks.clone();
        inner.tasks.spawn(async move {
            while tasks.sleep(UNTAKEN_MAX).await {
                let Some(held) = weak.upgrade() else { return };
                if !taken.swap(false, Ordering::Relaxed) {
                    held.lock().take();
                    return;
                }
            }
        });
        archive
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.taken.store(true, Ordering::Relaxed);
        if self.left_bytes == 0 {
            self.held.lock().take();
            return Ok(None);
        }
        let held = Arc::clone(&self.held);
        let want = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let chunk = blocking(move || read_chunk(&held, want)).await??;
        self.left_bytes -= chunk.len() as u64;
        Ok(Some(chunk))
    }
}

fn read_chunk(held: &Mutex<Option<Held>>, want: usize) -> Result<Bytes> {
    let failed = |reason: &str| Error::new(ErrorKind::Unavailable, format!("the archive cannot be read: {reason}"));
    let mut held = held.lock();
    let file = held.as_mut().ok_or_else(|| failed("it was not taken for too long; export the image again"))?;
    let mut chunk = vec![0; want];
    let count = file.file.read(&mut chunk).map_err(|error| failed(&error.to_string()))?;
    if count == 0 {
        return Err(failed("it became shorter"));
    }
    chunk.truncate(count);
    Ok(chunk.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn named(reference: Option<&str>, names: &[&str]) -> Result<String> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        own_name(None, Path::new("/x.tar"), reference.map(str::to_owned), names).map(|name| name.to_string())
    }

    #[test]
    fn an_archives_one_name_is_taken_as_people_write_it() {
        assert_eq!(named(None, &["docker.io/library/python:3.12", "3.12"]).unwrap(), "python:3.12");
        assert_eq!(named(None, &["python:3.12"]).unwrap(), "python:3.12");
        assert_eq!(named(None, &["quay.io/a/b:c"]).unwrap(), "quay.io/a/b:c");
        assert_eq!(named(Some("b:2"), &["a:1", "b:2"]).unwrap(), "b:2");
        for (names, says) in [(&["latest"][..], "has no name"), (&[], "has no name"), (&["a:1", "b:2"], "a:1, b:2: give one")] {
            let error = named(None, names).unwrap_err();
            assert!(error.message.contains(says) && error.message.contains("/x.tar"), "{error}");
        }
    }

    #[test]
    fn a_file_is_called_by_plain_letters() {
        assert_eq!(file_name(&"quay.io/a/b:c@d".parse().unwrap()), "quay.io_a_b_c_d.tar");
    }
}
