//! What an installation may set: a TOML file, the environment and the command line, in this order of weight.

mod images;
mod network;
mod ports;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbank_control::{BuildSettings, Settings};
use sandbank_model::{ImageName, QuotaLimits};
use serde::Deserialize;

use crate::failure::{Failure, Result};
use images::Images;
use network::Network;
pub(crate) use network::Outbound;
use ports::Ports;

/// Where the server listens unless told otherwise.
const LISTEN_DEFAULT: &str = "127.0.0.1:7070";
/// Largest configuration file that is read.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Image names that mean the embedded `host` image until somebody imports a real one: `base`, and what the SDKs ask for when
/// their users name nothing (contracts: blaxel.md, e2b.md, langsmith.md, opensandbox.md).
const HOST_ALIASES: &[&str] = &[
    "base",
    "default",
    "blaxel/base-image:latest",
    "blaxel/base-image",
    "blaxel/py-app:latest",
    "blaxel/ts-app:latest",
    "e2bdev/base",
    "e2bdev/base:latest",
    "e2bdev/code-interpreter",
    "e2bdev/code-interpreter:latest",
    "opensandbox/code-interpreter:latest",
    "opensandbox/code-interpreter:v1.0.1",
];

/// The configuration file, field by field. Unknown keys are refused: a misspelt limit must not be a missing one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    /// Directory of everything that must survive a restart.
    pub(crate) data_dir: Option<PathBuf>,
    /// Address and port.
    pub(crate) listen: Option<String>,
    /// Address that clients reach this server by, where a proxy stands before it.
    pub(crate) public_url: Option<String>,
    /// The installation's admin key, `<prefix>_<64 hex>`.
    pub(crate) admin_key: Option<String>,
    /// File with the key that seals tenants' secrets, 64 hexadecimal digits.
    pub(crate) secret_key_file: Option<PathBuf>,
    /// How this machine presents itself.
    pub(crate) cluster: Cluster,
    /// Image names that mean another image.
    pub(crate) image_aliases: BTreeMap<String, String>,
    /// Image of a create call that names nothing.
    pub(crate) default_image: Option<String>,
    /// Quota of a tenant that has none of its own.
    pub(crate) default_quota: DefaultQuota,
    /// Bounds of the server itself.
    pub(crate) limits: Limits,
    /// Where images come from.
    pub(crate) images: Images,
    /// Builds of images.
    pub(crate) builds: Builds,
    /// Names of sandboxes' ports.
    pub(crate) ports: Ports,
    /// The network of sandboxes.
    pub(crate) network: Network,
    /// The driver of Linux sandboxes.
    pub(crate) linux: Linux,
    /// Logging.
    pub(crate) log: Log,
}

/// How this machine presents itself in `GET /v1/clusters`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cluster {
    /// Id in references such as `local::my-pool`.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { id: "local".to_owned(), name: "Sandbank".to_owned() }
    }
}

/// Quota of a tenant that has none of its own; what is absent is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DefaultQuota {
    /// Sandboxes, warm ones included.
    pub(crate) sandboxes: Option<u64>,
    /// Sum of CPU limits, thousandths of a core.
    pub(crate) cpu_millis: Option<u64>,
    /// Sum of memory limits, MiB.
    pub(crate) memory_mib: Option<u64>,
}

/// Bounds of the server itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Longest wait of a claim that names none, such as `2m`.
    pub(crate) startup_timeout: String,
    /// Sandboxes made at the same time, over all pools. Absent: twice the cores.
    pub(crate) create_concurrency: Option<usize>,
    /// Claims that may wait at the same time; one more is refused.
    pub(crate) waiting_claims_max: usize,
    /// How long records of ended sandboxes and events are kept, such as `168h`.
    pub(crate) retention: String,
    /// Most bytes that a collected exec returns of each stream.
    pub(crate) exec_output_bytes_max: usize,
    /// Open client connections; one more waits until another closes.
    pub(crate) connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            startup_timeout: "2m".to_owned(),
            create_concurrency: None,
            waiting_claims_max: 10_000,
            retention: "168h".to_owned(),
            exec_output_bytes_max: 8 * 1024 * 1024,
            connections_max: 16_384,
        }
    }
}

/// Builds of images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Builds {
    /// Builds that are executed at the same time.
    pub(crate) concurrency: usize,
    /// Longest time of a build that asks for none, such as `20m`.
    pub(crate) time: String,
    /// Longest time that a build may ask for.
    pub(crate) time_max: String,
    /// Most MiB that the layers of one build may have.
    pub(crate) layers_mib_max: u64,
    /// Most MiB of one upload, unpacked.
    pub(crate) context_mib_max: u64,
    /// MiB of layers that are kept for later builds.
    pub(crate) cache_mib_max: u64,
}

