//! Parts of files, read without blocking a worker thread and without a shared position.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use rustix::fs::OFlags;
use tokio::io::AsyncRead;
use tokio::task::spawn_blocking;
use tokio_util::io::StreamReader;

use super::members::Range;
use crate::{Error, Result};

const CHUNK_LEN: usize = 256 * 1024;

/// Opens a regular file for reading; a symlink in its place, a FIFO or a device is refused rather than followed or waited for.
pub(crate) fn open_regular(path: &Path, follow: bool) -> io::Result<File> {
    let follow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC | follow).bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

/// Content within a file.
#[derive(Debug, Clone)]
pub(crate) struct FileRange {
    pub(crate) file: Arc<File>,
    pub(crate) range: Range,
}

impl FileRange {
    /// The whole file.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), range: Range { offset: 0, size_bytes } })
    }

    /// A blocking reader of the range.
    pub(crate) fn reader(&self) -> impl io::Read + use<> {
        RangeReader { file: self.file.clone(), range: self.range }
    }

    /// The same for the runtime: each chunk is read by a thread that may block.
    pub(crate) fn stream(self) -> impl AsyncRead + Send + use<> {
        let stream = stream::try_unfold(self.reader(), |mut reader| async move {
            let read = move || {
                let mut chunk = vec![0; CHUNK_LEN];
                let count = io::Read::read(&mut reader, &mut chunk)?;
                chunk.truncate(count);
                Ok::<_, io::Error>((Bytes::from(chunk), reader))
            };
            let (chunk, reader) = spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok::<_, io::Error>(Some((chunk, reader)).filter(|(chunk, _)| !chunk.is_empty()))
        });
        StreamReader::new(Box::pin(stream))
    }
}

struct RangeReader {
    file: Arc<File>,
    range: Range,
}

impl io::Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.range.size_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.range.offset)?;
        self.range.offset += count as u64;
        self.range.size_bytes -= count as u64;
        Ok(count)
    }
}

/// Runs what blocks where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io(path, io::Error::other(error))),
    }
}
