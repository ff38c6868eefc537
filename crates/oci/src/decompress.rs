//! Layers, decompressed while they are read, within bounds.
//!
//! For threads that may block: extraction writes to a file system, which blocks anyway.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::Error;

/// The largest window that a zstd stream may ask for, as a power of two: 128 MiB, what `zstd --long` makes and every decoder takes
/// without being told. So much memory a hostile layer costs while it is read; layers made with usual levels ask for 8 MiB at most.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_LEN: usize = 128 * 1024;
const MAGIC_LEN: usize = 6;

/// How a layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// RFC 1952, one member or several.
    Gzip,
    /// RFC 8878, one frame or several.
    Zstd,
}

impl Compression {
    /// What the first bytes say. `Err` names a format that we do not take; a plain tar has no such first bytes.
    pub fn detect(magic: &[u8]) -> Result<Self, &'static str> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
            _ => Ok(Self::None),
        }
    }
}

/// A tar stream out of a layer in any compression.
pub struct Decompressor<R: BufRead> {
    inner: Inner<R>,
    compression: Compression,
    left_bytes: u64,
    limit_bytes: u64,
}

enum Inner<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

/// Decompresses `reader` by what its first bytes say: media types lie, and archives have none. Gives at most `limit_bytes`, then
/// fails with [`Error::Decompressed`]. Errors of the reader itself come through as they are.
pub fn decompress<R: Read>(reader: R, limit_bytes: u64) -> io::Result<Decompressor<impl BufRead + use<R>>> {
    let mut reader = BufReader::with_capacity(BUFFER_LEN, reader);
    let mut magic = Vec::with_capacity(MAGIC_LEN);
    reader.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut magic)?;
    let compression = Compression::detect(&magic).map_err(|format| Error::Compression {
        reason: format!("it is compressed with {format}; gzip, zstd and plain tar are supported"),
    })?;
    let whole = BufReader::with_capacity(BUFFER_LEN, io::Cursor::new(magic).chain(reader));
    let inner = match compression {
        Compression::None => Inner::None(whole),
        Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(whole))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Inner::Zstd(Box::new(decoder))
        }
    };
    Ok(Decompressor { inner, compression, left_bytes: limit_bytes, limit_bytes })
}

impl<R: BufRead> Decompressor<R> {
    /// What the first bytes said.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    fn read_inner(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::None(reader) => reader.read(buffer),
            Inner::Gzip(reader) => reader.read(buffer),
            Inner::Zstd(reader) => reader.read(buffer),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ if Error::within(&error).is_some() || error.raw_os_error().is_some() => error,
            _ => Error::Compression { reason: error.to_string() }.into(),
        })
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left_bytes == 0 {
            // Exactly the limit is within it: only one byte more is too much.
            return match self.read_inner(&mut [0])? {
                0 => Ok(0),
                _ => Err(Error::Decompressed { limit_bytes: self.limit_bytes }.into()),
            };
        }
        let most = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.read_inner(&mut buffer[..most])?;
        self.left_bytes -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::{Digest, Hashing};

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn read(kept: &[u8], limit_bytes: u64) -> io::Result<(Compression, Vec<u8>)> {
        let mut reader = decompress(kept, limit_bytes)?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        Ok((reader.compression(), content))
    }

    fn failure(kept: &[u8], limit_bytes: u64) -> Error {
        Error::within(&read(kept, limit_bytes).unwrap_err()).unwrap()
    }

    #[test]
    fn every_compression_is_seen_by_its_first_bytes() {
        let text = b"some text, some text, some text".repeat(10_000);
        let two_members = [gzip(&text[..7]), gzip(&text[7..])].concat();
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..], &zstd::encode_all(&text[..], 3).unwrap()].concat();
        let two_frames = [zstd::encode_all(&text[..9], 1).unwrap(), zstd::encode_all(&text[9..], 19).unwrap()].concat();
        for (kept, compression) in [
            (text.clone(), Compression::None),
            (gzip(&text), Compression::Gzip),
            (two_members, Compression::Gzip),
            (skippable, Compression::Zstd),
            (two_frames, Compression::Zstd),
        ] {
            assert_eq!(read(&kept, text.len() as u64).unwrap(), (compression, text.clone()));
        }
        assert_eq!(read(b"", 0).unwrap(), (Compression::None, Vec::new()));
        assert_eq!(read(b"a", 1).unwrap(), (Compression::None, b"a".to_vec()));
    }

    #[test]
    fn the_diff_id_is_the_digest_of_what_comes_out() {
        let kept = gzip(b"layer");
        let mut reader = Hashing::new(decompress(&kept[..], 100).unwrap());
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"layer"), 5));
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let zeros = vec![0; 10 << 20];
        for kept in [gzip(&zeros), zstd::encode_all(&zeros[..], 3).unwrap(), zeros.clone()] {
            assert!(matches!(failure(&kept, (10 << 20) - 1), Error::Decompressed { limit_bytes: 10_485_759 }));
        }
    }

    #[test]
    fn a_window_that_would_take_too_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&[1; 1000]).unwrap();
        let kept = encoder.finish().unwrap();
        assert!(matches!(failure(&kept, 1 << 20), Error::Compression { .. }));
    }

    #[test]
    fn broken_streams_and_other_formats_are_refused() {
        let kept = gzip(&b"x".repeat(1000));
        assert!(read(&kept[..kept.len() - 5], 5000).is_err());
        assert!(read(&zstd::encode_all(&[7; 5000][..], 1).unwrap()[..12], 5000).is_err());
        let xz = failure(&[0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0], 10).to_string();
        assert!(xz.contains("compressed with xz"), "{xz}");
    }
}
