//! Sandboxes.

use std::collections::BTreeMap;

use sandbank_agent_protocol::Metrics;
use sandbank_control::{
    Claim, CreateSandbox, CreateSource, LogLine, Logs, OwnerView, Readiness, SandboxQuery, SandboxView, WhenEmpty,
};
use sandbank_http::{Gateway, format_binary_bytes, format_millis, format_time};
use sandbank_model::{ExpiryCause, LeaseChange, PoolName, Sandbox, SandboxSpec, State, StopCause, Timestamp};

use super::{
    CONTAINER, LeaseFields, ResourceTexts, SpecFields, expiry_action, image_name, port_access_wire, positive, pull_secret,
    timeout,
};
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_pool;
use crate::wire;

/// What a create request asks for.
pub(crate) enum Wanted {
    /// A warm one of a pool, named perhaps with its cluster.
    Claim(Box<Claim>, Option<String>),
    /// One made on demand.
    Create(Box<CreateSandbox>),
}

/// Takes a create request apart.
pub(crate) fn wanted(request: wire::CreateSandboxRequest, cluster_id: &str) -> ApiResult<Wanted> {
    let wire::CreateSandboxRequest {
        pool_name,
        image,
        container_images,
        image_pull_secret,
        template_name,
        snapshot,
        labels,
        annotations,
        metadata,
        startup_timeout,
        idle_timeout,
        timeout,
        on_expiry,
        when_empty,
        env,
        cpu,
        memory,
        disk,
        pids,
        user,
        workdir,
        command,
    } = request;
    let startup_timeout = startup_timeout.map(|text| positive("startupTimeout", &text)).transpose()?;
    let lease = LeaseFields { timeout, idle_timeout, on_expiry, metadata, labels, annotations, env }.request()?;
    let image = chosen_image(image, container_images)?;
    let image_credentials = image_pull_secret.map(pull_secret).transpose()?.flatten();
    let fields = SpecFields { texts: ResourceTexts { cpu, memory, disk, pids }, user, workdir, command };
    let given = fields.given();
    let changes = fields.change()?;
    let Some(pool) = pool_name.filter(|name| !name.is_empty()) else {
        let source = create_source(image, template_name, snapshot)?;
        return Ok(Wanted::Create(Box::new(CreateSandbox { source, changes, lease, driver: None, image_credentials })));
    };
    if template_name.is_some() {
        return Err(ApiError::bad_request("poolName and templateName exclude each other: a pool has its template"));
    }
    if snapshot.is_some() {
        let hint = "make a pool whose image is the snapshot, or leave poolName out";
        return Err(ApiError::bad_request(format!("poolName and snapshot exclude each other: {hint}")));
    }
    if let Some(field) = given {
        // A warm sandbox is what its pool made it: nothing of it can be changed by a claim.
        return Err(ApiError::bad_request(format!(
            "{field} cannot be given with poolName: set it in the pool, or leave poolName out"
        )));
    }
    let named = parse_pool(&pool, cluster_id)?;
    let when_empty = match when_empty {
        None | Some(wire::WhenEmptyWire::Wait) => WhenEmpty::Wait(startup_timeout),
        Some(wire::WhenEmptyWire::Refuse) => WhenEmpty::Refuse,
        Some(wire::WhenEmptyWire::Create) => WhenEmpty::Create,
    };
    let image = image.map(|image| image_name("image", &image)).transpose()?;
    Ok(Wanted::Claim(Box::new(Claim { pool: named.value, image, image_credentials, when_empty, lease }), named.cluster))
}

fn chosen_image(image: Option<String>, by_container: Option<wire::TextMap>) -> ApiResult<Option<String>> {
    let by_container = by_container.unwrap_or_default();
    if by_container.len() > 1 {
        return Err(ApiError::bad_request("containerImages has more than one entry: a sandbox has one container"));
    }
    Ok(by_container.into_values().next().or(image).filter(|image| !image.is_empty()))
}

