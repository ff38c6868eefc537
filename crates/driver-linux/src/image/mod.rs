//! Images: stacks of read-only layers in the data directory, and the host's own system directories as one.

use std::path::{Path, PathBuf};

use sandbank_driver::DriverError;
use sandbank_model::Image;
use serde::{Deserialize, Serialize};

/// What a sandbox's root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Directories beneath the private upper directory of `/`, top first. Not empty.
    pub lowers: Vec<PathBuf>,
    /// File systems mounted into it, each writable with a private upper directory of its own.
    pub grafts: Vec<Graft>,
}

/// One overlay mounted below `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graft {
    /// Where, relative to `/`, one component: `usr`.
    pub target: PathBuf,
    /// Directories beneath its private upper directory, top first; the host's own directory last.
    pub lowers: Vec<PathBuf>,
}

/// Where layers are kept: `<data>/images`.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens (and makes) the store below `data_dir`.
    pub fn open(data_dir: &Path) -> Result<Self, DriverError> {
        let root = data_dir.join("images");
        std::fs::create_dir_all(root.join("base")).map_err(|error| DriverError::Failed { step: format!("make {}", root.display()), detail: error.to_string() })?;
        Ok(Self { root })
    }
}

/// What the root of a sandbox of `image` is made of.
pub fn root_plan(store: &ImageStore, image: &Image) -> Result<RootPlan, DriverError> {
    let base = store.root.join("base");
    let failed = |error: std::io::Error| DriverError::Failed { step: format!("make {}", base.display()), detail: error.to_string() };
    for dir in ["usr", "etc", "tmp", "proc", "sys", "dev", "root", "home/user", "var/tmp", "run"] {
        std::fs::create_dir_all(base.join(dir)).map_err(failed)?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        let target = base.join(link);
        if target.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(format!("usr/{link}"), target).map_err(failed)?;
        }
    }
    std::fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\n").map_err(failed)?;
    std::fs::write(base.join("etc/group"), "root:x:0:\nuser:x:1000:\n").map_err(failed)?;
    let _ = image;
    Ok(RootPlan { lowers: vec![base], grafts: vec![Graft { target: "usr".into(), lowers: vec!["/usr".into()] }] })
}
