//! Everything that can be wrong with an image or with getting it. Messages name the image, who keeps it and what to do, and
//! never carry a credential.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::Digest;

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The name is not one.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A setting cannot be used.
    #[error("registry setting {setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Why not.
        reason: String,
    },
    /// The registry does not have it, or does not show it to us.
    #[error(
        "{registry} has no {what} of image {image}: check the name and the tag; a private image also looks like this without \
         credentials"
    )]
    NotFound {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// `manifest latest`, `layer sha256:...`.
        what: String,
    },
    /// The registry wants credentials, or refuses those it got.
    #[error(
        "{registry} refuses to show image {image}: {}",
        if *.anonymous {
            "it wants credentials, or has no such image; check the name, or give a user name and password or a token"
        } else {
            "it does not accept the credentials, or has no such image for them"
        }
    )]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// No credentials were given.
        anonymous: bool,
    },
    /// The registry knows who asks and says no.
    #[error("{registry} forbids image {image}: ask its owner for the right to pull")]
    Forbidden {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
    },
    /// The registry wants fewer requests.
    #[error("{registry} allows no more requests for image {image} now: {}", retry_hint(*.retry_after))]
    RateLimited {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// What it said in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The registry cannot be reached, breaks off, or fails. Trying later can help.
    #[error("cannot get image {image} from {registry} ({tries} tries): {reason}")]
    Unavailable {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// The last reason.
        reason: String,
    },
    /// An answer that is none of the protocol's.
    #[error("{registry} answers status {status} when asked for image {image}")]
    Status {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// HTTP status.
        status: u16,
    },
    /// Redirects in circles, to nowhere, or from HTTPS to plain HTTP.
    #[error("{registry} redirects the request for image {image} {reason}")]
    Redirect {
        /// The image.
        image: String,
        /// The registry's host.
        registry: String,
        /// How.
        reason: String,
    },
    /// None of the image's variants runs here.
    #[error("image {image} has nothing for {wanted}; it has {available}")]
    Platform {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What there is, with commas between.
        available: String,
    },
    /// A part that we do not take.
    #[error("image {image}: {what} cannot be used here")]
    Unsupported {
        /// The image.
        image: String,
        /// The part, named.
        what: String,
    },
    /// A part that is not what it should be.
    #[error("image {image}: {what} is damaged or was tampered with: {reason}")]
    Malformed {
        /// The image.
        image: String,
        /// The part, named.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part is larger than we take.
    #[error("image {image}: {what} is larger than {limit_bytes} bytes, the most that is accepted")]
    TooLarge {
        /// The image.
        image: String,
        /// The part, named.
        what: String,
        /// The most.
        limit_bytes: u64,
    },
    /// Content that does not have its digest.
    #[error("image {image}: {what} has the digest {actual} where {expected} was promised; it was damaged or tampered with")]
    Digest {
        /// The image.
        image: String,
        /// The part, named.
        what: String,
        /// Promised.
        expected: Digest,
        /// Got.
        actual: Digest,
    },
    /// Content that does not have its size.
    #[error("image {image}: {what} has {} bytes where {expected_bytes} were promised", actual_size(*.actual_bytes, *.expected_bytes))]
    Size {
        /// The image.
        image: String,
        /// The part, named.
        what: String,
        /// Promised.
        expected_bytes: u64,
        /// Got, or got so far.
        actual_bytes: u64,
    },
    /// An archive or layout that has several images, or none of that name.
    #[error("{} {reason}", .path.display())]
    Choice {
        /// The archive or directory.
        path: PathBuf,
        /// What it has instead.
        reason: String,
    },
    /// A file or directory that is not an image in any form that we know.
    #[error("{} {reason}", .path.display())]
    Archive {
        /// The archive or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer that decompresses to more than is accepted.
    #[error("the layer decompresses to more than {limit_bytes} bytes, the most that is accepted")]
    Decompressed {
        /// The most.
        limit_bytes: u64,
    },
    /// Bytes that cannot be decompressed.
    #[error("the layer cannot be decompressed: {reason}")]
    Compression {
        /// Why not.
        reason: String,
    },
    /// The file system failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Of what.
        path: PathBuf,
        /// The reason.
        source: Arc<io::Error>,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        match Self::within(&source) {
            Some(inner) => inner,
            None => Self::Io { path: path.into(), source: Arc::new(source) },
        }
    }

    /// The error of ours that an I/O error carries, if it does: readers can only fail with those.
    #[must_use]
    pub fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().cloned()
    }

    /// Whether the same request may succeed later without a change of anything here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Unavailable { .. })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Unavailable { .. } | Error::RateLimited { .. } | Error::Status { .. } | Error::Redirect { .. } => {
                Self::other("")
            }
            Error::Io { source, .. } => source.kind().into(),
            _ => io::ErrorKind::InvalidData.into(),
        }
        .kind();
        Self::new(kind, error)
    }
}

fn retry_hint(after: Option<Duration>) -> String {
    match after {
        Some(after) => format!("try again in {} s, or give credentials with a higher limit", after.as_secs()),
        None => "try again later, or give credentials with a higher limit".to_owned(),
    }
}

fn actual_size(actual_bytes: u64, expected_bytes: u64) -> String {
    if actual_bytes > expected_bytes { "more".to_owned() } else { actual_bytes.to_string() }
}

/// A name that is no image's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// Nothing, or too much.
    #[error("an image's name has 1 to {max} characters, not {len}")]
    Length {
        /// The most.
        max: usize,
        /// What it has.
        len: usize,
    },
    /// Upper case in the repository.
    #[error("image {name}: a repository is written in lower case; did you mean {suggestion}?")]
    UpperCase {
        /// As given.
        name: String,
        /// In lower case.
        suggestion: String,
    },
    /// The repository is misspelt.
    #[error(
        "image {name}: a repository is made of letters a to z, digits and single separators (. _ __ -) between them, parted by /"
    )]
    Repository {
        /// As given.
        name: String,
    },
    /// The registry's host is misspelt.
    #[error("image {name}: {host} is no registry; write host or host:port")]
    Registry {
        /// As given.
        name: String,
        /// The part.
        host: String,
    },
    /// The tag is misspelt.
    #[error("image {name}: a tag has 1 to 128 letters, digits and . _ -, and begins with a letter, a digit or _")]
    Tag {
        /// As given.
        name: String,
    },
    /// The digest is misspelt.
    #[error("image {name}: {source}")]
    Digest {
        /// As given.
        name: String,
        /// How.
        source: InvalidDigest,
    },
    /// A bare identifier, which registries cannot look up.
    #[error("image {name} looks like an image's id; write repository@sha256:{name} instead")]
    BareId {
        /// As given.
        name: String,
    },
}

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// Another algorithm.
    #[error("{text} is not a digest that can be checked here: only sha256 is supported")]
    Algorithm {
        /// As given.
        text: String,
    },
    /// Not 64 digits.
    #[error("{text} is not a digest: write sha256: and 64 hexadecimal digits in lower case")]
    Hex {
        /// As given.
        text: String,
    },
}
