//! The API document: collected from the handlers, completed with what all of them share.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, KnownFormat, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder, SchemaFormat};
use utoipa::{Modify, OpenApi as _};

use crate::routes::{
    admin, builds, exec, files, images, keys, pools, port_access, ports, pulls, registries, sandboxes, snapshots, sockets,
    system, templates,
};
use crate::wire;

#[allow(deprecated, reason = "operations that AgentBox has deprecated are part of its contract")]
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Sandbank native API",
        description = "AgentBox-compatible. Errors have the shape {error, errorCode?, detail?}. Durations are Go durations such as 1h30m.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        sandboxes::create, sandboxes::list, sandboxes::get, sandboxes::delete, sandboxes::set_timeout, sandboxes::renew,
        sandboxes::pause, sandboxes::resume, sandboxes::commit, sandboxes::metrics, sandboxes::is_ready, sandboxes::logs,
        sandboxes::events, sandboxes::exec_token, exec::logs_stream,
        exec::collect, exec::stream, exec::list, exec::signal, exec::attach,
        files::read, files::write, files::remove, files::stat, files::list, files::rename, files::mkdir, files::watch,
        sockets::terminal, sockets::exec, ports::on_port,
        port_access::get, port_access::set, port_access::create_token, port_access::revoke_tokens, port_access::tunnel,
        pools::create, pools::list, pools::get, pools::update, pools::delete, pools::sync_template, pools::sync_preview,
        templates::list, templates::get, templates::create, templates::update, templates::delete,
        templates::admin_create, templates::admin_update, templates::admin_delete,
        images::list, images::get, images::delete, images::export, images::import, images::usage, images::prune, pulls::pull,
        registries::login, registries::list, registries::logout,
        snapshots::create, snapshots::fork, snapshots::list, snapshots::get, snapshots::delete,
        builds::upload, builds::create, builds::list, builds::get, builds::cancel, builds::logs, builds::clear_cache,
        keys::create, keys::list, keys::delete, keys::admin_create, keys::admin_list, keys::admin_delete, keys::admin_promote,
        admin::teams, admin::team_users, admin::namespaces, admin::tenants, admin::set_quota, admin::sandbox_statistics,
        admin::pool_statistics,
        system::whoami, system::clusters, system::feature_gates, system::quotas, system::statistics, system::events,
        system::ping, system::health, system::metrics, system::openapi,
    ),
    components(schemas(wire::ErrorBody, wire::ExecSocketStart)),
    modifiers(&Shared),
    security(("ApiKeyAuth" = []), ("BearerAuth" = [])),
)]
struct Document;

static TEXT: LazyLock<String> = LazyLock::new(|| Document::openapi().to_pretty_json().unwrap_or_default());

/// The document as JSON. Its version is that of this crate.
pub(crate) fn text() -> &'static str {
    &TEXT
}

/// Adds what every operation has: path parameters, security schemes, error answers.
struct Shared;

impl Modify for Shared {
    fn modify(&self, api: &mut OpenApi) {
        let components = api.components.get_or_insert_default();
        let key = ApiKeyValue::with_description("AGENTBOX-API-KEY", "Also accepted as X-API-Key.");
        components.add_security_scheme("ApiKeyAuth", SecurityScheme::ApiKey(ApiKey::Header(key)));
        components
            .add_security_scheme("BearerAuth", SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()));
        for (path, item) in &mut api.paths.paths {
            let operations = [
                (&mut item.get, false),
                (&mut item.head, false),
                (&mut item.options, false),
                (&mut item.delete, true),
                (&mut item.post, true),
                (&mut item.put, true),
                (&mut item.patch, true),
            ];
            for (operation, writes) in operations {
                if let Some(operation) = operation {
                    path_parameters(path, operation);
                    error_answers(&mut components.responses, path, operation, writes);
                }
            }
        }
    }
}

/// Declares each `{name}` of the path.
fn path_parameters(path: &str, operation: &mut Operation) {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for name in names {
        let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).min_length(Some(1));
        let (description, schema) = match name {
            "id" => ("Sandbox: a UUID, or {clusterID}.{uuid}.", schema.max_length(Some(300))),
            "port" => (
                "Port inside.",
                ObjectBuilder::new()
                    .schema_type(SchemaType::Type(Type::Integer))
                    .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
                    .minimum(Some(1))
                    .maximum(Some(65535)),
            ),
            "pid" => (
                "Process.",
                ObjectBuilder::new()
                    .schema_type(SchemaType::Type(Type::Integer))
                    .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                    .minimum(Some(1))
                    .maximum(Some(u32::MAX)),
            ),
            "build" => ("Build: a UUID.", schema.max_length(Some(36))),
            "rest" => ("Path inside.", schema),
            "name" if path.contains("sandboxpools") => ("Pool: a name, or {clusterID}::{pool}.", schema.max_length(Some(300))),
            "name" if path.contains("images") => ("Image, slashes and all.", schema.max_length(Some(255))),
            "name" if path.contains("api-keys") => {
                ("Key: its id, perhaps with {namespace}/ in front.", schema.max_length(Some(300)))
            }
            "name" => ("Template.", schema.max_length(Some(63))),
            "host" => ("Registry: its host, with a port if it has one.", schema.max_length(Some(255))),
            "team" => ("Team.", schema.max_length(Some(63))),
            _ => ("Namespace.", schema.max_length(Some(200))),
        };
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(description))
            .schema(Some(schema))
            .build();
        operation.parameters.get_or_insert_default().push(RefOr::T(parameter));
    }
}

/// Declares the errors that an operation can answer.
fn error_answers(errors: &mut BTreeMap<String, RefOr<Response>>, path: &str, operation: &mut Operation, writes: bool) {
    let mut answers = vec![(405, "This path takes other methods.")];
    let open = matches!(path, "/ping" | "/openapi.json" | "/health");
    if !open {
        answers.extend([
            (400, "The request is wrong: the error names the field."),
            (401, "No API key, or one that opens nothing."),
            (403, "The key is good, but not for this."),
            (404, "There is no such object, or it belongs to somebody else."),
            (503, "Something behind the server does not answer. Try again."),
        ]);
    }
    let of_object = path.contains("/sandboxes") || path.contains("/sandboxpools") || path.contains("/events");
    if of_object {
        answers.push((502, "The reference names a cluster that is not known here (or nothing listens on the port)."));
    }
    if path.contains("/sandboxes/{id}") || writes {
        answers.push((409, "The name is taken, the object was changed in between, or its state does not allow it."));
    }
    if path.contains("/ports/") {
        answers.push((504, "The program inside does not answer in time."));
    }
    if path.contains("/sandboxpools") {
        answers.push((422, "The caller must create an API key first (errorCode API_KEY_REQUIRED)."));
    }
    if writes || path.ends_with("/terminal") {
        answers.extend([
            (413, "The body is larger than 1 MiB."),
            (426, "The client is too old (X-AgentBox-Client-Version)."),
            (429, "No capacity, or the quota is used up. See Retry-After."),
        ]);
    }
    for (status, description) in answers {
        let name = format!("Error{status}");
        // Once in the components and a reference in each operation: the document stays readable.
        errors.entry(name.clone()).or_insert_with(|| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
            ResponseBuilder::new().description(description).content("application/json", content).build().into()
        });
        operation.responses.responses.entry(status.to_string()).or_insert_with(|| RefOr::Ref(Ref::from_response_name(name)));
    }
}
