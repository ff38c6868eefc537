//! Pulling and unpacking an image from a registry on this machine, beside `skopeo copy` + `umoci unpack`.

use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;

use super::Settings;
use crate::report::Row;
use crate::{BenchError, Result};

const MIB: f64 = 1024.0 * 1024.0;
const LAYERS: usize = 6;
/// Files of each layer, and bytes of each: half of them random, half text, so that a layer compresses to a little more than half.
/// Together 200 MiB compressed.
const FILES: usize = 900;
const FILE_BYTES: usize = 72 * 1024;
const ROUNDS: usize = 5;
const REGISTRY_WAIT: Duration = Duration::from_secs(10);
/// What the server may use more than before.
const MEMORY_MAX_MIB: f64 = 64.0;

/// The rate of compressed input, with zstd and with gzip, the memory that it took, and the others' rate.
pub(crate) async fn pull(settings: &Settings) -> Result<Vec<Row>> {
    let work = tempfile::Builder::new().prefix("sandbank-bench-pull-").tempdir()?;
    let registry = Registry::start(&work.path().join("registry"))?;
    let layout = work.path().join("layout");
    make_image(&layout, work.path())?;
    let mut rows = Vec::new();
    for (format, arguments) in [("zstd", &["--dest-compress-format", "zstd"][..]), ("gzip", &[])] {
        let before = registry.stored_bytes()?;
        let name = format!("{}/bench:{format}", registry.address);
        skopeo(arguments, &["--dest-tls-verify=false"], &format!("oci:{}:bench", layout.display()), &format!("docker://{name}"))?;
        let compressed_mib = (registry.stored_bytes()? - before) as f64 / MIB;
        rows.extend(ours(settings, &registry, format, &name, compressed_mib).await?);
        rows.push(theirs(work.path(), format, &name, compressed_mib));
    }
    Ok(rows)
}

async fn ours(settings: &Settings, registry: &Registry, format: &str, name: &str, compressed_mib: f64) -> Result<Vec<Row>> {
    let config = format!("[images]\nregistries = [\"{}\"]\n", registry.address);
    let server = settings.server_with(&config).await?;
    let mut client = server.client().await?;
    let (mut rates, mut grown) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = server.memory_begin()?;
        let begun = Instant::now();
        client.post("/v1/images/pull", &json!({ "name": name, "policy": "always" }), StatusCode::CREATED).await?;
        rates.push(compressed_mib / begun.elapsed().as_secs_f64());
        grown.push(server.memory_peak()?.saturating_sub(before) as f64 / MIB);
        client.call(Method::DELETE, &format!("/v1/images/{name}"), None, StatusCode::OK).await?;
        client.post("/v1/admin/images/prune", &json!({}), StatusCode::OK).await?;
    }
    let most = grown.into_iter().fold(0.0, f64::max);
    let row = rate(format!("pull + unpack, {LAYERS} layers, {format}"), rates, compressed_mib);
    let met = row.value.is_some_and(|rate| rate >= 150.0);
    let row = if format == "zstd" { row.target(">= 150 MiB/s of compressed input", met) } else { row };
    let memory = Row::number(format!("memory that it took, {format}"), most, "MiB", ROUNDS as u64);
    Ok(vec![row, memory.target("<= 64 MiB over baseline", most <= MEMORY_MAX_MIB)])
}

/// `skopeo copy` to a layout and `umoci unpack` of it.
fn theirs(work: &Path, format: &str, name: &str, compressed_mib: f64) -> Row {
    let title = format!("control: skopeo copy + umoci unpack, {format}");
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        let (layout, bundle) = (work.join(format!("copy-{format}-{round}")), work.join(format!("bundle-{format}-{round}")));
        let begun = Instant::now();
        let copied =
            skopeo(&[], &["--src-tls-verify=false"], &format!("docker://{name}"), &format!("oci:{}:bench", layout.display()));
        let unpacked = copied.and_then(|()| {
            run(Command::new("umoci").arg("unpack").arg("--image").arg(format!("{}:bench", layout.display())).arg(&bundle))
        });
        let took = begun.elapsed();
        let _ = (fs::remove_dir_all(&layout), fs::remove_dir_all(&bundle));
        if let Err(error) = unpacked {
            return Row::number(title, 0.0, "MiB/s", 0).note(error.to_string().chars().take(200).collect::<String>());
        }
        rates.push(compressed_mib / took.as_secs_f64());
    }
    rate(title, rates, compressed_mib)
}

fn rate(title: String, mut rates: Vec<f64>, compressed_mib: f64) -> Row {
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    let note = format!("{compressed_mib:.0} MiB compressed, {least:.0} to {most:.0}");
    Row::number(title, rates[rates.len() / 2], "MiB/s", rates.len() as u64).note(note)
}

fn make_image(layout: &Path, work: &Path) -> Result<()> {
    let image = format!("{}:bench", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(layout))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for layer in 0..LAYERS {
        let content = work.join(format!("layer{layer}"));
        for file in 0..FILES {
            let directory = content.join(format!("dir{}", file % 30));
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("file{file}")), content_of(&mut random))?;
        }
        run(Command::new("umoci").args(["insert", "--image", &image]).arg(&content).arg(format!("/layer{layer}")))?;
        fs::remove_dir_all(&content)?;
    }
    Ok(())
}

fn content_of(random: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_BYTES);
    while bytes.len() < FILE_BYTES / 2 {
        *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend((z ^ (z >> 31)).to_le_bytes());
    }
    let mut text = String::with_capacity(FILE_BYTES / 2 + 80);
    let mut line = *random;
    while text.len() < FILE_BYTES / 2 {
        line = line.wrapping_add(1);
        let _ = writeln!(text, "fn line_{line:x}() {{ let value = compute({}); println!(\"value: {{value}}\"); }}", line % 97);
    }
    bytes.extend(text.as_bytes());
    bytes
}

fn skopeo(arguments: &[&str], tls: &[&str], source: &str, target: &str) -> Result<()> {
    run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet"]).args(arguments).args(tls).args([source, target]))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| BenchError::new(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::new(format!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// Debian's `docker-registry` on loopback; ends with this.
struct Registry {
    child: Child,
    address: String,
    storage: PathBuf,
}

impl Registry {
    fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (config, storage) = (directory.join("config.yml"), directory.join("storage"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  secret: x\n",
            storage.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| BenchError::new(format!("docker-registry: {error}; install Debian's package")))?;
        let registry = Self { child, address, storage };
        let deadline = Instant::now() + REGISTRY_WAIT;
        while TcpStream::connect(&registry.address).is_err() {
            if Instant::now() > deadline {
                return Err(BenchError::new("docker-registry does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(registry)
    }

    fn stored_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        let mut left = vec![self.storage.join("docker/registry/v2/blobs")];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten() {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    left.push(entry.path());
                } else {
                    sum += entry.metadata()?.len();
                }
            }
        }
        Ok(sum)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