fn create_source(image: Option<String>, template: Option<String>, snapshot: Option<String>) -> ApiResult<CreateSource> {
    match (image, template, snapshot) {
        (Some(image), None, None) => Ok(CreateSource::Image(image_name("image", &image)?)),
        (None, Some(template), None) => {
            let name = PoolName::parse("template", &template)
                .map_err(|error| ApiError::bad_request(format!("templateName: {error}")))?;
            Ok(CreateSource::Template(name))
        }
        (None, None, Some(snapshot)) => Ok(CreateSource::Snapshot(snapshot)),
        (None, None, None) => {
            Err(ApiError::bad_request("poolName is required (or image, templateName or snapshot, for a sandbox without a pool)"))
        }
        _ => Err(ApiError::bad_request("image, templateName and snapshot exclude each other: give one of them")),
    }
}

/// A renewal.
pub(crate) fn renewal(request: wire::RenewRequest) -> ApiResult<LeaseChange> {
    let wire::RenewRequest { timeout: life, idle_timeout, on_expiry, only_extend } = request;
    if life.is_none() && idle_timeout.is_none() && on_expiry.is_none() {
        return Err(ApiError::bad_request("nothing to renew: give timeout, idleTimeout or onExpiry"));
    }
    Ok(LeaseChange {
        expires: life.map(|text| timeout("timeout", &text)).transpose()?,
        idle: idle_timeout.map(|text| timeout("idleTimeout", &text)).transpose()?,
        only_extend: only_extend.unwrap_or(false),
        on_expiry: on_expiry.map(expiry_action),
    })
}

/// Words of the filter `status`, each with the states that can show it.
pub(crate) struct StatusFilter {
    pub(crate) query: SandboxQuery,
    /// Statuses that the states alone do not tell apart; empty when they do.
    pub(crate) exact: Vec<wire::Status>,
}

/// What a list request asks for. `metadata` holds the `metadata.KEY` parameters.
pub(crate) fn status_filter(
    pool: Option<PoolName>,
    status: Option<&str>,
    metadata: Vec<(String, String)>,
    warm: bool,
) -> ApiResult<StatusFilter> {
    let mut states = Vec::new();
    let mut exact = Vec::new();
    let mut ambiguous = false;
    for word in status.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let (of_word, statuses) = states_of(word).ok_or_else(|| {
            ApiError::bad_request(format!(
                "query parameter status: {:?} is no status; use Pending, Starting, Idle, Running, Paused, Stopping, Failed, Completed, Canceled or Released",
                word.chars().take(80).collect::<String>()
            ))
        })?;
        ambiguous |= of_word.contains(&State::Terminated) && word != State::Terminated.as_str();
        states.extend_from_slice(of_word);
        exact.extend_from_slice(statuses);
    }
    states.sort_unstable();
    states.dedup();
    let warm = warm || states.contains(&State::Ready);
    let query = SandboxQuery { pool, states, metadata, warm, all_tenants: false };
    Ok(StatusFilter { query, exact: if ambiguous { exact } else { Vec::new() } })
}

fn states_of(word: &str) -> Option<(&'static [State], &'static [wire::Status])> {
    use wire::Status as S;
    Some(match word {
        "Pending" | "Starting" | "provisioning" => (&[State::Provisioning], &[S::Starting]),
        "Idle" | "ready" => (&[State::Ready], &[S::Idle]),
        "Running" | "running" => (&[State::Running], &[S::Running]),
        "Paused" => (&[State::Pausing, State::Paused, State::Resuming], &[S::Paused]),
        "pausing" => (&[State::Pausing], &[S::Paused]),
        "paused" => (&[State::Paused], &[S::Paused]),
        "resuming" => (&[State::Resuming], &[S::Paused]),
        "Stopping" | "stopping" => (&[State::Stopping], &[S::Stopping]),
        "Failed" => (&[State::Failed, State::Terminated], &[S::Failed]),
        "failed" => (&[State::Failed], &[S::Failed]),
        "Completed" => (&[State::Terminated], &[S::Completed]),
        "Canceled" => (&[State::Terminated], &[S::Canceled]),
        "Released" => (&[State::Terminated, State::Expired], &[S::Released]),
        "terminated" => (&[State::Terminated], &[S::Completed, S::Canceled, S::Released, S::Failed]),
        "expired" => (&[State::Expired], &[S::Released]),
        _ => return None,
    })
}

