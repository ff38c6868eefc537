//! What a request says of a sandbox beside its image: the same words in pools, in templates and in sandboxes.
//!
//! The wire types spell these fields out each time: `serde(flatten)` would take the field's name out of the error about a wrong
//! type, and the API document would fall into `allOf` parts.

use sandbank_control::SpecChange;
use sandbank_model::{ImageName, Resources, SandboxSpec, StringMap};

use super::{ResourceTexts, ResourceValues, argv, environment, optional_text};
use crate::errors::ApiResult;

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
