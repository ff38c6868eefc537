//! Templates: what a sandbox is made from. Immutable by version; a pool embeds a copy.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ImageName, NetworkPolicy, PoolName, Resources, TemplateId, TenantId, Timestamp};

/// Environment variables: name to value.
pub type EnvMap = BTreeMap<String, String>;
/// Labels, annotations or metadata: key to value.
pub type StringMap = BTreeMap<String, String>;

/// A version `x.y.z`; ordered by number, not by text (native.md §10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SemVer {
    /// x
    pub major: u32,
    /// y
    pub minor: u32,
    /// z
    pub patch: u32,
}

impl SemVer {
    /// The version of a template that names none: 0.0.1.
    pub const FIRST: Self = Self { major: 0, minor: 0, patch: 1 };

    /// The next patch version: for dialects whose users do not number versions.
    #[must_use]
    pub const fn next_patch(self) -> Self {
        Self { patch: self.patch.saturating_add(1), ..self }
    }
}

impl fmt::Display for SemVer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that is not `x.y.z`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version: a version is three numbers x.y.z, such as 1.4.0")]
pub struct InvalidVersion(String);

impl FromStr for SemVer {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let refused = || InvalidVersion(text.chars().take(64).collect());
        let number = |part: Option<&str>| -> Result<u32, InvalidVersion> {
            let part = part.ok_or_else(refused)?;
            let canonical =
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            if canonical { part.parse().map_err(|_| refused()) } else { Err(refused()) }
        };
        let mut parts = text.split('.');
        let version = Self { major: number(parts.next())?, minor: number(parts.next())?, patch: number(parts.next())? };
        if parts.next().is_some() { Err(refused()) } else { Ok(version) }
    }
}

impl TryFrom<String> for SemVer {
    type Error = InvalidVersion;
    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        text.parse()
    }
}

impl From<SemVer> for String {
    fn from(version: SemVer) -> Self {
        version.to_string()
    }
}

/// A port that the template announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Name, if it has one.
    pub name: Option<String>,
    /// Port inside the sandbox, 1 to 65535.
    pub port: u16,
}

/// How to see that a runtime is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// `GET path` on `port` answers with a status from 200 to 399.
    HttpGet {
        /// Port inside the sandbox.
        port: u16,
        /// Path, beginning with `/`.
        path: String,
    },
    /// Something accepts a connection on `port`.
    TcpConnect {
        /// Port inside the sandbox.
        port: u16,
    },
}

/// A service that a sandbox of this template offers on a port (native.md §10 `runtimes`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Name, unique in the template.
    pub name: String,
    /// Port inside the sandbox, if it has one.
    pub port: Option<u16>,
    /// "http", "ws", ...: shown to clients, not interpreted.
    pub protocol: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Folder inside the sandbox with this runtime's log files.
    pub log_dir: Option<String>,
    /// How to see that it is ready; a runtime without one counts as ready.
    pub readiness: Option<Probe>,
}

/// What one sandbox is made of: everything a driver needs, with no reference left to resolve but the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Root filesystem.
    pub image: ImageName,
    /// Program started once when the sandbox is made, its output kept as the sandbox's log. Empty: none.
    pub command: Vec<String>,
    /// Environment of every process. A lease adds to it.
    pub env: EnvMap,
    /// Limits.
    pub resources: Resources,
    /// User that processes run as when a request names none: a name or a number. `None`: the image's, else root.
    pub user: Option<String>,
    /// Working directory of processes when a request names none. `None`: the image's, else the user's home.
    pub workdir: Option<String>,
    /// Ports announced.
    pub ports: Vec<PortSpec>,
    /// Host name inside. `None`: the first 12 characters of the id's random part.
    pub hostname: Option<String>,
    /// What it may reach. `None`: what the tenant's or the installation's default says. A lease's own comes over it.
    #[serde(default, with = "crate::shared")]
    pub network: Option<Arc<NetworkPolicy>>,
}

impl SandboxSpec {
    /// A spec with defaults for all but the image.
    #[must_use]
    pub fn of_image(image: ImageName) -> Self {
        Self {
            image,
            command: Vec::new(),
            env: EnvMap::new(),
            resources: Resources::DEFAULT,
            user: None,
            workdir: None,
            ports: Vec::new(),
            hostname: None,
            network: None,
        }
    }
}

/// Who may see a template: no rules means everybody; otherwise one rule must match (native.md §10).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Visibility {
    /// Alternatives.
    pub rules: Vec<VisibilityRule>,
}

/// One alternative: this team and, unless `users` is empty, one of these users of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisibilityRule {
    /// Team.
    pub team: String,
    /// Users; empty means the whole team.
    pub users: Vec<String>,
}

impl Visibility {
    /// Whether `user` of `team` may see it.
    #[must_use]
    pub fn allows(&self, team: &str, user: &str) -> bool {
        self.rules.is_empty()
            || self.rules.iter().any(|rule| rule.team == team && (rule.users.is_empty() || rule.users.iter().any(|u| u == user)))
    }
}

/// The content of one template version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// For people.
    pub description: Option<String>,
    /// What its sandboxes are made of.
    pub sandbox: SandboxSpec,
    /// Image of a sandbox that nobody has claimed, where the dialect's user names one. Sandbank warms the real image, so
    /// that a claim need not swap anything; the name is kept and shown.
    pub idle_image: Option<ImageName>,
    /// Services on ports.
    pub runtimes: Vec<Runtime>,
    /// Who sees it.
    pub visibility: Visibility,
    /// Longest wait for a claim when the request names none.
    pub startup_timeout: Option<Duration>,
    /// Idle life of a claimed sandbox when the request names none. `None`: unlimited.
    pub idle_timeout: Option<Duration>,
    /// Labels, merged into the pools'.
    pub labels: StringMap,
    /// Annotations: what users and dialects attach without Sandbank interpreting it, such as the document a template was
    /// written in.
    pub annotations: StringMap,
}

/// Names one version of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRef {
    /// Id of that version.
    pub id: TemplateId,
    /// Name.
    pub name: PoolName,
    /// Version.
    pub version: SemVer,
}

/// One version of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Id of this version.
    pub id: TemplateId,
    /// Who owns it; `None`: the whole installation (made by an admin, seen as `spec.visibility` says).
    pub tenant: Option<TenantId>,
    /// Name, unique beside its owner.
    pub name: PoolName,
    /// Version; a newer one replaces it.
    pub version: SemVer,
    /// Content.
    pub spec: TemplateSpec,
    /// Counts the writes of this name, from 1: what optimistic locking compares (`resourceVersion`).
    pub generation: u64,
    /// When this name was first written.
    pub created_at: Timestamp,
    /// When this version was written.
    pub updated_at: Timestamp,
}

impl Template {
    /// The reference to this version.
    #[must_use]
    pub fn reference(&self) -> TemplateRef {
        TemplateRef { id: self.id, name: self.name.clone(), version: self.version }
    }
}
