//! Archives of `docker save`: `manifest.json` names the configuration and the layers by path (Docker's image specification 1.2,
//! "Combined Image JSON + Filesystem Changeset Format").

use std::io::{self, Read as _};
use std::path::Path;

use super::files::FileRange;
use super::{Blobs, no_such, same_image, several_images};
use crate::config::parse_config;
use crate::decompress::Compression;
use crate::manifest::{self, malformed};
use crate::source::{Limits, Resolved};
use crate::wire::DockerImage;
use crate::{Digest, Error, Hashing, Platform, Result};

/// The image of that name, or the only one.
pub(super) fn choose(path: &Path, manifest: &[u8], name: Option<&str>) -> Result<DockerImage> {
    let shown = path.display().to_string();
    let images: Vec<DockerImage> =
        serde_json::from_slice(manifest).map_err(|error| malformed(&shown, "manifest.json", error.to_string()))?;
    let all = || images.iter().flat_map(|image| image.repo_tags.iter().cloned());
    let chosen = match (name, images.as_slice()) {
        (Some(name), images) => {
            let chosen = images.iter().find(|image| image.repo_tags.iter().any(|tag| same_image(tag, name)));
            chosen.ok_or_else(|| no_such(path, name, all()))?
        }
        (None, [only]) => only,
        (None, []) => return Err(Error::Archive { path: path.to_owned(), reason: "lists no image".to_owned() }),
        (None, _) => return Err(several_images(path, all())),
    };
    if chosen.layers.len() > Limits::LAYERS_MAX {
        let reason = format!("{} layers, where {} are the most", chosen.layers.len(), Limits::LAYERS_MAX);
        return Err(malformed(&shown, "manifest.json", reason));
    }
    Ok(chosen.clone())
}

pub(super) fn resolve(path: &Path, name: &str, blobs: &Blobs, image: &DockerImage, platform: &Platform) -> Result<Resolved> {
    let what = "its configuration";
    let content = blobs.small(path, &image.config)?;
    let content =
        content.ok_or_else(|| malformed(name, what, format!("{} is not in the archive", manifest::shown(&image.config))))?;
    let config_digest = Digest::of(&content);
    if let Some(expected) = digest_in_name(&image.config) {
        manifest::check(&content, expected, None, what, name)?;
    }
    let details = parse_config(&content, name)?;
    if image.layers.len() != details.diff_ids.len() {
        let reason = format!("{} layers listed, {} in the configuration", image.layers.len(), details.diff_ids.len());
        return Err(malformed(name, "manifest.json", reason));
    }
    let mut kept = Vec::with_capacity(image.layers.len());
    for (layer, diff_id) in image.layers.iter().zip(&details.diff_ids) {
        let missing = || malformed(name, "a layer", format!("{} is not in the archive", manifest::shown(layer)));
        let found = blobs.find(layer).map_err(|error| Error::io(path, error))?.ok_or_else(missing)?;
        kept.push(as_kept(&found, *diff_id).map_err(|error| Error::io(path, error))?);
    }
    let layers = manifest::with_diff_ids(kept, &details, name)?;
    manifest::finish(config_digest, config_digest, config_digest, details, layers, platform, name)
}

/// A layer's digest as it is kept. A plain one has its diff id's; of a compressed one nothing says it, so it is read once.
fn as_kept(found: &FileRange, diff_id: Digest) -> io::Result<(Digest, Compression, u64)> {
    let mut magic = Vec::new();
    found.reader().take(8).read_to_end(&mut magic)?;
    let compression = Compression::detect(&magic).unwrap_or(Compression::None);
    if compression == Compression::None {
        return Ok((diff_id, compression, found.range.size_bytes));
    }
    let mut reader = Hashing::new(found.reader());
    io::copy(&mut reader, &mut io::sink())?;
    let (digest, size_bytes) = reader.finish();
    Ok((digest, compression, size_bytes))
}

/// The layer of that diff id: the configuration lists them in the order of the manifest's paths.
pub(super) fn find_layer(path: &Path, blobs: &Blobs, image: &DockerImage, diff_id: Digest) -> Result<Option<FileRange>> {
    let shown = path.display().to_string();
    let Some(content) = blobs.small(path, &image.config)? else { return Ok(None) };
    let details = parse_config(&content, &shown)?;
    let position = details.diff_ids.iter().position(|own| *own == diff_id);
    match position.and_then(|position| image.layers.get(position)) {
        Some(layer) => blobs.find(layer).map_err(|error| Error::io(path, error)),
        None => Ok(None),
    }
}

/// The digest that a configuration's path promises: `<hex>.json`, `blobs/sha256/<hex>`.
fn digest_in_name(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
}
