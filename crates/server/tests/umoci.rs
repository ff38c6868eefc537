//! What an image's layers make together, entry by entry: ours against that of another program (`umoci unpack`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../oci/tests/support/mod.rs"]
mod oci;
mod support;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use oci::Layout;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use sandbank_oci::{Compression, Digest};
use support::registry::Registry;
use support::{Server, can_run};

const BUSYBOX: &str = "/usr/bin/busybox";

fn has_what_it_needs(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| Command::new(program).arg("--version").output().is_err()).collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} not installed (Debian packages of the same names)");
    }
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: there is no {BUSYBOX}; install busybox-static with apt");
        return false;
    }
    missing.is_empty() && can_run()
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A tree that becomes a layer.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(directories: &[&str]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(tree.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        directories.iter().for_each(|path| fs::create_dir_all(tree.at(path)).unwrap());
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.at(path), content).unwrap();
        self
    }

    fn mode(&self, path: &str, mode: u32) -> &Self {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn owner(&self, path: &str, user: u32, group: u32) -> &Self {
        chown(self.at(path), Some(user), Some(group)).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.at(path)).unwrap();
        self
    }

    fn hard_link(&self, path: &str, target: &str) -> &Self {
        fs::hard_link(self.at(target), self.at(path)).unwrap();
        self
    }

    fn xattr(&self, path: &str, name: &str, value: &[u8]) -> &Self {
        rustix::fs::lsetxattr(self.at(path), name, value, XattrFlags::empty()).unwrap();
        self
    }

    /// As GNU tar writes it, with a time of its own for everything.
    fn layer(&self, seconds: i64) -> Vec<u8> {
        for (number, path) in (0..).zip(below(self.0.path())) {
            let time = Timespec { tv_sec: seconds + number, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, self.0.path().join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let tree = self.0.path().to_str().unwrap();
        let form = ["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name"];
        run("tar", &[&form[..], &["-C", tree, "-c", "."]].concat())
    }
}

/// All paths in a tree, itself first.
fn below(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut next) = (vec![PathBuf::new()], 0);
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if root.join(&path).symlink_metadata().unwrap().is_dir() {
            let mut inside: Vec<_> =
                fs::read_dir(root.join(&path)).unwrap().map(|entry| path.join(entry.unwrap().file_name())).collect();
            inside.sort();
            found.extend(inside);
        }
    }
    found
}

