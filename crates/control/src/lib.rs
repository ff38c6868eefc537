//! Use cases, authorization, quotas, leases, reconcilers and recovery: what Sandbank decides.
//!
//! A dialect calls [`Control`] and nothing else. Every use case takes the [`Caller`]; another tenant's object looks missing.
//! Time and randomness come from [`Clock`] and [`Entropy`], which only the server implements for real.
//!
//! | module | what it decides |
//! |---|---|
//! | `auth`, `keys`, `owners` | who is asking, and what they may do |
//! | `templates`, `pools`, `images` | the objects that sandboxes are made from |
//! | `registries`, `secrets` | how a tenant proves to a registry who asks; how secrets are kept |
//! | `builds` | images made by steps, their uploads, logs and cache |
//! | `claim`, `create`, `make`, `destroy` | how a sandbox comes and goes |
//! | `sandboxes`, `lifecycle`, `transitions` | what is shown of it and how its record moves |
//! | `network` | what a sandbox may reach, and who is told |
//! | `agent`, `processes`, `files`, `ports`, `logs`, `readiness` | operations inside |
//! | `activity`, `streams`, `deadlines`, `expiry` | when a lease ends |
//! | `runtimes`, `reconcile`, `start`, `recover`, `background` | what runs beside requests |

mod activity;
mod agent;
mod auth;
mod background;
mod builds;
mod claim;
mod control;
mod convert;
mod create;
mod deadlines;
mod destroy;
mod error;
mod expiry;
mod files;
mod images;
mod keys;
mod lifecycle;
mod limits;
mod locks;
mod logs;
mod make;
mod network;
mod owners;
mod pools;
mod ports;
mod processes;
mod pulls;
mod quota;
mod readiness;
mod reconcile;
mod recover;
mod registries;
mod runtimes;
mod sandboxes;
mod secrets;
mod snapshots;
mod start;
mod streams;
mod telemetry;
mod templates;
mod transitions;
mod types;

pub use background::Background;
pub use builds::{BuildLogs, ContextWriter};
pub use control::Control;
pub use error::{Detail, Error, ErrorKind, PoolBrief, Result, TemplateBrief};
pub use files::{FileReader, FileWriter, Watch};
pub use images::{ImageArchive, ImageImport, ImageUsage, ImagesUsage, LayerProgress, LayerState, LayersProgress, Pruned};
pub use network::ActiveNetwork;
pub use ports::{PortEnd, PortPass, PortStream, PortToken, PortVisitor};
pub use processes::{ProcessEvents, ProcessInput, ProcessStream};
pub use pulls::{Pull, PullPolicy, PullSettings, Registries};
pub use sandbank_driver::PortIo;
pub use sandbank_oci::Compression;
pub use sandbank_oci::Credentials as RegistryCredentials;
pub use secrets::SecretKey;
pub use types::*;
