//! The OCI image configuration to and from [`ImageConfig`].

use std::collections::BTreeMap;

use sandbank_model::ImageConfig;

use crate::manifest;
use crate::wire::{ConfigFile, History, ProcessConfig, RootFs};
use crate::{Digest, Error, Limits, Platform, Result};

/// Most entries of each list and map in a configuration.
const ENTRIES_MAX: usize = 4096;
/// Most bytes of one value: what one argument may have when a Linux process starts (`MAX_ARG_STRLEN`).
const VALUE_LEN_MAX: usize = 128 * 1024;

/// What a configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// What processes get.
    pub config: ImageConfig,
    /// What it runs on; parts that it does not say are empty.
    pub platform: Platform,
    /// When it was made, as it says (RFC 3339).
    pub created: Option<String>,
    /// Digests of its uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Reads a configuration file; `image` names the image in errors.
pub fn parse_config(json: &[u8], image: &str) -> Result<ImageDetails> {
    if json.len() > Limits::DOCUMENT_BYTES_MAX {
        let limit_bytes = Limits::DOCUMENT_BYTES_MAX as u64;
        return Err(Error::TooLarge { image: image.to_owned(), what: "its configuration".to_owned(), limit_bytes });
    }
    let malformed = |reason: String| manifest::malformed(image, "its configuration", reason);
    let file: ConfigFile = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
    let ConfigFile { created, architecture, os, variant, config, rootfs, history: _ } = file;
    if rootfs.diff_ids.len() > Limits::LAYERS_MAX {
        return Err(malformed(format!("{} layers, where {} are the most", rootfs.diff_ids.len(), Limits::LAYERS_MAX)));
    }
    let diff_ids = rootfs.diff_ids.iter().map(|text| text.parse().map_err(|error| malformed(format!("a layer's {error}"))));
    Ok(ImageDetails {
        config: process_config(config).map_err(malformed)?,
        platform: Platform { os, architecture, variant },
        created,
        diff_ids: diff_ids.collect::<Result<_>>()?,
    })
}

fn process_config(wire: ProcessConfig) -> std::result::Result<ImageConfig, String> {
    let ProcessConfig { user, exposed_ports, env, entrypoint, cmd, working_dir, labels, stop_signal } = wire;
    for (name, len) in [
        ("Env", env.len()),
        ("Entrypoint", entrypoint.len()),
        ("Cmd", cmd.len()),
        ("ExposedPorts", exposed_ports.len()),
        ("Labels", labels.len()),
    ] {
        if len > ENTRIES_MAX {
            return Err(format!("{name} has {len} entries, where {ENTRIES_MAX} are the most"));
        }
    }
    let values = env.iter().chain(&entrypoint).chain(&cmd).chain(labels.iter().flat_map(|(k, v)| [k, v]));
    for value in values.chain([&user, &working_dir, &stop_signal]) {
        if value.len() > VALUE_LEN_MAX {
            return Err(format!("a value has {} bytes, where {VALUE_LEN_MAX} are the most", value.len()));
        }
        if value.contains('\0') {
            return Err("a value holds a null character, which no process can be given".to_owned());
        }
    }
    let mut variables = BTreeMap::new();
    for entry in env {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => variables.insert(name.to_owned(), value.to_owned()),
            _ => return Err(format!("the Env entry {:?} is not NAME=value", entry.chars().take(80).collect::<String>())),
        };
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(ImageConfig {
        env: variables,
        entrypoint,
        command: cmd,
        user: some(user),
        workdir: some(working_dir),
        // Ports are told, not used: images are about whose build put an empty variable there ("/tcp"), and they run all the same.
        exposed_ports: exposed_ports.keys().filter_map(|port| port.parse().ok()).collect(),
        labels,
        stop_signal: some(stop_signal),
    })
}

