//! The native API over a whole control, a real store and a driver in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]

mod auth;
mod bad_input;
mod builds;
mod contract;
mod document;
mod images;
mod inside;
mod network;
mod ports;
mod registries;
mod snapshots;
mod sockets;
mod support;
