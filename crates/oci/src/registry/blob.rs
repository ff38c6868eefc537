//! A layer's bytes from a registry: a download that goes on after a broken connection.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::session::{Ask, Retry, Session};
use super::transport::{Failure, reason_of};
use crate::source::LayerBlob;
use crate::{Error, Result};

/// So much of a layer must have come for the tries to count anew: a bad line finishes, a bad server does not go on for ever.
const PROGRESS_BYTES: u64 = 1 << 20;

pub(crate) struct Download {
    session: Arc<Session>,
    layer: LayerBlob,
    /// Which of the session's servers is asked.
    endpoint: usize,
    body: Option<Response>,
    /// Bytes handed on.
    done_bytes: u64,
    /// Of the present body, to be dropped since they were handed on before.
    skip_bytes: u64,
    /// `done_bytes` at the last failure.
    failed_at_bytes: u64,
    retry: Retry,
}

impl Download {
    pub(crate) fn new(session: Arc<Session>, layer: LayerBlob, endpoint: usize) -> Self {
        Self { session, layer, endpoint, body: None, done_bytes: 0, skip_bytes: 0, failed_at_bytes: 0, retry: Retry::default() }
    }

    /// Connects now, so that a refusal is the answer to opening rather than to reading.
    pub(crate) async fn started(mut self) -> Result<Self> {
        while self.body.is_none() {
            if let Err(failure) = self.connect().await {
                self.failed(failure).await?;
            }
        }
        Ok(self)
    }

    /// The bytes, until there are as many as promised.
    pub(crate) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold(self, |mut download| async move {
            let chunk = download.next().await.map_err(io::Error::from)?;
            Ok(chunk.map(|chunk| (chunk, download)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.done_bytes < self.layer.size_bytes {
            match self.step().await {
                Ok(Some(chunk)) => {
                    self.done_bytes += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) => {}
                Err(failure) => self.failed(failure).await?,
            }
        }
        Ok(None)
    }

    /// A chunk; `None` where one only came closer.
    async fn step(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(body) = &mut self.body else {
            self.connect().await?;
            return Ok(None);
        };
        let limit = self.session.transport.settings.stall_timeout;
        let chunk = timeout(limit, body.chunk()).await;
        let (done, size) = (self.done_bytes, self.layer.size_bytes);
        match chunk {
            Ok(Ok(Some(mut chunk))) => {
                let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(chunk.len());
                self.skip_bytes -= skipped as u64;
                let rest = chunk.split_off(skipped);
                Ok(Some(rest).filter(|rest| !rest.is_empty()))
            }
            Ok(Ok(None)) => Err(Failure::again(format!("the layer ended after {done} of {size} bytes"))),
            Ok(Err(error)) => {
                let reason = reason_of(&error.without_url());
                Err(Failure::again(format!("the connection broke after {done} of {size} bytes: {reason}")))
            }
            Err(_) => {
                let seconds = limit.as_secs_f32();
                Err(Failure::again(format!("stalled for {seconds} s after {done} of {size} bytes")))
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let path = format!("blobs/{}", self.layer.digest);
        let what = format!("layer {}", self.layer.digest);
        let ask = Ask { path: &path, what: &what, accept: None, from: self.done_bytes };
        let response = self.session.ask(&self.session.endpoints[self.endpoint], ask).await?;
        self.skip_bytes = if response.status() == StatusCode::PARTIAL_CONTENT && self.done_bytes > 0 {
            let begins_at = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(range_start);
            if begins_at != Some(self.done_bytes) {
                return Err(Failure::again("it answers with another part than was asked for"));
            }
            0
        } else {
            // It knows no ranges and begins at the beginning. What was handed on is not compared: the digest at the end covers it.
            let expected_bytes = self.layer.size_bytes;
            if let Some(actual_bytes) = response.content_length().filter(|length| *length != expected_bytes) {
                let image = self.session.image.clone();
                return Err(Error::Size { image, what, expected_bytes, actual_bytes }.into());
            }
            self.done_bytes
        };
        self.body = Some(response);
        Ok(())
    }

    /// Waits for the next try, or gives up.
    async fn failed(&mut self, failure: Failure) -> Result<()> {
        self.body = None;
        let failure = failure.of(&format!("layer {}", self.layer.digest));
        if self.done_bytes >= self.failed_at_bytes + PROGRESS_BYTES {
            self.retry.reset();
        }
        self.failed_at_bytes = self.done_bytes;
        let endpoint = &self.session.endpoints[self.endpoint];
        if endpoint.is_mirror {
            self.session.leave_mirror(endpoint, &failure);
            self.endpoint += 1;
            return Ok(());
        }
        self.retry.pause(&self.session, endpoint, failure).await
    }
}

/// The first byte's offset in `bytes 5-9/10`.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
