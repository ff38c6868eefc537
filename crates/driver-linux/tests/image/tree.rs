//! What a tree looks like, for comparing two; archives made by hand; and a data directory that cleans up after itself.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sandbank_driver::{DriverError, ImportSource, NewLayers};
use sandbank_driver_linux::image::{ImageStore, ImportLimits, remove_tree};
use sandbank_model::{Image, ImageSource, Timestamp};

/// A data directory with a store. Removes trees that are too deep for `TempDir`.
pub(crate) struct Data {
    dir: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl Data {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn import_tar(&self, bytes: &[u8]) -> Result<NewLayers, DriverError> {
        self.import_tar_within(bytes, &ImportLimits::default())
    }

    pub(crate) fn import_tar_within(&self, bytes: &[u8], limits: &ImportLimits) -> Result<NewLayers, DriverError> {
        let path = self.path().join("archive.tar");
        fs::write(&path, bytes).unwrap();
        self.store.import(&ImportSource::Archive(path), limits)
    }

    /// The tree of the last layer.
    pub(crate) fn tree(&self, layers: &NewLayers) -> PathBuf {
        self.path().join("images/layers").join(&layers.layers.last().unwrap().id).join("fs")
    }

    pub(crate) fn layer_names(&self) -> Vec<String> {
        names(&self.path().join("images/layers"))
    }

    /// The generated layers: `bare-…` and `host-…`.
    pub(crate) fn base_names(&self) -> [String; 2] {
        let is_base = |name: &String| name.starts_with("bare-") || name.starts_with("host-");
        let bases: Vec<_> = self.layer_names().into_iter().filter(is_base).collect();
        bases.try_into().expect("there are two bases")
    }

    /// What was imported, committed or unpacked.
    pub(crate) fn made_names(&self) -> Vec<String> {
        let bases = self.base_names();
        self.layer_names().into_iter().filter(|name| !bases.contains(name)).collect()
    }

    pub(crate) fn staging_names(&self) -> Vec<String> {
        names(&self.path().join("images/staging"))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = remove_tree(self.dir.path());
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn image(layers: &NewLayers) -> Image {
    Image {
        name: "tested:1".parse().unwrap(),
        tenant: None,
        layers: layers.layers.clone(),
        on_host: layers.on_host,
        config: layers.config.clone(),
        source: ImageSource::Imported,
        created_at: Timestamp::from_millis(0),
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: giving files to other owners needs root");
    }
    root
}

/// Everything about a file that an import must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: (i64, i64),
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first of the names, in alphabetical order, that are the same file.
    pub(crate) same_as: Option<PathBuf>,
}

/// Looks at a whole tree. Sockets and devices but whiteouts are not there to an image, so they are left out.
pub(crate) fn look(root: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    let mut first_names = BTreeMap::new();
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let stat = full.symlink_metadata().unwrap();
        let kind = stat.file_type();
        let (kind, content) = if kind.is_dir() {
            waiting.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
            ("dir", vec![])
        } else if kind.is_symlink() {
            ("link", fs::read_link(&full).unwrap().into_os_string().into_encoded_bytes())
        } else if kind.is_file() {
            ("file", fs::read(&full).unwrap())
        } else if kind.is_fifo() {
            ("fifo", vec![])
        } else if kind.is_char_device() && stat.rdev() == 0 {
            ("whiteout", vec![])
        } else {
            continue;
        };
        if kind != "dir" {
            let first = first_names.entry(stat.ino()).or_insert_with(|| path.clone());
            *first = first.clone().min(path.clone());
        }
        let look = Look {
            kind: kind.to_owned(),
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            modified: (stat.mtime(), stat.mtime_nsec()),
            content,
            xattrs: if matches!(kind, "dir" | "file") { xattrs(&full) } else { BTreeMap::new() },
            same_as: None,
        };
        found.insert(path, look);
    }
    for (path, look) in &mut found {
        let ino = root.join(path).symlink_metadata().unwrap().ino();
        look.same_as = first_names.get(&ino).filter(|first| *first != path).cloned();
    }
    found
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        found.insert(OsStr::from_bytes(name).to_owned(), value);
    }
    found
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// A tree with one of everything: returns its directory.
pub(crate) fn make_everything(root: &Path) {
    use rustix::fs::{CWD, FileType, Mode};
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
    let mode = |path: &str, mode: u32| fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    for dir in ["etc", "usr/bin", "usr/lib", "home/user", "empty", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("usr/bin/su"), "a program").unwrap();
    fs::write(root.join("usr/bin/ping"), "another").unwrap();
    fs::write(root.join("etc/motd"), "welcome").unwrap();
    fs::write(root.join("etc/empty"), "").unwrap();
    fs::write(root.join("home/user/\u{fc}n\n\u{ef}"), "odd name").unwrap();
    let long = format!("usr/{}", ["long-directory-name"; 12].join("/"));
    fs::create_dir_all(root.join(&long)).unwrap();
    fs::write(root.join(&long).join("x".repeat(250)), "long path").unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/nowhere/../at/all", root.join("etc/dangling")).unwrap();
    symlink("y".repeat(300), root.join("etc/long-link")).unwrap();
    for name in ["etc/motd-again", "usr/lib/motd"] {
        fs::hard_link(root.join("etc/motd"), root.join(name)).unwrap();
    }
    rustix::fs::mknodat(CWD, root.join("etc/pipe"), FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    let sparse = fs::File::create(root.join("home/user/sparse")).unwrap();
    for position in [0, 3 << 20, (10 << 20) + 123] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", position).unwrap();
    }
    sparse.set_len(20 << 20).unwrap();
    set_xattr(&root.join("etc/motd"), "user.colour", b"blue\0and green");
    set_xattr(&root.join("etc"), "user.dir", b"yes");
    if is_root() {
        chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
        lchown(root.join("etc/dangling"), Some(33), Some(44)).unwrap();
        chown(root.join("home/user/sparse"), Some(1000), Some(100)).unwrap();
        set_xattr(&root.join("usr/bin/ping"), "security.capability", &capability_v2());
    }
    mode("usr/bin/su", 0o4755);
    mode("usr/lib", 0o2775);
    mode("tmp", 0o1777);
    mode("empty", 0o555);
    mode("etc/empty", 0o000);
}

/// `cap_net_raw+ep`, struct vfs_cap_data version 2.
pub(crate) fn capability_v2() -> Vec<u8> {
    [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}
