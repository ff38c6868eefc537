//! Images in and out.

use sandbank_control::{Compression, ImageImport, ImageUsage, ImagesUsage, Pruned};

use super::{image_name, text};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

pub(crate) fn import_model(request: wire::ImportImageRequest) -> ApiResult<ImageImport> {
    let wire::ImportImageRequest { name, path, reference, global } = request;
    let name = name.map(|name| image_name("name", &name)).transpose()?;
    let path = std::path::PathBuf::from(text("path", path, 4096)?);
    if !path.is_absolute() {
        return Err(ApiError::bad_request("path is not absolute: give the whole path on the server, beginning with /"));
    }
    let reference = reference.map(|reference| text("reference", reference, 512)).transpose()?;
    Ok(ImageImport { name, path, reference, global: global.unwrap_or(false) })
}

pub(crate) fn compression(query: wire::ExportQuery) -> Compression {
    let wire::ExportQuery { compression } = query;
    match compression.unwrap_or(wire::ExportCompression::Gzip) {
        wire::ExportCompression::Gzip => Compression::Gzip,
        wire::ExportCompression::Zstd => Compression::Zstd,
        wire::ExportCompression::None => Compression::None,
    }
}

pub(crate) fn usage_wire(usage: ImagesUsage) -> wire::ImagesUsage {
    let ImagesUsage { layers, size_bytes, unused_bytes, images } = usage;
    let image = |usage: ImageUsage| {
        let ImageUsage { name, tenant, own_bytes, shared_bytes } = usage;
        wire::ImageUsage { name: name.to_string(), global: tenant.is_none(), own_bytes, shared_bytes }
    };
    wire::ImagesUsage { layers, size_bytes, unused_bytes, images: images.into_iter().map(image).collect() }
}

pub(crate) fn pruned_wire(pruned: Pruned) -> wire::PrunedImages {
    let Pruned { layers, freed_bytes } = pruned;
    wire::PrunedImages { layers, freed_bytes }
}
