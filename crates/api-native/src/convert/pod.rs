//! The pod template: YAML or JSON that somebody wrote for Kubernetes. What Sandbank can do of it becomes a sandbox's
//! specification; what would change how the program runs and cannot be done is refused by name; the rest is kept as written.

use sandbank_model::{EnvMap, PortSpec, Resources, SandboxSpec, StringMap};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ResourceTexts, argv, environment, image_name, optional_text};
use crate::errors::{ApiError, ApiResult};
use crate::wire::DocumentText;

/// Longest document that is read.
const DOCUMENT_MAX: usize = 256 * 1024;

/// A YAML (or JSON) document of a hostile author: size, depth, nodes and aliases are bounded.
pub(crate) fn parse_document(field: &str, text: &str) -> ApiResult<Value> {
    if text.len() > DOCUMENT_MAX {
        return Err(ApiError::bad_request(format!("{field} has {} bytes: at most {DOCUMENT_MAX} are taken", text.len())));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 64, max_nodes: 20_000, max_events: 60_000, max_aliases: 100, max_anchors: 100, max_documents: 1 },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let cause: String = error.to_string().lines().next().unwrap_or_default().chars().take(300).collect();
        ApiError::bad_request(format!("{field} is not valid YAML: {cause}"))
    })
}

/// A document as an object, and the text to keep of it.
pub(crate) fn document(field: &str, document: DocumentText) -> ApiResult<(Value, String)> {
    match document {
        DocumentText::Text(text) => Ok((parse_document(field, &text)?, text)),
        DocumentText::Object(map) => {
            let value = Value::Object(map);
            let text = value.to_string();
            Ok((value, text))
        }
    }
}

/// A value of a known shape; an error names the field below `field`.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(field: &str, value: Value) -> ApiResult<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let cause: String = error.inner().to_string().chars().take(300).collect();
        let place = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        ApiError::bad_request(format!("{place}: {cause}"))
    })
}

/// YAML of a value that we made.
pub(crate) fn to_yaml(value: &Value) -> String {
    // A JSON value always has a YAML spelling; JSON itself is one.
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodTemplate {
    metadata: PodMetadata,
    spec: PodSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodMetadata {
    labels: StringMap,
    annotations: StringMap,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    containers: Vec<Container>,
    init_containers: Vec<Value>,
    hostname: Option<String>,
    security_context: SecurityContext,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    image: Option<String>,
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<EnvVar>,
    env_from: Vec<Value>,
    working_dir: Option<String>,
    resources: PodResources,
    ports: Vec<ContainerPort>,
    security_context: SecurityContext,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvVar {
    name: String,
    value: Option<String>,
    value_from: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodResources {
    limits: serde_json::Map<String, Value>,
    requests: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: u16,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Option<u32>,
}

/// What a pod template says.
#[derive(Debug)]
pub(crate) struct PodParts {
    pub(crate) sandbox: SandboxSpec,
    pub(crate) labels: StringMap,
    pub(crate) annotations: StringMap,
}

/// Reads a pod template.
pub(crate) fn pod_parts(field: &str, value: Value) -> ApiResult<PodParts> {
    let PodTemplate { metadata, spec } = typed(field, value)?;
    let PodSpec { containers, init_containers, hostname, security_context } = spec;
    if !init_containers.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{field}.spec.initContainers: a sandbox has no init containers; put their work into the image"
        )));
    }
    let count = containers.len();
    let mut containers = containers.into_iter();
    let (Some(container), None) = (containers.next(), containers.next()) else {
        return Err(ApiError::bad_request(format!(
            "{field}.spec.containers has {count} entries: a sandbox has exactly one container"
        )));
    };
    let mut sandbox = container_spec(&format!("{field}.spec.containers[0]"), container)?;
    sandbox.user = sandbox.user.or(security_context.run_as_user.map(|uid| uid.to_string()));
    sandbox.hostname = optional_text("hostname", hostname, 63)?;
    Ok(PodParts { sandbox, labels: metadata.labels, annotations: metadata.annotations })
}

