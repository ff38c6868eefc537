//! Pulling images from registries.
//!
//! One pull of a name at a time, whoever asks; it goes on when its caller leaves, within the time that settings allow, so that the next
//! caller finds it done. What is recorded belongs to the tenant that asked: the registry showed it to that tenant's credentials.

use std::sync::Arc;
use std::time::Duration;

use sandbank_driver::Capability;
use sandbank_model::{Image, ImageName, ImageSource, Role, TenantId};
use sandbank_oci::{Credentials, InvalidReference, Platform, Reference, RegistryClient, Source};

use crate::control::{Control, Inner};
use crate::images::layers::{LayersProgress, take_layers};
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// Where images that are not here can be had.
pub trait Registries: Send + Sync + 'static {
    /// Reads a name as the registries' users write it.
    fn reference(&self, name: &str) -> std::result::Result<Reference, InvalidReference>;

    /// The shortest spelling of a name: what its image is kept by.
    fn familiar(&self, reference: &Reference) -> String;

    /// The image of that name, asked for with these credentials.
    fn source(&self, reference: Reference, credentials: Option<Credentials>) -> sandbank_oci::Result<Box<dyn Source>>;
}

impl Registries for RegistryClient {
    fn reference(&self, name: &str) -> std::result::Result<Reference, InvalidReference> {
        self.reference(name)
    }

    fn familiar(&self, reference: &Reference) -> String {
        self.familiar(reference)
    }

    fn source(&self, reference: Reference, credentials: Option<Credentials>) -> sandbank_oci::Result<Box<dyn Source>> {
        Ok(Box::new(self.image(reference, credentials)?))
    }
}

/// When to ask the registry for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Where it is not here.
    #[default]
    Missing,
    /// Every time: a tag may have moved. Layers that are here are not fetched again.
    Always,
    /// Not at all.
    Never,
}

/// What is set about pulling.
#[derive(Clone)]
pub struct PullSettings {
    /// The way to registries; `None`: nothing is pulled.
    pub registries: Option<Arc<dyn Registries>>,
    /// Of a create or a pool that names an image.
    pub policy: PullPolicy,
    /// Longest time for one image.
    pub timeout: Duration,
    /// Images that are pulled at the same time.
    pub concurrency: usize,
    /// Hosts (with port, where one is written) that images may be pulled from; empty: all but those of this machine and its private
    /// networks, which have to be named.
    pub allowed: Vec<String>,
}

impl Default for PullSettings {
    fn default() -> Self {
        let timeout = Duration::from_secs(1800);
        Self { registries: None, policy: PullPolicy::Missing, timeout, concurrency: 3, allowed: Vec::new() }
    }
}

impl std::fmt::Debug for PullSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { registries, policy, timeout, concurrency, allowed } = self;
        f.debug_struct("PullSettings")
            .field("registries", &registries.is_some())
            .field("policy", policy)
            .field("timeout", timeout)
            .field("concurrency", concurrency)
            .field("allowed", allowed)
            .finish()
    }
}

/// An image to pull.
#[derive(Debug)]
pub struct Pull {
    /// As registries' users write it.
    pub name: ImageName,
    /// `Never` only looks whether it is here.
    pub policy: PullPolicy,
    /// For this pull alone; else what is stored for the tenant counts.
    pub credentials: Option<Credentials>,
    /// For the whole installation: admins only.
    pub global: bool,
    /// Told how far it is.
    pub progress: LayersProgress,
}

impl Control {
    /// Pulls an image and records it. Answers at once when it is here and the policy is content with that.
    pub async fn image_pull(&self, caller: &Caller, pull: Pull) -> Result<Image> {
        caller.require(Role::Member, "pulling images")?;
        if pull.global {
            caller.require_admin()?;
        }
        self.inner.pull(caller.principal.tenant, pull).await
    }
}

impl Inner {
    /// As [`Control::image_pull`], for whoever may.
    pub(crate) async fn pull(self: &Arc<Self>, tenant: TenantId, pull: Pull) -> Result<Image> {
        let (inner, (answer, pulled)) = (Arc::clone(self), tokio::sync::oneshot::channel());
        self.tasks.spawn(async move {
            let limit = inner.settings.pulls.timeout;
            let name = pull.name.clone();
            let done = tokio::time::timeout(limit, inner.pull_now(tenant, pull)).await;
            let timed_out = || {
                let message = format!("pulling the image {name} took longer than {} s: try again later", limit.as_secs());
                Err(Error::new(ErrorKind::Unavailable, message))
            };
            // Nobody may be waiting any more: the image is there for the next one.
            let _ = answer.send(done.unwrap_or_else(|_| timed_out()));
        });
        pulled.await.unwrap_or_else(|_| Err(Error::shutting_down()))
    }

