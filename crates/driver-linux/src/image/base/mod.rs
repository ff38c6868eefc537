//! Generated layers beneath all others: that of the embedded image `host`, into which the host's system directories are mounted, and the
//! bare one beneath images from elsewhere, which may lack what every sandbox needs.
//!
//! A base is described in memory first ([`Node`]s), so that its digest names it: unchanged, it is not built again; changed, it becomes
//! another layer, and sandboxes that run keep the one they were made of.

mod etc;

use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Timespec, UTIME_NOW};
use rustix::io::Errno;
use sandbank_driver::DriverError;
use sha2::{Digest as _, Sha256};

use super::error::failed;
use super::file::{Meta, bytes_on_disk, write_all_at};
use super::staging::{Lasting, Staging, hex};
use super::{ImageStore, remove_tree};

/// The host's directories that a sandbox sees, where they exist. All of what is below them is visible read-only, `/usr/local`
/// included: what the host keeps there must not be secret.
const SYSTEM_DIRS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// One file of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    /// Relative to `/`. Parents come before what is in them.
    path: PathBuf,
    kind: NodeKind,
    mode: u32,
    /// User and group alike.
    owner: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum NodeKind {
    Dir,
    File(Vec<u8>),
    Symlink(PathBuf),
}

impl Node {
    fn dir(path: impl Into<PathBuf>, mode: u32, owner: u32) -> Self {
        Self { path: path.into(), kind: NodeKind::Dir, mode, owner }
    }

    fn file(path: impl Into<PathBuf>, content: impl Into<Vec<u8>>, mode: u32, owner: u32) -> Self {
        Self { path: path.into(), kind: NodeKind::File(content.into()), mode, owner }
    }

    fn symlink(path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), kind: NodeKind::Symlink(target.into()), mode: 0o777, owner: 0 }
    }
}

/// A base and what is mounted into it.
#[derive(Debug)]
pub(super) struct Base {
    /// Begins its layer's name.
    kind: &'static str,
    nodes: Vec<Node>,
    grafts: Vec<PathBuf>,
}

impl Base {
    /// Directories to mount over, a `/tmp`, and the few files without which nothing finds its user or its own name. An image
    /// made of a single program runs on it; whatever an image has itself lies on top.
    pub(super) fn bare() -> Self {
        let mut nodes: Vec<_> = ["dev", "run", "etc", "home"].map(|path| Node::dir(path, 0o755, 0)).into();
        nodes.extend(["proc", "sys"].map(|path| Node::dir(path, 0o555, 0)));
        nodes.extend([Node::dir("tmp", 0o1777, 0), Node::dir("root", 0o700, 0)]);
        nodes.extend(etc::bare_nodes());
        Self { kind: "bare", nodes, grafts: Vec::new() }
    }

    /// That of the `host` image, as this machine is now. What cannot be read is left out: an image without `/etc/services` is better than none.
    pub(super) fn of_this_machine() -> Self {
        Self::of(Path::new("/"))
    }

    fn of(host: &Path) -> Self {
        let mut nodes = Vec::new();
        let mut grafts = Vec::new();
        for name in SYSTEM_DIRS {
            match system_dir(host, name) {
                Some(SystemDir::Graft) => {
                    nodes.push(Node::dir(name, 0o755, 0));
                    grafts.push(PathBuf::from(name));
                }
                Some(SystemDir::Symlink(target)) => nodes.push(Node::symlink(name, target)),
                None => {}
            }
        }
        nodes.extend(skeleton());
        nodes.extend(etc::nodes(host));
        nodes.extend(homes(host));
        Self { kind: "host", nodes, grafts }
    }

    /// Grafts as (target, host directory).
    pub(super) fn grafts(&self) -> Vec<(PathBuf, PathBuf)> {
        self.grafts.iter().map(|target| (target.clone(), Path::new("/").join(target))).collect()
    }

    /// `host-` or `bare-` and the first 32 digits of the digest of everything in the base.
    pub(super) fn layer_id(&self) -> String {
        let mut digest = Sha256::new();
        let mut field = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        for Node { path, kind, mode, owner } in &self.nodes {
            field(path.as_os_str().as_encoded_bytes());
            field(&mode.to_le_bytes());
            field(&owner.to_le_bytes());
            match kind {
                NodeKind::Dir => field(b"dir"),
                NodeKind::File(content) => field(content),
                NodeKind::Symlink(target) => field(target.as_os_str().as_encoded_bytes()),
            }
        }
        format!("{}-{}", self.kind, &hex(&digest.finalize())[..32])
    }

