//! Between the wire and the model. Records are taken apart field by field, so that a new field in the model breaks the build
//! here until somebody decides what this dialect does with it.

mod build;
mod fields;
mod file;
mod image;
mod key;
mod network;
mod pod;
mod pool;
mod port;
mod process;
mod pull;
mod registry;
mod sandbox;
mod snapshot;
mod system;
mod template;

pub(crate) use build::*;
pub(crate) use fields::*;
pub(crate) use file::*;
pub(crate) use image::*;
pub(crate) use key::*;
pub(crate) use network::*;
pub(crate) use pool::*;
pub(crate) use port::*;
pub(crate) use process::*;
pub(crate) use pull::*;
pub(crate) use registry::*;
pub(crate) use sandbox::*;
pub(crate) use snapshot::*;
pub(crate) use system::*;
pub(crate) use template::*;

use std::time::Duration;

use sandbank_http::{parse_go_duration, parse_quantity_bytes, parse_quantity_millis};
use sandbank_model::{ExpiryAction, ImageName, Resources, StringMap, Timeout, validate_label_key};

use crate::errors::{ApiError, ApiResult};
use crate::wire::{OnExpiry, PageQuery};

/// The name of a sandbox's only container.
pub(crate) const CONTAINER: &str = "sandbox";
/// Annotation with a template's documentation.
pub(crate) const DOCS: &str = "agentbox.navix.sh/docs";
/// Annotation with the pod template as it was written.
pub(crate) const POD_TEMPLATE: &str = "sandbank.dev/pod-template";
/// Annotation with a pool's `podCreationImagePolicy`.
pub(crate) const IMAGE_POLICY: &str = "agentbox.navix.sh/pod-creation-image-policy";
/// Label with a pool's quota address.
pub(crate) const QUOTA_LABEL: &str = "quota.scitix.ai/url";

const LIST_LIMIT_DEFAULT: u32 = 20;
const LIST_LIMIT_MAX: u32 = 1_000;
const MAP_ENTRIES_MAX: usize = 1_000;
const MAP_VALUE_MAX: usize = 256 * 1024;

/// Limit and offset of a list, checked (native.md §5).
pub(crate) fn page(query: PageQuery) -> ApiResult<(u32, u64)> {
    let PageQuery { limit, offset } = query;
    let limit = limit.unwrap_or(LIST_LIMIT_DEFAULT);
    if !(1..=LIST_LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "query parameter limit is {limit}: it must lie between 1 and {LIST_LIMIT_MAX}"
        )));
    }
    let offset = offset.unwrap_or(0);
    if offset > i64::MAX as u64 {
        return Err(ApiError::bad_request(format!("query parameter offset is {offset}: it must be at most {}", i64::MAX)));
    }
    Ok((limit, offset))
}

/// A piece of a list that is whole in memory.
pub(crate) fn cut<T>(items: Vec<T>, (limit, offset): (u32, u64)) -> (Vec<T>, u64) {
    let total = items.len() as u64;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    (items.into_iter().skip(skip).take(limit as usize).collect(), total)
}

/// A timeout: a Go duration, `0` is off.
pub(crate) fn timeout(field: &str, text: &str) -> ApiResult<Timeout> {
    let duration = duration(field, text)?;
    if duration.is_zero() { Ok(Timeout::Off) } else { Ok(Timeout::After(duration)) }
}

/// A timeout that cannot be off.
pub(crate) fn positive(field: &str, text: &str) -> ApiResult<Duration> {
    let duration = duration(field, text)?;
    if duration.is_zero() { Err(ApiError::bad_request(format!("{field} must be above 0"))) } else { Ok(duration) }
}

fn duration(field: &str, text: &str) -> ApiResult<Duration> {
    let duration = parse_go_duration(text).map_err(|error| ApiError::bad_request(format!("{field}: {error}")))?;
    if !duration.is_zero() && duration < Duration::from_millis(1) {
        return Err(ApiError::bad_request(format!(
            "{field}: {text:?} is too short: the shortest timeout is 1ms, \"0\" turns it off"
        )));
    }
    if duration > Timeout::LONGEST {
        let hours = Timeout::LONGEST.as_secs() / 3600;
        return Err(ApiError::bad_request(format!("{field}: {text:?} is too long: the longest timeout is {hours}h")));
    }
    Ok(duration)
}