/// `cap_net_raw+ep` (struct vfs_cap_data, version 2).
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// One of everything, and what the layers above change.
fn lowest() -> Tree {
    let tree = Tree::new(&[
        "bin",
        "etc",
        "srv/sticky",
        "srv/empty",
        "srv/full",
        "srv/away/sub",
        "srv/opaque/sub",
        "srv/again",
        "srv/dir-to-file/sub",
        "srv/dir-to-link",
        "srv/marked",
        "other",
    ]);
    fs::copy(BUSYBOX, tree.at("bin/busybox")).unwrap();
    tree.link("bin/sh", "busybox").file("etc/motd", "welcome").file("etc/shadow", "x").owner("etc/shadow", 0, 42);
    tree.mode("etc/shadow", 0o640).mode("srv/sticky", 0o1777).mode("srv/empty", 0o700);
    tree.file("srv/full/file", "in a directory that nobody may write to").mode("srv/full", 0o555);
    tree.file("srv/suid", "1").owner("srv/suid", 1000, 1001).mode("srv/suid", 0o4755);
    tree.file("srv/sgid", "2")
        .owner("srv/sgid", 65534, 50)
        .mode("srv/sgid", 0o2711)
        .file("srv/nothing", "")
        .mode("srv/nothing", 0);
    tree.link("srv/link", "../etc/motd").link("srv/dangling", "/nowhere/at/all").link("srv/to-dir", "../etc");
    lchown(tree.at("srv/dangling"), Some(33), Some(44)).unwrap();
    tree.file("srv/hard", "one of three").hard_link("srv/hard-2", "srv/hard").hard_link("other/hard-3", "srv/hard");
    tree.file("srv/ping", "a program").xattr("srv/ping", "security.capability", &capability()).mode("srv/ping", 0o755);
    tree.file("srv/xattrs", "3").xattr("srv/xattrs", "user.colour", b"blue\0\n=%").xattr("srv/xattrs", "user.other", b"1");
    tree.xattr("srv/marked", "user.dir", b"lower");
    tree.file("srv/plain-again", "4").xattr("srv/plain-again", "user.colour", b"red");
    let sparse = fs::File::create(tree.at("srv/sparse")).unwrap();
    [0, 1 << 20, (3 << 20) + 77].iter().for_each(|at| sparse.write_all_at(b"data", *at).unwrap());
    sparse.set_len(5 << 20).unwrap();
    tree.file(&format!("srv/{}", "n".repeat(255)), "long name").file("srv/\u{fc}n\n \u{ef}", "odd name");
    let deep = ["a-directory-with-a-long-name"; 14].join("/");
    fs::create_dir_all(tree.at("other").join(&deep)).unwrap();
    tree.file(&format!("other/{deep}/file"), "long path").link("other/long-link", &"t".repeat(300));
    rustix::fs::mknodat(CWD, tree.at("srv/pipe"), FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    rustix::fs::mknodat(CWD, tree.at("srv/device"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    tree.file("srv/away/sub/file", "5").file("srv/away-file", "6").file("srv/opaque/sub/file", "7").file("srv/opaque/old", "8");
    tree.file("srv/again/old", "9").file("srv/dir-to-file/sub/file", "10").file("srv/dir-to-link/file", "11");
    tree.file("srv/file-to-dir", "12").link("srv/link-to-dir", "../other").link("srv/link-to-file", "../etc/motd");
    tree.file("srv/changed", "before").file("srv/mode-only", "13").file("srv/later-away", "14");
    tree
}

/// Takes away, replaces and hides.
fn middle() -> Tree {
    let tree = Tree::new(&["srv/opaque", "srv/file-to-dir/sub", "srv/link-to-dir", "srv/marked", "srv/again"]);
    for mark in ["srv/.wh.away", "srv/.wh.away-file", "srv/opaque/.wh..wh..opq", "srv/.wh.again"] {
        tree.file(mark, "");
    }
    tree.file("srv/opaque/new", "1").file("srv/file-to-dir/sub/file", "2").file("srv/link-to-dir/file", "3");
    tree.file("srv/dir-to-file", "4").link("srv/dir-to-link", "opaque").file("srv/link-to-file", "5").mode("srv/marked", 0o750);
    tree.file("srv/again/new", "6").file("srv/changed", "after").file("srv/mode-only", "13").mode("srv/mode-only", 0o600);
    tree.file("srv/hard", "alone now").file("srv/plain-again", "4").owner("srv/link-to-dir", 7, 8);
    tree
}

/// Brings back what was taken away, and takes away what was brought.
fn upper() -> Tree {
    let tree = Tree::new(&["srv/away", "srv/opaque", "srv/file-to-dir", "other"]);
    tree.file("srv/away/new", "1").file("srv/away-file", "2").file("srv/opaque/.wh.new", "").file("srv/.wh.later-away", "");
    tree.file("srv/opaque/old", "3").file("srv/file-to-dir/.wh.sub", "").file("srv/dir-to-file", "changed once more");
    tree.file("other/pair", "two of them").hard_link("other/pair-2", "other/pair").mode("other", 0o711);
    tree
}

/// Everything about an entry that an image says.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    /// Of what has one of its own.
    size: u64,
    content: String,
    modified: i64,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// All names of the same file.
    names: Vec<PathBuf>,
}

fn entries(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut files: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let (mut found, mut digests) = (BTreeMap::new(), BTreeMap::new());
    for path in below(root) {
        let full = root.join(&path);
        let stat = full.symlink_metadata().unwrap();
        let kind = match stat.file_type() {
            kind if kind.is_dir() => "directory",
            kind if kind.is_symlink() => "link",
            kind if kind.is_file() => "file",
            kind if kind.is_fifo() => "pipe",
            _ => "device",
        };
        let content = match kind {
            "link" => format!("{:?}", fs::read_link(&full).unwrap()),
            "file" => digests.entry(stat.ino()).or_insert_with(|| Digest::of(&fs::read(&full).unwrap()).to_string()).clone(),
            "device" => format!("{:x}", stat.rdev()),
            _ => String::new(),
        };
        if kind != "directory" {
            files.entry(stat.ino()).or_default().push(path.clone());
        }
        let entry = Entry {
            kind,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            size: if kind == "directory" { 0 } else { stat.size() },
            content,
            modified: stat.mtime(),
            xattrs: xattrs(&full),
            names: Vec::new(),
        };
        found.insert(path, entry);
    }
    for names in files.into_values() {
        for name in &names {
            found.get_mut(name).unwrap().names.clone_from(&names);
        }
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        found.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
    }
    found
}

fn assert_same(ours: &BTreeMap<PathBuf, Entry>, theirs: &BTreeMap<PathBuf, Entry>) {
    let paths = |found: &BTreeMap<PathBuf, Entry>| found.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(ours), paths(theirs));
    let differ: Vec<_> = ours.iter().filter(|(path, entry)| theirs[*path] != **entry).collect();
    for (path, entry) in &differ {
        eprintln!("{}:\n  ours   {entry:?}\n  theirs {:?}", path.display(), theirs[*path]);
    }
    assert!(differ.is_empty(), "{} entries differ", differ.len());
}

/// Layers lying on each other as in a sandbox.
struct Merged(tempfile::TempDir);

impl Merged {
    fn new(data: &Path, layers: &[(Vec<u8>, Compression)]) -> Self {
        let kept = support::names(&data.join("images/layers"));
        let directory = |(tar, _): &(Vec<u8>, Compression)| {
            let beginning = format!("layer-{}", Digest::of(tar).hex());
            let name = kept.iter().find(|name| name.starts_with(&beginning)).expect("the layer is there");
            data.join("images/layers").join(name).join("fs").display().to_string()
        };
        let empty = tempfile::tempdir().unwrap();
        fs::create_dir(empty.path().join("nothing")).unwrap();
        fs::create_dir(empty.path().join("merged")).unwrap();
        let mut lowers: Vec<String> = layers.iter().rev().map(directory).collect();
        // One alone is no overlay.
        lowers.push(empty.path().join("nothing").display().to_string());
        let options = CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
        let merged = Self(empty);
        rustix::mount::mount("overlay", merged.path(), "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
        merged
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("merged")
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn layout_of(layers: &[(Vec<u8>, Compression)]) -> Layout {
    let mut layout = Layout::new();
    let image = layout.image(architecture(), layers);
    layout.add(Some("1"), image);
    layout
}

/// What `umoci` makes of the layout's image.
fn unpacked(layout: &Layout) -> tempfile::TempDir {
    let bundle = tempfile::tempdir().unwrap();
    let (image, to) = (format!("{}:1", layout.path().display()), bundle.path().join("bundle"));
    run("umoci", &["unpack", "--image", &image, to.to_str().unwrap()]);
    bundle
}

/// Everything as the image's own program sees it. Devices are not there to sandboxes.
const LOOK: &str = "cd / && /bin/busybox find srv other bin etc/motd etc/shadow -type d -exec /bin/busybox stat -c '%F %n %a %u %g %Y' {} + | \
    /bin/busybox sort; /bin/busybox find srv other bin etc/motd etc/shadow ! -type d ! -type c -exec /bin/busybox stat -c \
    '%F %N %a %u %g %s %Y' {} + | /bin/busybox sort; /bin/busybox find srv other bin/busybox -type f -exec /bin/busybox sha256sum {} + | \
    /bin/busybox sort";

#[test]
fn three_layers_make_what_umoci_makes_of_them() {
    if !has_what_it_needs(&["umoci", "tar"]) {
        return;
    }
    let layers = [
        (lowest().layer(1_500_000_000), Compression::Gzip),
        (middle().layer(1_600_000_000), Compression::None),
        (upper().layer(1_700_000_000), Compression::Gzip),
    ];
    let layout = layout_of(&layers);
    let bundle = unpacked(&layout);
    let root = bundle.path().join("bundle/rootfs");
    let mut theirs = entries(&root);
    assert!(theirs.len() > 60, "umoci made no more than {} entries", theirs.len());
    // Devices are left out here.
    assert_eq!(theirs.remove(Path::new("srv/device")).unwrap().kind, "device");
    let server = Server::start();
    server.words(&["image", "import", "all:1", layout.path().to_str().unwrap()]).ok();
    let merged = Merged::new(&server.data(), &layers);
    let ours = entries(&merged.path());
    drop(merged);
    assert_same(&ours, &theirs);
    // So that the comparison has something to compare.
    let sparse = fs::metadata(server.data().join("images/layers").join(layer_name(&server, &layers[0].0)).join("fs/srv/sparse"));
    assert!(sparse.unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    assert_eq!(ours[Path::new("srv/ping")].xattrs["security.capability"], capability());
    assert_eq!(ours[Path::new("srv/hard-2")].names.len(), 2);

    let seen = server.words(&["run", "-u", "root", "-w", "/", "--image", "all:1", "--", "/bin/busybox", "sh", "-c", LOOK]).ok();
    let expected = run("chroot", &[root.to_str().unwrap(), "/bin/busybox", "sh", "-c", LOOK]);
    assert_eq!(seen, String::from_utf8_lossy(&expected));
    server.finish();
}

fn layer_name(server: &Server, tar: &[u8]) -> String {
    let beginning = format!("layer-{}", Digest::of(tar).hex());
    support::names(&server.data().join("images/layers")).into_iter().find(|name| name.starts_with(&beginning)).unwrap()
}

#[test]
fn debians_busybox_is_pulled_as_umoci_unpacks_it() {
    if !has_what_it_needs(&["umoci", "tar", "docker-registry", "skopeo"]) {
        return;
    }
    let tree = Tree::new(&["bin", "etc", "srv", "other", "root"]);
    fs::copy(BUSYBOX, tree.at("bin/busybox")).unwrap();
    // Hundreds of names for the one file.
    run(BUSYBOX, &["chroot", tree.at("").to_str().unwrap(), "/bin/busybox", "--install", "/bin"]);
    tree.file("etc/motd", "busybox").file("etc/shadow", "").mode("root", 0o700);
    let layers = [(tree.layer(1_400_000_000), Compression::Gzip)];
    let layout = layout_of(&layers);
    let bundle = unpacked(&layout);
    let root = bundle.path().join("bundle/rootfs");
    let registry = Registry::start();
    let name = registry.push(&format!("oci:{}:1", layout.path().display()), "debian/busybox:1");
    let server = Server::start_with(&format!("[images]\nregistries = [\"{}\"]\n", registry.address()));
    server.words(&["image", "pull", &name]).ok();
    let merged = Merged::new(&server.data(), &layers);
    let ours = entries(&merged.path());
    drop(merged);
    assert!(ours[Path::new("bin/busybox")].names.len() > 100, "{:?}", ours[Path::new("bin/busybox")]);
    assert_same(&ours, &entries(&root));
    let seen = server.words(&["run", "-u", "root", "-w", "/", "--image", &name, "--", "/bin/sh", "-c", LOOK]).ok();
    let expected = run("chroot", &[root.to_str().unwrap(), "/bin/sh", "-c", LOOK]);
    assert_eq!(seen, String::from_utf8_lossy(&expected));
    server.finish();
}
