//! Images from a real registry (Debian's `docker-registry`, pushed to by `skopeo`), in real sandboxes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use support::registry::Registry;
use support::{Server, can_run};
use tar::{Builder, EntryType, Header};

/// A program that needs nothing else (Debian's `busybox-static`).
const PROGRAM: &str = "/bin/busybox";

fn has_what_it_needs() -> bool {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let all = there("docker-registry") && there("skopeo") && Path::new(PROGRAM).exists();
    if !all {
        eprintln!("skipped: one of the Debian packages docker-registry, skopeo and busybox-static is not installed");
    }
    all && can_run()
}

enum Member<'a> {
    Dir,
    File(&'a [u8], u32),
    Link(&'a str),
}

fn layer(members: &[(&str, Member<'_>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, member) in members {
        let mut header = Header::new_gnu();
        header.set_mtime(1_700_000_000);
        match member {
            Member::Dir => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                builder.append_data(&mut header, name, &[][..]).unwrap();
            }
            Member::File(content, mode) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, *content).unwrap();
            }
            Member::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As `docker save` writes it.
fn docker_archive(layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digits(layer))).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let image = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["app:1"], "Layers": names }]).to_string();
    let mut members: Vec<(&str, Member<'_>)> =
        vec![("manifest.json", Member::File(manifest.as_bytes(), 0o644)), ("config.json", Member::File(image.as_bytes(), 0o644))];
    members.extend(names.iter().zip(layers).map(|(name, layer)| (name.as_str(), Member::File(layer, 0o644))));
    layer(&members)
}

/// No `/etc/passwd`, no `/tmp`, no `/dev`: a program and what the second layer changes of the first.
fn layers() -> Vec<Vec<u8>> {
    let program = std::fs::read(PROGRAM).unwrap();
    vec![
        layer(&[
            ("bin/", Member::Dir),
            ("bin/busybox", Member::File(&program, 0o755)),
            ("bin/sh", Member::Link("busybox")),
            ("data/", Member::Dir),
            ("data/gone", Member::File(b"old", 0o644)),
            ("data/kept", Member::File(b"old", 0o644)),
        ]),
        layer(&[("data/", Member::Dir), ("data/.wh.gone", Member::File(b"", 0o644)), ("data/new", Member::File(b"new", 0o644))]),
    ]
}

#[test]
fn an_image_that_is_named_is_pulled_once_and_its_program_runs() {
    if !has_what_it_needs() {
        return;
    }
    let registry = Registry::start();
    let config = json!({ "Env": ["COLOUR=green", "PATH=/bin"], "WorkingDir": "/data", "User": "1234:5678" });
    let archive = registry.directory().join("app.tar");
    std::fs::write(&archive, docker_archive(&layers(), &config)).unwrap();
    let name = registry.push(&format!("docker-archive:{}", archive.display()), "team/app:1");
    let server = Server::start_with(&format!("[images]\nregistries = [\"{}\"]\n", registry.address()));

    let script = "busybox ls; echo $COLOUR; busybox id -u; busybox test -d /tmp -a -c /dev/null && echo complete";
    let run = ["run", "--image", &name, "--", "/bin/sh", "-c", script];
    assert_eq!(server.words(&run).ok(), "kept\nnew\ngreen\n1234\ncomplete\n");
    let listed = server.json("image list");
    let image = listed["items"].as_array().unwrap().iter().find(|image| image["name"] == name.as_str()).unwrap();
    assert_eq!((&image["source"], &image["layers"]), (&"pulled".into(), &2.into()), "{image}");

    // Pulled again, nothing changes; another spelling is the same image.
    let again = server.json(&format!("image pull {name}"));
    assert_eq!(again["image"]["createdAt"], image["createdAt"]);
    // Without the registry, what is here still runs; what is not here is said.
    let address = registry.address().to_owned();
    drop(registry);
    assert_eq!(server.words(&["run", "--image", &name, "--", "/bin/busybox", "echo", "still"]).ok(), "still\n");
    let refused = server.cli(&format!("image pull {address}/team/other:1")).fails(1);
    assert!(refused.contains(&address) && refused.contains("team/other"), "{refused}");
    server.cli(&format!("image delete {name}")).ok();
    server.finish();
}

#[test]
fn only_registries_that_are_allowed_are_asked() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let refused = server.cli("image pull 127.0.0.1:5999/x:1").fails(1);
    assert!(refused.contains("may not be pulled from 127.0.0.1:5999") && refused.contains("registries"), "{refused}");
    let refused = server.cli("image pull Not/A/Name").fails(1);
    assert!(refused.contains("Not/A/Name"), "{refused}");
    server.finish();
}
