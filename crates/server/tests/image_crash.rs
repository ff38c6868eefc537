//! `kill -9` of the server, and of the launcher, in the middle of what is done to images: listed images are whole and start
//! sandboxes, nothing half done is left, and the next try does it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../oci/tests/support/mod.rs"]
mod oci;
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oci::server::{Server as Registry, registry_reply};
use oci::{Layout, noise, tar_of};
use rustix::process::Signal;
use sandbank_oci::{Compression, Digest};
use serde_json::Value;
use support::{Server, can_run, http, launcher_of, wait_for};
use tokio::runtime::Runtime;

const BUSYBOX: &str = "/usr/bin/busybox";
/// Rounds of begin, kill, look, try again: so many of each kind.
const ROUNDS: usize = 3;
/// Another one can be tried with `SANDBANK_TEST_SEED`.
const SEED: u64 = 0x0ddb_a115;
/// Where a layer may stall: nowhere.
const NOWHERE: usize = usize::MAX;

/// Numbers that look random and are the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

/// What is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Pull,
    Import,
    Export,
    Commit,
    Collect,
}

/// A layer of files, and their digests.
fn layer(salt: &str) -> (Vec<u8>, Compression) {
    let names: Vec<String> = (0..12).map(|number| format!("data/{salt}/{number}")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), noise(name, 40_000))).collect();
    let sums: String = files.iter().map(|(name, content)| format!("{}  {name}\n", Digest::of(content).hex())).collect();
    let sums_name = format!("sums/{salt}");
    let mut all: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (*name, &content[..])).collect();
    all.push((&sums_name, sums.as_bytes()));
    (tar_of(&all), Compression::Gzip)
}

/// A program, and two layers of its own.
fn layers(program: &[u8], salt: &str) -> Vec<(Vec<u8>, Compression)> {
    let program = tar_of(&[("bin/busybox", program)]);
    vec![(program, Compression::Gzip), layer(&format!("{salt}-one")), layer(&format!("{salt}-two"))]
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// All that is no directory: emptied directories wait in the trash for the next sandbox.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let inside = support::names(directory).into_iter().map(|name| directory.join(name));
    inside.flat_map(|path| if path.is_dir() && !path.is_symlink() { files_below(&path) } else { vec![path] }).collect()
}

struct World {
    server: Server,
    registry: Registry,
    _runtime: Runtime,
    /// Bytes after which a layer stalls.
    stall_at: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
    /// A sandbox with changes to commit.
    sandbox: String,
    /// What `steady:1` is exported as.
    exported: Vec<u8>,
}

impl World {
    fn new(program: &[u8], salts: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new();
        for salt in salts {
            let image = layout.image(architecture(), &layers(program, salt));
            layout.add(Some(salt), image);
            let mut alone = Layout::new();
            let image = alone.image(architecture(), &layers(program, &format!("{salt}-imported")));
            alone.add(Some("1"), image);
            // Compressed, so that importing it needs room for the plain archive in between.
            let archive = directory.path().join(format!("{salt}.tar.gz"));
            let mut tar = Command::new("tar");
            tar.args(["-C", alone.path().to_str().unwrap(), "-czf"]).arg(archive).args(["oci-layout", "index.json", "blobs"]);
            assert!(tar.status().unwrap().success());
        }
        let (runtime, stall_at) = (Runtime::new().unwrap(), Arc::new(AtomicUsize::new(NOWHERE)));
        let registry = runtime.block_on(Registry::start({
            let stall_at = Arc::clone(&stall_at);
            move |request| {
                let reply = registry_reply(layout.path(), request, true)?;
                let stall_at = stall_at.load(Ordering::SeqCst);
                let stalls = request.path.contains("/blobs/") && stall_at < reply.body.len();
                Some(if stalls { reply.stall_at(stall_at) } else { reply })
            }
        }));
        let server = Server::start_with(&format!("[images]\nregistries = [\"{}\"]\n", registry.address));
        let (sandbox, exported) = (String::new(), Vec::new());
        let mut world = Self { server, registry, _runtime: runtime, stall_at, directory, sandbox, exported };
        world.prepare();
        world
    }

