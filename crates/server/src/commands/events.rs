//! What happened: events of the installation, and what sandboxes' own commands wrote.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{Events, Logs};
use crate::client::{Client, encode_segment};
use crate::failure::Result;
use crate::output::{self, field, harmless};

/// How often new events are asked for.
const POLL: Duration = Duration::from_millis(500);
/// Events asked for at a time while following.
const BATCH: u32 = 500;

/// `events [-f] [ID]`.
pub(crate) async fn events(client: &Client, options: &Events, json: bool) -> Result<()> {
    let path = match &options.id {
        Some(id) => format!("/v1/sandboxes/{}/events", encode_segment(id)),
        None => "/v1/events".to_owned(),
    };
    let mut page = items(&client.get(&format!("{path}?newestFirst=true&limit={}", options.last)).await?);
    page.sort_by_key(position);
    if json && !options.follow {
        return output::document(&json!({ "items": page }));
    }
    let mut after = 0;
    loop {
        for event in &page {
            after = position(event).max(after);
            if json { output::json_line(event)? } else { output::line(&sentence(event))? }
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
        page = items(&client.get(&format!("{path}?after={after}&limit={BATCH}")).await?);
    }
}

fn items(answer: &Value) -> Vec<Value> {
    answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn position(event: &Value) -> u64 {
    event.get("seq").and_then(Value::as_u64).unwrap_or(0)
}

fn sentence(event: &Value) -> String {
    let mut text = format!("{:<24}  {:<12}", field(event, "at"), field(event, "type"));
    for (name, path) in [("", "sandboxId"), ("pool ", "poolName"), ("by ", "actor"), ("", "detail")] {
        let value = field(event, path);
        if value != "-" {
            text.push_str(&format!("  {name}{value}"));
        }
    }
    harmless(&text)
}

/// `logs [-f] ID`.
pub(crate) async fn logs(client: &Client, options: &Logs, json: bool) -> Result<()> {
    let path = format!("/v1/sandboxes/{}/logs", encode_segment(&options.id));
    if options.follow {
        let mut lines = client.lines(&format!("{path}/stream")).await?;
        while let Some(entry) = lines.next().await? {
            if json {
                output::json_line(&entry)?;
            } else if let Some(text) = entry.get("log").and_then(Value::as_str) {
                output::line(text)?;
            }
        }
        return Ok(());
    }
    let answer = client.get(&format!("{path}?lines={}", options.lines.unwrap_or(0))).await?;
    if json {
        return output::document(&answer);
    }
    let entries = answer.get("entries").and_then(Value::as_array).cloned().unwrap_or_default();
    // What `-n` leaves out is not lost, and it leaves out nothing unless there are as many lines as it asks for.
    let all_that_was_asked = options.lines.is_some_and(|lines| entries.len() >= lines as usize);
    if answer.get("truncated").and_then(Value::as_bool) == Some(true) && !all_that_was_asked {
        output::note("sandbank: earlier lines are no longer kept");
    }
    entries.iter().filter_map(|entry| entry.get("log").and_then(Value::as_str)).try_for_each(output::line)
}