    async fn pull_now(self: &Arc<Self>, tenant: TenantId, pull: Pull) -> Result<Image> {
        let registries = self.registries()?;
        let reference = registries.reference(pull.name.as_str()).map_err(|error| Error::invalid(error.to_string()))?;
        self.check_registry(&reference)?;
        let name: ImageName = registries.familiar(&reference).parse()?;
        let owner = (!pull.global).then_some(tenant);
        let _alone = self.pull_locks.lock((owner, name.clone())).await;
        let known = self.store.image_get(tenant, &name).await?.filter(|image| image.tenant == owner);
        let known = match (known, pull.policy) {
            (Some(image), PullPolicy::Missing | PullPolicy::Never) => return Ok(image),
            (None, PullPolicy::Never) => return Err(not_here(&name)),
            (known, _) => known,
        };
        let _place = self.pull_places.acquire().await;
        let credentials = match pull.credentials {
            Some(given) => Some(given),
            None => self.credentials_for(tenant, reference.registry()).await?,
        };
        let source = registries.source(reference, credentials)?;
        let resolved = source.resolve(&Platform::host()).await?;
        let origin = ImageSource::Pulled { digest: resolved.root_digest.to_string() };
        if let Some(image) = known.filter(|image| image.source == origin) {
            return Ok(image);
        }
        let driver = self.driver(&self.settings.default_driver)?;
        driver.capabilities().require(Capability::ImportImage)?;
        let layers_in_use = self.layers_in_use.read().await;
        let layers = match take_layers(self, driver, source.as_ref(), &resolved, &pull.progress).await {
            Ok(layers) => layers,
            Err(error) => {
                drop(layers_in_use);
                self.collect_layers_later();
                return Err(error);
            }
        };
        let config = resolved.config;
        let image = Image { name, tenant: owner, layers, on_host: false, config, source: origin, created_at: self.now() };
        self.record_image(image, layers_in_use).await
    }

    fn registries(&self) -> Result<&Arc<dyn Registries>> {
        self.settings.pulls.registries.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "this server pulls no images: its configuration has no way to registries")
        })
    }

    /// The name that an image is kept by when it was pulled, of a name as it was written; `None` where it cannot be one.
    pub(crate) fn pulled_name(&self, name: &ImageName) -> Option<ImageName> {
        let registries = self.settings.pulls.registries.as_ref()?;
        registries.familiar(&registries.reference(name.as_str()).ok()?).parse().ok()
    }

    /// Whether a tenant may make this server talk to that host.
    fn check_registry(&self, reference: &Reference) -> Result<()> {
        let (host, allowed) = (reference.registry(), &self.settings.pulls.allowed);
        if allowed.iter().any(|allowed| allowed == host) || (allowed.is_empty() && !is_near(host)) {
            return Ok(());
        }
        let hint = "an operator can allow it: [images] registries = [...] in the configuration";
        Err(Error::new(ErrorKind::Forbidden, format!("images may not be pulled from {host}; {hint}")))
    }
}

/// The machine itself and private networks, by how the host is written. A name that resolves to one is not noticed.
fn is_near(host: &str) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    match bare.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        Ok(std::net::IpAddr::V6(ip)) => {
            let mapped = ip.to_ipv4_mapped().is_some();
            ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local() || mapped
        }
        Err(_) => bare == "localhost" || bare.ends_with(".localhost"),
    }
}

pub(crate) fn not_here(name: &ImageName) -> Error {
    Error::invalid(format!("image {name} is not on this server: pull or import it (sandbank image pull), or use host"))
}

#[cfg(test)]
mod tests {
    use super::is_near;

    #[test]
    fn hosts_of_this_machine_and_private_networks_are_near() {
        for near in ["localhost", "localhost:5000", "127.0.0.1:5000", "10.1.2.3", "192.168.0.1:443", "[::1]:5000", "x.localhost"]
        {
            assert!(is_near(near), "{near}");
        }
        for near in ["169.254.169.254", "0.0.0.0:80", "[fd00::1]:5000", "[::ffff:10.0.0.1]:80", "172.16.0.9"] {
            assert!(is_near(near), "{near}");
        }
        for far in ["docker.io", "ghcr.io", "registry.example.com:5000", "8.8.8.8", "[2001:db8::1]:443", "localhost.example.com"]
        {
            assert!(!is_near(far), "{far}");
        }
    }
}
