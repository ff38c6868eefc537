//! Pools.

use std::time::Duration;

use sandbank_control::{OwnerView, PoolChange, PoolRequest, PoolStatistics, PoolView, SyncPreview, TemplateSource};
use sandbank_http::{format_binary_bytes, format_go_duration, format_millis, format_time};
use sandbank_model::{
    Autoscaling, Counting, Overrides, Pool, PoolCounts, PoolName, PoolPhase, PoolPolicies, ScaleDownPolicy, ScaleUpMode,
    ScaleUpPolicy, Sizing, StringMap,
};
use serde_json::{Value, json};

use super::pod::to_yaml;
use super::{
    DOCS, IMAGE_POLICY, QUOTA_LABEL, ResourceTexts, SpecFields, expiry_action, expiry_wire, image_name, labels, network_model,
    network_wire, optional_text, plain_template, positive, shown_annotations, spec_document, template_name, template_spec,
    timeout,
};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// A pool to make.
pub(crate) fn pool_request(request: wire::CreatePoolRequest) -> ApiResult<PoolRequest> {
    let name = PoolName::parse("pool", &request.name).map_err(|error| ApiError::bad_request(error.to_string()))?;
    refuse_pull_secret(request.image_pull_secret.as_ref())?;
    let wire::CreatePoolRequest {
        name: _,
        template_name: top_template,
        image,
        replicas,
        min_replicas,
        max_replicas,
        replica_mode,
        labels: label_map,
        annotations: annotation_map,
        spec,
        quota_url,
        overrides,
        network,
        image_pull_secret: _,
        timeout: life,
        on_expiry,
        cpu,
        memory,
        disk,
        pids,
        env,
        user,
        workdir,
        command,
    } = request;
    let mut spec = spec.unwrap_or_default();
    spec.template_name = top_template.or(spec.template_name).filter(|name| !name.is_empty());
    let fields = SpecFields { texts: ResourceTexts { cpu, memory, disk, pids }, user, workdir, command };
    let inline = InlineFields { fields, env };
    let min = min_replicas.or(spec.min_replicas);
    let sizing = Sizing {
        replicas: replicas.or(spec.replicas).or(min).unwrap_or(1),
        min,
        max: max_replicas.or(spec.max_replicas),
        counting: counting(replica_mode.unwrap_or_default()),
    };
    let autoscaling = spec.autoscaling.take().map(autoscaling_model).transpose()?.unwrap_or_default();
    sizing.validate(&autoscaling).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let policies = PoolPolicies {
        startup_timeout: spec.default_startup_timeout.take().map(|text| positive("defaultStartupTimeout", &text)).transpose()?,
        idle_timeout: optional_timeout("defaultIdleTimeout", spec.default_idle_timeout.take())?,
        lease_life: optional_timeout("timeout", life)?,
        on_expiry: on_expiry.map(expiry_action).unwrap_or_default(),
        ..PoolPolicies::default()
    };
    let mut label_map = labels("labels", label_map)?;
    if let Some(url) = optional_text("quotaUrl", quota_url.filter(|url| !url.is_empty()), 1000)? {
        label_map.insert(QUOTA_LABEL.to_owned(), url);
    }
    let mut annotations = labels("annotations", annotation_map)?;
    if let Some(policy) = spec.pod_creation_image_policy.take() {
        annotations.insert(IMAGE_POLICY.to_owned(), policy_word(policy).to_owned());
    }
    Ok(PoolRequest {
        name,
        template: template_source(spec, image, inline)?,
        overrides: overrides_model(overrides.unwrap_or_default())?,
        network: network.map(network_model).transpose()?,
        sizing,
        autoscaling,
        policies,
        driver: None,
        labels: label_map,
        annotations,
        require_api_key: true,
    })
}

/// Template fields that stand beside `image`.
struct InlineFields {
    fields: SpecFields,
    env: Option<wire::TextMap>,
}

fn template_source(spec: wire::PoolSpecInput, image: Option<String>, inline: InlineFields) -> ApiResult<TemplateSource> {
    let image = image.filter(|image| !image.is_empty());
    let sources = usize::from(image.is_some()) + usize::from(spec.template_name.is_some()) + usize::from(spec.template.is_some());
    if sources > 1 {
        return Err(ApiError::bad_request("give only one of templateName, spec.template and image"));
    }
    let InlineFields { fields, env } = inline;
    if let Some(image) = image {
        let sandbox = fields.spec(image_name("image", &image)?, env)?;
        return Ok(TemplateSource::Inline(Box::new(plain_template(sandbox))));
    }
    if let Some(field) = fields.given().or(env.map(|_| "env")) {
        return Err(ApiError::bad_request(format!("{field} can only be given with image: put it into the template")));
    }
    let wire::PoolSpecInput { template_name: named, template, idle_image, runtimes, .. } = spec;
    match (named, template) {
        (Some(name), _) => Ok(TemplateSource::Named(template_name(&name)?)),
        (None, Some(template)) => {
            let own = wire::TemplateSpecWire { template: Some(template), idle_image, runtimes, ..Default::default() };
            let (_, _, spec) = template_spec(own, StringMap::new(), StringMap::new())?;
            Ok(TemplateSource::Inline(Box::new(spec)))
        }
        (None, None) => Err(ApiError::bad_request("either templateName or spec.template is required (or image)")),
    }
}