    /// An image that stays, and a sandbox of it that differs from it.
    fn prepare(&mut self) {
        let archive = self.archive("steady");
        self.server.words(&["image", "import", "steady:1", archive.to_str().unwrap()]).ok();
        let body = r#"{"image":"steady:1","memory":"128Mi"}"#;
        let (status, made) = http(&self.server.address(), &self.server.key(), "POST", "/v1/sandboxes", body).unwrap();
        assert_eq!(status, 201, "{made}");
        self.sandbox = made["sandbox"]["sandboxId"].as_str().unwrap().to_owned();
        let change = "mkdir /new && for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/new/$i bs=64k count=8 2>/dev/null; done && \
            sha256sum new/* > /sums/committed && rm -r /data/steady-imported-one /sums/steady-imported-one";
        self.inside(change);
        assert!(self.try_again(Work::Export, "steady").as_millis() > 0);
        self.exported = std::fs::read(self.target("steady")).unwrap();
    }

    fn inside(&self, script: &str) -> String {
        self.server.words(&["exec", "-u", "root", "-w", "/", &self.sandbox, "--", "/bin/busybox", "sh", "-c", script]).ok()
    }

    fn archive(&self, salt: &str) -> PathBuf {
        self.directory.path().join(format!("{salt}.tar.gz"))
    }

    /// What an export writes.
    fn target(&self, salt: &str) -> PathBuf {
        self.directory.path().join("exports").join(format!("{salt}.tar"))
    }

    /// The image that comes, or goes, if the work is done.
    fn image(&self, work: Work, salt: &str) -> Option<String> {
        match work {
            Work::Pull | Work::Collect => Some(format!("{}/app:{salt}", self.registry.address)),
            Work::Import | Work::Commit => Some(format!("{salt}:made")),
            Work::Export => None,
        }
    }

