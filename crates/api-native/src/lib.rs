//! The native API: AgentBox's, epoch E1 (contract: native.md), and what Sandbank adds to it.
//!
//! `wire` holds the shapes, `convert` goes between them and the model, `errors` is the one table of statuses, `routes` are the
//! handlers, `openapi` the document made of them. Nothing here keeps state but exec tokens, and nothing decides: that is
//! `sandbank_control`'s.
//!
//! # Quirks, kept or decided
//! - The envelope of a pool is `template`, as in AgentBox.
//! - No warm sandbox is 429, as in AgentBox's code; its spec says 409.
//! - A bad duration in `PUT /sandboxes/{id}/timeout` is 400; AgentBox answers 401.
//! - AgentBox's own operations answer 400 where a sandbox's state does not allow them; ours answer 409.
//! - A pool reference `{cluster}::{pool}` works everywhere, also where AgentBox only documents it.
//! - The list of sandboxes takes a `limit` up to 1000 and gives at most 100.
//! - Unknown fields of a body are ignored, unknown values of a known field are refused.

mod app;
mod convert;
mod errors;
mod openapi;
mod reference;
mod router;
mod routes;
mod session;
mod wire;

pub use app::NativeSettings;
pub use router::router;

/// The API document (OpenAPI 3.1) as JSON.
#[must_use]
pub fn openapi_json() -> &'static str {
    openapi::text()
}
