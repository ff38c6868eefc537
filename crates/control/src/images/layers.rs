//! The layers of an image from elsewhere, on their way into the driver's store: the same for a registry, a layout and an archive.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use sandbank_driver::{Driver, NewLayer};
use sandbank_model::Layer;
use sandbank_oci::{Digest, Error as Oci, LayerBlob, Progress, Resolved, Source, decompress};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::control::Inner;
use crate::{Error, ErrorKind, Result};

/// Layers of one image that are read at once.
const LAYERS_AT_ONCE: usize = 3;
/// Most bytes that a layer decompresses to. What it may take on disk is the driver's to limit.
const LAYER_TAR_BYTES_MAX: u64 = 512 << 30;

/// Where a layer is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// It is read and unpacked.
    Taking,
    /// It was there already.
    Present,
    /// It is there now.
    Taken,
}

/// How far one layer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the layer as it is kept at the source.
    pub digest: Digest,
    /// Where it is.
    pub state: LayerState,
    /// Bytes read of it, as it is kept at the source.
    pub read_bytes: u64,
    /// All bytes of it.
    pub size_bytes: u64,
}

/// How far the layers of one image have come. Clones are of the same image; asking is cheap, from anywhere.
#[derive(Debug, Clone, Default)]
pub struct LayersProgress(Arc<Mutex<Vec<Line>>>);

#[derive(Debug)]
struct Line {
    blob: LayerBlob,
    state: LayerState,
    read: Progress,
}

impl LayersProgress {
    /// All layers, lowest first; empty while the image is not resolved.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerProgress> {
        let line = |line: &Line| LayerProgress {
            digest: line.blob.digest,
            state: line.state,
            read_bytes: line.read.bytes(),
            size_bytes: line.blob.size_bytes,
        };
        self.0.lock().iter().map(line).collect()
    }

    fn begin(&self, blobs: &[LayerBlob]) {
        let line = |blob: &LayerBlob| Line { blob: blob.clone(), state: LayerState::Waiting, read: Progress::default() };
        *self.0.lock() = blobs.iter().map(line).collect();
    }

    /// An image may have the same layer several times.
    fn set(&self, diff_id: Digest, state: LayerState, read: Option<&Progress>) {
        for line in self.0.lock().iter_mut().filter(|line| line.blob.diff_id == diff_id) {
            line.state = state;
            if let Some(read) = read {
                line.read = read.clone();
            }
        }
    }
}

/// Brings the layers of `resolved` into the driver's store, those that it does not have yet, and gives all of them, lowest first.
/// The caller holds `layers_in_use` until a record names them. Dropping the future ends all reading; nothing is left of a layer
/// that was not whole, and whole ones serve the next try; but where the machine has run out of something, room on the disk above all,
/// they are given back too.
///
/// A layer that an image has several times is given once, where it is uppermost: there it covers all that it would bring further
/// down, and the kernel takes no directory twice into one overlay.
pub(crate) async fn take_layers(
    inner: &Arc<Inner>,
    driver: &Arc<dyn Driver>,
    source: &dyn Source,
    resolved: &Resolved,
    progress: &LayersProgress,
) -> Result<Vec<Layer>> {
    progress.begin(&resolved.layers);
    let mut uppermost: BTreeMap<Digest, usize> = BTreeMap::new();
    for (position, blob) in resolved.layers.iter().enumerate() {
        uppermost.insert(blob.diff_id, position);
    }
    let (given_up, fresh) = (CancellationToken::new(), Mutex::default());
    // Readers on other threads hear of it when nobody wants their layers any more.
    let _until_dropped = given_up.clone().drop_guard();
    // Boxed one by one: the compiler cannot see through a closure that the whole may go from thread to thread.
    let mut taking: Vec<BoxFuture<'_, Result<(usize, Layer)>>> = Vec::new();
    for (position, blob) in resolved.layers.iter().enumerate() {
        if uppermost.get(&blob.diff_id) == Some(&position) {
            let one = Taking { inner, driver, source, progress, given_up: &given_up, fresh: &fresh };
            taking.push(Box::pin(async move { one.layer(blob).await.map(|layer| (position, layer)) }));
        }
    }
    let taken: Result<Vec<(usize, Layer)>> = stream::iter(taking).buffer_unordered(LAYERS_AT_ONCE).try_collect().await;
    if taken.as_ref().is_err_and(|error| error.kind == ErrorKind::NoCapacity) {
        driver.release_layers(fresh.into_inner()).await?;
    }
    let mut taken = taken?;
    taken.sort_by_key(|(position, _)| *position);
    Ok(taken.into_iter().map(|(_, layer)| layer).collect())
}

