//! Templates and images: what sandboxes are made from.

use http::Method;
use serde_json::{Value, json};

use super::{put, put_process, put_resources};
use crate::cli::{Image, ImageImport, Template, TemplateCreate};
use crate::client::{Client, encode_query, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, bytes, distance, field};

/// `template …`.
pub(crate) async fn template(client: &Client, command: Template, json: bool) -> Result<()> {
    let path = |name: &str| format!("/v1/sandbox-templates/{}", encode_segment(name));
    match command {
        Template::Create(options) => {
            let body = template_body(&options)?;
            let answer = if options.update {
                client.put(&path(&options.name), &body).await?
            } else {
                client.post("/v1/sandbox-templates", &body).await?
            };
            show_template(&answer, json)
        }
        Template::List => {
            let templates = client.list("/v1/sandbox-templates").await?;
            if json {
                return output::document(&json!({ "total": templates.len(), "items": templates }));
            }
            output::table(&TEMPLATE_HEADINGS, &templates.iter().map(template_row).collect::<Vec<_>>())
        }
        Template::Show(named) => {
            let answer = client.get(&path(&named.name)).await?;
            show_template(&answer, json)
        }
        Template::Delete(named) => {
            let answer = client.delete(&path(&named.name)).await?;
            if json { output::document(&answer) } else { output::line(&named.name) }
        }
    }
}

fn template_body(options: &TemplateCreate) -> Result<Value> {
    let mut body = json!({ "name": options.name, "image": options.image });
    put(&mut body, "version", options.version.as_ref());
    put(&mut body, "description", options.description.as_ref());
    let ports = options.ports.iter().map(|text| port(text)).collect::<Result<Vec<_>>>()?;
    put(&mut body, "ports", (!ports.is_empty()).then_some(ports));
    put(&mut body, "command", (!options.command.is_empty()).then_some(&options.command));
    put_resources(&mut body, &options.resources);
    put_process(&mut body, &options.process)?;
    Ok(body)
}

/// `PORT` or `NAME=PORT`.
fn port(text: &str) -> Result<Value> {
    let (name, number) = text.split_once('=').map_or((None, text), |(name, number)| (Some(name), number));
    match number.parse::<u16>() {
        Ok(number @ 1..) => Ok(json!({ "name": name, "port": number })),
        _ => Err(Failure::usage(format!("{text:?} is not a port: write PORT or NAME=PORT, with a port from 1 to 65535"))),
    }
}

const TEMPLATE_HEADINGS: [&str; 5] = ["NAME", "VERSION", "CPU", "MEMORY", "DESCRIPTION"];

fn template_row(template: &Value) -> Vec<String> {
    ["name", "version", "cpu", "memory", "description"].iter().map(|path| field(template, path)).collect()
}

fn show_template(answer: &Value, json: bool) -> Result<()> {
    if json {
        output::document(answer)
    } else {
        output::table(&TEMPLATE_HEADINGS, &[template_row(answer.get("template").unwrap_or(&Value::Null))])
    }
}

/// `image …`.
pub(crate) async fn image(client: &Client, command: Image, json: bool) -> Result<()> {
    // An image's name may hold slashes, which are part of the path here.
    let path = |name: &str| format!("/v1/images/{}", encode_query(name));
    match command {
        Image::Import(options) => {
            let answer = import(client, &options).await?;
            show_image(&answer, json)
        }
        Image::Pull(options) => {
            let answer = super::pull::pull(client, &options).await?;
            show_image(&answer, json)
        }
        Image::List => {
            let images = client.list("/v1/images").await?;
            if json {
                return output::document(&json!({ "total": images.len(), "items": images }));
            }
            output::table(&IMAGE_HEADINGS, &images.iter().map(image_row).collect::<Vec<_>>())
        }
        Image::Show(named) => {
            let answer = client.get(&path(&named.name)).await?;
            show_image(&answer, json)
        }
        Image::Delete(named) => {
            let request = client.request(Method::DELETE, &path(&named.name));
            client.send(request, crate::client::full(bytes::Bytes::new())).await?;
            if json { output::document(&json!({ "name": named.name, "status": "Deleted" })) } else { output::line(&named.name) }
        }
    }
}

/// Imports from the server's file system; says so while it takes long.
async fn import(client: &Client, options: &ImageImport) -> Result<Value> {
    let path = std::fs::canonicalize(&options.path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", options.path.display())))?;
    let Some(path) = path.to_str() else {
        return Err(Failure::new(format!("{} is not a name in UTF-8: rename it", path.display())));
    };
    let body = json!({ "name": options.name, "path": path, "global": !options.private });
    let spinner = crate::progress::Progress::spinner(&format!("importing {}", options.name));
    let answer = client.post("/v1/admin/images/import", &body).await;
    spinner.finish();
    answer
}

const IMAGE_HEADINGS: [&str; 5] = ["NAME", "SOURCE", "LAYERS", "SIZE", "CREATED"];

fn image_row(image: &Value) -> Vec<String> {
    let size = image.get("sizeBytes").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes);
    let layers = match image.get("layers") {
        Some(Value::Array(layers)) => layers.len().to_string(),
        _ => field(image, "layers"),
    };
    vec![field(image, "name"), field(image, "source"), layers, size, distance(image, "createdAt", jiff::Timestamp::now())]
}

fn show_image(answer: &Value, json: bool) -> Result<()> {
    if json {
        output::document(answer)
    } else {
        output::table(&IMAGE_HEADINGS, &[image_row(answer.get("image").unwrap_or(&Value::Null))])
    }
}
