//! From a manifest or an index to one platform's configuration and layers.

use async_trait::async_trait;

use crate::config::{ImageDetails, parse_config};
use crate::source::{LayerBlob, Limits, Resolved};
use crate::wire::{self, Descriptor};
use crate::{Compression, Digest, Error, Platform, Result};

/// Where documents (manifests, indexes, configurations) are fetched from by digest.
#[async_trait]
pub(crate) trait Documents: Send + Sync {
    /// The image's name for errors.
    fn image(&self) -> String;
    /// The bytes with this digest, `size_bytes` of them; not checked yet.
    async fn document(&self, what: &str, digest: Digest, size_bytes: u64, is_manifest: bool) -> Result<Vec<u8>>;
}

/// A document as it came.
pub(crate) struct Raw {
    pub(crate) content: Vec<u8>,
    /// What the outside said it is: a header, a descriptor.
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// Types of manifests and indexes.
const KNOWN_TYPES: [&str; 4] = [wire::OCI_INDEX, wire::OCI_MANIFEST, wire::DOCKER_INDEX, wire::DOCKER_MANIFEST];

enum Parsed {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

/// Resolves the image that `root` is the index or manifest of.
pub(crate) async fn resolve(documents: &dyn Documents, root: Raw, platform: &Platform) -> Result<Resolved> {
    let image = documents.image();
    let root_digest = root.digest;
    let mut current = root;
    for _ in 0..=Limits::INDEX_DEPTH_MAX {
        match parse(&current, &image)? {
            Parsed::Index(entries) => {
                let entry = select(&entries, platform, &image)?;
                let what = format!("the manifest for {platform}");
                let content = fetch(documents, &what, entry, true).await?;
                current = Raw { content, media_type: entry.media_type.clone(), digest: digest_of(entry, &what, &image)? };
            }
            Parsed::Manifest { config, layers } => {
                return resolve_manifest(documents, root_digest, current.digest, &config, &layers, platform).await;
            }
        }
    }
    Err(malformed(&image, "its index", format!("indexes are nested deeper than {}", Limits::INDEX_DEPTH_MAX)))
}

async fn resolve_manifest(
    documents: &dyn Documents,
    root_digest: Digest,
    manifest_digest: Digest,
    config: &Descriptor,
    layers: &[Descriptor],
    platform: &Platform,
) -> Result<Resolved> {
    let image = documents.image();
    if !config.media_type.is_empty() && ![wire::OCI_CONFIG, wire::DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        let what = format!("what it is (no container image but an artifact of type {})", shown(&config.media_type));
        return Err(Error::Unsupported { image, what });
    }
    // Before anything is fetched: whether the layers can be used at all.
    let kept = layers.iter().map(|layer| kept_layer(layer, &image)).collect::<Result<Vec<_>>>()?;
    let what = "its configuration";
    let content = fetch(documents, what, config, false).await?;
    let details = parse_config(&content, &image)?;
    let layers = with_diff_ids(kept, &details, &image)?;
    finish(root_digest, manifest_digest, digest_of(config, what, &image)?, details, layers, platform, &image)
}

/// Puts together what was found, if it runs on `platform`. A configuration that says nothing about it is taken at its name.
pub(crate) fn finish(
    root_digest: Digest,
    manifest_digest: Digest,
    config_digest: Digest,
    details: ImageDetails,
    layers: Vec<LayerBlob>,
    platform: &Platform,
    image: &str,
) -> Result<Resolved> {
    let ImageDetails { config, platform: offered, created, diff_ids: _ } = details;
    let unsaid = offered.os.is_empty() || offered.architecture.is_empty();
    if !unsaid && platform.fitness(&offered).is_none() {
        return Err(Error::Platform { image: image.to_owned(), wanted: platform.to_string(), available: offered.to_string() });
    }
    Ok(Resolved { root_digest, manifest_digest, config_digest, config, platform: offered, created, layers })
}

async fn fetch(documents: &dyn Documents, what: &str, descriptor: &Descriptor, is_manifest: bool) -> Result<Vec<u8>> {
    let image = documents.image();
    let expected = digest_of(descriptor, what, &image)?;
    if descriptor.size > Limits::DOCUMENT_BYTES_MAX as u64 {
        return Err(Error::TooLarge { image, what: what.to_owned(), limit_bytes: Limits::DOCUMENT_BYTES_MAX as u64 });
    }
    let content = documents.document(what, expected, descriptor.size, is_manifest).await?;
    check(&content, expected, Some(descriptor.size), what, &image)?;
    Ok(content)
}

/// The manifest or index that a layout's entry is about.
pub(crate) async fn fetch_root(documents: &dyn Documents, entry: &Descriptor) -> Result<Raw> {
    let what = "its manifest";
    let content = fetch(documents, what, entry, true).await?;
    let digest = digest_of(entry, what, &documents.image())?;
    Ok(Raw { content, media_type: entry.media_type.clone(), digest })
}

/// Whether `content` is what was promised.
pub(crate) fn check(content: &[u8], expected: Digest, size: Option<u64>, what: &str, image: &str) -> Result<()> {
    let (image, what) = (image.to_owned(), what.to_owned());
    let actual_bytes = content.len() as u64;
    if let Some(expected_bytes) = size.filter(|size| *size != actual_bytes) {
        return Err(Error::Size { image, what, expected_bytes, actual_bytes });
    }
    let actual = Digest::of(content);
    if actual == expected { Ok(()) } else { Err(Error::Digest { image, what, expected, actual }) }
}

fn parse(raw: &Raw, image: &str) -> Result<Parsed> {
    let what = "its manifest";
    if raw.content.len() > Limits::DOCUMENT_BYTES_MAX {
        let limit_bytes = Limits::DOCUMENT_BYTES_MAX as u64;
        return Err(Error::TooLarge { image: image.to_owned(), what: what.to_owned(), limit_bytes });
    }
    let document: wire::Document =
        serde_json::from_slice(&raw.content).map_err(|error| malformed(image, what, error.to_string()))?;
    let own_type = document.media_type.unwrap_or_default();
    let media_type = if own_type.is_empty() { raw.media_type.clone() } else { own_type.clone() };
    if document.schema_version == 1 || media_type.starts_with(wire::DOCKER_SCHEMA1) {
        let what =
            "its manifest of schema 1, which Docker gave up in 2017; push the image again with a present tool: the old form";
        return Err(Error::Unsupported { image: image.to_owned(), what: what.to_owned() });
    }
    // Headers are often wrong; what a document says of itself is meant, and it may look like an image without being one.
    if !own_type.is_empty() && !KNOWN_TYPES.contains(&own_type.as_str()) {
        let what = format!("its manifest of type {}", shown(&own_type));
        return Err(Error::Unsupported { image: image.to_owned(), what });
    }
    match (document.manifests, document.config, document.layers) {
        (Some(entries), None, None) => {
            if entries.len() > Limits::INDEX_ENTRIES_MAX {
                let reason = format!("{} entries, where {} are the most", entries.len(), Limits::INDEX_ENTRIES_MAX);
                return Err(malformed(image, "its index", reason));
            }
            Ok(Parsed::Index(entries))
        }
        (None, Some(config), layers) => {
            let layers = layers.unwrap_or_default();
            if layers.len() > Limits::LAYERS_MAX {
                let reason = format!("{} layers, where {} are the most", layers.len(), Limits::LAYERS_MAX);
                return Err(malformed(image, what, reason));
            }
            Ok(Parsed::Manifest { config, layers })
        }
        _ => Err(malformed(image, what, format!("neither a manifest nor an index (media type {})", shown(&media_type)))),
    }
}

/// The entry that fits best; among equals the first, as the specification asks.
fn select<'a>(entries: &'a [Descriptor], platform: &Platform, image: &str) -> Result<&'a Descriptor> {
    let usable = |entry: &&Descriptor| {
        let said = entry.media_type.as_str();
        said.is_empty() || KNOWN_TYPES.contains(&said) || entry.media_type.starts_with(wire::DOCKER_SCHEMA1)
    };
    let usable: Vec<&Descriptor> = entries.iter().filter(usable).collect();
    let fitness = |entry: &&Descriptor| entry.platform.as_ref().and_then(|offered| platform.fitness(offered));
    let best = usable.iter().copied().filter(|entry| fitness(entry).is_some()).min_by_key(fitness);
    // Layouts list their one image without a platform; its configuration has it.
    let only = || match usable.as_slice() {
        [only] if only.platform.is_none() => Some(*only),
        _ => None,
    };
    best.or_else(only).ok_or_else(|| {
        let mut offered: Vec<String> = Vec::new();
        for entry in &usable {
            let name = entry.platform.as_ref().map_or_else(|| "one of no known platform".to_owned(), |p| shown(&p.to_string()));
            // Attestations are listed like images, for a platform that is none.
            if name != "unknown/unknown" && !offered.contains(&name) && offered.len() < 32 {
                offered.push(name);
            }
        }
        let available = if offered.is_empty() { "no image at all".to_owned() } else { offered.join(", ") };
        Error::Platform { image: image.to_owned(), wanted: platform.to_string(), available }
    })
}

