//! The shapes on the wire. They know nothing of the model; `convert` does.

mod admin;
mod build;
mod file;
mod image;
mod key;
mod network;
mod pool;
mod port;
mod process;
mod pull;
mod registry;
mod sandbox;
mod snapshot;
mod system;
mod template;

pub(crate) use admin::*;
pub(crate) use build::*;
pub(crate) use file::*;
pub(crate) use image::*;
pub(crate) use key::*;
pub(crate) use network::*;
pub(crate) use pool::*;
pub(crate) use port::*;
pub(crate) use process::*;
pub(crate) use pull::*;
pub(crate) use registry::*;
pub(crate) use sandbox::*;
pub(crate) use snapshot::*;
pub(crate) use system::*;
pub(crate) use template::*;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Text to text: labels, annotations, metadata, environment.
pub(crate) type TextMap = BTreeMap<String, String>;

/// Every error of this API.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody {
    /// What was wrong and what to do, for people.
    pub error: String,
    /// Only for business cases that a client must tell apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<ErrorCode>,
    /// More for programs: a text, or an object that depends on the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

/// Business cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) enum ErrorCode {
    /// The caller must create an API key first.
    #[serde(rename = "API_KEY_REQUIRED")]
    ApiKeyRequired,
}

/// Which piece of a list.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most entries to return.
    #[param(minimum = 1, maximum = 1000, default = 20)]
    pub limit: Option<u32>,
    /// Entries to skip.
    #[param(minimum = 0, default = 0)]
    pub offset: Option<u64>,
}

/// A list of names.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NameList {
    /// Names, in order.
    pub items: Vec<String>,
    /// How many.
    pub total: u64,
}
