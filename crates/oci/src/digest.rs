//! Content addresses: `sha256:` and 64 hexadecimal digits (OCI image specification, `descriptor.md`, "Digests").

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::InvalidDigest;

/// The SHA-256 of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// 64 lower-case hexadecimal digits, without the algorithm: safe as a file's name.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// From 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let plain = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2).filter(|_| plain)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let shown = || text.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex).ok_or_else(|| InvalidDigest::Hex { text: shown() }),
            Some((algorithm, _)) if !algorithm.is_empty() => Err(InvalidDigest::Algorithm { text: shown() }),
            _ => Err(InvalidDigest::Hex { text: shown() }),
        }
    }
}

/// Counts and hashes what is fed to it.
#[derive(Clone, Default)]
pub(crate) struct Hasher {
    state: Sha256,
    size_bytes: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, content: &[u8]) {
        self.state.update(content);
        self.size_bytes += content.len() as u64;
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn digest(self) -> Digest {
        Digest(self.state.finalize().into())
    }
}

/// Hashes what is read through it: over a decompressed layer, the result is the layer's diff id.
pub struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R> Hashing<R> {
    /// Starts at the reader's present position.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::default() }
    }

    /// Digest and number of the bytes read so far.
    pub fn finish(self) -> (Digest, u64) {
        let size_bytes = self.hasher.size_bytes();
        (self.hasher.digest(), size_bytes)
    }

    /// Bytes read so far.
    pub fn size_bytes(&self) -> u64 {
        self.hasher.size_bytes()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Hashes what is written through it.
pub(crate) struct HashingWriter<W> {
    pub(crate) inner: W,
    pub(crate) hasher: Hasher,
}

impl<W: io::Write> io::Write for HashingWriter<W> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(content)?;
        self.hasher.update(&content[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_and_writes() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in ["", "sha256:", "sha256:abc", &EMPTY.to_uppercase(), &EMPTY[7..], "sha256:../../../../etc/passwd", ":x"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let unusual = format!("sha512:{}", "0".repeat(128)).parse::<Digest>().unwrap_err();
        assert!(unusual.to_string().contains("only sha256"), "{unusual}");
        assert!(format!("sha256:{}", "é".repeat(32)).parse::<Digest>().is_err());
    }

    #[test]
    fn hashing_counts_what_was_read() {
        let mut reader = Hashing::new(&b"hello"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"hello"), 5));
    }
}
