//! `sandbank image pull`.

use http::Method;
use serde_json::{Value, json};

use super::registries::password_from_environment;
use crate::cli::ImagePull;
use crate::client::{Client, full};
use crate::failure::{Failure, Result};
use crate::progress::Progress;

/// Pulls an image and shows how far it is. The answer is as that of `GET /v1/images/NAME`.
pub(super) async fn pull(client: &Client, options: &ImagePull) -> Result<Value> {
    let mut body = json!({
        "name": options.name,
        "policy": if options.missing { "missing" } else { "always" },
        "global": options.global,
    });
    if let Some(username) = &options.username {
        let password = password_from_environment("a user name needs a password:")?;
        body["username"] = json!(username);
        body["password"] = json!(password);
    }
    let request =
        client.request(Method::POST, "/v1/images/pull?progress=true").header(http::header::CONTENT_TYPE, "application/json");
    let mut lines = client.lines_of(request, full(body.to_string().into())).await?;
    let mut bar = Shown::default();
    while let Some(line) = lines.next().await? {
        if let Some(layers) = line.get("layers").and_then(Value::as_array) {
            bar.show(&options.name, layers);
        } else if let Some(image) = line.get("image") {
            bar.end();
            return Ok(json!({ "image": image }));
        } else if let Some(error) = line.get("error").and_then(Value::as_str) {
            bar.end();
            return Err(Failure::new(error.to_owned()));
        }
    }
    Err(Failure::new("the server broke off; the pull may go on there: see `sandbank image list`"))
}

/// One bar over all layers.
#[derive(Default)]
struct Shown {
    bar: Option<Progress>,
    done: u64,
}

impl Shown {
    fn show(&mut self, name: &str, layers: &[Value]) {
        let sum = |field: &str| layers.iter().filter_map(|layer| layer.get(field)?.as_u64()).sum::<u64>();
        let here = |layer: &&Value| matches!(layer.get("state").and_then(Value::as_str), Some("present" | "taken"));
        let counted = |layer: &Value| {
            let field = if here(&layer) { "sizeBytes" } else { "readBytes" };
            layer.get(field).and_then(Value::as_u64).unwrap_or(0)
        };
        let done: u64 = layers.iter().map(counted).sum();
        let bar = self.bar.get_or_insert_with(|| Progress::bytes(Some(sum("sizeBytes")), &format!("pulling {name}")));
        bar.advance(done.saturating_sub(self.done));
        self.done = self.done.max(done);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