impl Default for Builds {
    fn default() -> Self {
        Self {
            concurrency: 2,
            time: "20m".to_owned(),
            time_max: "1h".to_owned(),
            layers_mib_max: 10 * 1024,
            context_mib_max: 2 * 1024,
            cache_mib_max: 20 * 1024,
        }
    }
}

/// The driver of Linux sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Linux {
    /// Rest between two looks at how much every sandbox has written, such as `10s`.
    pub(crate) disk_watch_period: String,
}

impl Default for Linux {
    fn default() -> Self {
        Self { disk_watch_period: "10s".to_owned() }
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// Spelling of a line.
    pub(crate) format: LogFormat,
    /// A level (`info`) or directives (`info,sandbank_control=debug`).
    pub(crate) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Spelling of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line or the environment says over the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// `--config`, `SANDBANK_CONFIG`.
    pub(crate) config: Option<PathBuf>,
    /// `--data-dir`, `SANDBANK_DATA_DIR`.
    pub(crate) data_dir: Option<PathBuf>,
    /// `--listen`, `SANDBANK_LISTEN`.
    pub(crate) listen: Option<String>,
    /// `SANDBANK_ADMIN_KEY`.
    pub(crate) admin_key: Option<String>,
}

/// The configuration in force.
#[derive(Clone)]
pub(crate) struct Config {
    /// Directory of everything that must survive a restart.
    pub(crate) data_dir: PathBuf,
    /// Address to listen on.
    pub(crate) listen: SocketAddr,
    /// Admin key that the operator chose; `None`: the one in the data directory.
    pub(crate) admin_key: Option<String>,
    /// File with the key that seals tenants' secrets; `None`: `secret.key` in the data directory.
    pub(crate) secret_key_file: Option<PathBuf>,
    /// Address that clients reach this server by; `None`: as the request's `Host` says.
    pub(crate) public_url: Option<String>,
    /// How this machine presents itself.
    pub(crate) cluster: Cluster,
    /// Open client connections.
    pub(crate) connections_max: usize,
    /// Rest between two looks at how much every sandbox has written.
    pub(crate) disk_watch_period: Duration,
    /// Whether sandboxes have a network, where the machine lets us make one.
    pub(crate) network: bool,
    /// How what leaves sandboxes by name reaches the outside.
    pub(crate) outbound: Outbound,
    /// Domains that ports have names under.
    pub(crate) port_domains: Vec<String>,
    /// Logging.
    pub(crate) log: Log,
    /// What `control` wants to know.
    pub(crate) settings: Settings,
}

impl Config {
    /// Reads the file, if there is one, and lays what was given over it.
    pub(crate) fn load(given: &Given) -> Result<Self> {
        let file = match &given.config {
            Some(path) => read_file(path)?,
            None => ConfigFile::default(),
        };
        let data_dir = data_dir_of(given, &file)?;
        let listen = parse_listen(given.listen.as_deref().or(file.listen.as_deref()).unwrap_or(LISTEN_DEFAULT))?;
        let admin_key = given.admin_key.clone().or_else(|| file.admin_key.clone());
        if let Some(key) = &admin_key {
            check_admin_key(key, "the admin key (SANDBANK_ADMIN_KEY or admin_key in the configuration)")?;
        }
        let settings = settings_of(&file)?;
        check_cluster(&file.cluster)?;
        Ok(Self {
            data_dir,
            listen,
            admin_key,
            secret_key_file: file.secret_key_file,
            public_url: file.public_url.as_deref().map(check_public_url).transpose()?,
            cluster: file.cluster,
            connections_max: positive("limits.connections_max", file.limits.connections_max)?,
            disk_watch_period: duration("linux.disk_watch_period", &file.linux.disk_watch_period)?,
            network: file.network.enabled,
            outbound: file.network.outbound()?,
            port_domains: file.ports.domains()?,
            log: file.log,
            settings,
        })
    }

