//! Templates.

use sandbank_control::{NetworkRequest, TemplateRequest, TemplateView};
use sandbank_http::{format_binary_bytes, format_millis, format_time};
use sandbank_model::{
    PoolName, PortSpec, Probe, Runtime, SandboxSpec, SemVer, StringMap, Template, TemplateSpec, Visibility, VisibilityRule,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::pod::{PodParts, document, parse_document, pod_document, pod_parts, to_yaml, typed};
use super::{
    DOCS, POD_TEMPLATE, ResourceTexts, SpecFields, image_name, labels, network_model, network_wire, optional_text, text,
};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

const RUNTIMES_MAX: usize = 64;
const API_VERSION: &str = "agents.navix.sh/v1alpha1";

/// A template's name.
pub(crate) fn template_name(text: &str) -> ApiResult<PoolName> {
    PoolName::parse("template", text).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// What an admin wrote, under `name` where the path gives it.
pub(crate) fn admin_template(request: wire::UpsertTemplateRequest, path_name: Option<PoolName>) -> ApiResult<TemplateRequest> {
    let wire::UpsertTemplateRequest { name, spec, crd_yaml } = request;
    if let Some(crd) = crd_yaml.filter(|text| !text.trim().is_empty()) {
        return crd_template(&crd, path_name);
    }
    let name = resolve_name(name.as_deref(), path_name)?;
    let spec = spec.ok_or_else(|| ApiError::bad_request("either spec or crdYaml is required"))?;
    let (version, network, spec) = template_spec(spec, StringMap::new(), StringMap::new())?;
    Ok(TemplateRequest { name, version, spec, network, global: true, expected_generation: None })
}

fn resolve_name(given: Option<&str>, path_name: Option<PoolName>) -> ApiResult<PoolName> {
    match (given.filter(|name| !name.is_empty()), path_name) {
        (None, Some(name)) => Ok(name),
        (Some(given), None) => template_name(given),
        (Some(given), Some(name)) if given == name.as_str() => Ok(name),
        (Some(given), Some(name)) => {
            Err(ApiError::bad_request(format!("the body names template {given:?}, the path {name}: they must be the same")))
        }
        (None, None) => Err(ApiError::bad_request("name is required")),
    }
}

#[derive(Deserialize)]
struct Crd {
    kind: Option<String>,
    metadata: CrdMetadata,
    spec: wire::TemplateSpecWire,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CrdMetadata {
    name: Option<String>,
    resource_version: Option<Value>,
    #[serde(default)]
    labels: StringMap,
    #[serde(default)]
    annotations: StringMap,
}

fn crd_template(yaml: &str, path_name: Option<PoolName>) -> ApiResult<TemplateRequest> {
    let Crd { kind, metadata, spec } = typed("crdYaml", parse_document("crdYaml", yaml)?)?;
    if let Some(kind) = kind.filter(|kind| kind != "SandboxTemplate") {
        return Err(ApiError::bad_request(format!("crdYaml: kind is {kind:?}: it must be SandboxTemplate")));
    }
    let CrdMetadata { name, resource_version, labels, annotations } = metadata;
    let expected_generation = match resource_version {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(generation(text.parse().ok())?),
        Some(other) => Some(generation(other.as_u64())?),
    };
    let name = resolve_name(name.as_deref(), path_name)?;
    let (version, network, spec) = template_spec(spec, labels, annotations)?;
    Ok(TemplateRequest { name, version, spec, network, global: true, expected_generation })
}

fn generation(value: Option<u64>) -> ApiResult<u64> {
    value.ok_or_else(|| ApiError::bad_request("crdYaml: metadata.resourceVersion is not one that this server gave"))
}

/// A template's version, what its sandboxes may reach, and its content.
pub(crate) fn template_spec(
    spec: wire::TemplateSpecWire,
    label_map: StringMap,
    annotation_map: StringMap,
) -> ApiResult<(Option<SemVer>, Option<NetworkRequest>, TemplateSpec)> {
    let wire::TemplateSpecWire { version, description, idle_image, template, runtimes, visibility, network } = spec;
    let template =
        template.ok_or_else(|| ApiError::bad_request("spec.template is required: a PodTemplateSpec with one container"))?;
    let (pod, written) = document("spec.template", template)?;
    let PodParts { mut sandbox, labels: pod_labels, annotations: pod_annotations } = pod_parts("spec.template", pod)?;
    let runtimes = runtimes_model(runtimes.unwrap_or_default())?;
    announce(&mut sandbox, &runtimes);
    let mut all_annotations = pod_annotations;
    all_annotations.extend(annotation_map);
    let mut annotations = labels("annotations", Some(all_annotations))?;
    annotations.insert(POD_TEMPLATE.to_owned(), written);
    let mut all_labels = pod_labels;
    all_labels.extend(label_map);
    let spec = TemplateSpec {
        description: description.map(|given| text("spec.description", given, 4000)).transpose()?,
        sandbox,
        idle_image: idle_image.filter(|image| !image.is_empty()).map(|image| image_name("spec.idleImage", &image)).transpose()?,
        runtimes,
        visibility: visibility_model(visibility.unwrap_or_default())?,
        startup_timeout: None,
        idle_timeout: None,
        labels: labels("labels", Some(all_labels))?,
        annotations,
    };
    Ok((version_model(version)?, network.map(network_model).transpose()?, spec))
}

fn version_model(version: Option<String>) -> ApiResult<Option<SemVer>> {
    let parse = |text: String| text.parse::<SemVer>().map_err(|error| ApiError::bad_request(format!("version: {error}")));
    version.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// Runtimes with a port become named ports of the sandbox: those are what its endpoints show.
fn announce(sandbox: &mut SandboxSpec, runtimes: &[Runtime]) {
    for runtime in runtimes {
        if let Some(port) = runtime.port {
            sandbox.ports.retain(|spec| spec.port != port && spec.name.as_ref() != Some(&runtime.name));
            sandbox.ports.push(PortSpec { name: Some(runtime.name.clone()), port });
        }
    }
}

fn runtimes_model(runtimes: Vec<wire::RuntimeWire>) -> ApiResult<Vec<Runtime>> {
    if runtimes.len() > RUNTIMES_MAX {
        return Err(ApiError::bad_request(format!("runtimes has {} entries: at most {RUNTIMES_MAX} are taken", runtimes.len())));
    }
    let mut out: Vec<Runtime> = Vec::with_capacity(runtimes.len());
    for wire::RuntimeWire { name, port, protocol, description, log_dir, readiness_probe } in runtimes {
        if name.is_empty() || name.len() > 63 || name.contains('\0') {
            return Err(ApiError::bad_request("runtimes: a name has 1 to 63 characters"));
        }
        if out.iter().any(|other| other.name == name) {
            return Err(ApiError::bad_request(format!("runtimes: the name {name:?} is given twice")));
        }
        if port == Some(0) {
            return Err(ApiError::bad_request(format!("runtimes: the port of {name:?} is 0: ports are 1 to 65535")));
        }
        out.push(Runtime {
            readiness: readiness_probe.map(|probe| probe_model(&name, probe)).transpose()?,
            name,
            port,
            protocol: optional_text("runtimes.protocol", protocol, 63)?,
            description: optional_text("runtimes.description", description, 1000)?,
            log_dir: optional_text("runtimes.logDir", log_dir, 4096)?,
        });
    }
    Ok(out)
}

fn probe_model(name: &str, probe: wire::ProbeWire) -> ApiResult<Probe> {
    let refused = |what: &str| ApiError::bad_request(format!("runtimes: the readinessProbe of {name:?} {what}"));
    let probe = match probe {
        wire::ProbeWire { http_get: Some(wire::HttpGetWire { port, path }), tcp_socket: None } => {
            let path = path.unwrap_or_else(|| "/".to_owned());
            if !path.starts_with('/') || path.len() > 2000 || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
                return Err(refused("has a path that does not begin with / or contains spaces"));
            }
            Probe::HttpGet { port, path }
        }
        wire::ProbeWire { http_get: None, tcp_socket: Some(wire::TcpSocketWire { port }) } => Probe::TcpConnect { port },
        _ => return Err(refused("needs exactly one of httpGet and tcpSocket")),
    };
    match probe {
        Probe::HttpGet { port: 0, .. } | Probe::TcpConnect { port: 0 } => Err(refused("names port 0: ports are 1 to 65535")),
        probe => Ok(probe),
    }
}

fn visibility_model(visibility: wire::VisibilityWire) -> ApiResult<Visibility> {
    let rules = visibility.rules.into_iter().map(|wire::VisibilityRuleWire { team, users }| {
        if team.is_empty() {
            return Err(ApiError::bad_request("visibility: a rule names a team"));
        }
        Ok(VisibilityRule { team, users })
    });
    Ok(Visibility { rules: rules.collect::<ApiResult<_>>()? })
}

/// A template in the simple form.
pub(crate) fn simple_template(request: wire::SimpleTemplateRequest, path_name: Option<PoolName>) -> ApiResult<TemplateRequest> {
    let wire::SimpleTemplateRequest {
        name,
        version,
        image,
        description,
        command,
        env,
        network,
        cpu,
        memory,
        disk,
        pids,
        user,
        workdir,
        ports,
        metadata,
    } = request;
    let name = resolve_name(name.as_deref(), path_name)?;
    let image = image.ok_or_else(|| ApiError::bad_request("image is required"))?;
    let fields = SpecFields { texts: ResourceTexts { cpu, memory, disk, pids }, user, workdir, command };
    let sandbox =
        SandboxSpec { ports: ports_model(ports.unwrap_or_default())?, ..fields.spec(image_name("image", &image)?, env)? };
    let spec = TemplateSpec {
        description: description.map(|given| text("description", given, 4000)).transpose()?,
        labels: labels("metadata", metadata)?,
        ..plain_template(sandbox)
    };
    let network = network.map(network_model).transpose()?;
    Ok(TemplateRequest { name, version: version_model(version)?, spec, network, global: false, expected_generation: None })
}

/// A template that says nothing but what its sandboxes are.
pub(crate) fn plain_template(sandbox: SandboxSpec) -> TemplateSpec {
    TemplateSpec {
        description: None,
        sandbox,
        idle_image: None,
        runtimes: Vec::new(),
        visibility: Visibility::default(),
        startup_timeout: None,
        idle_timeout: None,
        labels: StringMap::new(),
        annotations: StringMap::new(),
    }
}

fn ports_model(ports: Vec<wire::PortWire>) -> ApiResult<Vec<PortSpec>> {
    if ports.len() > RUNTIMES_MAX {
        return Err(ApiError::bad_request(format!("ports has {} entries: at most {RUNTIMES_MAX} are taken", ports.len())));
    }
    let one = |wire::PortWire { name, port }| {
        if port == 0 {
            return Err(ApiError::bad_request("ports: a port is 1 to 65535"));
        }
        Ok(PortSpec { name: optional_text("ports.name", name, 63)?, port })
    };
    ports.into_iter().map(one).collect()
}

/// A template in a list.
pub(crate) fn template_summary(view: &TemplateView) -> wire::SandboxTemplate {
    let TemplateView { template, global } = view;
    let Template { id: _, tenant: _, name, version, spec, generation: _, created_at, updated_at: _ } = template;
    wire::SandboxTemplate {
        name: name.to_string(),
        version: version.to_string(),
        description: spec.description.clone(),
        created_at: format_time(*created_at),
        cpu: format_millis(u64::from(spec.sandbox.resources.cpu_millis)),
        memory: format_binary_bytes(spec.sandbox.resources.memory_bytes),
        image: spec.sandbox.image.to_string(),
        sync_source: if *global { "global" } else { "local" }.to_owned(),
        runtime_names: spec.runtimes.iter().map(|runtime| runtime.name.clone()).collect(),
        has_docs: spec.annotations.contains_key(DOCS),
        docs: None,
        spec: None,
        crd_yaml: None,
    }
}

/// One template, whole.
pub(crate) fn template_full(view: &TemplateView, cluster_id: &str) -> wire::SandboxTemplate {
    let Template { spec, version, .. } = &view.template;
    let docs = spec.annotations.get(DOCS).map(|docs| {
        docs.replace("${AGBX_POOL_NAME}", "YOUR_POOL_NAME")
            .replace("${AGBX_CLUSTER_ID}", cluster_id)
            .replace("${AGBX_API_KEY}", "YOUR_API_KEY")
    });
    wire::SandboxTemplate {
        docs,
        spec: Some(spec_wire(spec, *version)),
        crd_yaml: Some(to_yaml(&crd_document(&view.template))),
        ..template_summary(view)
    }
}

/// The pod template as it was written, or one that says the same.
pub(crate) fn pod_text(spec: &TemplateSpec) -> String {
    spec.annotations.get(POD_TEMPLATE).cloned().unwrap_or_else(|| to_yaml(&pod_document(&spec.sandbox)))
}

fn spec_wire(spec: &TemplateSpec, version: SemVer) -> wire::TemplateSpecWire {
    let TemplateSpec {
        description,
        sandbox,
        idle_image,
        runtimes,
        visibility,
        startup_timeout: _,
        idle_timeout: _,
        labels: _,
        annotations: _,
    } = spec;
    let rules: Vec<wire::VisibilityRuleWire> = visibility
        .rules
        .iter()
        .map(|VisibilityRule { team, users }| wire::VisibilityRuleWire { team: team.clone(), users: users.clone() })
        .collect();
    wire::TemplateSpecWire {
        version: Some(version.to_string()),
        description: description.clone(),
        idle_image: idle_image.as_ref().map(ToString::to_string),
        template: Some(wire::DocumentText::Text(pod_text(spec))),
        runtimes: Some(runtimes.iter().map(runtime_wire).collect()),
        visibility: (!rules.is_empty()).then_some(wire::VisibilityWire { rules }),
        network: sandbox.network.as_ref().map(|policy| network_wire(policy)),
    }
}

fn runtime_wire(runtime: &Runtime) -> wire::RuntimeWire {
    let Runtime { name, port, protocol, description, log_dir, readiness } = runtime.clone();
    let readiness_probe = readiness.map(|probe| match probe {
        Probe::HttpGet { port, path } => {
            wire::ProbeWire { http_get: Some(wire::HttpGetWire { port, path: Some(path) }), tcp_socket: None }
        }
        Probe::TcpConnect { port } => wire::ProbeWire { http_get: None, tcp_socket: Some(wire::TcpSocketWire { port }) },
    });
    wire::RuntimeWire { name, port, protocol, description, log_dir, readiness_probe }
}

/// Annotations without those that Sandbank keeps for itself.
pub(crate) fn shown_annotations(annotations: &StringMap) -> StringMap {
    annotations.iter().filter(|(key, _)| *key != POD_TEMPLATE).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A template's specification as an object, its pod template as an object inside.
pub(crate) fn spec_document(spec: &TemplateSpec, version: Option<SemVer>) -> Value {
    let mut wire_spec = spec_wire(spec, version.unwrap_or(SemVer::FIRST));
    if version.is_none() {
        wire_spec.version = None;
    }
    let mut value = serde_json::to_value(wire_spec).unwrap_or(Value::Null);
    if let Ok(pod) = parse_document("template", &pod_text(spec)) {
        value["template"] = pod;
    }
    value
}

fn crd_document(template: &Template) -> Value {
    let Template { id, tenant: _, name, version, spec, generation, created_at, updated_at: _ } = template;
    json!({
        "apiVersion": API_VERSION,
        "kind": "SandboxTemplate",
        "metadata": {
            "name": name.as_str(),
            "uid": id.to_string(),
            "resourceVersion": generation.to_string(),
            "creationTimestamp": format_time(*created_at),
            "labels": spec.labels,
            "annotations": shown_annotations(&spec.annotations),
        },
        "spec": spec_document(spec, Some(*version)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use sandbank_model::{TemplateId, Timestamp};

    const POD: &str = "spec:\n  nodeSelector: {zone: a} # kept\n  containers: [{image: host}]\n";

    fn view(request: &TemplateRequest) -> TemplateView {
        let now = Timestamp::from_millis(1_000);
        TemplateView {
            template: Template {
                id: TemplateId::new(now, [7; 10]),
                tenant: None,
                name: request.name.clone(),
                version: request.version.unwrap_or(SemVer::FIRST),
                spec: request.spec.clone(),
                generation: 5,
                created_at: now,
                updated_at: now,
            },
            global: true,
        }
    }

    fn admin(body: Value) -> ApiResult<TemplateRequest> {
        admin_template(serde_json::from_value(body).unwrap(), None)
    }

    #[test]
    fn a_template_comes_back_as_it_was_written() {
        let body = json!({"name": "py", "spec": {
            "version": "1.2.3", "description": "d", "idleImage": "idle", "template": POD,
            "runtimes": [{"name": "web", "port": 8080, "readinessProbe": {"httpGet": {"port": 8080, "path": "/up"}}}],
            "visibility": {"rules": [{"team": "t"}]},
        }});
        let request = admin(body).unwrap();
        let full = template_full(&view(&request), "local");
        let spec = full.spec.unwrap();
        assert!(matches!(spec.template, Some(wire::DocumentText::Text(text)) if text == POD));
        assert_eq!(full.runtime_names, ["web"]);
        assert_eq!(request.spec.sandbox.ports, [PortSpec { name: Some("web".to_owned()), port: 8080 }]);
        assert_eq!((full.version.as_str(), full.sync_source.as_str()), ("1.2.3", "global"));
    }

    #[test]
    fn the_resource_as_yaml_goes_out_and_in_again() {
        let mut request = admin(json!({"name": "py", "spec": {"version": "1.0.0", "template": POD}})).unwrap();
        request
            .spec
            .annotations
            .insert(DOCS.to_owned(), "use ${AGBX_API_KEY} of ${AGBX_POOL_NAME} on ${AGBX_CLUSTER_ID}".to_owned());
        let full = template_full(&view(&request), "local");
        assert_eq!(full.docs.as_deref(), Some("use YOUR_API_KEY of YOUR_POOL_NAME on local"));
        let crd = full.crd_yaml.unwrap();
        assert!(crd.contains("nodeSelector"), "{crd}");
        let back = admin(json!({"crdYaml": crd, "name": "ignored"})).unwrap();
        assert_eq!((back.name.as_str(), back.expected_generation), ("py", Some(5)));
        assert_eq!(back.spec.sandbox, request.spec.sandbox);
        assert_eq!(back.spec.annotations[DOCS], request.spec.annotations[DOCS]);
    }

    #[test]
    fn wrong_templates_are_refused_with_the_field() {
        for (body, expect) in [
            (json!({"name": "py"}), "spec or crdYaml"),
            (json!({"spec": {"template": POD}}), "name is required"),
            (json!({"name": "Py", "spec": {"template": POD}}), "template name"),
            (json!({"name": "py", "spec": {"template": POD, "version": "1"}}), "version"),
            (json!({"name": "py", "spec": {}}), "spec.template is required"),
            (json!({"name": "py", "spec": {"template": POD, "runtimes": [{"name": "a"}, {"name": "a"}]}}), "twice"),
            (json!({"name": "py", "spec": {"template": POD, "runtimes": [{"name": "a", "readinessProbe": {}}]}}), "exactly one"),
            (json!({"name": "py", "spec": {"template": POD, "runtimes": [{"name": "a", "port": 0}]}}), "ports are 1"),
            (json!({"crdYaml": "kind: Pod\nmetadata: {name: py}\nspec: {}"}), "SandboxTemplate"),
            (json!({"crdYaml": "metadata: {name: py, resourceVersion: abc}\nspec: {}"}), "resourceVersion"),
            (json!({"crdYaml": "just text"}), "crdYaml"),
        ] {
            let error = admin(body).unwrap_err();
            assert!(error.text().contains(expect), "{} should contain {expect}", error.text());
        }
    }
}