/// A layer of the manifest, whose diff id is not known yet.
fn kept_layer(layer: &Descriptor, image: &str) -> Result<(Digest, Compression, u64)> {
    let digest = digest_of(layer, "a layer", image)?;
    let what = format!("layer {digest}");
    if layer.size > Limits::LAYER_BYTES_MAX {
        return Err(Error::TooLarge { image: image.to_owned(), what, limit_bytes: Limits::LAYER_BYTES_MAX });
    }
    let refuse = |why: &str| Error::Unsupported { image: image.to_owned(), what: format!("{what} ({why})") };
    let media_type = layer.media_type.as_str();
    if media_type.ends_with("+encrypted") {
        return Err(refuse("it is encrypted"));
    }
    if media_type.starts_with(wire::DOCKER_FOREIGN_LAYER) || media_type.contains(".nondistributable.") {
        return Err(refuse("it is a foreign layer, which its registry does not hand out"));
    }
    let rest = [wire::OCI_LAYER, wire::DOCKER_LAYER].iter().find_map(|known| media_type.strip_prefix(known));
    let compression = match rest {
        Some("") => Compression::None,
        Some("+gzip" | ".gzip") => Compression::Gzip,
        Some("+zstd" | ".zstd") => Compression::Zstd,
        _ => return Err(refuse(&format!("its media type {} is not one of a layer that we know", shown(media_type)))),
    };
    Ok((digest, compression, layer.size))
}

