//! `/etc` of the `host` image: generated where it is about this sandbox, copied from the host where programs in `/usr` need it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Node;

/// Number of `user` and its group.
pub(super) const USER_ID: u32 = 1000;

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
man:x:6:12:man:/var/cache/man:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
user:x:1000:1000:user:/home/user:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

/// Numbers as Debian gives them (base-passwd), which the set-group-id programs in its `/usr` rely on.
const GROUP: &str = "\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
man:x:12:
kmem:x:15:
sudo:x:27:user
www-data:x:33:
shadow:x:42:
utmp:x:43:
staff:x:50:
users:x:100:
user:x:1000:
nogroup:x:65534:
";

const HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// Whichever server a sandbox asks, the host's resolver answers, as far as the network policy lets it.
const RESOLV_CONF: &str = "\
nameserver 10.208.0.53
options timeout:3 attempts:2
";

const NSSWITCH: &str = "\
passwd:    files
group:     files
shadow:    files
gshadow:   files
hosts:     files dns
networks:  files
protocols: files
services:  files
ethers:    files
rpc:       files
";

/// Of an image that has none: root, by the shell that most have.
const BARE_PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const BARE_GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// What an image from elsewhere finds where it has none itself.
pub(super) fn bare_nodes() -> Vec<Node> {
    [("etc/passwd", BARE_PASSWD), ("etc/group", BARE_GROUP), ("etc/hosts", HOSTS), ("etc/resolv.conf", RESOLV_CONF)]
        .map(|(path, content)| Node::file(path, content, 0o644, 0))
        .into()
}

/// For every program that asks PAM: root need not authenticate, nobody else can (all passwords are locked; sudo asks for none).
const PAM_OTHER: &str = "\
auth     sufficient pam_rootok.so
auth     required   pam_unix.so
account  required   pam_permit.so
password required   pam_unix.so
session  required   pam_permit.so
";

const SUDOERS: &str = "\
Defaults env_reset
Defaults secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"
Defaults !fqdn
root  ALL=(ALL:ALL) ALL
%sudo ALL=(ALL:ALL) ALL
@includedir /etc/sudoers.d
";

const SUDOERS_USER: &str = "user ALL=(ALL:ALL) NOPASSWD: ALL\n";

/// What is copied from the host's `/etc`: tables and defaults that programs below `/usr` read, of which none is made to hold a secret.
/// Left out on purpose: `environment`, `profile.d`, `gitconfig`, `npmrc`, `pip.conf`, `wgetrc`, `maven` (all may hold credentials for
/// proxies and registries), `ssh`, `ssl/private`, `apt`, `pam.d`, `security`, and everything about the host's users and services.
const COPIED: [&str; 58] = [
    "alternatives",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld.so.cache",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "ca-certificates.conf",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "crypto-policies",
    "profile",
    "bash.bashrc",
    "bashrc",
    "inputrc",
    "shells",
    "localtime",
    "timezone",
    "locale.alias",
    "locale.conf",
    "default/locale",
    "login.defs",
    "mime.types",
    "magic",
    "magic.mime",
    "mailcap",
    "protocols",
    "services",
    "rpc",
    "ethertypes",
    "networks",
    "gai.conf",
    "host.conf",
    "debian_version",
    "redhat-release",
    "alpine-release",
    "os-release",
    "lsb-release",
    "issue",
    "fonts",
    "terminfo",
    "python3",
    "python3.9",
    "python3.10",
    "python3.11",
    "python3.12",
    "python3.13",
    "python3.14",
    "perl",
    "gdb",
    "groff",
    "manpath.config",
    "vim",
    "nanorc",
    "papersize",
    "xml",
];

/// Directories directly below `/etc` whose names carry a version, copied by the beginning of the name.
const COPIED_PREFIXES: [&str; 3] = ["java-", "ImageMagick-", "openjdk-"];

/// Most bytes of one copied file; a font cache or a certificate bundle has less than one million.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most files and directories copied in all.
const COPIED_NODES_MAX: usize = 20_000;
/// Most levels below an entry of [`COPIED`].
const DEPTH_MAX: usize = 8;

