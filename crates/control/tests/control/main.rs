//! Control over the SQLite store and the driver in memory: what it promises, under races, faults and restarts.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod builds;
mod claims;
mod disk;
mod faults;
mod images;
mod inside;
mod keys;
mod lifecycle;
mod network;
mod pools;
mod ports;
mod random;
mod recovery;
mod registries;
mod snapshots;
mod support;
