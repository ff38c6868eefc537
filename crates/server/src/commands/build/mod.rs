//! `build`: sends a directory and its Dockerfile, shows how the build goes.

mod pack;

use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use sandbank_build::Ignore;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::{pairs, put};
use crate::cli::Build;
use crate::client::{Body, Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, field, harmless};
use crate::progress::Progress;

/// Bytes of the archive that are in memory at a time.
const CHUNK: usize = 256 * 1024;

/// `build -t NAME DIR`.
pub(crate) async fn run(client: &Client, options: &Build, json: bool) -> Result<()> {
    let file = options.file.clone().unwrap_or_else(|| options.dir.join("Dockerfile"));
    let dockerfile = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
    let mut body = json!({ "name": options.name, "dockerfile": dockerfile, "noCache": options.no_cache });
    let args = pairs("the build argument", &options.build_args)?;
    put(&mut body, "buildArgs", (!args.is_empty()).then_some(args));
    put(&mut body, "target", options.target.as_ref());
    put(&mut body, "timeout", options.timeout.as_ref());
    body["context"] = json!(upload(client, &options.dir).await?);
    let begun = client.post("/v1/builds", &body).await?;
    let path = format!("/v1/builds/{}", encode_segment(&field(&begun, "build.id")));
    follow(client, &path, json).await?;
    let ended = client.get(&path).await?;
    if json {
        output::json_line(&ended)?;
    }
    if field(&ended, "build.state") == "ready" {
        if json {
            return Ok(());
        }
        output::note(&format!(
            "sandbank: {} of {} steps came from the cache",
            field(&ended, "build.stepsCached"),
            field(&ended, "build.stepsTotal")
        ));
        return output::line(&field(&ended, "build.name"));
    }
    let (step, message) = (field(&ended, "build.reason.step"), field(&ended, "build.reason.message"));
    let place = if step.parse::<u32>().is_ok() { format!("step {step}: ") } else { String::new() };
    Err(Failure::new(harmless(&format!("the build failed: {place}{message}"))))
}

/// Shows the log until the build has ended; what breaks off is taken up again.
async fn follow(client: &Client, path: &str, json: bool) -> Result<()> {
    let mut lines = client.lines(&format!("{path}/logs")).await?;
    while let Some(line) = lines.next().await? {
        if json {
            output::json_line(&line)?;
            continue;
        }
        let text = line.get("text").and_then(Value::as_str).unwrap_or_default();
        if line.get("level").and_then(Value::as_str) != Some("error") {
            output::note(&harmless(&format!("{:>3}  {text}", field(&line, "step"))));
        }
    }
    Ok(())
}

/// Packs and sends the directory; the upload's id.
async fn upload(client: &Client, dir: &Path) -> Result<String> {
    if !dir.is_dir() {
        return Err(Failure::new(format!("{} is not a directory", dir.display())));
    }
    let ignore = match std::fs::read_to_string(dir.join(".dockerignore")) {
        Ok(text) => Ignore::parse(&text).map_err(Failure::new)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ignore::default(),
        Err(error) => return Err(unreadable(&dir.join(".dockerignore"), &error)),
    };
    let (writer, reader) = tokio::io::duplex(CHUNK);
    let top = dir.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack::pack(&top, &ignore, tokio_util::io::SyncIoBridge::new(writer)));
    let progress = std::sync::Arc::new(Progress::bytes(None, "sending files"));
    let seen = std::sync::Arc::clone(&progress);
    let stream = ReaderStream::with_capacity(reader, CHUNK).map(move |chunk| {
        chunk.map(|chunk: Bytes| {
            seen.advance(chunk.len() as u64);
            Frame::data(chunk)
        })
    });
    let body: Body = StreamBody::new(stream).boxed_unsync();
    let request = client.request(Method::POST, "/v1/contexts").header(header::CONTENT_TYPE, "application/x-tar");
    let sent = client.send(request, body).await;
    // What could not be read here is the reason for whatever the server says of a broken archive.
    packing.await.map_err(|error| Failure::new(format!("cannot pack {}: {error}", dir.display())))??;
    let answer = sent?.into_body().collect().await.map_err(|error| Failure::new(format!("the answer broke off: {error}")))?;
    let answer: Value = serde_json::from_slice(&answer.to_bytes()).unwrap_or_default();
    Ok(field(&answer, "id"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot read {}: {error}", path.display()))
}
