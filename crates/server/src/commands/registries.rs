//! Credentials for image registries.

use std::io::Read as _;

use serde_json::{Value, json};

use super::put;
use crate::cli::{Registry, RegistryLogin};
use crate::client::{Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, distance, field};

/// Variable with the password.
const PASSWORD: &str = "SANDBANK_REGISTRY_PASSWORD";
/// Most bytes read of standard input; the server takes less.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

/// `registry …`.
pub(crate) async fn run(client: &Client, command: Registry, json: bool) -> Result<()> {
    match command {
        Registry::Login(options) => {
            let answer = client.post("/v1/registries", &login_body(&options)?).await?;
            if json { output::document(&answer) } else { output::line(&field(&answer, "registry.host")) }
        }
        Registry::List => {
            let registries = client.list("/v1/registries").await?;
            if json {
                return output::document(&json!({ "total": registries.len(), "items": registries }));
            }
            let now = jiff::Timestamp::now();
            let row = |registry: &Value| {
                vec![
                    field(registry, "host"),
                    field(registry, "username"),
                    field(registry, "kind"),
                    field(registry, "global"),
                    distance(registry, "createdAt", now),
                ]
            };
            let headings = ["HOST", "USER", "KIND", "GLOBAL", "CREATED"];
            output::table(&headings, &registries.iter().map(row).collect::<Vec<_>>())
        }
        Registry::Logout(options) => {
            let scope = if options.global { "?global=true" } else { "" };
            let answer = client.delete(&format!("/v1/registries/{}{scope}", encode_segment(&options.host))).await?;
            if json { output::document(&answer) } else { output::line(&field(&answer, "name")) }
        }
    }
}

fn login_body(options: &RegistryLogin) -> Result<Value> {
    let secret =
        if options.password_stdin { from_stdin()? } else { password_from_environment("no password: give --password-stdin, or")? };
    let mut body = json!({ "host": options.host });
    put(&mut body, "username", options.username.as_ref());
    body[if options.token { "token" } else { "password" }] = json!(secret);
    put(&mut body, "global", options.global.then_some(true));
    Ok(body)
}

/// All of standard input, without the line end that `echo` and most tools add.
fn from_stdin() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().take(INPUT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("cannot read the password from standard input: {error}")))?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!("standard input holds more than {INPUT_BYTES_MAX} bytes: that is no password")));
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() { Err(Failure::usage("standard input holds no password")) } else { Ok(secret.to_owned()) }
}

/// The password for a registry, from the environment: an argument would be seen by everybody on the machine. `needs` says what it
/// is missed for.
pub(super) fn password_from_environment(needs: &str) -> Result<String> {
    match std::env::var(PASSWORD) {
        Ok(secret) if !secret.is_empty() => Ok(secret),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!("{PASSWORD} is not UTF-8"))),
        _ => Err(Failure::usage(format!("{needs} set {PASSWORD}"))),
    }
}
