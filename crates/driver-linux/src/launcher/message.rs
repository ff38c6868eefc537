//! What the server and the launcher say to each other, one JSON message a packet.

use std::path::PathBuf;

use sandbank_model::Resources;
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupOrder;
use crate::image::RootPlan;
use crate::manifest::Manifest;
use crate::network::NetworkOrder;

/// Longest packet in either direction.
pub(crate) const PACKET_MAX: usize = 64 * 1024;
/// Environment variable with the numbers of two descriptors left open for the launcher: its end of the socket pair, and the lock
/// that says that a launcher, or a child that it began, is at work in the data directory.
pub(crate) const FDS_VARIABLE: &str = "SANDBANK_LAUNCHER_FDS";

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first message: where to work, and how.
    Configure {
        /// `<data>/sandboxes`.
        sandboxes: PathBuf,
        /// Where sandboxes' cgroups are.
        cgroup_bases: Vec<PathBuf>,
        /// The sandboxes' network; `None`: they have only loopback.
        network: Option<NetworkOrder>,
    },
    /// Make a sandbox.
    Make(Box<MakeOrder>),
}

/// A sandbox to make.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MakeOrder {
    /// Names this order in the answers.
    pub(crate) seq: u64,
    /// What will be written down; its pid and start time are filled in by the sandbox's first process.
    pub(crate) manifest: Manifest,
    /// An emptied sandbox directory to use instead of a new one, while it is there.
    pub(crate) skeleton: Option<PathBuf>,
    /// Root file system.
    pub(crate) root: RootPlan,
    /// Host name inside.
    pub(crate) hostname: String,
    /// cgroup directories to make and enter.
    pub(crate) cgroups: Vec<CgroupOrder>,
}

impl MakeOrder {
    /// Its limits.
    pub(crate) fn limits(&self) -> &Resources {
        &self.manifest.limits
    }
}

/// From the launcher, or from a child of it that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The process exists, and its agent's socket. A pidfd comes with it. It may still fail.
    Begun {
        /// Which order.
        seq: u64,
        /// Its pid as the host sees it.
        pid: u32,
        /// Which addresses it has, if any.
        network: Option<u16>,
    },
    /// It could not be made. Parts of it may be there.
    Failed {
        /// Which order.
        seq: u64,
        /// What was being done: "mount the root file system".
        step: String,
        /// What the kernel said.
        errno: i32,
    },
}
