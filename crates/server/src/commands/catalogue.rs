//! Templates: what sandboxes are made from.

use serde_json::{Value, json};

use super::{put, put_network, put_process, put_resources};
use crate::cli::{Template, TemplateCreate};
use crate::client::{Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, field};

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
    put_network(&mut body, &options.network);
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