    fn command(&self, work: Work, salt: &str) -> Command {
        let image = self.image(work, salt).unwrap_or_default();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let words: Vec<String> = match work {
            Work::Pull => vec!["image".into(), "pull".into(), image],
            Work::Import => vec!["image".into(), "import".into(), image, path(self.archive(salt))],
            Work::Export => {
                std::fs::create_dir_all(self.target(salt).parent().unwrap()).unwrap();
                vec!["image".into(), "export".into(), "steady:1".into(), path(self.target(salt))]
            }
            Work::Commit => vec!["commit".into(), self.sandbox.clone(), image],
            Work::Collect => vec!["image".into(), "delete".into(), image],
        };
        let mut command = self.server.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Does it undisturbed; says how long it takes.
    fn try_again(&self, work: Work, salt: &str) -> Duration {
        if work == Work::Collect && !self.listed().contains(&self.image(work, salt).unwrap()) {
            return Duration::ZERO;
        }
        let begun = Instant::now();
        let ended = wait_for(&format!("{work:?} to be done"), || {
            let output = self.command(work, salt).stderr(Stdio::piped()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // A sandbox that looked into it may be ending still.
            assert!(output.status.success() || (work == Work::Collect && said.contains("in use")), "{work:?}: {said}");
            output.status.success().then(|| begun.elapsed())
        });
        if work == Work::Collect {
            self.only_listed_layers();
            return begun.elapsed();
        }
        ended
    }

    fn listed(&self) -> BTreeSet<String> {
        let listed = self.server.json("image list");
        listed["items"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until there is no layer but those of listed images.
    fn only_listed_layers(&self) {
        wait_for("layers that nobody uses to go", || {
            let usage: Value = self.server.json("image usage");
            (usage["unusedBytes"] == 0).then_some(())
        });
    }

    /// Reads every file of an image in a sandbox of it.
    fn read_all(&self, image: &str) {
        let script = "set -e; for sums in sums/*; do sha256sum -sc $sums; done; find data new -type f 2>/dev/null | wc -l";
        let run = ["run", "--image", image, "-u", "root", "-w", "/", "--", "/bin/busybox", "sh", "-c", script];
        let files: u32 = self.server.words(&run).ok().trim().parse().unwrap();
        assert!(files >= 20, "{image} has {files} files");
    }

    /// Kills the server, at times the launcher before it, and starts it again.
    fn strike(&mut self, launcher_too: bool) {
        if launcher_too && let Some(launcher) = launcher_of(self.server.pid()) {
            support::send(launcher, Signal::KILL);
        }
        self.server.kill();
        self.server.start_again();
    }

    /// Nothing is half done.
    fn look(&self, before: &BTreeSet<String>, may_change: Option<&String>) {
        let data = self.server.data();
        // Layers that nobody uses go by this way too.
        wait_for("nothing half done to be left", || support::names(&data.join("images/staging")).is_empty().then_some(()));
        assert_eq!(support::names(&data.join("scratch")), [""; 0]);
        wait_for("the trash to be emptied", || files_below(&data.join("trash")).is_empty().then_some(()));
        let listed = self.listed();
        let changed: Vec<_> = listed.symmetric_difference(before).collect();
        assert!(changed.iter().all(|image| Some(*image) == may_change), "{changed:?}");
        for image in listed.iter().filter(|image| *image != "host") {
            self.read_all(image);
        }
        self.only_listed_layers();
        // Two generated ones, and whole ones.
        let layers = support::names(&data.join("images/layers"));
        let known = self.server.json("image usage")["layers"].as_u64().unwrap();
        assert_eq!(layers.len() as u64, known + 2, "{layers:?}");
        // Thawed, where it was frozen for a commit.
        assert_eq!(self.inside("echo here"), "here\n");
    }

    fn round(&mut self, work: Work, round: usize, takes: Duration, dice: &mut Dice) {
        let salt = format!("{work:?}-{round}").to_lowercase();
        if work == Work::Collect {
            self.try_again(Work::Pull, &salt);
        }
        let (before, image) = (self.listed(), self.image(work, &salt));
        let stalls = work == Work::Pull && round > 0;
        let asked = self.registry.requests_of("/blobs/").len();
        if stalls {
            self.stall_at.store(usize::try_from(5_000 + dice.below(300_000)).unwrap(), Ordering::SeqCst);
        }
        let mut command = self.command(work, &salt).spawn().unwrap();
        if stalls {
            // The configuration and a layer.
            wait_for("a layer to be asked for", || (self.registry.requests_of("/blobs/").len() > asked + 1).then_some(()));
        }
        let moment = Duration::from_micros(dice.below(u64::try_from(takes.as_micros()).unwrap()));
        std::thread::sleep(moment);
        self.strike(work == Work::Commit && round > 0);
        let status = command.wait().unwrap();
        self.stall_at.store(NOWHERE, Ordering::SeqCst);
        eprintln!("{work:?} {round}: killed after {moment:?} of {takes:?}; the client ended with {status}");

        self.look(&before, image.as_ref());
        if status.success() {
            // What was answered with success is so.
            assert!(image.as_ref().is_none_or(|image| self.listed().contains(image) != (work == Work::Collect)), "{image:?}");
        }
        self.exports_are_whole(&salt);
        self.try_again(work, &salt);
        if work != Work::Collect {
            image.iter().for_each(|image| self.read_all(image));
        }
        if work == Work::Export {
            assert!(self.exports_are_whole(&salt), "it is there");
        } else if let Some(image) = image {
            wait_for("the image to be unused", || {
                let gone = !self.listed().contains(&image) || self.server.words(&["image", "delete", &image]).code == 0;
                gone.then_some(())
            });
        }
        self.only_listed_layers();
    }

    /// Exports are there whole or not at all, and nothing is beside them; says whether this one is there.
    fn exports_are_whole(&self, salt: &str) -> bool {
        let directory = self.directory.path().join("exports");
        for name in support::names(&directory) {
            assert!(name.ends_with(".tar"), "{name} was left behind");
            assert!(std::fs::read(directory.join(&name)).unwrap() == self.exported, "{name} is not what it should be");
        }
        self.target(salt).exists()
    }
}

#[test]
fn kills_in_the_middle_of_work_on_images_leave_them_whole_and_nothing_else() {
    if !can_run() || !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs root and Debian's busybox-static");
        return;
    }
    let seed = std::env::var("SANDBANK_TEST_SEED").map_or(SEED, |seed| seed.parse().expect("a number"));
    eprintln!("seed {seed}");
    let program = std::fs::read(BUSYBOX).unwrap();
    let kinds = [Work::Pull, Work::Import, Work::Export, Work::Commit, Work::Collect];
    let mut salts = vec!["steady".to_owned(), "measured".to_owned()];
    salts.extend((0..ROUNDS).flat_map(|round| kinds.map(|work| format!("{work:?}-{round}").to_lowercase())));
    let mut world = World::new(&program, &salts);
    // How long each takes on this machine; the last one takes away what the first one brought.
    let takes = kinds.map(|work| world.try_again(work, "measured"));
    world.server.words(&["image", "delete", "measured:made"]).ok();
    let mut dice = Dice(seed);
    for round in 0..ROUNDS {
        for (work, takes) in kinds.into_iter().zip(takes) {
            world.round(work, round, takes, &mut dice);
        }
    }
    let World { server, .. } = world;
    server.finish();
}