/// The contract's word for a sandbox's condition (native.md §7).
pub(crate) fn status_of(sandbox: &Sandbox) -> wire::Status {
    use wire::Status as S;
    match sandbox.state {
        State::Provisioning => S::Starting,
        State::Ready => S::Idle,
        State::Running => S::Running,
        State::Pausing | State::Paused | State::Resuming => S::Paused,
        State::Stopping => S::Stopping,
        State::Failed => S::Failed,
        State::Expired => S::Released,
        State::Terminated => match sandbox.stop_cause {
            Some(StopCause::Failed) => S::Failed,
            Some(StopCause::Expired(_)) => S::Released,
            Some(StopCause::Released | StopCause::ScaledDown | StopCause::Outdated) | None => {
                if sandbox.ready_at.is_none() {
                    S::Canceled
                } else {
                    S::Completed
                }
            }
        },
    }
}

/// The word for a state alone, in counts.
pub(crate) const fn status_of_state(state: State) -> wire::Status {
    use wire::Status as S;
    match state {
        State::Provisioning => S::Starting,
        State::Ready => S::Idle,
        State::Running => S::Running,
        State::Pausing | State::Paused | State::Resuming => S::Paused,
        State::Stopping => S::Stopping,
        State::Failed => S::Failed,
        State::Expired => S::Released,
        State::Terminated => S::Completed,
    }
}

/// What a view is shown with.
pub(crate) struct Shown<'a> {
    /// The cluster that the caller named.
    pub(crate) cluster: Option<&'a str>,
    /// Address of this server.
    pub(crate) base_url: &'a str,
    /// Knows the addresses of ports.
    pub(crate) gateway: &'a Gateway,
    /// Now.
    pub(crate) now: Timestamp,
}

/// The id as this caller spells it (native.md §4).
pub(crate) fn spelled_id(sandbox: &Sandbox, cluster: Option<&str>) -> String {
    match cluster {
        Some(cluster) => format!("{cluster}.{}", sandbox.id),
        None => sandbox.id.to_string(),
    }
}

/// `{pool}-{10 characters of the id}`: unique beside the pool's others.
pub(crate) fn pod_name(sandbox: &Sandbox) -> String {
    let id = sandbox.id.uuid().simple().to_string();
    let pool = sandbox.pool_name.as_ref().map_or("sandbox", PoolName::as_str);
    format!("{pool}-{}", &id[22..])
}

/// One sandbox.
pub(crate) fn sandbox_wire(view: &SandboxView, shown: &Shown<'_>) -> wire::Sandbox {
    let SandboxView { sandbox, owner } = view;
    let OwnerView { name, team, user } = owner;
    let Sandbox {
        id: _,
        tenant: _,
        pool: _,
        pool_name,
        template: _,
        spec,
        driver: _,
        handle: _,
        state,
        generation: _,
        lease,
        created_at,
        ready_at,
        paused_at,
        stopping_at: _,
        ended_at,
        last_activity_at,
        stop_cause,
        failure,
        exit,
        image: _,
    } = &**sandbox;
    let claimed_at = lease.as_ref().map(|lease| lease.claimed_at);
    let started_at = ready_at.map(|ready| claimed_at.map_or(ready, |claimed| claimed.max(ready)));
    let id = spelled_id(sandbox, shown.cluster);
    let deadline = lease.as_ref().filter(|_| state.lease_clock_runs()).and_then(|lease| lease.deadline(*last_activity_at));
    wire::Sandbox {
        endpoints: if *state == State::Running { endpoints(spec, &id, shown.base_url) } else { BTreeMap::new() },
        port_access: state.is_claimed().then(|| port_access_wire(sandbox, shown.gateway, shown.base_url)),
        sandbox_id: id,
        namespace: name.clone(),
        pool_name: pool_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        pod_name: pod_name(sandbox),
        status: status_of(sandbox),
        state: state.as_str().to_owned(),
        claimed_at: format_time(claimed_at.unwrap_or(*created_at)),
        started_at: started_at.map(format_time),
        container_images: BTreeMap::from([(CONTAINER.to_owned(), spec.image.to_string())]),
        image: spec.image.to_string(),
        metadata: lease.as_ref().map(|lease| lease.metadata.clone()).unwrap_or_default(),
        cpu: format_millis(u64::from(spec.resources.cpu_millis)),
        memory: format_binary_bytes(spec.resources.memory_bytes),
        expires_at: deadline.map(|(at, _)| format_time(at)),
        idle_timeout_seconds: lease.as_ref().and_then(|lease| lease.idle_timeout).map(|life| life.as_secs()),
        paused_at: paused_at.filter(|_| *state == State::Paused).map(format_time),
        terminated_at: ended_at.map(format_time),
        recycled_at: ended_at.filter(|_| *state == State::Terminated).map(format_time),
        duration_seconds: started_at.map(|start| ended_at.unwrap_or(shown.now).since(start).as_secs()),
        failure_reason: failure
            .as_ref()
            .map(|failure| failure.reason.as_str())
            .or(release_reason(*stop_cause))
            .map(str::to_owned),
        exit_code: exit.as_ref().map(|exit| exit.code),
        failure_message: failure.as_ref().map(|failure| failure.message.clone()),
        team: team.clone(),
        user: user.clone(),
    }
}