    /// Only the data directory: what a client command needs to find its server.
    pub(crate) fn data_dir_only(given: &Given) -> Result<PathBuf> {
        let file = match (&given.data_dir, &given.config) {
            (None, Some(path)) => read_file(path)?,
            _ => ConfigFile::default(),
        };
        data_dir_of(given, &file)
    }
}

fn read_file(path: &Path) -> Result<ConfigFile> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::new(format!("cannot read the configuration {}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(wrong(&format!("it has {size} bytes, at most {CONFIG_BYTES_MAX} are accepted")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    toml::from_str(&text)
        .map_err(|error| Failure::new(format!("the configuration {} is wrong: {}", path.display(), one_line(&error))))
}

/// The parser's error without its picture of the line: place and reason in one line.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let place = text.lines().next().unwrap_or_default().trim_start_matches("TOML parse error ").to_owned();
    let reason = error.message().replace('\n', " ");
    format!("{place}: {reason}")
}

fn data_dir_of(given: &Given, file: &ConfigFile) -> Result<PathBuf> {
    let chosen = given.data_dir.clone().or_else(|| file.data_dir.clone());
    let path = match chosen {
        Some(path) if path.as_os_str().is_empty() => return Err(Failure::usage("the data directory must not be empty")),
        Some(path) => path,
        None => default_data_dir()?,
    };
    std::path::absolute(&path).map_err(|error| Failure::new(format!("cannot use the data directory {}: {error}", path.display())))
}

/// `/var/lib/sandbank` for root, `$XDG_DATA_HOME/sandbank` or `~/.local/share/sandbank` for everybody else.
fn default_data_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/sandbank"));
    }
    let from_env = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    from_env("XDG_DATA_HOME")
        .or_else(|| from_env("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("sandbank"))
        .ok_or_else(|| Failure::new("neither XDG_DATA_HOME nor HOME says where data belongs: give --data-dir DIR"))
}

fn parse_listen(text: &str) -> Result<SocketAddr> {
    let refused = || {
        Failure::usage(format!("{text:?} is not an address to listen on: write IP:PORT, such as {LISTEN_DEFAULT} or [::1]:7070"))
    };
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().map_err(|_| refused()),
        None => text.parse().map_err(|_| refused()),
    }
}

/// Checks `<prefix>_<64 hex>` (design.md §2). `what` names the place where the key stands; the key itself is never shown.
pub(crate) fn check_admin_key(key: &str, what: &str) -> Result<()> {
    let well_formed = key.split_once('_').is_some_and(|(prefix, hex)| {
        let prefix_ok =
            !prefix.is_empty() && prefix.len() <= 32 && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        prefix_ok && hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    });
    if well_formed {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "{what} is not a key: a key is a prefix of lower-case letters, '_' and 64 lower-case hexadecimal digits; \
             make one with: echo agbx_$(openssl rand -hex 32)"
        )))
    }
}

