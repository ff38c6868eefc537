//! What only admins see.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::NetworkPolicy;

/// A namespace.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantItem {
    /// Name.
    pub name: String,
    /// Team.
    pub team: String,
    /// User.
    pub user: String,
    /// When it was first seen, RFC 3339.
    pub created_at: String,
    /// What it may hold.
    pub quota: QuotaWire,
    /// What its sandboxes may reach that say nothing of it. Absent: the installation's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
}

/// Namespaces.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantList {
    /// Entries, by name.
    pub items: Vec<TenantItem>,
}

/// What a namespace may hold. An absent limit is none.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct QuotaWire {
    /// Sandboxes, warm ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u64>,
    /// Sum of CPU limits, a quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 40)]
    pub cpu: Option<String>,
    /// Sum of memory limits, a quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 40)]
    pub memory: Option<String>,
}

/// One namespace.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantEnvelope {
    /// It.
    pub tenant: TenantItem,
}