/// Writes a configuration file.
#[must_use]
pub fn write_config(details: &ImageDetails) -> Vec<u8> {
    let ImageDetails { config, platform, created, diff_ids } = details;
    let ImageConfig { env, entrypoint, command, user, workdir, exposed_ports, labels, stop_signal } = config;
    let empty = || serde_json::Value::Object(serde_json::Map::new());
    let file = ConfigFile {
        created: created.clone(),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        config: ProcessConfig {
            user: user.clone().unwrap_or_default(),
            exposed_ports: exposed_ports.iter().map(|port| (port.to_string(), empty())).collect(),
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            entrypoint: entrypoint.clone(),
            cmd: command.clone(),
            working_dir: workdir.clone().unwrap_or_default(),
            labels: labels.clone(),
            stop_signal: stop_signal.clone().unwrap_or_default(),
        },
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: diff_ids.iter().map(Digest::to_string).collect() },
        history: diff_ids.iter().map(|_| History { created: created.clone(), created_by: "sandbank" }).collect(),
    };
    // Maps with text keys and no floating-point numbers: there is nothing in it that JSON cannot say.
    serde_json::to_vec(&file).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config_of(config: &str) -> Result<ImageConfig> {
        parse_config(format!(r#"{{"config":{config}}}"#).as_bytes(), "x").map(|details| details.config)
    }

    #[test]
    fn a_configuration_survives_the_way_out_and_back() {
        let details = ImageDetails {
            config: ImageConfig {
                env: [("PATH", "/bin"), ("A", "b=c"), ("E", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                entrypoint: vec!["/init".to_owned()],
                command: vec!["a".to_owned(), String::new()],
                user: Some("1000:100".to_owned()),
                workdir: Some("/work".to_owned()),
                exposed_ports: ["80", "53/udp"].map(|port| port.parse().unwrap()).into(),
                labels: [("k".to_owned(), "v".to_owned())].into(),
                stop_signal: Some("SIGQUIT".to_owned()),
            },
            platform: Platform::linux_arm64(),
            created: Some("2026-01-02T03:04:05Z".to_owned()),
            diff_ids: vec![Digest::of(b"a"), Digest::of(b"b")],
        };
        assert_eq!(parse_config(&write_config(&details), "x").unwrap(), details);
    }

    #[test]
    fn null_and_missing_are_nothing() {
        let nothing = ImageConfig::default();
        assert_eq!(parse_config(b"{}", "x").unwrap().config, nothing);
        assert_eq!(parse_config(br#"{"config":null,"rootfs":null,"history":null,"os":null}"#, "x").unwrap().config, nothing);
        let nulls =
            r#"{"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null,"ExposedPorts":null,"User":"","Volumes":{"/v":{}}}"#;
        assert_eq!(config_of(nulls).unwrap(), nothing);
        let ports = config_of(r#"{"ExposedPorts":{"80/tcp":{},"/tcp":{}}}"#).unwrap().exposed_ports;
        assert_eq!(ports, ["80".parse().unwrap()].into());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let many = format!(r#"{{"Cmd":[{}"x"]}}"#, r#""x","#.repeat(5000));
        let long = format!(r#"{{"User":"{}"}}"#, "u".repeat(200_000));
        for (config, says) in [
            (r#"{"Env":["=x"]}"#, "NAME=value"),
            (r#"{"Env":["x"]}"#, "NAME=value"),
            (r#"{"Cmd":["a\u0000b"]}"#, "null character"),
            (r#"{"Cmd":"sh"}"#, "expected"),
            (many.as_str(), "5001 entries"),
            (long.as_str(), "200000 bytes"),
        ] {
            let error = config_of(config).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(parse_config(br#"{"rootfs":{"diff_ids":["sha256:x"]}}"#, "x").is_err());
        assert!(parse_config(b"3", "x").is_err());
        let long = parse_config(format!(r#"{{"config":"{}"}}"#, "x".repeat(1 << 20)).as_bytes(), "x").unwrap_err().to_string();
        assert!(long.len() < 500, "what is quoted is kept short");
        assert!(matches!(parse_config(&vec![b' '; 5 << 20], "x"), Err(Error::TooLarge { .. })));
    }
}
