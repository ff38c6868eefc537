//! Registries that fail, lie and send us around, and a disk that is too small: what clients hear through the whole server, that
//! nothing is left of the image, and that the next try gets it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../oci/tests/support/mod.rs"]
mod oci;
mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci::server::{Reply, Request, Server as Registry, registry_reply};
use oci::{Layout, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, noise, tar_of, tar_with};
use sandbank_oci::{Compression, Digest};
use serde_json::{Value, json};
use support::{Server, can_run, http, wait_for};
use tokio::runtime::Runtime;

const BUSYBOX: &str = "/usr/bin/busybox";

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Two layers, the second one large enough to be broken off in.
fn good_layers(salt: &str) -> Vec<(Vec<u8>, Compression)> {
    vec![(tar_with("etc/one", salt.as_bytes()), Compression::Gzip), (tar_with("two", &noise(salt, 150_000)), Compression::None)]
}

/// How a registry answers instead of `reply`, which would be right.
type Fault = Box<dyn Fn(&Request, Option<Reply>) -> Option<Reply> + Send + Sync>;

/// One way to be wrong, and what is to be said of it.
struct Case {
    layout: Layout,
    fault: Fault,
    /// Status of our answer.
    status: u16,
    says: Vec<String>,
}

impl Case {
    fn of(salt: &str, status: u16, says: &[&str], fault: Fault) -> Self {
        let mut layout = Layout::new();
        let image = layout.image(architecture(), &good_layers(salt));
        layout.add(Some("1"), image);
        Self { layout, fault, status, says: says.iter().map(|&says| says.to_owned()).collect() }
    }

    /// The error also names the large layer.
    fn naming_the_layer(mut self, salt: &str) -> Self {
        self.says.push(large_digest(salt));
        self
    }
}

fn large_digest(salt: &str) -> String {
    Digest::of(&good_layers(salt)[1].0).to_string()
}

/// Another answer for the large layer.
fn for_the_layer(change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Fault {
    Box::new(move |request, reply| {
        let large = request.path.contains("/blobs/") && reply.as_ref().is_some_and(|reply| reply.body.len() > 50_000);
        if large { reply.map(&change) } else { reply }
    })
}

/// Another answer for the manifest that the tag means.
fn for_the_manifest(change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Fault {
    Box::new(move |request, reply| if request.path.ends_with("/manifests/1") { reply.map(&change) } else { reply })
}

fn with_status(status: u16) -> impl Fn(Reply) -> Reply + Send + Sync + 'static {
    move |_| Reply::new(status, "{}")
}

/// Changes the manifest; whoever asks by tag gets no digest to check it against.
fn edited(edit: impl Fn(&mut Value) + Send + Sync + 'static) -> Fault {
    for_the_manifest(move |reply| {
        let mut manifest: Value = serde_json::from_slice(&reply.body).unwrap();
        edit(&mut manifest);
        let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
        Reply::new(200, manifest.to_string()).with("Content-Type", media_type)
    })
}

/// The right image's manifest with another second layer, whose digests are right.
fn with_layer(layout: &Layout, salt: &str, blob: &[u8], media_type: &str, diff_id: Digest) -> Fault {
    let one = &good_layers(salt)[0].0;
    let config = json!({ "architecture": architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(one).to_string(), diff_id.to_string()] } });
    let config = layout.blob(OCI_CONFIG, config.to_string().as_bytes());
    let layer = layout.blob(media_type, blob);
    edited(move |manifest| {
        manifest["config"] = config.clone();
        manifest["layers"][1] = layer.clone();
    })
}

/// A layer that is what its digests say, and no good.
fn bad_layer(salt: &str, says: &[&str], blob: &[u8], media_type: &str, diff_id: Digest) -> Case {
    let mut case = Case::of(salt, 400, says, Box::new(|_, reply| reply));
    case.fault = with_layer(&case.layout, salt, blob, media_type, diff_id);
    case.says.push(Digest::of(blob).to_string());
    case
}