/// `http://` or `https://`, a host, perhaps a path; without the slash at the end.
fn check_public_url(url: &str) -> Result<String> {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    if host.is_empty() || host.starts_with('/') || url.contains([' ', '?', '#', '\n']) {
        return Err(Failure::new(format!("public_url {url:?} is not an address: write it like https://sandbank.example")));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn check_cluster(cluster: &Cluster) -> Result<()> {
    let id = &cluster.id;
    let plain = !id.is_empty() && id.len() <= 63 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain {
        Ok(())
    } else {
        Err(Failure::new(format!("cluster.id {id:?} is not usable: 1 to 63 lower-case letters, digits and '-'")))
    }
}

fn settings_of(file: &ConfigFile) -> Result<Settings> {
    let image =
        |what: &str, name: &str| -> Result<ImageName> { name.parse().map_err(|error| Failure::new(format!("{what}: {error}"))) };
    let mut image_aliases: BTreeMap<String, String> =
        HOST_ALIASES.iter().map(|name| ((*name).to_owned(), "host".to_owned())).collect();
    for (name, target) in &file.image_aliases {
        image("image_aliases", name)?;
        image("image_aliases", target)?;
        image_aliases.insert(name.clone(), target.clone());
    }
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    Ok(Settings {
        image_aliases,
        default_driver: "linux".to_owned(),
        startup_timeout: duration("limits.startup_timeout", &file.limits.startup_timeout)?,
        create_concurrency: positive("limits.create_concurrency", file.limits.create_concurrency.unwrap_or(cores))?,
        waiting_claims_max: positive("limits.waiting_claims_max", file.limits.waiting_claims_max)?,
        retention: duration("limits.retention", &file.limits.retention)?,
        exec_output_max: positive("limits.exec_output_bytes_max", file.limits.exec_output_bytes_max)?,
        default_quota: QuotaLimits {
            sandboxes: file.default_quota.sandboxes,
            cpu_millis: file.default_quota.cpu_millis,
            memory_bytes: file.default_quota.memory_mib.map(|mib| mib.saturating_mul(1024 * 1024)),
        },
        default_image: image("default_image", file.default_image.as_deref().unwrap_or("host"))?,
        pulls: file.images.settings()?,
        // Known once the data directory is open.
        scratch_dir: PathBuf::new(),
        builds: builds_of(&file.builds)?,
        network: file.network.settings()?,
    })
}

fn builds_of(builds: &Builds) -> Result<BuildSettings> {
    let bytes = |mib: u64| mib.saturating_mul(1024 * 1024);
    Ok(BuildSettings {
        concurrency: positive("builds.concurrency", builds.concurrency)?,
        time: duration("builds.time", &builds.time)?,
        time_max: duration("builds.time_max", &builds.time_max)?,
        layer_bytes_max: bytes(builds.layers_mib_max),
        context_bytes_max: bytes(builds.context_mib_max),
        cache_bytes_max: bytes(builds.cache_mib_max),
        ..BuildSettings::default()
    })
}

fn positive(what: &str, value: usize) -> Result<usize> {
    if value == 0 { Err(Failure::new(format!("{what} must be at least 1"))) } else { Ok(value) }
}

/// A duration such as `90s`, `2m` or `1h30m`; more than nothing.
pub(crate) fn duration(what: &str, text: &str) -> Result<Duration> {
    match sandbank_http::parse_go_duration(text) {
        Ok(duration) if duration.is_zero() => Err(Failure::new(format!("{what} must be more than nothing, not {text:?}"))),
        Ok(duration) => Ok(duration),
        Err(error) => Err(Failure::new(format!("{what}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sandbank.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&Given { config: Some(path), data_dir: Some(dir.path().to_owned()), ..Given::default() })
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        match load(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.listen.to_string(), LISTEN_DEFAULT);
        assert_eq!(config.settings.startup_timeout, Duration::from_secs(120));
        assert_eq!(config.settings.image_aliases.get("blaxel/base-image:latest").map(String::as_str), Some("host"));
        assert_eq!(config.cluster, Cluster::default());
    }

    #[test]
    fn every_documented_key_is_understood() {
        let config = load(include_str!("../../../packaging/sandbank.toml")).unwrap();
        assert_eq!(config.listen.to_string(), LISTEN_DEFAULT);
    }

    #[test]
    fn an_unknown_key_is_named() {
        refused("listn = \"127.0.0.1:1\"", "listn");
        refused("[limits]\nretention_days = 3", "retention_days");
        refused("[log]\nformat = \"xml\"", "xml");
    }

    #[test]
    fn wrong_values_are_refused_with_the_field() {
        refused("listen = \"nowhere\"", "nowhere");
        refused("admin_key = \"secret\"", "is not a key");
        refused("[limits]\nretention = \"-1h\"", "limits.retention");
        refused("[limits]\nstartup_timeout = \"soon\"", "limits.startup_timeout");
        refused("[limits]\nwaiting_claims_max = 0", "limits.waiting_claims_max");
        refused("[linux]\ndisk_watch_period = \"0s\"", "linux.disk_watch_period");
        refused("[ports]\ndomain = \"a b\"", "ports.domain");
        refused("[ports]\ndomain = [\"10.0.0.1\"]", "ports.domain");
        refused("public_url = \"sandbank.example\"", "public_url");
        refused("[cluster]\nid = \"A B\"", "cluster.id");
        refused("[image_aliases]\n\"../x\" = \"host\"", "image_aliases");
    }

    #[test]
    fn a_refused_admin_key_is_not_repeated() {
        let error = load("admin_key = \"hunter2hunter2\"").err().expect("refused");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn aliases_of_the_file_come_over_the_defaults() {
        let config = load("[image_aliases]\nbase = \"debian-12\"").unwrap();
        assert_eq!(config.settings.image_aliases.get("base").map(String::as_str), Some("debian-12"));
        assert_eq!(config.settings.image_aliases.get("e2bdev/base").map(String::as_str), Some("host"));
    }

    #[test]
    fn what_is_given_comes_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\ndata_dir = \"/nowhere\"").unwrap();
        let given = Given {
            config: Some(path),
            data_dir: Some(dir.path().to_owned()),
            listen: Some("[::1]:2".to_owned()),
            admin_key: Some(format!("agbx_{}", "a".repeat(64))),
        };
        let config = Config::load(&given).unwrap();
        assert_eq!(config.data_dir, dir.path());
        assert_eq!(config.listen.to_string(), "[::1]:2");
        assert!(config.admin_key.is_some());
    }
}
