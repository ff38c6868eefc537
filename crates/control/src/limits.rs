//! Bounds on what requests carry.

use std::time::Duration;

use sandbank_model::{EnvMap, Resources, SandboxSpec, StringMap, TemplateSpec, Timeout, validate_label_key};

use crate::ports::check_public_ports;
use crate::types::LeaseRequest;
use crate::{Error, Result};

/// Most bytes of one map of labels, annotations or metadata, keys and values together.
const STRING_MAP_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one environment.
const ENV_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of one annotation map of a template: dialects keep whole documents there.
const ANNOTATIONS_BYTES_MAX: usize = 512 * 1024;
/// Most arguments and bytes of one command.
const ARGS_MAX: usize = 4096;
const ARGS_BYTES_MAX: usize = 512 * 1024;
/// Longest name of a user, path or host.
const TEXT_MAX: usize = 4096;
/// Most ports or runtimes in a spec.
const PORTS_MAX: usize = 256;

fn bytes_of(map: &StringMap) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn check_map(what: &str, map: &StringMap, max: usize) -> Result<()> {
    let bytes = bytes_of(map);
    if bytes > max {
        return Err(Error::invalid(format!("{what} holds {bytes} bytes; at most {max} are accepted")));
    }
    map.keys().try_for_each(|key| validate_label_key(key).map_err(|error| Error::invalid(format!("{what}: {error}"))))
}

/// Refuses labels or metadata that are too large or have keys that cannot be.
pub(crate) fn check_string_map(what: &str, map: &StringMap) -> Result<()> {
    check_map(what, map, STRING_MAP_BYTES_MAX)
}

/// Refuses annotations that are too large.
pub(crate) fn check_annotations(map: &StringMap) -> Result<()> {
    check_map("annotations", map, ANNOTATIONS_BYTES_MAX)
}

/// Refuses an environment that no process could be started with.
pub(crate) fn check_env(env: &EnvMap) -> Result<()> {
    let bytes = bytes_of(env);
    if bytes > ENV_BYTES_MAX {
        return Err(Error::invalid(format!("env holds {bytes} bytes; at most {ENV_BYTES_MAX} are accepted")));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let shown: String = name.chars().take(80).collect();
            return Err(Error::invalid(format!(
                "env {shown:?}: a name is not empty and has no '='; neither part has a NUL byte"
            )));
        }
    }
    Ok(())
}

/// Refuses a command that cannot be started.
pub(crate) fn check_argv(argv: &[String]) -> Result<()> {
    let bytes: usize = argv.iter().map(String::len).sum();
    if argv.len() > ARGS_MAX || bytes > ARGS_BYTES_MAX {
        return Err(Error::invalid(format!("a command has at most {ARGS_MAX} arguments and {ARGS_BYTES_MAX} bytes")));
    }
    if argv.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("a command's arguments cannot hold NUL bytes"));
    }
    Ok(())
}

fn check_text(what: &str, text: Option<&String>) -> Result<()> {
    match text {
        Some(text) if text.is_empty() || text.len() > TEXT_MAX || text.contains('\0') => {
            Err(Error::invalid(format!("{what} must have 1 to {TEXT_MAX} bytes without NUL")))
        }
        _ => Ok(()),
    }
}

fn check_resources(resources: &Resources) -> Result<()> {
    let (least, most) = (Resources::MIN, Resources::MAX);
    let rows = [
        ("cpu (millicores)", u64::from(resources.cpu_millis), u64::from(least.cpu_millis), u64::from(most.cpu_millis)),
        ("memory (bytes)", resources.memory_bytes, least.memory_bytes, most.memory_bytes),
        ("disk (bytes)", resources.disk_bytes, least.disk_bytes, most.disk_bytes),
        ("pids", u64::from(resources.pids), u64::from(least.pids), u64::from(most.pids)),
    ];
    for (what, value, least, most) in rows {
        if value < least || value > most {
            return Err(Error::invalid(format!("{what} is {value}; it must lie between {least} and {most}")));
        }
    }
    Ok(())
}

/// Refuses a spec that no driver could make.
pub(crate) fn check_spec(spec: &SandboxSpec) -> Result<()> {
    check_argv(&spec.command)?;
    check_env(&spec.env)?;
    check_resources(&spec.resources)?;
    check_text("user", spec.user.as_ref())?;
    check_text("workdir", spec.workdir.as_ref())?;
    if spec.ports.len() > PORTS_MAX || spec.ports.iter().any(|port| port.port == 0) {
        return Err(Error::invalid(format!("ports: at most {PORTS_MAX}, each from 1 to 65535")));
    }
    match &spec.hostname {
        Some(name)
            if name.is_empty()
                || name.len() > 63
                || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') =>
        {
            Err(Error::invalid("hostname must have 1 to 63 letters, digits, '-' and '.'"))
        }
        _ => Ok(()),
    }
}

/// Refuses a template that no pool could use.
pub(crate) fn check_template(spec: &TemplateSpec) -> Result<()> {
    check_spec(&spec.sandbox)?;
    check_string_map("labels", &spec.labels)?;
    check_annotations(&spec.annotations)?;
    check_duration("startupTimeout", spec.startup_timeout)?;
    check_duration("idleTimeout", spec.idle_timeout)?;
    if spec.runtimes.len() > PORTS_MAX {
        return Err(Error::invalid(format!("runtimes: at most {PORTS_MAX}")));
    }
    let mut names: Vec<&str> = spec.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::invalid(format!("runtime {:?} is named twice", pair[0]))),
        None => Ok(()),
    }
}

/// Refuses durations of zero or beyond [`Timeout::LONGEST`].
pub(crate) fn check_duration(what: &str, duration: Option<Duration>) -> Result<()> {
    match duration {
        Some(duration) if duration.is_zero() => Err(Error::invalid(format!("{what} must be greater than zero"))),
        Some(duration) if duration > Timeout::LONGEST => {
            let days = Timeout::LONGEST.as_secs() / 86_400;
            Err(Error::invalid(format!("{what} is longer than the {days} days that are accepted; turn it off instead")))
        }
        _ => Ok(()),
    }
}

/// Refuses lease requests that are too large or too long.
pub(crate) fn check_lease(request: &LeaseRequest) -> Result<()> {
    check_duration("timeout", request.timeout.and_then(Timeout::duration))?;
    check_duration("idleTimeout", request.idle_timeout.and_then(Timeout::duration))?;
    check_string_map("metadata", &request.metadata)?;
    check_string_map("labels", &request.labels)?;
    check_string_map("annotations", &request.annotations)?;
    check_public_ports(&request.public_ports)?;
    check_env(&request.env)
}
