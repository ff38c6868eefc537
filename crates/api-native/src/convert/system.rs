//! Images, events, quotas, statistics, tenants.

use std::collections::BTreeMap;

use sandbank_control::{OwnerView, QuotaView, SandboxStatistics};
use sandbank_http::{format_binary_bytes, format_millis, format_time, parse_quantity_bytes, parse_quantity_millis};
use sandbank_model::{
    Event, EventKind, ExpiryCause, Image, ImageConfig, ImageSource, Layer, PoolId, QuotaLimits, StopCause, Tenant, Usage,
};

use super::{network_wire, status_of_state};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// An image.
pub(crate) fn image_wire(image: &Image) -> wire::ImageInfo {
    let Image { name, tenant, layers, on_host: _, config, source, created_at } = image;
    let ImageConfig { env, entrypoint, command, user, workdir, exposed_ports, labels, stop_signal } = config;
    wire::ImageInfo {
        name: name.to_string(),
        global: tenant.is_none(),
        source: match source {
            ImageSource::Host => "host",
            ImageSource::Imported => "imported",
            ImageSource::Pulled { .. } => "pulled",
            ImageSource::Loaded { .. } => "loaded",
            ImageSource::Committed { .. } => "committed",
        }
        .to_owned(),
        layers: layers.len(),
        size_bytes: layers.iter().map(|Layer { id: _, size_bytes }| size_bytes).sum(),
        created_at: format_time(*created_at),
        env: env.clone(),
        entrypoint: entrypoint.clone(),
        command: command.clone(),
        user: user.clone(),
        workdir: workdir.clone(),
        exposed_ports: exposed_ports.iter().map(ToString::to_string).collect(),
        labels: labels.clone(),
        stop_signal: stop_signal.clone(),
    }
}

/// An event; `pools` names those that exist.
pub(crate) fn event_wire(event: Event, pools: &BTreeMap<PoolId, String>) -> wire::EventItem {
    let Event { seq, at, tenant: _, sandbox, pool, kind, actor } = event;
    wire::EventItem {
        seq: seq.0,
        at: format_time(at),
        kind: kind.as_str().to_owned(),
        sandbox_id: sandbox.map(|id| id.to_string()),
        pool_name: pool.and_then(|id| pools.get(&id).cloned()),
        actor: actor.name,
        request_id: actor.request_id,
        detail: event_detail(&kind),
    }
}

fn event_detail(kind: &EventKind) -> Option<String> {
    let cause = |cause: &ExpiryCause| match cause {
        ExpiryCause::Deadline => "timeout",
        ExpiryCause::Idle => "idle timeout",
    };
    Some(match kind {
        EventKind::Expired(by) => cause(by).to_owned(),
        EventKind::Stopping(StopCause::Expired(by)) => cause(by).to_owned(),
        EventKind::Stopping(StopCause::Released) => "released".to_owned(),
        EventKind::Stopping(StopCause::ScaledDown) => "scaled down".to_owned(),
        EventKind::Stopping(StopCause::Outdated) => "outdated".to_owned(),
        EventKind::Stopping(StopCause::Failed) => "failed".to_owned(),
        EventKind::Failed(reason) => reason.as_str().to_owned(),
        EventKind::CommandExited(code) => format!("exit code {code}"),
        EventKind::Committed(image) => format!("image {image}"),
        EventKind::Snapshotted(snapshot) => format!("snapshot {snapshot}"),
        EventKind::Forked(count) => format!("{count} forks"),
        EventKind::NetworkDenied { destinations, count } => denied_detail(destinations, *count),
        EventKind::PoolScaled(from, to) => format!("replicas {from} to {to}"),
        EventKind::Created
        | EventKind::Ready
        | EventKind::Claimed
        | EventKind::Pausing
        | EventKind::Paused
        | EventKind::Resuming
        | EventKind::Resumed
        | EventKind::Renewed
        | EventKind::PortAccessChanged
        | EventKind::PortTokensRevoked
        | EventKind::Terminated
        | EventKind::OutOfMemory
        | EventKind::NetworkChanged
        | EventKind::PoolCreated
        | EventKind::PoolUpdated
        | EventKind::PoolDeleted => return None,
    })
}