/// A tar of one file that the tar crate would not name so.
fn tar_leading_out() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..10].copy_from_slice(b"../outside");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.resize(512 * 3, 0);
    tar
}

/// What is wrong with what comes.
fn wrong_content() -> Vec<(&'static str, Case)> {
    let flipped = |mut reply: Reply| {
        reply.body[70_000] ^= 1;
        reply
    };
    let gzip = format!("{OCI_LAYER}+gzip");
    let (escape, other) = (tar_leading_out(), tar_with("other", b"1"));
    let garbage = [&[0x1f, 0x8b, 8, 0][..], &[7; 500]].concat();
    let cut = &tar_with("two", &[1; 2000])[..1000];
    vec![
        ("flipped", Case::of("flipped", 400, &["was promised"], for_the_layer(flipped)).naming_the_layer("flipped")),
        (
            "short",
            Case::of("short", 400, &["has 5000 bytes where"], for_the_layer(|reply| Reply::new(200, &reply.body[..5000])))
                .naming_the_layer("short"),
        ),
        ("cut", Case::of("cut", 503, &["5 tries", "of 15"], for_the_layer(|reply| reply.cut_at(1000))).naming_the_layer("cut")),
        ("escape", bad_layer("escape", &["../outside"], &escape, OCI_LAYER, Digest::of(&escape))),
        ("garbage", bad_layer("garbage", &["decompress"], &garbage, &gzip, Digest::of(b"x"))),
        ("no-end", bad_layer("no-end", &["ends in the middle"], cut, OCI_LAYER, Digest::of(cut))),
        ("other-diff-id", bad_layer("other-diff-id", &["digest"], &other, OCI_LAYER, Digest::of(b"x"))),
        (
            "layer-type",
            bad_layer("layer-type", &["cannot be used"], &other, "application/vnd.example.squashfs", Digest::of(&other)),
        ),
        (
            "manifest-type",
            Case::of(
                "manifest-type",
                400,
                &["application/vnd.example+json"],
                edited(|manifest| manifest["mediaType"] = "application/vnd.example+json".into()),
            ),
        ),
        (
            "no-config",
            Case::of(
                "no-config",
                400,
                &["no container image"],
                edited(|manifest| manifest["config"]["mediaType"] = "text/x".into()),
            ),
        ),
        ("other-architecture", {
            let mut case = Case::of("other-architecture", 400, &["has nothing for linux/", "s390x"], Box::new(|_, reply| reply));
            let index = case.layout.index(&[case.layout.image("s390x", &[])]);
            let blob = index["digest"].as_str().unwrap().parse::<Digest>().unwrap();
            let content = std::fs::read(case.layout.path().join("blobs/sha256").join(blob.hex())).unwrap();
            case.fault = for_the_manifest(move |_| Reply::new(200, content.clone()).with("Content-Type", oci::OCI_INDEX));
            case
        }),
        (
            "no-json",
            Case::of(
                "no-json",
                400,
                &["manifest is damaged"],
                for_the_manifest(|_| Reply::new(200, "<html>").with("Content-Type", OCI_MANIFEST)),
            ),
        ),
    ]
}

/// What registries say instead of an image.
fn refusals() -> Vec<(&'static str, Case)> {
    let manifest = |salt, status, ours, says: &str| Case::of(salt, ours, &[says], for_the_manifest(with_status(status)));
    let layer = |salt, status, ours, says: &str| Case::of(salt, ours, &[says], for_the_layer(with_status(status)));
    let circle: Fault = Box::new(|request, _| {
        let to = if request.path.ends_with("/b") { "/v2/circle/a" } else { "/v2/circle/b" };
        Some(Reply::new(307, "").with("Location", to))
    });
    vec![
        ("unauthorized", manifest("unauthorized", 401, 403, "wants credentials")),
        ("forbidden", manifest("forbidden", 403, 403, "ask its owner")),
        ("missing", manifest("missing", 404, 404, "check the name and the tag")),
        ("teapot", manifest("teapot", 418, 503, "answers status 418")),
        ("limited", manifest("limited", 429, 503, "no more requests")),
        ("failing", manifest("failing", 500, 503, "status 500")),
        ("no-layer", layer("no-layer", 404, 404, "has no layer").naming_the_layer("no-layer")),
        ("no-right-to-layer", layer("no-right-to-layer", 403, 403, "ask its owner")),
        ("layer-fails", layer("layer-fails", 502, 503, "status 502")),
        ("circle", Case::of("circle", 503, &["in a circle"], circle)),
    ]
}

