//! API keys.

use serde_json::{Value, json};

use super::put;
use crate::cli::{Key, KeyCreate};
use crate::client::{Client, encode_segment};
use crate::config::duration;
use crate::failure::{Failure, Result};
use crate::output::{self, distance, field};

/// `key …`.
pub(crate) async fn run(client: &Client, command: Key, json: bool) -> Result<()> {
    match command {
        Key::Create(options) => {
            let path = if options.team.is_some() { "/v1/admin/api-keys" } else { "/v1/api-keys" };
            let answer = client.post(path, &create_body(&options)?).await?;
            if json {
                return output::document(&answer);
            }
            output::note("The key is shown this once; only its hash is kept.");
            output::line(&field(&answer, "apiKey"))
        }
        Key::List(options) => {
            let path = if options.all { "/v1/admin/api-keys" } else { "/v1/api-keys" };
            let keys = client.list(path).await?;
            if json {
                return output::document(&json!({ "total": keys.len(), "items": keys }));
            }
            let now = jiff::Timestamp::now();
            let row = |key: &Value| {
                vec![
                    field(key, "keyId"),
                    field(key, "role"),
                    field(key, "team"),
                    field(key, "user"),
                    distance(key, "issuedAt", now),
                    distance(key, "expiresAt", now),
                    field(key, "description"),
                ]
            };
            let headings = ["KEY ID", "ROLE", "TEAM", "USER", "ISSUED", "EXPIRES", "DESCRIPTION"];
            output::table(&headings, &keys.iter().map(row).collect::<Vec<_>>())
        }
        Key::Revoke(named) => {
            let answer = client.delete(&format!("/v1/api-keys/{}", encode_segment(&named.name))).await?;
            if json { output::document(&answer) } else { output::line(&named.name) }
        }
    }
}

fn create_body(options: &KeyCreate) -> Result<Value> {
    let mut body = json!({});
    put(&mut body, "team", options.team.as_ref());
    put(&mut body, "user", options.user.as_ref());
    put(&mut body, "role", options.role.as_ref());
    put(&mut body, "description", options.description.as_ref());
    if let Some(life) = &options.expires_in {
        let life = duration("--expires-in", life)?;
        let end = jiff::Timestamp::now().checked_add(life).map_err(|error| Failure::usage(format!("--expires-in: {error}")))?;
        body["expiresAt"] = json!(end.to_string());
    }
    Ok(body)
}
