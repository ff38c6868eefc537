//! The image store through its public face: imports, commits, layers and their removal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "image/archives.rs"]
mod archives;
#[path = "image/commits.rs"]
mod commits;
#[path = "image/exports.rs"]
mod exports;
#[path = "image/hostile.rs"]
mod hostile;
#[path = "image/layers.rs"]
mod layers;
#[path = "image/store.rs"]
mod store;
#[path = "image/tree.rs"]
mod tree;