fn refuse_pull_secret(secret: Option<&wire::ImagePullSecret>) -> ApiResult<()> {
    match secret.map(|secret| secret.registries.len()) {
        None | Some(0) => Ok(()),
        Some(_) => Err(ApiError::bad_request(
            "imagePullSecret is not kept with pools: log in to the registry once (POST /v1/registries) and leave it out",
        )),
    }
}

fn optional_timeout(field: &str, text: Option<String>) -> ApiResult<Option<Duration>> {
    Ok(text.map(|text| timeout(field, &text)).transpose()?.and_then(|timeout| timeout.duration()))
}

const fn counting(mode: wire::ReplicaMode) -> Counting {
    match mode {
        wire::ReplicaMode::Total => Counting::Total,
        wire::ReplicaMode::Warm => Counting::Warm,
    }
}

fn overrides_model(overrides: wire::OverridesWire) -> ApiResult<Overrides> {
    let wire::OverridesWire { image, resource_multiplier } = overrides;
    if let Some(factor) = resource_multiplier
        && !(1..=1024).contains(&factor)
    {
        return Err(ApiError::bad_request(format!("overrides.resourceMultiplier is {factor}: it must lie between 1 and 1024")));
    }
    let image = image.filter(|image| !image.is_empty()).map(|image| image_name("overrides.image", &image)).transpose()?;
    Ok(Overrides { image, resource_multiplier, network: None })
}

fn autoscaling_model(wire: wire::AutoscalingWire) -> ApiResult<Autoscaling> {
    let wire::AutoscalingWire { enabled, scale_up_policy, scale_down_policy } = wire;
    let wire::ScaleUpWire { mode, cooldown_seconds, idle_threshold_seconds } = scale_up_policy.unwrap_or_default();
    let wire::ScaleDownWire { idle_timeout_seconds, stabilization_seconds, protection_window_seconds } =
        scale_down_policy.unwrap_or_default();
    let (up, down) = (ScaleUpPolicy::default(), ScaleDownPolicy::default());
    let pick = |field: &str, value: Option<u32>, default: Duration| match value {
        Some(value) if value > 31_536_000 => {
            Err(ApiError::bad_request(format!("autoscaling: {field} is {value}: at most 31536000 (a year)")))
        }
        Some(value) => Ok(Duration::from_secs(u64::from(value))),
        None => Ok(default),
    };
    Ok(Autoscaling {
        enabled: enabled.unwrap_or(false),
        scale_up: ScaleUpPolicy {
            mode: match mode {
                None | Some(wire::ScaleUpModeWire::Default) => ScaleUpMode::Default,
                Some(wire::ScaleUpModeWire::Conservative) => ScaleUpMode::Conservative,
                Some(wire::ScaleUpModeWire::Aggressive) => ScaleUpMode::Aggressive,
            },
            cooldown: pick("cooldownSeconds", cooldown_seconds, up.cooldown)?,
            idle_threshold: pick("idleThresholdSeconds", idle_threshold_seconds, up.idle_threshold)?,
        },
        scale_down: ScaleDownPolicy {
            idle_timeout: pick("idleTimeoutSeconds", idle_timeout_seconds, down.idle_timeout)?,
            stabilization: pick("stabilizationSeconds", stabilization_seconds, down.stabilization)?,
            protection_window: pick("protectionWindowSeconds", protection_window_seconds, down.protection_window)?,
        },
    })
}

