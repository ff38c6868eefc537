//! Layers of images from elsewhere: archives of what each changes of those beneath it.

use std::io::{self, Read};

use sandbank_driver::DriverError;
use sandbank_model::Layer;
use sha2::{Digest as _, Sha256};

use super::ImageStore;
use super::error::{failed, invalid};
use super::import::ImportLimits;
use super::members::{End, Members};
use super::staging::{Lasting, Staging, hex};
use super::unpack::{UnpackAs, Unpacker};

/// Grows when unpacking changes what comes of the same archive.
const LAYER_VERSION: u32 = 2;
/// What digests begin with (OCI image specification, "Digests").
const ALGORITHM: &str = "sha256:";

/// A layer's archive on its way in: digested, and bounded in what it may unpack to.
struct Incoming<R> {
    archive: R,
    digest: Sha256,
    left: u64,
    max: u64,
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !buffer.is_empty() {
            let message = format!("the layer unpacks to more than {} bytes, which is the limit", self.max);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.archive.read(&mut buffer[..want])?;
        self.digest.update(&buffer[..got]);
        self.left -= got as u64;
        Ok(got)
    }
}

impl ImageStore {
    /// The layer that an archive with this digest became (`sha256:` and 64 hexadecimal digits, of the archive without
    /// compression: `diff_ids` of the OCI image specification), if it is there. It is safe from [`ImageStore::retain_layers`] for an hour.
    #[must_use]
    pub fn find_layer(&self, diff_id: &str) -> Option<Layer> {
        let id = layer_id(diff_id)?;
        self.inner.guarded.add(&id);
        self.layer(&id)
    }

    /// Unpacks a layer's archive (tar, no compression) and keeps it by its digest, which must be `diff_id`. Whiteouts become
    /// overlayfs's; devices are left out, otherwise as [`ImageStore::import`]. The same layer is kept once.
    ///
    /// # Errors
    /// [`DriverError::Invalid`] for an archive that is broken, leads out of its directory, is beyond the limits or has another
    /// digest. Nothing is left of it then.
    pub fn add_layer(&self, diff_id: &str, archive: impl Read, limits: &ImportLimits) -> Result<Layer, DriverError> {
        let id = layer_id(diff_id)
            .ok_or_else(|| invalid(format!("{diff_id:?} is not a digest: write sha256: and 64 hexadecimal digits")))?;
        if let Some(layer) = self.find_layer(diff_id) {
            return Ok(layer);
        }
        let staging = Staging::new(self)?;
        let tree = staging.tree()?;
        let max = limits.stream_bytes_max();
        let mut members = Members::new(Incoming { archive, digest: Sha256::new(), left: max, max }, End::Anywhere);
        let mut unpacker = Unpacker::new(&tree, limits, UnpackAs::Layer);
        unpacker.unpack(&mut members)?;
        let (bytes, skipped) = (unpacker.bytes, unpacker.skipped);
        let mut rest = members.into_inner();
        // What stands behind the end mark belongs to the digest too.
        io::copy(&mut rest, &mut io::sink()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::UnexpectedEof => invalid(format!("the layer cannot be read: {error}")),
            _ => failed(|| "read the layer".to_owned())(error),
        })?;
        let found = format!("{ALGORITHM}{}", hex(&rest.digest.finalize()));
        if found != diff_id {
            return Err(invalid(format!(
                "the layer is not what it was said to be: its digest is {found}, it should be {diff_id}"
            )));
        }
        if skipped > 0 {
            tracing::debug!(skipped, layer = diff_id, "devices were left out of the layer");
        }
        staging.publish(self, &id, bytes, Lasting::OnDisk)
    }
}

/// The name that a layer is kept under.
fn layer_id(diff_id: &str) -> Option<String> {
    let digits = diff_id.strip_prefix(ALGORITHM)?;
    let valid = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| format!("layer-{digits}-{LAYER_VERSION}"))
}
