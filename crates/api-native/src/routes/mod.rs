//! Handlers: parse, one call into `control`, convert.

pub(crate) mod admin;
pub(crate) mod builds;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod keys;
pub(crate) mod pools;
pub(crate) mod port_access;
pub(crate) mod ports;
pub(crate) mod pulls;
pub(crate) mod registries;
pub(crate) mod sandboxes;
pub(crate) mod snapshots;
pub(crate) mod sockets;
pub(crate) mod streams;
pub(crate) mod system;
pub(crate) mod templates;
