//! Platforms: which of an image's variants fits a machine (OCI image specification, `image-index.md`, "platform").

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and its variant, in Go's words: `linux/amd64`, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Platform {
    /// `GOOS`.
    #[serde(default)]
    pub os: String,
    /// `GOARCH`.
    #[serde(default)]
    pub architecture: String,
    /// `v8` of `arm64`, `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on x86-64.
    #[must_use]
    pub fn linux_amd64() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }
    }

    /// Linux on 64-bit Arm.
    #[must_use]
    pub fn linux_arm64() -> Self {
        Self { os: "linux".to_owned(), architecture: "arm64".to_owned(), variant: Some("v8".to_owned()) }
    }

    /// What this program was built for.
    #[must_use]
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::linux_amd64(),
            "aarch64" => Self::linux_arm64(),
            other => Self { os: "linux".to_owned(), architecture: other.to_owned(), variant: None },
        }
    }

    /// How well `offered` fits: 0 is exact, more is worse, `None` does not run here.
    ///
    /// 64-bit Arm is `v8` whether it says so or not; x86-64 levels above the baseline (`v2`, `v3`) may use instructions that are
    /// missing, so only the baseline (no variant, or `v1`) fits.
    pub(crate) fn fitness(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let baseline = match self.architecture.as_str() {
            "arm64" => "v8",
            "amd64" => "v1",
            _ => "",
        };
        let of = |platform: &Self| platform.variant.clone().filter(|v| !v.is_empty()).unwrap_or_else(|| baseline.to_owned());
        if self.variant == offered.variant {
            Some(0)
        } else if of(self) == of(offered) {
            Some(1)
        } else {
            None
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(architecture: &str, variant: Option<&str>) -> Platform {
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    #[test]
    fn the_baseline_fits_with_and_without_its_name() {
        let (amd64, arm64) = (Platform::linux_amd64(), Platform::linux_arm64());
        assert_eq!(arm64.fitness(&platform("arm64", Some("v8"))), Some(0));
        assert_eq!(arm64.fitness(&platform("arm64", None)), Some(1));
        assert_eq!(arm64.fitness(&platform("arm64", Some("v9"))), None);
        assert_eq!(amd64.fitness(&platform("amd64", None)), Some(0));
        assert_eq!(amd64.fitness(&platform("amd64", Some("v3"))), None);
        assert_eq!(amd64.fitness(&platform("arm64", None)), None);
        assert_eq!(amd64.fitness(&Platform { os: "windows".to_owned(), ..Platform::linux_amd64() }), None);
    }
}