fn container_spec(field: &str, container: Container) -> ApiResult<SandboxSpec> {
    let Container { image, command, args, env, env_from, working_dir, resources, ports, security_context } = container;
    let image = image.ok_or_else(|| ApiError::bad_request(format!("{field}.image is required")))?;
    if !env_from.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{field}.envFrom: there are no config maps or secrets here; write the values into env"
        )));
    }
    if command.is_empty() && !args.is_empty() {
        return Err(ApiError::bad_request(format!("{field}.args without command: write the whole command into command")));
    }
    let command: Vec<String> = command.into_iter().chain(args).collect();
    let ports = ports.into_iter().map(|ContainerPort { name, container_port }| PortSpec { name, port: container_port }).collect();
    Ok(SandboxSpec {
        image: image_name(&format!("{field}.image"), &image)?,
        command: if command.is_empty() { command } else { argv(&format!("{field}.command"), command)? },
        env: variables(field, env)?,
        resources: limits(field, &resources)?,
        user: security_context.run_as_user.map(|uid| uid.to_string()),
        workdir: optional_text(&format!("{field}.workingDir"), working_dir, 4096)?,
        ports,
        hostname: None,
        network: None,
    })
}

fn variables(field: &str, env: Vec<EnvVar>) -> ApiResult<EnvMap> {
    let mut map = EnvMap::new();
    for EnvVar { name, value, value_from } in env {
        if value_from.is_some_and(|value| !value.is_null()) {
            return Err(ApiError::bad_request(format!(
                "{field}.env: {:?} uses valueFrom: there is nothing to take it from here; write a value",
                name.chars().take(80).collect::<String>()
            )));
        }
        map.insert(name, value.unwrap_or_default());
    }
    environment(&format!("{field}.env"), Some(map))
}

/// Limits, else requests, else the defaults.
fn limits(field: &str, resources: &PodResources) -> ApiResult<Resources> {
    let of = |name: &str| -> ApiResult<Option<String>> {
        match resources.limits.get(name).or_else(|| resources.requests.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(ApiError::bad_request(format!("{field}.resources: {name} is not a quantity"))),
        }
    };
    let texts = ResourceTexts { cpu: of("cpu")?, memory: of("memory")?, disk: of("ephemeral-storage")?, pids: None };
    Ok(texts.parse()?.over(Resources::DEFAULT))
}

