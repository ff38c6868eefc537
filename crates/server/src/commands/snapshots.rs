//! Snapshots and forks.

use http::Method;
use serde_json::{Value, json};

use super::{put, put_lease};
use crate::cli::{Fork, Snapshot};
use crate::client::{Client, encode_query, encode_segment, full};
use crate::failure::{Failure, Result};
use crate::output::{self, bytes, distance, field};

const HEADINGS: [&str; 5] = ["ID", "NAME", "SANDBOX", "SIZE", "CREATED"];

/// `snapshot …`.
pub(crate) async fn snapshot(client: &Client, command: Snapshot, json: bool) -> Result<()> {
    match command {
        Snapshot::Create(options) => {
            let mut body = json!({});
            put(&mut body, "name", options.name.as_ref());
            let answer = client.post(&format!("/v1/sandboxes/{}/snapshots", encode_segment(&options.id)), &body).await?;
            if json { output::document(&answer) } else { output::line(&field(&answer, "snapshot.snapshotId")) }
        }
        Snapshot::List(options) => {
            let filter = options.id.map(|id| format!("?sandboxId={}", encode_query(&id))).unwrap_or_default();
            let snapshots = client.list(&format!("/v1/snapshots{filter}")).await?;
            if json {
                return output::document(&json!({ "total": snapshots.len(), "items": snapshots }));
            }
            output::table(&HEADINGS, &snapshots.iter().map(row).collect::<Vec<_>>())
        }
        Snapshot::Show(named) => {
            let answer = client.get(&path(&named.name)).await?;
            if json {
                return output::document(&answer);
            }
            output::table(&HEADINGS, &[row(answer.get("snapshot").unwrap_or(&Value::Null))])
        }
        Snapshot::Delete(named) => {
            let request = client.request(Method::DELETE, &path(&named.name));
            client.send(request, full(bytes::Bytes::new())).await?;
            if json { output::document(&json!({ "name": named.name, "status": "Deleted" })) } else { output::line(&named.name) }
        }
    }
}

/// A snapshot's name may hold slashes, which are part of the path here.
fn path(name: &str) -> String {
    format!("/v1/snapshots/{}", encode_query(name))
}

fn row(snapshot: &Value) -> Vec<String> {
    let size = snapshot.get("sizeBytes").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes);
    vec![
        field(snapshot, "snapshotId"),
        field(snapshot, "name"),
        field(snapshot, "sandboxId"),
        size,
        distance(snapshot, "createdAt", jiff::Timestamp::now()),
    ]
}

/// `fork ID`: prints the ids of those that were made; fails when one was not.
pub(crate) async fn fork(client: &Client, options: &Fork, json: bool) -> Result<()> {
    let mut body = json!({ "count": options.count });
    put_lease(&mut body, &options.lease);
    let answer = client.post(&format!("/v1/sandboxes/{}/fork", encode_segment(&options.id)), &body).await?;
    let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if json {
        output::document(&answer)?;
    } else {
        for made in items.iter().filter_map(|item| item.get("sandbox")) {
            output::line(&field(made, "sandboxId"))?;
        }
    }
    let failed: Vec<&str> = items.iter().filter_map(|item| item.get("error")?.as_str()).collect();
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(format!("{} of {} forks were not made: {first}", failed.len(), items.len()))),
    }
}