/// Seconds of a request, bounded.
pub(crate) fn seconds(field: &str, value: u32, max: u32) -> ApiResult<Duration> {
    if (1..=max).contains(&value) {
        Ok(Duration::from_secs(u64::from(value)))
    } else {
        Err(ApiError::bad_request(format!("{field} is {value}: it must lie between 1 and {max}")))
    }
}

/// An image's name.
pub(crate) fn image_name(field: &str, text: &str) -> ApiResult<ImageName> {
    text.parse().map_err(|error: sandbank_model::InvalidName| ApiError::bad_request(format!("{field}: {error}")))
}

/// Labels, annotations, metadata: keys checked, sizes bounded.
pub(crate) fn labels(field: &str, map: Option<StringMap>) -> ApiResult<StringMap> {
    let map = map.unwrap_or_default();
    bounded(field, &map)?;
    for key in map.keys() {
        validate_label_key(key).map_err(|error| ApiError::bad_request(format!("{field}: {error}")))?;
    }
    Ok(map)
}

/// Environment: names without `=` and NUL, values without NUL.
pub(crate) fn environment(field: &str, map: Option<StringMap>) -> ApiResult<StringMap> {
    let map = map.unwrap_or_default();
    bounded(field, &map)?;
    for (key, value) in &map {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(ApiError::bad_request(format!(
                "{field}: {:?} is not a variable: a name is not empty and has no '=', neither name nor value has NUL",
                key.chars().take(80).collect::<String>()
            )));
        }
    }
    Ok(map)
}

fn bounded(field: &str, map: &StringMap) -> ApiResult<()> {
    if map.len() > MAP_ENTRIES_MAX {
        return Err(ApiError::bad_request(format!("{field} has {} entries: at most {MAP_ENTRIES_MAX} are taken", map.len())));
    }
    match map.iter().find(|(_, value)| value.len() > MAP_VALUE_MAX) {
        Some((key, _)) => {
            Err(ApiError::bad_request(format!("{field}: the value of {key:?} is longer than {MAP_VALUE_MAX} bytes")))
        }
        None => Ok(()),
    }
}

/// A text without NUL of at most `max` bytes.
pub(crate) fn text(field: &str, text: String, max: usize) -> ApiResult<String> {
    if text.contains('\0') {
        return Err(ApiError::bad_request(format!("{field} contains NUL")));
    }
    if text.len() > max {
        return Err(ApiError::bad_request(format!("{field} has {} bytes: at most {max} are taken", text.len())));
    }
    Ok(text)
}

/// An optional text that, when given, is not empty.
pub(crate) fn optional_text(field: &str, value: Option<String>, max: usize) -> ApiResult<Option<String>> {
    match value {
        Some(given) if given.is_empty() => Err(ApiError::bad_request(format!("{field} is empty: leave it out instead"))),
        Some(given) => text(field, given, max).map(Some),
        None => Ok(None),
    }
}

/// Program and arguments.
pub(crate) fn argv(field: &str, argv: Vec<String>) -> ApiResult<Vec<String>> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(ApiError::bad_request(format!("{field} is empty: give at least a program")));
    }
    let bytes: usize = argv.iter().map(String::len).sum();
    if argv.len() > 10_000 || bytes > MAP_VALUE_MAX {
        return Err(ApiError::bad_request(format!("{field} is longer than 10000 arguments or {MAP_VALUE_MAX} bytes")));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(ApiError::bad_request(format!("{field} contains NUL")));
    }
    Ok(argv)
}

/// Limits as a request spells them.
#[derive(Debug, Default, Clone)]
pub(crate) struct ResourceTexts {
    pub(crate) cpu: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) disk: Option<String>,
    pub(crate) pids: Option<u32>,
}

/// Limits as a request gives them, checked against what a sandbox can have.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ResourceValues {
    pub(crate) cpu_millis: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) pids: Option<u32>,
}

impl ResourceTexts {
    pub(crate) fn parse(&self) -> ApiResult<ResourceValues> {
        let (min, max) = (Resources::MIN, Resources::MAX);
        let quantity = |field: &str, text: &Option<String>, parse: Parse, min: u64, max: u64| -> ApiResult<Option<u64>> {
            let Some(text) = text else {
                return Ok(None);
            };
            let value = parse(text).map_err(|error| ApiError::bad_request(format!("{field}: {error}")))?;
            in_range(field, text, value, min, max).map(Some)
        };
        let cpu = quantity("cpu", &self.cpu, parse_quantity_millis, u64::from(min.cpu_millis), u64::from(max.cpu_millis))?;
        let pids =
            self.pids.map(|pids| in_range("pids", &pids.to_string(), u64::from(pids), u64::from(min.pids), u64::from(max.pids)));
        Ok(ResourceValues {
            cpu_millis: cpu.and_then(|millis| u32::try_from(millis).ok()),
            memory_bytes: quantity("memory", &self.memory, parse_quantity_bytes, min.memory_bytes, max.memory_bytes)?,
            disk_bytes: quantity("disk", &self.disk, parse_quantity_bytes, min.disk_bytes, max.disk_bytes)?,
            pids: pids.transpose()?.and_then(|pids| u32::try_from(pids).ok()),
        })
    }
}

