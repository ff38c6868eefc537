//! Pulling images.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use sandbank_control::LayersProgress;
use sandbank_http::{ndjson_body, ndjson_line};
use sandbank_model::Image;
use tokio::task::JoinHandle;

use crate::convert;
use crate::errors::ApiResult;
use crate::session::{Input, Params, Session};
use crate::wire;

/// How often a watcher is told how far a pull is, if it came any further.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Pull an image from a registry
///
/// With credentials given here, else with those stored for the namespace. A pull goes on when its client leaves.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", params(wire::PullQuery), request_body = wire::PullImageRequest,
    responses(
        (status = 201, description = "The image.", body = wire::ImageEnvelope),
        (status = 200, description = "With `progress`.", body = wire::PullLine, content_type = "application/x-ndjson"),
    ))]
pub(crate) async fn pull(
    session: Session,
    Params(query): Params<wire::PullQuery>,
    Input(request): Input<wire::PullImageRequest>,
) -> ApiResult<Response> {
    let progress = LayersProgress::default();
    let pull = convert::pull(request, progress.clone())?;
    let Session { app, caller, .. } = session;
    if !query.progress {
        let image = app.control.image_pull(&caller, pull).await?;
        return Ok((StatusCode::CREATED, Json(wire::ImageEnvelope { image: convert::image_wire(&image) })).into_response());
    }
    let pulling = tokio::spawn(async move { app.control.image_pull(&caller, pull).await });
    Ok(ndjson_body(stream::unfold(Some(Watching { progress, pulling, told: None }), next_line)))
}

struct Watching {
    progress: LayersProgress,
    pulling: JoinHandle<sandbank_control::Result<Image>>,
    told: Option<Vec<wire::PulledLayer>>,
}

async fn next_line(watching: Option<Watching>) -> Option<(Bytes, Option<Watching>)> {
    let mut watching = watching?;
    loop {
        let layers: Vec<wire::PulledLayer> = watching.progress.layers().iter().map(convert::pulled_layer).collect();
        if watching.told.as_ref() != Some(&layers) && !layers.is_empty() {
            let line = ndjson_line(&wire::PullLine::Layers(layers.clone()));
            watching.told = Some(layers);
            return Some((line, Some(watching)));
        }
        let Ok(ended) = tokio::time::timeout(TELL_EVERY, &mut watching.pulling).await else { continue };
        let last = match ended {
            Ok(Ok(image)) => wire::PullLine::Image(Box::new(convert::image_wire(&image))),
            Ok(Err(error)) => wire::PullLine::Error(error.message),
            Err(_) => wire::PullLine::Error("the server failed to pull the image; see its log".to_owned()),
        };
        return Some((ndjson_line(&last), None));
    }
}
