//! `[images]`: where images come from that are not here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use sandbank_control::{PullPolicy, PullSettings};
use sandbank_oci::{DOCKER_REGISTRY, RegistryClient, RegistrySettings};
use serde::Deserialize;

use super::{duration, positive};
use crate::failure::{Failure, Result};

/// How images are pulled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// What a create or a pool does with an image that it names: `missing` (pull what is not here), `always`, `never`.
    pub(crate) pull: String,
    /// Registry of names that say none.
    pub(crate) default_registry: String,
    /// The only hosts that images may be pulled from. Empty: all but this machine and its private networks.
    pub(crate) registries: Vec<String>,
    /// Host of a registry to its mirrors, which are asked first, without credentials.
    pub(crate) mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that may be spoken to in plain HTTP. Those on loopback may anyway.
    pub(crate) insecure: BTreeSet<String>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub(crate) ca_files: Vec<PathBuf>,
    /// Longest time for one image, such as `30m`.
    pub(crate) pull_timeout: String,
    /// Images pulled at the same time; others wait.
    pub(crate) pulls_max: usize,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            pull: "missing".to_owned(),
            default_registry: DOCKER_REGISTRY.to_owned(),
            registries: Vec::new(),
            mirrors: BTreeMap::new(),
            insecure: BTreeSet::new(),
            ca_files: Vec::new(),
            pull_timeout: "30m".to_owned(),
            pulls_max: 3,
        }
    }
}

impl Images {
    /// Checks it and makes the way to registries; nothing is asked of them yet.
    pub(super) fn settings(&self) -> Result<PullSettings> {
        let policy = match self.pull.as_str() {
            "missing" => PullPolicy::Missing,
            "always" => PullPolicy::Always,
            "never" => PullPolicy::Never,
            other => return Err(Failure::new(format!("images.pull is {other:?}: write missing, always or never"))),
        };
        let client = RegistryClient::new(RegistrySettings {
            default_registry: self.default_registry.clone(),
            mirrors: self.mirrors.clone(),
            insecure: self.insecure.clone(),
            ca_files: self.ca_files.clone(),
            ..RegistrySettings::default()
        });
        Ok(PullSettings {
            registries: Some(Arc::new(client.map_err(|error| Failure::new(format!("images: {error}")))?)),
            policy,
            timeout: duration("images.pull_timeout", &self.pull_timeout)?,
            concurrency: positive("images.pulls_max", self.pulls_max)?,
            allowed: self.registries.clone(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_with_the_setting_s_name() {
        let refused = |images: Images| images.settings().err().unwrap().to_string();
        assert!(refused(Images { pull: "often".to_owned(), ..Images::default() }).contains("images.pull"));
        assert!(refused(Images { pulls_max: 0, ..Images::default() }).contains("images.pulls_max"));
        assert!(refused(Images { pull_timeout: "soon".to_owned(), ..Images::default() }).contains("images.pull_timeout"));
        let ca_files = vec![PathBuf::from("/nowhere/ca.pem")];
        assert!(refused(Images { ca_files, ..Images::default() }).contains("/nowhere/ca.pem"));
        assert!(refused(Images { default_registry: "x".to_owned(), ..Images::default() }).contains("default_registry"));
        assert!(Images::default().settings().is_ok());
    }
}
