//! Templates on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{NetworkPolicy, TextMap};

/// A document: YAML or JSON in a text, or the object itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum DocumentText {
    /// YAML or JSON; at most 256 KiB.
    Text(String),
    /// The object itself.
    Object(serde_json::Map<String, serde_json::Value>),
}

/// A service of a template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeWire {
    /// Name, unique in the template.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// Port inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65535)]
    pub port: Option<u16>,
    /// `http`, `ws`, ...: shown, not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub protocol: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// Folder inside with this service's log files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub log_dir: Option<String>,
    /// How to see that it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<ProbeWire>,
}

/// How to see that a service is ready.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProbeWire {
    /// A request answered with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGetWire>,
    /// A connection accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocketWire>,
}

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct HttpGetWire {
    /// Port inside.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Path; default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2000)]
    pub path: Option<String>,
}

/// A connection.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct TcpSocketWire {
    /// Port inside.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
}

/// Who may see a template. Without rules: everybody.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct VisibilityWire {
    /// Alternatives.
    #[serde(default)]
    pub rules: Vec<VisibilityRuleWire>,
}

/// One alternative.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct VisibilityRuleWire {
    /// Team.
    pub team: String,
    /// Users of it; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

/// A template's content.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TemplateSpecWire {
    /// Version `x.y.z`; an update's must be greater than the present one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64, example = "1.0.0")]
    pub version: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4000)]
    pub description: Option<String>,
    /// Image of unclaimed sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub idle_image: Option<String>,
    /// A PodTemplateSpec with one container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<DocumentText>,
    /// Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 64)]
    pub runtimes: Option<Vec<RuntimeWire>>,
    /// Who may see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<VisibilityWire>,
    /// What its sandboxes may reach. Absent: the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
}

/// A template written by an admin. When `crdYaml` is given, the other fields are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpsertTemplateRequest {
    /// Name. Not needed in an update.
    #[schema(max_length = 63, pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$")]
    pub name: Option<String>,
    /// Content.
    pub spec: Option<TemplateSpecWire>,
    /// The whole resource as YAML, with `metadata.resourceVersion` for optimistic locking.
    pub crd_yaml: Option<String>,
}

/// A template in its simple form, owned by the caller's namespace.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SimpleTemplateRequest {
    /// Name. Not needed in an update.
    #[schema(max_length = 63, pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$", example = "python")]
    pub name: Option<String>,
    /// Version `x.y.z`. Absent: 0.0.1, or the next patch version.
    #[schema(max_length = 64, example = "1.0.0")]
    pub version: Option<String>,
    /// Image.
    #[schema(max_length = 255, example = "host")]
    pub image: Option<String>,
    /// For people.
    #[schema(max_length = 4000)]
    pub description: Option<String>,
    /// Program started once.
    #[schema(max_items = 1000)]
    pub command: Option<Vec<String>>,
    /// Environment.
    pub env: Option<TextMap>,
    /// What its sandboxes may reach. Absent: the default.
    pub network: Option<NetworkPolicy>,
    /// CPU, a quantity.
    #[schema(max_length = 40)]
    pub cpu: Option<String>,
    /// Memory, a quantity.
    #[schema(max_length = 40)]
    pub memory: Option<String>,
    /// Disk, a quantity.
    #[schema(max_length = 40)]
    pub disk: Option<String>,
    /// Processes.
    #[schema(minimum = 8, maximum = 4194304)]
    pub pids: Option<u32>,
    /// User.
    #[schema(max_length = 64)]
    pub user: Option<String>,
    /// Working directory.
    #[schema(max_length = 4096)]
    pub workdir: Option<String>,
    /// Ports announced: those with a name appear among a sandbox's endpoints.
    #[schema(max_items = 64)]
    pub ports: Option<Vec<PortWire>>,
    /// Labels.
    pub metadata: Option<TextMap>,
}

/// A port.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct PortWire {
    /// Name.
    #[schema(max_length = 63)]
    pub name: Option<String>,
    /// Port inside.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
}

/// A template.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxTemplate {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When its name was first written, RFC 3339.
    pub created_at: String,
    /// CPU, a quantity.
    pub cpu: String,
    /// Memory, a quantity.
    pub memory: String,
    /// Image.
    pub image: String,
    /// `global` (the installation's) or `local` (the caller's own).
    pub sync_source: String,
    /// Services.
    pub runtime_names: Vec<String>,
    /// Whether it has documentation.
    pub has_docs: bool,
    /// Documentation, with hints for the reader's own values; only of a single template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docs: Option<String>,
    /// Content; only of a single template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<TemplateSpecWire>,
    /// The whole resource as YAML; only of a single template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crd_yaml: Option<String>,
}

/// One template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateEnvelope {
    /// It.
    pub template: SandboxTemplate,
}

/// Templates.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateList {
    /// Entries, by name.
    pub items: Vec<SandboxTemplate>,
    /// How many there are in all.
    pub total: u64,
    /// Most entries asked for.
    pub limit: u32,
    /// Entries skipped.
    pub offset: u64,
}

/// Something that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedName {
    /// Name.
    pub name: String,
    /// `Deleted`.
    pub status: String,
}