/// A change of a pool.
pub(crate) fn pool_change(request: wire::UpdatePoolRequest) -> ApiResult<PoolChange> {
    let wire::UpdatePoolRequest {
        replicas,
        min_replicas,
        max_replicas,
        pod_creation_image_policy,
        overrides,
        autoscaling,
        network,
    } = request;
    let wire::OverridesWire { image, resource_multiplier } = overrides.unwrap_or_default();
    if resource_multiplier.is_some() {
        return Err(ApiError::bad_request("overrides.resourceMultiplier cannot be changed: make another pool"));
    }
    let mut annotations = StringMap::new();
    if let Some(policy) = pod_creation_image_policy {
        annotations.insert(IMAGE_POLICY.to_owned(), policy_word(policy).to_owned());
    }
    let image = image
        .map(|image| if image.is_empty() { Ok(None) } else { image_name("overrides.image", &image).map(Some) })
        .transpose()?;
    let nothing = replicas.is_none() && min_replicas.is_none() && max_replicas.is_none();
    if nothing && image.is_none() && autoscaling.is_none() && annotations.is_empty() && network.is_none() {
        return Err(ApiError::bad_request(
            "nothing to change: give at least one of replicas, minReplicas, maxReplicas, podCreationImagePolicy, overrides.image, autoscaling, network",
        ));
    }
    Ok(PoolChange {
        replicas,
        min: min_replicas.map(Some),
        max: max_replicas.map(Some),
        image,
        autoscaling: autoscaling.map(autoscaling_model).transpose()?,
        annotations,
        policies: None,
        network: network.map(network_model).transpose()?.map(Some),
    })
}

const fn policy_word(policy: wire::ImagePolicy) -> &'static str {
    match policy {
        wire::ImagePolicy::IdleImage => "IdleImage",
        wire::ImagePolicy::PoolDefaultImage => "PoolDefaultImage",
    }
}

/// A pool in a list.
pub(crate) fn pool_wire(view: &PoolView) -> wire::SandboxPool {
    let PoolView { pool, owner, counts, phase, last_error } = view;
    let OwnerView { name: namespace, team, user } = owner;
    let Pool {
        id: _,
        tenant: _,
        name,
        template,
        template_spec: _,
        overrides,
        sizing: _,
        autoscaling: _,
        policies: _,
        driver: _,
        labels,
        annotations,
        state: _,
        revision: _,
        generation: _,
        created_at,
        updated_at: _,
        scaled_at: _,
    } = pool;
    let sandbox = pool.sandbox_spec();
    wire::SandboxPool {
        name: name.to_string(),
        namespace: namespace.clone(),
        spec: pool_spec(pool),
        network: None,
        status: pool_status(counts, *phase, last_error.clone()),
        cpu: format_millis(u64::from(sandbox.resources.cpu_millis)),
        memory: format_binary_bytes(sandbox.resources.memory_bytes),
        image: sandbox.image.to_string(),
        team: team.clone(),
        user: user.clone(),
        template_version: template.as_ref().map(|template| template.version.to_string()),
        overrides: overrides_wire(overrides),
        labels: labels.clone(),
        annotations: shown_annotations(annotations).into_iter().filter(|(key, _)| key != IMAGE_POLICY && key != DOCS).collect(),
        spec_yaml: None,
        created_at: format_time(*created_at),
        pool_docs: None,
    }
}

fn overrides_wire(overrides: &Overrides) -> Option<wire::OverridesWire> {
    let Overrides { image, resource_multiplier, network: _ } = overrides;
    (image.is_some() || resource_multiplier.is_some()).then(|| wire::OverridesWire {
        image: image.as_ref().map(ToString::to_string),
        resource_multiplier: *resource_multiplier,
    })
}

fn pool_spec(pool: &Pool) -> wire::PoolSpec {
    let Sizing { replicas, min, max, counting } = pool.sizing;
    let PoolPolicies { startup_timeout, idle_timeout, lease_life, on_expiry, on_release: _ } = pool.policies;
    let policy = pool.annotations.get(IMAGE_POLICY).map(String::as_str);
    wire::PoolSpec {
        replicas,
        min_replicas: min,
        max_replicas: max,
        replica_mode: match counting {
            Counting::Total => wire::ReplicaMode::Total,
            Counting::Warm => wire::ReplicaMode::Warm,
        },
        template_name: pool.template.as_ref().map(|template| template.name.to_string()),
        autoscaling: autoscaling_wire(&pool.autoscaling),
        pod_creation_image_policy: match policy {
            Some("PoolDefaultImage") => wire::ImagePolicy::PoolDefaultImage,
            _ => wire::ImagePolicy::IdleImage,
        },
        default_startup_timeout: startup_timeout.map(format_go_duration),
        default_idle_timeout: idle_timeout.map(format_go_duration),
        default_timeout: lease_life.map(format_go_duration),
        on_expiry: expiry_wire(on_expiry),
    }
}