/// Asks for an image; gives the status and the body.
fn pull(server: &Server, name: &str) -> (u16, Value) {
    let body = json!({ "name": name }).to_string();
    http(&server.address(), &server.key(), "POST", "/v1/images/pull", &body).unwrap()
}

/// The answer is an error of ours that says what happened to which image.
fn assert_refused(name: &str, case: &Case, (status, body): &(u16, Value)) {
    let error = body["error"].as_str().unwrap_or_else(|| panic!("{name}: {status} {body}"));
    assert_eq!(*status, case.status, "{name}: {body}");
    assert!(error.contains(name), "the error names the image {name}: {error}");
    for says in &case.says {
        assert!(error.contains(says.as_str()), "{name}: {error:?} does not say {says:?}");
    }
}

/// Nothing half done is on disk, and nobody is at it any more.
fn assert_nothing_half_done(data: &Path) {
    wait_for("nothing half done to be on disk", || {
        let left = [support::names(&data.join("images/staging")), support::names(&data.join("scratch"))].concat();
        left.is_empty().then_some(())
    });
}

fn images(server: &Server) -> Vec<String> {
    let listed = server.json("image list");
    let names = listed["items"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned());
    names.collect()
}

#[test]
fn what_a_registry_does_wrong_is_said_and_the_next_try_gets_the_image() {
    if !can_run() {
        return;
    }
    let cases: Arc<BTreeMap<_, _>> = Arc::new(wrong_content().into_iter().chain(refusals()).collect());
    let healed = Arc::new(AtomicBool::new(false));
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start({
        let (cases, healed) = (Arc::clone(&cases), Arc::clone(&healed));
        move |request| {
            let case = cases.get(request.path.strip_prefix("/v2/")?.split('/').next()?)?;
            let right = registry_reply(case.layout.path(), request, true);
            if healed.load(Ordering::SeqCst) { right } else { (case.fault)(request, right) }
        }
    }));
    let server = Server::start_with(&format!("[images]\nregistries = [\"{}\"]\npulls_max = 64\n", registry.address));
    let before = images(&server);
    let names: Vec<(String, &Case)> = cases.iter().map(|(name, case)| (format!("{}/{name}:1", registry.address), case)).collect();
    // All at once: some are tried again for seconds before they are given up.
    let pull_all = || -> Vec<(u16, Value)> {
        std::thread::scope(|scope| {
            let pulls: Vec<_> = names.iter().map(|(name, _)| scope.spawn(|| pull(&server, name))).collect();
            pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
        })
    };
    for ((name, case), answer) in names.iter().zip(pull_all()) {
        assert_refused(name, case, &answer);
    }
    assert_eq!(images(&server), before);
    assert_nothing_half_done(&server.data());
    healed.store(true, Ordering::SeqCst);
    for ((name, _), (status, body)) in names.iter().zip(pull_all()) {
        assert_eq!((status, &body["image"]["name"]), (201, &name.as_str().into()), "{body}");
    }
    assert_nothing_half_done(&server.data());
    server.finish();
}