/// All nodes below `etc`, parents first; `etc` itself is the caller's.
pub(super) fn nodes(host: &Path) -> Vec<Node> {
    let mut copier = Copier { host, nodes: Vec::new(), seen: BTreeSet::new() };
    for (name, content) in generated(host) {
        copier.seen.insert(name.into());
        copier.nodes.push(Node::file(Path::new("etc").join(name), content, 0o644, 0));
    }
    copier.nodes.push(Node::file("etc/shadow", shadow(), 0o640, 0));
    copier.nodes.push(Node::symlink("etc/mtab", "/proc/self/mounts"));
    copier.nodes.push(Node::dir("etc/pam.d", 0o755, 0));
    copier.nodes.push(Node::file("etc/pam.d/other", PAM_OTHER, 0o644, 0));
    if host.join("usr/bin/sudo").exists() {
        copier.nodes.push(Node::file("etc/sudoers", SUDOERS, 0o440, 0));
        copier.nodes.push(Node::dir("etc/sudoers.d", 0o750, 0));
        copier.nodes.push(Node::file("etc/sudoers.d/user", SUDOERS_USER, 0o440, 0));
    }
    for name in COPIED {
        copier.copy(Path::new(name), 0);
    }
    for name in versioned_names(host) {
        copier.copy(Path::new(&name), 0);
    }
    copier.nodes
}

fn generated(host: &Path) -> Vec<(&'static str, String)> {
    // The kernel and ld.so look at these before the copied files do, so they come first.
    let mut files = vec![
        ("passwd", PASSWD.to_owned()),
        ("group", GROUP.to_owned()),
        ("gshadow", locked(GROUP, "*::")),
        ("hosts", HOSTS.to_owned()),
        ("hostname", "sandbox\n".to_owned()),
        ("resolv.conf", RESOLV_CONF.to_owned()),
        ("nsswitch.conf", NSSWITCH.to_owned()),
        ("fstab", "# Mounts are made from outside.\n".to_owned()),
        ("environment", String::new()),
    ];
    if !host.join("etc/shells").exists() {
        files.push(("shells", "/bin/sh\n/bin/bash\n".to_owned()));
    }
    files
}

/// Every account locked: there is no password that would do.
fn shadow() -> String {
    locked(PASSWD, "*:19700:0:99999:7:::")
}

/// `name:rest` for each line of a passwd or group file.
fn locked(table: &str, rest: &str) -> String {
    table.lines().filter_map(|line| line.split(':').next()).map(|name| format!("{name}:{rest}\n")).collect()
}

fn versioned_names(host: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.join("etc")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| COPIED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names
}

/// Reads a regular file that everybody on the host may read; anything else is `None`.
pub(super) fn read_public(path: &Path) -> Option<Vec<u8>> {
    let mut options = fs::OpenOptions::new();
    // Not blocking on a pipe that somebody put there.
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let found = file.metadata().ok()?;
    if !found.is_file() || found.mode() & 0o004 == 0 || found.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

struct Copier<'a> {
    host: &'a Path,
    nodes: Vec<Node>,
    /// Paths below `etc` that are there already.
    seen: BTreeSet<PathBuf>,
}

impl Copier<'_> {
    /// Copies what is at `name` below the host's `/etc`, if it is there and public. Links are copied as they are: they may lead
    /// nowhere inside, which is what they then do.
    fn copy(&mut self, name: &Path, depth: usize) {
        let source = self.host.join("etc").join(name);
        let Ok(found) = source.symlink_metadata() else { return };
        if depth > DEPTH_MAX || self.nodes.len() >= COPIED_NODES_MAX || self.seen.contains(name) {
            return;
        }
        let path = Path::new("etc").join(name);
        let node = if found.is_symlink() {
            fs::read_link(&source).ok().map(|target| Node::symlink(path, target))
        } else if found.is_dir() {
            (found.mode() & 0o005 == 0o005).then(|| Node::dir(path, 0o755, 0))
        } else {
            read_public(&source).map(|content| Node::file(path, content, found.mode() & 0o755, 0))
        };
        let Some(node) = node else { return };
        self.parents(name);
        self.seen.insert(name.to_owned());
        self.nodes.push(node);
        if found.is_dir() {
            let Ok(entries) = fs::read_dir(&source) else { return };
            let mut children: Vec<_> = entries.filter_map(|entry| Some(name.join(entry.ok()?.file_name()))).collect();
            children.sort();
            for child in children {
                self.copy(&child, depth + 1);
            }
        }
    }

    /// Makes the directories above `name` that are not there yet.
    fn parents(&mut self, name: &Path) {
        let mut above: Vec<_> = name.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        above.reverse();
        for dir in above {
            if self.seen.insert(dir.to_owned()) {
                self.nodes.push(Node::dir(Path::new("etc").join(dir), 0o755, 0));
            }
        }
    }
}