/// A pod template for a specification that was not written as one.
pub(crate) fn pod_document(sandbox: &SandboxSpec) -> Value {
    let SandboxSpec { image, command, env, resources, user, workdir, ports, hostname, network: _ } = sandbox;
    let Resources { cpu_millis, memory_bytes, disk_bytes, pids: _ } = resources;
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|PortSpec { name, port }| match name {
            Some(name) => json!({ "name": name, "containerPort": port }),
            None => json!({ "containerPort": port }),
        })
        .collect();
    let mut container = json!({
        "name": super::CONTAINER,
        "image": image.as_str(),
        "resources": { "limits": {
            "cpu": sandbank_http::format_millis(u64::from(*cpu_millis)),
            "memory": sandbank_http::format_binary_bytes(*memory_bytes),
            "ephemeral-storage": sandbank_http::format_binary_bytes(*disk_bytes),
        } },
    });
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    if !env.is_empty() {
        container["env"] = json!(env);
    }
    if !ports.is_empty() {
        container["ports"] = json!(ports);
    }
    if let Some(workdir) = workdir {
        container["workingDir"] = json!(workdir);
    }
    if let Some(uid) = user.as_ref().and_then(|user| user.parse::<u32>().ok()) {
        container["securityContext"] = json!({ "runAsUser": uid });
    }
    let mut spec = json!({ "containers": [container] });
    if let Some(hostname) = hostname {
        spec["hostname"] = json!(hostname);
    }
    json!({ "spec": spec })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn read(yaml: &str) -> ApiResult<PodParts> {
        pod_parts("template", parse_document("template", yaml)?)
    }

    fn refused(yaml: &str, expect: &str) {
        let error = read(yaml).unwrap_err();
        assert!(error.text().contains(expect), "{} should contain {expect}", error.text());
    }

    #[test]
    fn a_whole_pod_template_is_read() {
        let yaml = "
metadata: {labels: {app: x}}
spec:
  nodeSelector: {zone: a}
  containers:
    - name: main
      image: team/tools:1
      command: [/bin/run]
      args: [--fast]
      env: [{name: A, value: '1'}]
      workingDir: /work
      resources: {limits: {cpu: 2, memory: 16Gi}, requests: {cpu: 1, ephemeral-storage: 8Gi}}
      ports: [{name: web, containerPort: 8080}]
      securityContext: {runAsUser: 1000}
";
        let PodParts { sandbox, labels, .. } = read(yaml).unwrap();
        assert_eq!(sandbox.image.as_str(), "team/tools:1");
        assert_eq!(sandbox.command, ["/bin/run", "--fast"]);
        assert_eq!(sandbox.env["A"], "1");
        assert_eq!(sandbox.workdir.as_deref(), Some("/work"));
        assert_eq!((sandbox.resources.cpu_millis, sandbox.resources.memory_bytes), (2000, 16 << 30));
        assert_eq!(sandbox.resources.disk_bytes, 8 << 30);
        assert_eq!(sandbox.ports, [PortSpec { name: Some("web".to_owned()), port: 8080 }]);
        assert_eq!(sandbox.user.as_deref(), Some("1000"));
        assert_eq!(labels["app"], "x");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let container = |rest: &str| format!("spec: {{containers: [{{image: a{rest}}}]}}");
        refused("spec: {containers: [{image: a}, {image: b}]}", "exactly one container");
        refused("spec: {}", "exactly one container");
        refused("{}", "exactly one container");
        refused("spec: {containers: [{name: x}]}", "image is required");
        refused("spec: {containers: [{image: a}], initContainers: [{image: b}]}", "initContainers");
        refused(&container(", env: [{name: A, valueFrom: {secretKeyRef: {name: s}}}]"), "valueFrom");
        refused(&container(", envFrom: [{secretRef: {name: s}}]"), "envFrom");
        refused(&container(", args: [x]"), "args without command");
        refused(&container(", resources: {limits: {memory: lots}}"), "memory");
        refused(&container(", resources: {limits: {cpu: 1m}}"), "cpu");
        refused(&container(", ports: [{containerPort: 70000}]"), "containerPort");
        refused(&container(", image: b"), "not valid YAML");
        refused("spec: {containers: [{image: '../x'}]}", "image");
        refused("[1, 2]", "template");
        refused("spec: [", "not valid YAML");
    }

    #[test]
    fn hostile_documents_are_refused_quickly() {
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        refused(&deep, "not valid YAML");
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (new, old) in [('b', 'a'), ('c', 'b'), ('d', 'c'), ('e', 'd'), ('f', 'e'), ('g', 'f'), ('h', 'g')] {
            let row = vec![format!("*{old}"); 9].join(", ");
            laughs.push_str(&format!("{new}: &{new} [{row}]\n"));
        }
        refused(&laughs, "not valid YAML");
        refused(&"x".repeat(DOCUMENT_MAX + 1), "at most");
    }

    #[test]
    fn a_made_document_reads_back_the_same() {
        let mut sandbox = SandboxSpec::of_image("host".parse().unwrap());
        sandbox.command = vec!["/bin/sh".to_owned()];
        sandbox.env.insert("A".to_owned(), "1: x".to_owned());
        sandbox.ports = vec![PortSpec { name: Some("web".to_owned()), port: 80 }];
        sandbox.user = Some("1000".to_owned());
        let text = to_yaml(&pod_document(&sandbox));
        assert_eq!(read(&text).unwrap().sandbox, sandbox);
    }
}