struct Taking<'a> {
    inner: &'a Arc<Inner>,
    driver: &'a Arc<dyn Driver>,
    source: &'a dyn Source,
    progress: &'a LayersProgress,
    given_up: &'a CancellationToken,
    /// Ids of layers that were not there before.
    fresh: &'a Mutex<Vec<String>>,
}

impl Taking<'_> {
    async fn layer(&self, blob: &LayerBlob) -> Result<Layer> {
        let diff_id = blob.diff_id.to_string();
        if let Some(layer) = self.driver.find_layer(&diff_id).await? {
            self.progress.set(blob.diff_id, LayerState::Present, None);
            return Ok(layer);
        }
        let place = Arc::clone(&self.inner.layer_places).acquire_owned().await.map_err(|_| Error::shutting_down())?;
        let reader = self.source.open(blob).await?;
        self.progress.set(blob.diff_id, LayerState::Taking, Some(&reader.progress()));
        let reader = Box::new(reader.until(self.given_up.clone().cancelled_owned()).into_blocking());
        let failure = Arc::default();
        let watched = Watched { reader, given_up: self.given_up.clone(), failure: Arc::clone(&failure) };
        let archive =
            Box::new(Decompressed { begun: None, compressed: Some(watched), failure: Arc::clone(&failure), _place: place });
        match self.driver.add_layer(NewLayer { diff_id, archive }).await {
            Ok(layer) => {
                self.progress.set(blob.diff_id, LayerState::Taken, None);
                self.fresh.lock().push(layer.id.clone());
                Ok(layer)
            }
            Err(error) => Err(match failure.lock().take() {
                // Decompressors do not know what they decompress; other readers' words name the image and the layer.
                Some(failure @ (Oci::Decompressed { .. } | Oci::Compression { .. })) => {
                    about(&self.source.name(), blob, failure.into())
                }
                Some(failure) => failure.into(),
                None => about(&self.source.name(), blob, error.into()),
            }),
        }
    }
}

/// Says which layer of which image an error is about.
fn about(image: &str, blob: &LayerBlob, error: Error) -> Error {
    Error { message: format!("image {image}, layer {}: {}", blob.digest, error.message), ..error }
}

type Failure = Arc<Mutex<Option<sandbank_oci::Error>>>;

/// A layer as it is kept. Fails once nobody wants it any more.
struct Watched {
    reader: Box<dyn Read + Send>,
    given_up: CancellationToken,
    failure: Failure,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.is_cancelled() {
            return Err(io::Error::other("the image is no longer wanted"));
        }
        self.reader.read(buffer).inspect_err(|error| note(&self.failure, error))
    }
}

/// The layer's tar stream. Begun by the first read, which is on a thread that may wait.
struct Decompressed {
    begun: Option<Box<dyn Read + Send>>,
    compressed: Option<Watched>,
    failure: Failure,
    /// Free again when the driver is done with the layer, whether somebody still waits for it or not.
    _place: OwnedSemaphorePermit,
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(compressed) = self.compressed.take() {
            let begun = decompress(compressed, LAYER_TAR_BYTES_MAX).inspect_err(|error| note(&self.failure, error))?;
            self.begun = Some(Box::new(begun));
        }
        match &mut self.begun {
            Some(reader) => reader.read(buffer).inspect_err(|error| note(&self.failure, error)),
            None => Err(io::Error::other("the layer could not be read")),
        }
    }
}

/// Keeps the first failure that has a reason of its own: drivers pass on no more than text.
fn note(failure: &Failure, error: &io::Error) {
    if let Some(reason) = sandbank_oci::Error::within(error) {
        failure.lock().get_or_insert(reason);
    }
}