fn release_reason(cause: Option<StopCause>) -> Option<&'static str> {
    match cause? {
        StopCause::Expired(ExpiryCause::Idle) => Some("IdleTimeout"),
        StopCause::Expired(ExpiryCause::Deadline) => Some("Timeout"),
        StopCause::Released | StopCause::ScaledDown | StopCause::Outdated | StopCause::Failed => None,
    }
}

fn endpoints(spec: &SandboxSpec, id: &str, base_url: &str) -> BTreeMap<String, wire::Endpoint> {
    let named = spec.ports.iter().filter_map(|port| Some((port.name.clone()?, port.port)));
    named.map(|(name, port)| (name, wire::Endpoint { url: format!("{base_url}/sandboxes/{id}/{port}") })).collect()
}

/// A sandbox that was given back.
pub(crate) fn deleted_wire(view: &SandboxView, cluster: Option<&str>) -> wire::DeleteSandboxResult {
    let sandbox = &view.sandbox;
    wire::DeleteSandboxResult {
        sandbox_id: spelled_id(sandbox, cluster),
        namespace: view.owner.name.clone(),
        pool_name: sandbox.pool_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        pod_name: pod_name(sandbox),
        status: if sandbox.state == State::Terminated { "Terminated" } else { "Stopping" }.to_owned(),
    }
}

/// Log lines.
pub(crate) fn logs_wire(
    view: &SandboxView,
    logs: Logs,
    runtime: Option<String>,
    cluster: Option<&str>,
    now: Timestamp,
) -> wire::SandboxLogsResult {
    let Logs { lines, truncated, total_bytes, live } = logs;
    let source = match (&runtime, live) {
        (Some(_), _) => "runtime",
        (None, true) => "live",
        (None, false) => "cached",
    };
    wire::SandboxLogsResult {
        sandbox_id: spelled_id(&view.sandbox, cluster),
        namespace: view.owner.name.clone(),
        pod_name: pod_name(&view.sandbox),
        entries: lines.into_iter().map(log_entry).collect(),
        truncated,
        source: source.to_owned(),
        captured_at: format_time(now),
        total_bytes,
        runtime_name: runtime,
    }
}

fn log_entry(line: LogLine) -> wire::LogEntry {
    let LogLine { at, text, stderr: _ } = line;
    wire::LogEntry { timestamp: at.map(format_time), container: CONTAINER.to_owned(), log: text }
}

/// Readiness.
pub(crate) fn ready_wire(id: String, rows: Vec<Readiness>) -> wire::ReadyResult {
    let ready = rows.iter().all(|row| row.ready);
    let endpoints =
        rows.into_iter().map(|Readiness { name, ready, message }| (name, wire::EndpointReady { ready, message })).collect();
    wire::ReadyResult { sandbox_id: id, ready, endpoints }
}

/// Counters.
#[allow(clippy::cast_precision_loss, reason = "microseconds of CPU time stay exact for 285 years")]
pub(crate) fn metrics_wire(metrics: &Metrics) -> wire::SandboxMetrics {
    let Metrics {
        cpu_used_us,
        cpu_limit_millis,
        memory_used_bytes,
        memory_cache_bytes,
        memory_limit_bytes,
        disk_used_bytes,
        disk_limit_bytes,
        pids,
        pids_limit,
        oom_kills,
        agent_bytes: _,
    } = *metrics;
    wire::SandboxMetrics {
        cpu_used_seconds: cpu_used_us as f64 / 1e6,
        cpu_limit: f64::from(cpu_limit_millis) / 1e3,
        memory_used_bytes,
        memory_limit_bytes,
        memory_cache_bytes,
        disk_used_bytes,
        disk_limit_bytes,
        pids,
        pids_limit,
        oom_kills,
    }
}