fn denied_detail(destinations: &[String], count: u64) -> String {
    let more = if count > destinations.len() as u64 { ", ..." } else { "" };
    format!("{count} refused: {}{more}", destinations.join(", "))
}

/// A tenant's quota.
pub(crate) fn quota_wire(view: QuotaView) -> wire::Quota {
    let QuotaView { owner: OwnerView { name, team, user }, limits, used } = view;
    let QuotaLimits { sandboxes, cpu_millis, memory_bytes } = limits;
    let Usage { sandboxes: used_sandboxes, cpu_millis: used_cpu, memory_bytes: used_memory } = used;
    let left = |limit: Option<u64>, used: u64| limit.map(|limit| limit.saturating_sub(used));
    wire::Quota {
        quota_url: format!("sandbank://quotas/{name}"),
        queue: name.clone(),
        label: format!("{team}/{user}"),
        name,
        team,
        user,
        resources: amounts(sandboxes, cpu_millis, memory_bytes),
        used: amounts(Some(used_sandboxes), Some(used_cpu), Some(used_memory)),
        reserved: BTreeMap::new(),
        free: amounts(left(sandboxes, used_sandboxes), left(cpu_millis, used_cpu), left(memory_bytes, used_memory)),
    }
}

fn amounts(sandboxes: Option<u64>, cpu: Option<u64>, memory: Option<u64>) -> BTreeMap<String, String> {
    let rows = [
        ("sandboxes", sandboxes.map(|count| count.to_string())),
        ("cpu", cpu.map(format_millis)),
        ("memory", memory.map(format_binary_bytes)),
    ];
    rows.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Limits that an admin sets.
pub(crate) fn limits_model(wire: wire::QuotaWire) -> ApiResult<QuotaLimits> {
    let wire::QuotaWire { sandboxes, cpu, memory } = wire;
    let refused = |field: &str, error: sandbank_http::InvalidQuantity| ApiError::bad_request(format!("{field}: {error}"));
    if let Some(count) = sandboxes.filter(|count| *count > i64::MAX as u64) {
        return Err(ApiError::bad_request(format!("sandboxes is {count}: at most {} are taken", i64::MAX)));
    }
    Ok(QuotaLimits {
        sandboxes,
        cpu_millis: cpu.map(|text| parse_quantity_millis(&text).map_err(|error| refused("cpu", error))).transpose()?,
        memory_bytes: memory.map(|text| parse_quantity_bytes(&text).map_err(|error| refused("memory", error))).transpose()?,
    })
}

/// A tenant.
pub(crate) fn tenant_wire(tenant: Tenant) -> wire::TenantItem {
    let Tenant { id: _, name, team, user, quota, network, created_at } = tenant;
    let QuotaLimits { sandboxes, cpu_millis, memory_bytes } = quota;
    wire::TenantItem {
        name,
        team,
        user,
        created_at: format_time(created_at),
        network: network.as_ref().map(|policy| network_wire(policy)),
        quota: wire::QuotaWire { sandboxes, cpu: cpu_millis.map(format_millis), memory: memory_bytes.map(format_binary_bytes) },
    }
}

/// Counts of sandboxes.
pub(crate) fn statistics_wire(statistics: SandboxStatistics) -> wire::SandboxStatistics {
    let SandboxStatistics { tenant, by_state, by_tenant } = statistics;
    let mut by_status = BTreeMap::new();
    for (state, count) in &by_state {
        *by_status.entry(status_of_state(*state)).or_insert(0) += count;
    }
    wire::SandboxStatistics {
        by_namespace: tenant.is_none().then_some(by_tenant),
        namespace: tenant,
        total: by_state.values().sum(),
        by_status,
    }
}
