//! Sandbank's domain: what a template, a pool, a sandbox and a lease are, which transitions a sandbox may take, and what a
//! pool needs next.
//!
//! Nothing here does I/O, reads a clock, draws random numbers or waits. Time and fresh ids are arguments. No other crate of
//! the workspace is imported.

mod build;
mod event;
mod ids;
mod image;
mod lease;
mod name;
mod network;
mod planner;
mod pool;
mod port;
mod registry;
mod resources;
mod sandbox;
mod snapshot;
mod state;
mod template;
mod tenant;
mod time;

pub use build::{Build, BuildFailure, BuildLevel, BuildLine, BuildLog, BuildPart, BuildState, BuildSteps, CachedStep};
pub use event::{Actor, Event, EventKind};
pub use ids::{
    ApiKeyId, AssignmentId, BuildId, EventSeq, ParseIdError, PoolId, RegistryCredentialId, SandboxId, SnapshotId, TemplateId,
    TenantId,
};
pub use image::{ExposedPort, Image, ImageConfig, ImageName, ImageSource, Layer, Protocol};
pub use lease::{ExpiryAction, ExpiryCause, Lease, LeaseChange, Timeout};
pub use name::{InvalidName, PoolName, validate_label_key};
pub(crate) use network::shared;
pub use network::{
    AddressRange, Checked, Cidr, DOMAIN_LEN_MAX, Destination, Floor, Flow, HEADER_HOST_LEN_MAX, HEADER_NAME_LEN_MAX,
    HEADER_RULES_MAX, HEADER_VALUE_LEN_MAX, HEADERS_MAX, HeaderRule, HeaderSecret, InvalidPolicy, InvalidRule, NAME_GROUPS_MAX,
    NameGroup, NameGroups, NamePattern, NamedAddress, NetworkLimits, NetworkPlan, NetworkPolicy, NetworkRule, NetworkTarget,
    PlanRule, PortRange, RULE_PORTS_MAX, RULES_MAX, Transport, Verdict,
};
pub use planner::{BURST_GAP, GENTLE_AFTER_CLAIM, Pace, PoolCounts, PoolPlan, PoolSnapshot, plan_pool};
pub use pool::{
    Autoscaling, Counting, InvalidSizing, Overrides, Pool, PoolPhase, PoolPolicies, PoolState, ReleaseAction, ScaleDownPolicy,
    ScaleUpMode, ScaleUpPolicy, Sizing, phase_of,
};
pub use port::{PUBLIC_PORTS_MAX, PortAccess, PortAccessChange, PublicPorts};
pub use registry::{CredentialKind, RegistryCredential, Sealed};
pub use resources::{QuotaExceeded, QuotaLimits, Resources, Usage};
pub use sandbox::{DriverHandle, ExitInfo, Failure, FailureReason, Sandbox, StopCause};
pub use snapshot::{Snapshot, SnapshotName};
pub use state::{Command, Refusal, State, transition};
pub use template::{
    EnvMap, PortSpec, Probe, Runtime, SandboxSpec, SemVer, StringMap, Template, TemplateRef, TemplateSpec, Visibility,
    VisibilityRule,
};
pub use tenant::{ApiKey, KeyHash, Principal, Role, Tenant};
pub use time::Timestamp;