/// Joins the manifest's layers with the configuration's diff ids.
pub(crate) fn with_diff_ids(
    kept: Vec<(Digest, Compression, u64)>,
    details: &ImageDetails,
    image: &str,
) -> Result<Vec<LayerBlob>> {
    if kept.len() != details.diff_ids.len() {
        let reason = format!("{} layers in the manifest, {} in the configuration", kept.len(), details.diff_ids.len());
        return Err(malformed(image, "its manifest", reason));
    }
    let join = |((digest, compression, size_bytes), diff_id): ((Digest, Compression, u64), &Digest)| LayerBlob {
        digest,
        diff_id: *diff_id,
        compression,
        size_bytes,
    };
    Ok(kept.into_iter().zip(&details.diff_ids).map(join).collect())
}

fn digest_of(descriptor: &Descriptor, what: &str, image: &str) -> Result<Digest> {
    descriptor.digest.parse().map_err(|error: crate::InvalidDigest| malformed(image, what, error.to_string()))
}

/// `reason` may quote what came from outside, so it is kept short and plain.
pub(crate) fn malformed(image: &str, what: &str, reason: String) -> Error {
    let reason = reason.chars().filter(|c| !c.is_control()).take(300).collect();
    Error::Malformed { image: image.to_owned(), what: what.to_owned(), reason }
}

/// Foreign text, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
