//! Images: in, out, and what they take.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::cp::download::{Partial, length, pour, unwritable};
use super::put;
use crate::cli::{Image, ImageExport, ImageImport};
use crate::client::{Client, encode_query, full};
use crate::failure::{Failure, Result};
use crate::output::{self, bytes, distance, field};
use crate::progress::Progress;

/// `image …`.
pub(crate) async fn image(client: &Client, command: Image, json: bool) -> Result<()> {
    match command {
        Image::Import(options) => {
            let answer = import(client, &options).await?;
            show_image(&answer, json)
        }
        Image::Pull(options) => {
            let answer = super::pull::pull(client, &options).await?;
            show_image(&answer, json)
        }
        Image::Export(options) => export(client, &options, json).await,
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
            client.send(request, full(bytes::Bytes::new())).await?;
            if json { output::document(&json!({ "name": named.name, "status": "Deleted" })) } else { output::line(&named.name) }
        }
        Image::Usage => usage(client, json).await,
        Image::Prune => {
            let answer = client.post("/v1/admin/images/prune", &json!({})).await?;
            if json {
                return output::document(&answer);
            }
            let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
            output::line(&format!("{} layers removed, {} freed", number("layers"), bytes(number("freedBytes"))))
        }
    }
}

/// An image's name may hold slashes, which are part of the path here.
fn path(name: &str) -> String {
    format!("/v1/images/{}", encode_query(name))
}

/// Imports from the server's file system; says so while it takes long.
async fn import(client: &Client, options: &ImageImport) -> Result<Value> {
    let (name, path) = match options.name_and_path.as_slice() {
        [path] => (None, path),
        [name, path] => (Some(name.to_string_lossy().into_owned()), path),
        _ => return Err(Failure::usage("give [NAME] PATH")),
    };
    let path = std::fs::canonicalize(path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    let Some(path) = path.to_str() else {
        return Err(Failure::new(format!("{} is not a name in UTF-8: rename it", path.display())));
    };
    let mut body = json!({ "path": path, "global": !options.private });
    put(&mut body, "name", name.as_ref());
    put(&mut body, "reference", options.reference.as_ref());
    let spinner = Progress::spinner(&format!("importing {}", name.as_deref().unwrap_or(path)));
    let answer = client.post("/v1/admin/images/import", &body).await;
    spinner.finish();
    answer
}

/// To a file, which is there whole or not at all, or to standard output.
async fn export(client: &Client, options: &ImageExport, json: bool) -> Result<()> {
    let request = format!("{}/export?compression={}", path(&options.name), options.compression.as_str());
    let spinner = Progress::spinner(&format!("exporting {}", options.name));
    let response = client.send(client.request(Method::POST, &request), full(bytes::Bytes::new())).await?;
    spinner.finish();
    if options.file == Path::new("-") {
        let progress = Progress::bytes(length(&response), &options.name);
        let mut stdout = tokio::io::stdout();
        pour(response, &mut stdout, &progress).await?.map_err(|error| Failure::output(&error))?;
        return Ok(());
    }
    let size = save(response, &options.file, &options.name).await?;
    if json {
        return output::document(&json!({ "name": options.name, "file": options.file, "sizeBytes": size }));
    }
    output::line(&format!("{} {}", options.file.display(), bytes(size)))
}

async fn save(response: Response<Incoming>, target: &Path, name: &str) -> Result<u64> {
    let progress = Progress::bytes(length(&response), name);
    if std::fs::metadata(target).is_ok_and(|found| !found.is_file()) {
        return Err(Failure::new(format!("{} is no file: give a file's name, or - for standard output", target.display())));
    }
    let partial = Partial::beside(target)?;
    let mut file = tokio::fs::File::create_new(&partial.0).await.map_err(|error| unwritable(&partial.0, &error))?;
    let size = pour(response, &mut file, &progress).await?.map_err(|error| unwritable(target, &error))?;
    let failed = |error: std::io::Error| unwritable(target, &error);
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    std::fs::rename(&partial.0, target).map_err(failed)?;
    Ok(size)
}

async fn usage(client: &Client, json: bool) -> Result<()> {
    let answer = client.get("/v1/admin/images/usage").await?;
    if json {
        return output::document(&answer);
    }
    let size = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), bytes);
    let images = answer.get("images").and_then(Value::as_array).cloned().unwrap_or_default();
    let rows: Vec<_> =
        images.iter().map(|image| vec![field(image, "name"), size(image, "ownBytes"), size(image, "sharedBytes")]).collect();
    output::table(&["NAME", "OWN", "SHARED"], &rows)?;
    let (all, unused) = (size(&answer, "sizeBytes"), size(&answer, "unusedBytes"));
    output::line(&format!("{} layers, {all}; unused {unused} (sandbank image prune)", field(&answer, "layers")))
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