    /// Writes it into the store, unless it is there.
    pub(super) fn ensure(&self, store: &ImageStore) -> Result<(), DriverError> {
        let id = self.layer_id();
        if store.layer(&id).is_some() {
            return Ok(());
        }
        let unfinished = store.layer_dir(&id);
        remove_tree(&unfinished).map_err(failed(|| format!("remove {}", unfinished.display())))?;
        let staging = Staging::new(store)?;
        let tree = staging.tree()?;
        let mut size_bytes = 0;
        for node in &self.nodes {
            size_bytes +=
                write_node(&tree, node).map_err(failed(|| format!("write {} of the {} base", node.path.display(), self.kind)))?;
        }
        staging.publish(store, &id, size_bytes, Lasting::ThisBoot).map(|_| ())
    }
}

enum SystemDir {
    Graft,
    Symlink(PathBuf),
}

/// What the host has at this place. A link that leads anywhere but into another system directory is left out.
fn system_dir(host: &Path, name: &str) -> Option<SystemDir> {
    let path = host.join(name);
    let found = path.symlink_metadata().ok()?;
    if found.is_dir() {
        return Some(SystemDir::Graft);
    }
    if !found.is_symlink() {
        return None;
    }
    let target = std::fs::read_link(&path).ok()?;
    let relative = target.strip_prefix("/").unwrap_or(&target).to_owned();
    let first = relative.components().next()?.as_os_str().to_str()?.to_owned();
    let inside = SYSTEM_DIRS.contains(&first.as_str())
        && relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    inside.then_some(SystemDir::Symlink(relative))
}

/// The directories that every Linux system has, and nothing in them.
fn skeleton() -> Vec<Node> {
    let plain = ["dev", "proc", "sys", "run", "opt", "srv", "mnt", "media", "boot", "etc", "home"];
    let var = ["var", "var/log", "var/lib", "var/cache", "var/opt", "var/spool", "var/mail"];
    let mut nodes: Vec<_> = plain.iter().chain(&var).map(|path| Node::dir(*path, 0o755, 0)).collect();
    nodes.push(Node::dir("var/lib/misc", 0o755, 0));
    nodes.push(Node::symlink("var/run", "/run"));
    nodes.push(Node::symlink("var/lock", "/run/lock"));
    nodes.push(Node::dir("run/lock", 0o1777, 0));
    nodes.push(Node::dir("tmp", 0o1777, 0));
    nodes.push(Node::dir("var/tmp", 0o1777, 0));
    nodes
}

/// `/root` and `/home/user`, with the shell's start files as the host gives them to new users.
fn homes(host: &Path) -> Vec<Node> {
    let mut nodes = vec![Node::dir("root", 0o700, 0), Node::dir("home/user", 0o755, etc::USER_ID)];
    for name in [".bashrc", ".profile", ".bash_logout"] {
        if let Some(content) = etc::read_public(&host.join("etc/skel").join(name)) {
            nodes.push(Node::file(Path::new("root").join(name), content.clone(), 0o644, 0));
            nodes.push(Node::file(Path::new("home/user").join(name), content, 0o644, etc::USER_ID));
        }
    }
    nodes
}

/// Writes one node and tells the bytes it takes. The tree is new and nobody else's, so plain paths are safe in it.
fn write_node(tree: &OwnedFd, node: &Node) -> Result<u64, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match &node.kind {
        NodeKind::Dir => {
            rustix::fs::mkdirat(tree, &node.path, Mode::RWXU)?;
            rustix::fs::openat(tree, &node.path, flags | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?
        }
        NodeKind::File(content) => {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let fd = rustix::fs::openat(tree, &node.path, flags | create, Mode::RUSR | Mode::WUSR)?;
            write_all_at(&fd, content, 0)?;
            fd
        }
        NodeKind::Symlink(target) => {
            rustix::fs::symlinkat(target, tree, &node.path)?;
            return Ok(0);
        }
    };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let meta = Meta { uid: node.owner, gid: node.owner, mode: node.mode, modified: now };
    meta.apply_owner(&fd)?;
    meta.apply_mode_and_time(&fd)?;
    Ok(bytes_on_disk(&rustix::fs::fstat(&fd)?))
}

#[cfg(test)]
mod tests;
