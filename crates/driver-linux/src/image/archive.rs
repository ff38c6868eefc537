//! The outside of an archive: what it is, its compression, its digest, its limits.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use sandbank_driver::DriverError;
use sha2::{Digest as _, Sha256};

use super::error::{failed, invalid};
use super::staging::hex;

/// Bytes of archive read at a time.
const BUFFER: usize = 256 * 1024;

/// A file being read and digested.
struct Digesting {
    file: File,
    digest: Sha256,
}

impl Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.digest.update(&buffer[..got]);
        Ok(got)
    }
}

type Raw = BufReader<Digesting>;

/// A tar stream out of a file, plain or through gzip, of at most so many bytes.
pub(super) struct Archive {
    stream: Stream,
    left: u64,
    max: u64,
}

enum Stream {
    Plain(Raw),
    Gzip(Box<MultiGzDecoder<Raw>>),
}

impl Archive {
    /// Opens it and looks at its first bytes.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Self, DriverError> {
        let step = || format!("open {}", path.display());
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => invalid(format!("there is no archive {}", path.display())),
            _ => failed(step)(error),
        })?;
        if !file.metadata().map_err(failed(step))?.is_file() {
            return Err(invalid(format!("{} is not a file", path.display())));
        }
        let mut raw = BufReader::with_capacity(BUFFER, Digesting { file, digest: Sha256::new() });
        let start = raw.fill_buf().map_err(failed(step))?;
        if let Some((name, program)) = unknown_format(start) {
            let shown = path.display();
            return Err(invalid(format!(
                "{shown} is {name}; only tar, plain or compressed with gzip, can be imported: {program}"
            )));
        }
        let stream =
            if start.starts_with(&[0x1f, 0x8b]) { Stream::Gzip(Box::new(MultiGzDecoder::new(raw))) } else { Stream::Plain(raw) };
        Ok(Self { stream, left: bytes_max, max: bytes_max })
    }

    /// Reads what follows the end mark (compression checks its sum there) and gives the digest of the whole file.
    pub(super) fn finish(mut self) -> Result<String, DriverError> {
        let step = || "read the archive to its end".to_owned();
        if let Stream::Gzip(_) = &self.stream {
            io::copy(&mut self, &mut io::sink()).map_err(|error| invalid(format!("the archive cannot be read: {error}")))?;
        }
        let mut raw = match self.stream {
            Stream::Plain(raw) => raw,
            Stream::Gzip(gzip) => gzip.into_inner(),
        };
        io::copy(&mut raw, &mut io::sink()).map_err(failed(step))?;
        Ok(hex(&raw.into_inner().digest.finalize()))
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !buffer.is_empty() {
            let message = format!("the archive unpacks to more than {} bytes, which is the limit", self.max);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = match &mut self.stream {
            Stream::Plain(raw) => raw.read(&mut buffer[..want])?,
            Stream::Gzip(gzip) => gzip.read(&mut buffer[..want])?,
        };
        self.left -= got as u64;
        Ok(got)
    }
}

/// Formats by their first bytes: what it is and what to do.
fn unknown_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const FORMATS: [(&[u8], &str, &str); 8] = [
        (&[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd", "unpack it first with `zstd -d`"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "compressed with xz", "unpack it first with `xz -d`"),
        (b"BZh", "compressed with bzip2", "unpack it first with `bzip2 -d`"),
        (&[0x04, 0x22, 0x4d, 0x18], "compressed with lz4", "unpack it first with `lz4 -d`"),
        (b"PK\x03\x04", "a zip archive", "make a tar archive of its content"),
        (b"hsqs", "a squashfs image", "unpack it with `unsquashfs` and import the directory"),
        (b"7z\xbc\xaf", "a 7z archive", "make a tar archive of its content"),
        (b"QFI\xfb", "a disk image", "mount it and import the directory"),
    ];
    FORMATS.iter().find(|(magic, ..)| start.starts_with(magic)).map(|(_, name, advice)| (*name, *advice))
}
