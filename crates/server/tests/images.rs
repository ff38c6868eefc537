//! Images of and for other programs, from end to end: skopeo's archives run here, and ours are read there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{Server, can_run};

/// A static program that is many.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Runs a foreign program; `None` and a printed reason: it is not on this machine.
fn foreign(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {arguments:?}: {said}");
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            eprintln!("skipped: {program} cannot be run on this machine ({error}); install it with apt");
            None
        }
    }
}

/// Whether busybox is there and static.
fn has_busybox() -> bool {
    let found = Path::new(BUSYBOX).exists();
    if !found {
        eprintln!("skipped: there is no {BUSYBOX} on this machine; install busybox-static with apt");
    }
    found
}

/// A root file system with a shell, owners, links and odd names.
fn rootfs(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    for path in ["bin", "etc", "srv/data", "home/user"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "stat", "sha256sum", "find", "sort", "ls"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n").unwrap();
    fs::write(root.join("srv/data/one"), "one").unwrap();
    fs::hard_link(root.join("srv/data/one"), root.join("srv/data/same")).unwrap();
    fs::write(root.join("srv/data").join("n".repeat(200)), "long name").unwrap();
    fs::set_permissions(root.join("srv/data/one"), fs::Permissions::from_mode(0o4750)).unwrap();
    std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
    root
}

/// The whole tree as a sandbox of the image sees it.
fn seen(server: &Server, image: &str) -> String {
    let script = "cd / && find bin etc/passwd srv home -exec stat -c '%n %a %u %g %s %h %Y' {} + | sort; sha256sum srv/data/*";
    server.words(&["run", "--image", image, "--", "/bin/sh", "-c", script]).ok()
}

fn words<'a>(words: &[&'a str], path: &'a Path) -> Vec<&'a str> {
    words.iter().map(|word| if *word == "PATH" { path.to_str().unwrap() } else { *word }).collect()
}

#[test]
fn what_we_export_skopeo_reads_and_what_it_copies_runs_here() {
    if !can_run() || !has_busybox() || foreign("skopeo", &["--version"]).is_none() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let root = rootfs(dir.path());
    server.words(&words(&["image", "import", "tools:1", "PATH"], &root)).ok();
    let before = seen(&server, "tools:1");
    for compression in ["gzip", "zstd", "none"] {
        let file = dir.path().join(format!("{compression}.tar"));
        server.words(&words(&["image", "export", "tools:1", "PATH", "--compression", compression], &file)).ok();
        let name = format!("oci-archive:{}", file.display());
        let shown: Value = serde_json::from_str(&foreign("skopeo", &["inspect", &name]).unwrap()).unwrap();
        assert_eq!(shown["Os"], "linux");
        assert_eq!(shown["Layers"].as_array().unwrap().len(), 1);
    }
    let exported = dir.path().join("gzip.tar");
    // Its own name is taken again.
    let ours = server.words(&words(&["image", "import", "PATH", "--json"], &exported)).ok();
    let ours: Value = serde_json::from_str(&ours).unwrap();
    assert_eq!((&ours["image"]["name"], &ours["image"]["source"]), (&"tools:1".into(), &"loaded".into()));
    assert_eq!(seen(&server, "tools:1"), before);
    // By way of another program, in each form that it writes.
    let source = format!("oci-archive:{}", exported.display());
    let forms = [
        ("docker-archive", "docker.tar", ":copied:docker"),
        ("oci-archive", "oci.tar", ":copied:oci"),
        ("oci", "layout", ":copied:layout"),
    ];
    for (form, file, name) in forms {
        let path = dir.path().join(file);
        foreign("skopeo", &["copy", &source, &format!("{form}:{}{name}", path.display())]).unwrap();
        server.words(&words(&["image", "import", "PATH"], &path)).ok();
        assert_eq!(seen(&server, &name[1..]), before, "{form}");
    }
    let usage = server.json("image usage");
    assert!(usage["sizeBytes"].as_u64().unwrap() > 0, "{usage}");
    for name in ["tools:1", "copied:docker", "copied:oci", "copied:layout"] {
        support::wait_for("nothing to use it", || (server.words(&["image", "remove", name]).code == 0).then_some(()));
    }
    support::wait_for("no layer to be left", || {
        server.words(&["image", "prune"]).ok();
        (server.json("image usage")["layers"] == 0).then_some(())
    });
    server.finish();
}

#[test]
fn commits_are_exported_with_what_they_take_away() {
    if !can_run() || !has_busybox() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let root = rootfs(dir.path());
    server.words(&words(&["image", "import", "tools:1", "PATH"], &root)).ok();
    server.words(&["pool", "create", "p", "--image", "tools:1", "--replicas", "1"]).ok();
    let id = server.claim("p");
    let change = "busybox rm srv/data/same; busybox rm -r home; busybox mkdir -p home/new; echo 2 > srv/data/two";
    server.words(&["exec", "-u", "root", "-w", "/", &id, "--", "/bin/sh", "-c", change]).ok();
    server.words(&["commit", &id, "tools:2"]).ok();
    let before = seen(&server, "tools:2");
    assert!(!before.contains("same") && before.contains("home/new") && !before.contains("home/user"), "{before}");
    let file = dir.path().join("two.tar");
    server.words(&words(&["image", "export", "tools:2", "PATH"], &file)).ok();
    server.words(&words(&["image", "import", "again:2", "PATH"], &file)).ok();
    assert_eq!(seen(&server, "again:2"), before);
    let refused = server.words(&["image", "export", "host", "-"]).fails(1);
    assert!(refused.contains("/usr is this machine's own"), "{refused}");
    server.finish();
}

#[test]
fn a_broken_archive_is_refused_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.tar");
    fs::write(&path, vec![7; 5000]).unwrap();
    let refused = server.words(&words(&["image", "import", "a:1", "PATH"], &path)).fails(1);
    assert!(refused.contains("broken.tar"), "{refused}");
    fs::write(&path, b"\xfd7zXZ\0 not really").unwrap();
    let refused = server.words(&words(&["image", "import", "a:1", "PATH"], &path)).fails(1);
    assert!(refused.contains("xz"), "{refused}");
    let refused = server.words(&words(&["image", "export", "none:1", "PATH"], &dir.path().join("out.tar"))).fails(1);
    assert!(refused.contains("none:1") && !dir.path().join("out.tar").exists(), "{refused}");
    assert_eq!(server.json("image usage")["layers"], 0);
    server.finish();
}