fn autoscaling_wire(autoscaling: &Autoscaling) -> wire::AutoscalingWire {
    let Autoscaling { enabled, scale_up, scale_down } = *autoscaling;
    let ScaleUpPolicy { mode, cooldown, idle_threshold } = scale_up;
    let ScaleDownPolicy { idle_timeout, stabilization, protection_window } = scale_down;
    let seconds = |duration: Duration| Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
    wire::AutoscalingWire {
        enabled: Some(enabled),
        scale_up_policy: Some(wire::ScaleUpWire {
            mode: Some(match mode {
                ScaleUpMode::Conservative => wire::ScaleUpModeWire::Conservative,
                ScaleUpMode::Default => wire::ScaleUpModeWire::Default,
                ScaleUpMode::Aggressive => wire::ScaleUpModeWire::Aggressive,
            }),
            cooldown_seconds: seconds(cooldown),
            idle_threshold_seconds: seconds(idle_threshold),
        }),
        scale_down_policy: Some(wire::ScaleDownWire {
            idle_timeout_seconds: seconds(idle_timeout),
            stabilization_seconds: seconds(stabilization),
            protection_window_seconds: seconds(protection_window),
        }),
    }
}

fn pool_status(counts: &PoolCounts, phase: PoolPhase, message: Option<String>) -> wire::PoolStatus {
    let PoolCounts { provisioning, ready, outdated: _, claimed, stopping, failed } = *counts;
    wire::PoolStatus {
        phase: match phase {
            PoolPhase::Pending => wire::Phase::Pending,
            PoolPhase::Ready => wire::Phase::Ready,
            PoolPhase::ScalingUp => wire::Phase::ScalingUp,
            PoolPhase::ScalingDown => wire::Phase::ScalingDown,
            PoolPhase::Degraded => wire::Phase::Degraded,
            PoolPhase::Terminating => wire::Phase::Terminating,
        },
        idle_replicas: ready,
        // A warm sandbox can be claimed, also an outdated one; one that breaks is `Failed` at once.
        unavailable_idle_replicas: 0,
        running_replicas: claimed,
        starting_replicas: provisioning,
        stopping_replicas: stopping,
        failed_replicas: failed,
        message,
    }
}

/// One pool, whole, without its documentation.
pub(crate) fn pool_full(view: &PoolView) -> wire::SandboxPool {
    let network = view.pool.overrides.network.as_ref().or(view.pool.template_spec.sandbox.network.as_ref());
    let network = network.map(|policy| network_wire(policy));
    wire::SandboxPool { network, spec_yaml: Some(spec_yaml(&view.pool)), ..pool_wire(view) }
}

/// The documentation of the pool's template with the reader's own values (native.md §8). `secret` is the reader's key.
pub(crate) fn pool_docs(pool: &Pool, cluster_id: &str, secret: Option<&str>) -> ApiResult<Option<String>> {
    let Some(docs) = pool.annotations.get(DOCS).or_else(|| pool.template_spec.annotations.get(DOCS)) else {
        return Ok(None);
    };
    let docs = docs.replace("${AGBX_POOL_NAME}", pool.name.as_str()).replace("${AGBX_CLUSTER_ID}", cluster_id);
    match (docs.contains("${AGBX_API_KEY}"), secret) {
        (false, _) => Ok(Some(docs)),
        (true, Some(secret)) => Ok(Some(docs.replace("${AGBX_API_KEY}", secret))),
        (true, None) => Err(ApiError::api_key_required(
            "API key required for this operation: the pool's documentation shows the reader's own key",
        )),
    }
}

fn spec_yaml(pool: &Pool) -> String {
    let mut value = serde_json::to_value(pool_spec(pool)).unwrap_or(Value::Null);
    let embedded = spec_document(&pool.template_spec, pool.template.as_ref().map(|template| template.version));
    for key in ["template", "idleImage", "runtimes"] {
        if let Some(part) = embedded.get(key) {
            value[key] = part.clone();
        }
    }
    if let Some(overrides) = overrides_wire(&pool.overrides) {
        value["overrides"] = json!(overrides);
    }
    to_yaml(&value)
}

/// A preview of a sync.
pub(crate) fn preview_wire(preview: &SyncPreview) -> wire::SyncPreview {
    let SyncPreview { pool, version } = preview;
    wire::SyncPreview { spec_yaml: spec_yaml(pool), version: version.to_string() }
}

/// Counts.
pub(crate) fn pool_statistics_wire(statistics: PoolStatistics) -> wire::PoolStatistics {
    let PoolStatistics { total, replicas, idle, running, failed, by_tenant } = statistics;
    wire::PoolStatistics {
        total,
        total_replicas: replicas,
        total_idle_replicas: idle,
        total_running_replicas: running,
        total_failed_replicas: failed,
        by_namespace: by_tenant,
    }
}
