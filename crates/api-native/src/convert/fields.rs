//! What a request says of a sandbox beside its image: the same words in pools, in templates and in sandboxes.
//!
//! The wire types spell these fields out each time: `serde(flatten)` would take the field's name out of the error about a wrong
//! type, and the API document would fall into `allOf` parts.

use sandbank_control::{LeaseRequest, SpecChange};
use sandbank_model::{ImageName, PublicPorts, Resources, SandboxSpec, StringMap};

use super::{ResourceTexts, ResourceValues, argv, environment, expiry_action, labels, network_model, optional_text, timeout};
use crate::errors::ApiResult;
use crate::wire;

/// What a request says of a lease, unchecked: the same words in creates, claims and forks.
pub(crate) struct LeaseFields {
    pub(crate) timeout: Option<String>,
    pub(crate) idle_timeout: Option<String>,
    pub(crate) on_expiry: Option<wire::OnExpiry>,
    pub(crate) metadata: Option<wire::TextMap>,
    pub(crate) labels: Option<wire::TextMap>,
    pub(crate) annotations: Option<wire::TextMap>,
    pub(crate) env: Option<wire::TextMap>,
    pub(crate) network: Option<wire::NetworkPolicy>,
}

impl LeaseFields {
    pub(crate) fn request(self) -> ApiResult<LeaseRequest> {
        Ok(LeaseRequest {
            timeout: self.timeout.map(|text| timeout("timeout", &text)).transpose()?,
            idle_timeout: self.idle_timeout.map(|text| timeout("idleTimeout", &text)).transpose()?,
            on_expiry: self.on_expiry.map(expiry_action),
            metadata: labels("metadata", self.metadata)?,
            labels: labels("labels", self.labels)?,
            annotations: labels("annotations", self.annotations)?,
            env: environment("env", self.env)?,
            public_ports: PublicPorts::None,
            network: self.network.map(network_model).transpose()?,
        })
    }
}

/// The fields, unchecked.
#[derive(Debug, Default)]
pub(crate) struct SpecFields {
    pub(crate) texts: ResourceTexts,
    pub(crate) user: Option<String>,
    pub(crate) workdir: Option<String>,
    pub(crate) command: Option<Vec<String>>,
}

impl SpecFields {
    /// The name of one that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let Self { texts: ResourceTexts { cpu, memory, disk, pids }, user, workdir, command } = self;
        let rows = [
            ("cpu", cpu.is_some()),
            ("memory", memory.is_some()),
            ("disk", disk.is_some()),
            ("pids", pids.is_some()),
            ("user", user.is_some()),
            ("workdir", workdir.is_some()),
            ("command", command.is_some()),
        ];
        rows.into_iter().find(|(_, given)| *given).map(|(field, _)| field)
    }

    /// As a change of what an image or a template says.
    pub(crate) fn change(self) -> ApiResult<SpecChange> {
        let Self { texts, user, workdir, command } = self;
        let ResourceValues { cpu_millis, memory_bytes, disk_bytes, pids } = texts.parse()?;
        Ok(SpecChange {
            cpu_millis,
            memory_bytes,
            disk_bytes,
            pids,
            user: optional_text("user", user, 64)?,
            workdir: optional_text("workdir", workdir, 4096)?,
            command: command.map(|command| argv("command", command)).transpose()?,
        })
    }

    /// As a whole specification.
    pub(crate) fn spec(self, image: ImageName, env: Option<StringMap>) -> ApiResult<SandboxSpec> {
        let SpecChange { cpu_millis, memory_bytes, disk_bytes, pids, user, workdir, command } = self.change()?;
        let resources = ResourceValues { cpu_millis, memory_bytes, disk_bytes, pids };
        Ok(SandboxSpec {
            command: command.unwrap_or_default(),
            env: environment("env", env)?,
            resources: resources.over(Resources::DEFAULT),
            user,
            workdir,
            ..SandboxSpec::of_image(image)
        })
    }
}
