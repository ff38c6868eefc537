//! What all sources of images have in common: an image is resolved to its configuration and layers, and layers are read, checked.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use sandbank_model::ImageConfig;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::SyncIoBridge;

use crate::digest::Hasher;
use crate::{Compression, Digest, Error, Platform, Result};

/// What is accepted from outside, at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits;

impl Limits {
    /// Bytes of a manifest, an index or a configuration. Registries themselves accept no more than 4 MiB.
    pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
    /// Layers of an image, as in Docker (`layer.MaxDepth` is 125, plus one, and builders stop at 127).
    pub const LAYERS_MAX: usize = 127;
    /// Entries of an index.
    pub const INDEX_ENTRIES_MAX: usize = 1024;
    /// Indexes within indexes.
    pub const INDEX_DEPTH_MAX: usize = 3;
    /// Members of an image archive.
    pub const ARCHIVE_MEMBERS_MAX: usize = 100_000;
    /// Bytes of one layer as it is kept, compressed or not.
    pub const LAYER_BYTES_MAX: u64 = 256 << 30;
}

/// One image somewhere: in a registry, a layout directory or an archive.
#[async_trait]
pub trait Source: Send + Sync {
    /// The image's name, as errors and people say it.
    fn name(&self) -> String;

    /// Finds the variant for `platform` and reads its manifest and configuration.
    async fn resolve(&self, platform: &Platform) -> Result<Resolved>;

    /// Begins to read a layer of what was resolved. The reader fails where content and promise differ.
    async fn open(&self, layer: &LayerBlob) -> Result<LayerReader>;
}

/// An image's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Of what the name stands for: the index where there is one, else the manifest. A name with this digest is the same image.
    pub root_digest: Digest,
    /// Of the platform's manifest; of a `docker save` archive, which has none, the configuration's digest.
    pub manifest_digest: Digest,
    /// Of the configuration: the image's id in Docker's words.
    pub config_digest: Digest,
    /// What processes get.
    pub config: ImageConfig,
    /// What the image says that it runs on.
    pub platform: Platform,
    /// When it was made, as it says (RFC 3339).
    pub created: Option<String>,
    /// Layers, lowest first.
    pub layers: Vec<LayerBlob>,
}

/// One layer as it is kept at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Of the bytes as they are kept.
    pub digest: Digest,
    /// Of the tar stream after decompression: what the image store knows it by.
    pub diff_id: Digest,
    /// As declared; look at the first bytes to be sure.
    pub compression: Compression,
    /// As kept.
    pub size_bytes: u64,
}

/// How much of a layer was read; cheap to clone and to ask from another thread.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads a layer's bytes as they are kept, and checks size and digest on the way: the end comes only when both are right.
/// Else the read fails with `InvalidData`, and [`Error::within`] has the reason. What was read before the end is not to be
/// believed: a tar has its own end, which comes earlier, so read on to this one. Dropping the reader ends a download.
pub struct LayerReader {
    inner: Pin<Box<dyn AsyncRead + Send>>,
    image: String,
    layer: LayerBlob,
    hasher: Option<Hasher>,
    progress: Progress,
}

impl LayerReader {
    pub(crate) fn new(inner: impl AsyncRead + Send + 'static, image: String, layer: LayerBlob) -> Self {
        Self { inner: Box::pin(inner), image, layer, hasher: Some(Hasher::default()), progress: Progress::default() }
    }

    /// The counter of bytes read.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The layer that is read.
    #[must_use]
    pub fn layer(&self) -> &LayerBlob {
        &self.layer
    }

    /// Fails as soon as `gone` is, also while it waits for a source that says nothing: who waits for bytes on another thread cannot be
    /// told otherwise.
    #[must_use]
    pub fn until(self, gone: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { inner: Box::pin(Until { inner: self.inner, gone: Box::pin(gone) }), ..self }
    }

    /// For a thread that may block, such as one that extracts: [`crate::decompress`] takes it. Call it within the runtime, and
    /// read from a thread that is not one of its workers (`spawn_blocking`); reading on a worker panics.
    #[must_use]
    pub fn into_blocking(self) -> impl io::Read + Send + use<> {
        SyncIoBridge::new(self)
    }

    fn what(&self) -> String {
        format!("layer {}", self.layer.digest)
    }

    fn check_end(&mut self) -> Result<()> {
        // Taken at the first end: a reader may be asked again after it.
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let (actual_bytes, expected_bytes) = (hasher.size_bytes(), self.layer.size_bytes);
        if actual_bytes != expected_bytes {
            return Err(Error::Size { image: self.image.clone(), what: self.what(), expected_bytes, actual_bytes });
        }
        let (actual, expected) = (hasher.digest(), self.layer.digest);
        if actual != expected {
            return Err(Error::Digest { image: self.image.clone(), what: self.what(), expected, actual });
        }
        Ok(())
    }
}

struct Until {
    inner: Pin<Box<dyn AsyncRead + Send>>,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl AsyncRead for Until {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.gone.as_mut().poll(cx).is_ready() {
            // Polled again it might panic; it stays ready.
            self.gone = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::Error::other("the layer is no longer wanted")));
        }
        self.inner.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncRead for LayerReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.inner.as_mut().poll_read(cx, buffer))?;
        let count = buffer.filled().len() - before;
        if count == 0 {
            return Poll::Ready(self.check_end().map_err(io::Error::from));
        }
        let this = &mut *self;
        let Some(hasher) = &mut this.hasher else { return Poll::Ready(Err(io::ErrorKind::InvalidData.into())) };
        hasher.update(&buffer.filled()[before..]);
        let (actual_bytes, expected_bytes) = (hasher.size_bytes(), this.layer.size_bytes);
        this.progress.0.store(actual_bytes, Ordering::Relaxed);
        if actual_bytes > expected_bytes {
            buffer.set_filled(before);
            let error = Error::Size { image: this.image.clone(), what: this.what(), expected_bytes, actual_bytes };
            return Poll::Ready(Err(error.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for LayerReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerReader").field("image", &self.image).field("layer", &self.layer).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn read(content: &'static [u8], promised: &[u8], size_bytes: u64) -> io::Result<Vec<u8>> {
        let digest = Digest::of(promised);
        let layer = LayerBlob { digest, diff_id: digest, compression: Compression::None, size_bytes };
        let mut reader = LayerReader::new(content, "x:1".to_owned(), layer);
        let progress = reader.progress();
        let mut read = Vec::new();
        let result = reader.read_to_end(&mut read).await;
        assert!(progress.bytes() <= content.len() as u64);
        result.map(|_| read)
    }

    #[tokio::test]
    async fn the_end_comes_only_when_size_and_digest_are_right() {
        assert_eq!(read(b"hello", b"hello", 5).await.unwrap(), b"hello");
        for (content, size_bytes, says) in [
            (&b"hellO"[..], 5, "was promised"),
            (b"hell", 5, "has 4 bytes where 5 were promised"),
            (b"hello!", 5, "has more bytes where 5 were promised"),
        ] {
            let error = read(content, b"hello", size_bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let error = Error::within(&error).unwrap().to_string();
            assert!(error.contains(says) && error.contains("image x:1") && error.contains("layer sha256:"), "{error}");
        }
    }
}