type Parse = fn(&str) -> Result<u64, sandbank_http::InvalidQuantity>;

fn in_range(field: &str, text: &str, value: u64, min: u64, max: u64) -> ApiResult<u64> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        let unit = if field == "cpu" { "thousandths of a core" } else { "" };
        Err(ApiError::bad_request(format!("{field}: {text} is out of range: from {min} to {max} {unit}").trim_end().to_owned()))
    }
}

impl ResourceValues {
    pub(crate) fn over(self, base: Resources) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis.unwrap_or(base.cpu_millis),
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            disk_bytes: self.disk_bytes.unwrap_or(base.disk_bytes),
            pids: self.pids.unwrap_or(base.pids),
        }
    }
}

pub(crate) const fn expiry_action(wire: OnExpiry) -> ExpiryAction {
    match wire {
        OnExpiry::Kill => ExpiryAction::Kill,
        OnExpiry::Pause => ExpiryAction::Pause,
        OnExpiry::Keep => ExpiryAction::Keep,
    }
}

pub(crate) const fn expiry_wire(action: ExpiryAction) -> OnExpiry {
    match action {
        ExpiryAction::Kill => OnExpiry::Kill,
        ExpiryAction::Pause => OnExpiry::Pause,
        ExpiryAction::Keep => OnExpiry::Keep,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn timeouts_of_zero_are_off_and_negative_or_endless_ones_refused() {
        assert_eq!(timeout("t", "0").unwrap(), Timeout::Off);
        assert_eq!(timeout("t", "30m").unwrap(), Timeout::After(Duration::from_secs(1800)));
        for bad in ["-1s", "200000h", "1ns", "soon", "", "5"] {
            let error = timeout("idleTimeout", bad).unwrap_err();
            assert!(error.text().starts_with("idleTimeout"), "{bad}: {}", error.text());
        }
        assert!(positive("t", "0").is_err());
    }

    #[test]
    fn pages_out_of_range_are_refused_by_name() {
        assert_eq!(page(PageQuery::default()).unwrap(), (20, 0));
        assert_eq!(page(PageQuery { limit: Some(1000), offset: Some(5) }).unwrap(), (1000, 5));
        for limit in [0, 1001] {
            assert!(page(PageQuery { limit: Some(limit), offset: None }).unwrap_err().text().contains("limit"));
        }
        assert_eq!(cut(vec![1, 2, 3], (2, 2)), (vec![3], 3));
        assert_eq!(cut(vec![1, 2, 3], (2, u64::MAX)), (vec![], 3));
    }

    #[test]
    fn resources_out_of_range_are_refused_by_name() {
        let parse = |cpu: &str, memory: &str| {
            ResourceTexts { cpu: Some(cpu.to_owned()), memory: Some(memory.to_owned()), ..Default::default() }.parse()
        };
        let values = parse("500m", "1Gi").unwrap();
        assert_eq!((values.cpu_millis, values.memory_bytes), (Some(500), Some(1 << 30)));
        assert!(parse("1m", "1Gi").unwrap_err().text().starts_with("cpu"));
        assert!(parse("1", "1Ki").unwrap_err().text().starts_with("memory"));
        assert!(parse("1", "lots").unwrap_err().text().starts_with("memory"));
    }

    #[test]
    fn variables_and_labels_are_checked() {
        let map = |key: &str, value: &str| Some(StringMap::from([(key.to_owned(), value.to_owned())]));
        assert!(environment("env", map("A", "x=y")).is_ok());
        for (key, value) in [("", ""), ("A=B", ""), ("A\0", ""), ("A", "\0")] {
            assert!(environment("env", map(key, value)).is_err());
        }
        assert!(labels("labels", map("a b", "")).is_err());
        assert!(argv("command", vec![]).is_err());
        assert!(argv("command", vec!["a\0".to_owned()]).is_err());
    }
}