#[test]
fn a_registry_that_is_away_is_said_and_asked_again_when_it_is_back() {
    if !can_run() {
        return;
    }
    let mut layout = Layout::new();
    let image = layout.image(architecture(), &good_layers("away"));
    layout.add(Some("1"), image);
    let layout = Arc::new(layout);
    let (runtime, stalls) = (Runtime::new().unwrap(), Arc::new(AtomicBool::new(true)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let configuration = format!("[images]\nregistries = [\"{address}\"]\npull_timeout = \"5s\"\n");
    let server = Server::start_with(&configuration);
    let name = format!("{address}/app:1");
    let (status, body) = pull(&server, &name);
    let error = body["error"].as_str().unwrap();
    assert!(status == 503 && error.contains(&name) && error.contains("refused"), "{status} {body}");

    // Back, but it stops in the middle of a layer: not waited for longer than is set, nor does anything go on behind our back.
    let registry = runtime.block_on(Registry::start_at(address, {
        let (layout, stalls) = (Arc::clone(&layout), Arc::clone(&stalls));
        move |request| {
            let reply = registry_reply(layout.path(), request, true)?;
            let stall = stalls.load(Ordering::SeqCst) && request.path.contains("/blobs/") && reply.body.len() > 50_000;
            Some(if stall { reply.stall_at(100_000) } else { reply })
        }
    }));
    let (status, body) = pull(&server, &name);
    let error = body["error"].as_str().unwrap();
    assert!(status == 503 && error.contains(&name) && error.contains("longer than 5 s"), "{status} {body}");
    let asked = registry.requests_of("/blobs/").len();
    assert_nothing_half_done(&server.data());
    assert_eq!(registry.requests_of("/blobs/").len(), asked);
    stalls.store(false, Ordering::SeqCst);
    assert_eq!(pull(&server, &name).0, 201);
    server.finish();
}

#[test]
fn an_image_that_the_disk_has_no_room_for_leaves_room_for_another() {
    if !can_run() || !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs root and Debian's busybox-static");
        return;
    }
    let program = std::fs::read(BUSYBOX).unwrap();
    let mut layout = Layout::new();
    // The first of its layers has room, and must not keep it.
    let large =
        [noise("first", 6 << 20), noise("second", 22 << 20)].map(|content| (tar_with("file", &content), Compression::None));
    let large = layout.image(architecture(), &large);
    layout.add(Some("large"), large);
    let small = tar_of(&[("bin/busybox", &program[..]), ("data", &noise("small", 5 << 20))]);
    let small = layout.image(architecture(), &[(small, Compression::Gzip)]);
    layout.add(Some("small"), small);
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start(move |request| registry_reply(layout.path(), request, true)));
    // The store takes 16 MiB for its journal.
    let server = Server::start_on_small_disk(&format!("[images]\nregistries = [\"{}\"]\n", registry.address), 40);
    let free = || {
        let disk = rustix::fs::statvfs(server.data()).unwrap();
        disk.f_bavail * disk.f_frsize
    };
    let (before, listed) = (free(), images(&server));
    let name = |tag: &str| format!("{}/app:{tag}", registry.address);
    for _ in 0..2 {
        let (status, body) = pull(&server, &name("large"));
        let error = body["error"].as_str().unwrap_or_else(|| panic!("{status} {body}"));
        assert_eq!(status, 429, "{error}");
        assert!(error.contains(&name("large")) && error.contains("layer sha256:") && error.contains("disk space"), "{error}");
        assert_nothing_half_done(&server.data());
        wait_for("no layer to be left", || (server.json("image usage")["layers"] == 0).then_some(()));
    }
    assert_eq!(images(&server), listed);
    // The store's journal may have grown.
    assert!(free() + (1 << 20) > before, "{} bytes were free, now {}", before, free());
    let (status, body) = pull(&server, &name("small"));
    assert_eq!(status, 201, "{body}");
    let said =
        server.words(&["run", "-u", "root", "-w", "/", "--image", &name("small"), "--", "/bin/busybox", "wc", "-c", "/data"]);
    assert_eq!(said.ok(), format!("{} /data\n", 5 << 20));
    server.finish();
}
