//! Images in registries: the pull half of the OCI distribution specification 1.1, which Docker's registry API version 2 is too.

mod auth;
mod blob;
mod session;
mod settings;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio_util::io::StreamReader;

pub use settings::{Credentials, RegistrySettings};

use crate::manifest::{self, Documents, Raw};
use crate::source::{LayerBlob, LayerReader, Limits, Resolved, Source};
use crate::{Digest, Error, InvalidReference, Platform, Reference, Result};
use blob::Download;
use session::{Ask, Session};
use transport::Transport;

/// What we can read, in the order of preference.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// Speaks to registries. One for the whole server: it keeps connections, and no credentials. Cheap to clone.
#[derive(Clone)]
pub struct RegistryClient {
    transport: Arc<Transport>,
}

impl RegistryClient {
    /// Reads the certificates and checks the settings.
    pub fn new(settings: RegistrySettings) -> Result<Self> {
        Ok(Self { transport: Arc::new(Transport::new(settings)?) })
    }

    /// Reads a name; without a host it belongs to the default registry.
    pub fn reference(&self, name: &str) -> Result<Reference, InvalidReference> {
        Reference::parse(name, &self.transport.settings.default_registry)
    }

    /// The image of that name, asked for with these credentials. Nothing is sent yet.
    pub fn image(&self, reference: Reference, credentials: Option<Credentials>) -> Result<RegistrySource> {
        let session = Session::new(self.transport.clone(), reference, credentials)?;
        Ok(RegistrySource { session: Arc::new(session), endpoint: AtomicUsize::new(0) })
    }

    /// The shortest spelling of a name.
    #[must_use]
    pub fn familiar(&self, reference: &Reference) -> String {
        reference.familiar(&self.transport.settings.default_registry)
    }
}

/// One image of a registry, for one who may have shown credentials.
pub struct RegistrySource {
    session: Arc<Session>,
    /// Number of the server that had the manifest, and has the layers too.
    endpoint: AtomicUsize,
}

impl RegistrySource {
    /// The image's name.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.session.reference
    }

    async fn root(&self) -> Result<Raw> {
        let Session { reference, image, .. } = &*self.session;
        let key = reference.manifest_key();
        let what = format!("manifest {key}");
        let path = format!("manifests/{key}");
        let ask = Ask { path: &path, what: &what, accept: Some(ACCEPT), from: 0 };
        let (document, endpoint) = self.session.document(ask).await?;
        self.endpoint.store(endpoint, Ordering::Relaxed);
        let digest = Digest::of(&document.content);
        if let Some(expected) = reference.digest() {
            manifest::check(&document.content, expected, None, &what, image)?;
        }
        Ok(Raw { content: document.content, media_type: document.media_type, digest })
    }
}

#[async_trait]
impl Documents for RegistrySource {
    fn image(&self) -> String {
        self.session.image.clone()
    }

    async fn document(&self, what: &str, digest: Digest, _: u64, is_manifest: bool) -> Result<Vec<u8>> {
        let path = if is_manifest { format!("manifests/{digest}") } else { format!("blobs/{digest}") };
        let ask = Ask { path: &path, what, accept: is_manifest.then_some(ACCEPT), from: 0 };
        Ok(self.session.document(ask).await?.0.content)
    }
}

#[async_trait]
impl Source for RegistrySource {
    fn name(&self) -> String {
        self.session.image.clone()
    }

    async fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        manifest::resolve(self, self.root().await?, platform).await
    }

    async fn open(&self, layer: &LayerBlob) -> Result<LayerReader> {
        if layer.size_bytes > Limits::LAYER_BYTES_MAX {
            let what = format!("layer {}", layer.digest);
            return Err(Error::TooLarge { image: self.name(), what, limit_bytes: Limits::LAYER_BYTES_MAX });
        }
        let endpoint = self.endpoint.load(Ordering::Relaxed);
        let download = Download::new(self.session.clone(), layer.clone(), endpoint).started().await?;
        let reader = StreamReader::new(Box::pin(download.stream()));
        Ok(LayerReader::new(reader, self.name(), layer.clone()))
    }
}
