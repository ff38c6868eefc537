//! What a sandbox may use, what a tenant may use, and what it uses.

use serde::{Deserialize, Serialize};

const MIB: u64 = 1024 * 1024;

/// Limits of one sandbox. They are enforced by the driver, as far as [`sandbank doctor`](crate) says the machine can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU time in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes, page cache of the sandbox's own files included.
    pub memory_bytes: u64,
    /// Bytes that the sandbox may write on top of its image.
    pub disk_bytes: u64,
    /// Processes and threads, the agent included.
    pub pids: u32,
}

impl Resources {
    /// What a template gets that says nothing: one core, 512 MiB, 4 GiB of disk, 512 processes.
    pub const DEFAULT: Self = Self { cpu_millis: 1000, memory_bytes: 512 * MIB, disk_bytes: 4096 * MIB, pids: 512 };
    /// The least of each that a sandbox can start with.
    pub const MIN: Self = Self { cpu_millis: 10, memory_bytes: 16 * MIB, disk_bytes: MIB, pids: 8 };
    /// The most of each that is accepted: 1,024 cores, 16 TiB, 64 TiB, 4 million processes (Linux's own limit).
    pub const MAX: Self = Self { cpu_millis: 1_024_000, memory_bytes: 16 << 40, disk_bytes: 64 << 40, pids: 4_194_304 };

    /// Every field moved into `MIN..=MAX`.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.clamp(Self::MIN.cpu_millis, Self::MAX.cpu_millis),
            memory_bytes: self.memory_bytes.clamp(Self::MIN.memory_bytes, Self::MAX.memory_bytes),
            disk_bytes: self.disk_bytes.clamp(Self::MIN.disk_bytes, Self::MAX.disk_bytes),
            pids: self.pids.clamp(Self::MIN.pids, Self::MAX.pids),
        }
    }

    /// CPU and memory times `factor` (native.md §9: `resourceMultiplier`), at most [`Resources::MAX`].
    #[must_use]
    pub fn multiplied(self, factor: u32) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_mul(factor),
            memory_bytes: self.memory_bytes.saturating_mul(u64::from(factor)),
            ..self
        }
        .clamped()
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a tenant holds now: every sandbox that is not yet gone counts, warm ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Sandboxes.
    pub sandboxes: u64,
    /// Sum of their CPU limits, thousandths of a core.
    pub cpu_millis: u64,
    /// Sum of their memory limits, bytes.
    pub memory_bytes: u64,
}

impl Usage {
    /// Adds one sandbox with these limits.
    pub fn add(&mut self, resources: &Resources) {
        self.sandboxes = self.sandboxes.saturating_add(1);
        self.cpu_millis = self.cpu_millis.saturating_add(u64::from(resources.cpu_millis));
        self.memory_bytes = self.memory_bytes.saturating_add(resources.memory_bytes);
    }
}

/// The most a tenant may hold. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuotaLimits {
    /// Sandboxes, warm ones included.
    pub sandboxes: Option<u64>,
    /// Sum of CPU limits, thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Sum of memory limits, bytes.
    pub memory_bytes: Option<u64>,
}

/// One more sandbox would pass a tenant's quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quota exceeded: {what} would be {wanted} of {limit} allowed")]
pub struct QuotaExceeded {
    /// "sandboxes", "cpu (millicores)" or "memory (bytes)".
    pub what: &'static str,
    /// What it would be afterwards.
    pub wanted: u64,
    /// The limit.
    pub limit: u64,
}

impl QuotaLimits {
    /// Whether `count` more sandboxes of `resources` fit beside `used`.
    pub fn check(&self, used: &Usage, resources: &Resources, count: u64) -> Result<(), QuotaExceeded> {
        let rows = [
            ("sandboxes", self.sandboxes, used.sandboxes, 1),
            ("cpu (millicores)", self.cpu_millis, used.cpu_millis, u64::from(resources.cpu_millis)),
            ("memory (bytes)", self.memory_bytes, used.memory_bytes, resources.memory_bytes),
        ];
        for (what, limit, used, each) in rows {
            let wanted = used.saturating_add(each.saturating_mul(count));
            if let Some(limit) = limit
                && wanted > limit
            {
                return Err(QuotaExceeded { what, wanted, limit });
            }
        }
        Ok(())
    }
}
