//! One image asked for by one client: where to ask, with which credentials, how often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use tokio::time::sleep;

use super::auth::{self, Asking, Challenge};
use super::settings::{Credentials, Endpoint};
use super::transport::{Failure, Get, Transport, failure_of};
use crate::{Error, Limits, Reference, Result};

/// The longest pause between tries that nobody asked for.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Session {
    pub(crate) transport: Arc<Transport>,
    pub(crate) reference: Reference,
    /// As people write it.
    pub(crate) image: String,
    credentials: Option<Credentials>,
    /// Mirrors, then the registry.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What each server has accepted. Kept here and nowhere longer: another request may come with other credentials.
    authorizations: Mutex<HashMap<String, HeaderValue>>,
}

/// What is asked for, below `/v2/<repository>/`.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) path: &'a str,
    /// For errors.
    pub(crate) what: &'a str,
    pub(crate) accept: Option<&'static str>,
    /// Offset of the first byte that is wanted.
    pub(crate) from: u64,
}

/// A manifest, index or configuration as it came.
pub(crate) struct Document {
    pub(crate) content: Vec<u8>,
    pub(crate) media_type: String,
}

impl Session {
    pub(crate) fn new(transport: Arc<Transport>, reference: Reference, credentials: Option<Credentials>) -> Result<Self> {
        let endpoints = transport.settings.endpoints(reference.registry())?;
        let image = reference.familiar(&transport.settings.default_registry);
        Ok(Self { transport, reference, image, credentials, endpoints, authorizations: Mutex::default() })
    }

    /// One try at one server. The response is a success.
    pub(crate) async fn ask(&self, endpoint: &Endpoint, ask: Ask<'_>) -> Result<Response, Failure> {
        let Ask { path, what, accept, from } = ask;
        let scheme = self.transport.scheme(endpoint).await;
        let registry = endpoint.authority.as_str();
        let repository = format!("{}{}", endpoint.prefix, self.reference.repository());
        let text = format!("{scheme}://{registry}/v2/{repository}/{path}");
        let url = Url::parse(&text).map_err(|error| Error::Setting { setting: "registry", reason: error.to_string() })?;
        let image = self.image.as_str();
        // A mirror is another house: it is asked as anybody may ask.
        let credentials = self.credentials.as_ref().filter(|_| !endpoint.is_mirror);
        let get = |authorization| Get { url: url.clone(), authorization, accept, from, image, registry };
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(registry).cloned();
        let mut response = self.transport.get(get(known)).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = Challenge::of(response.headers())
        {
            let asking = Asking { credentials, repository: &repository, registry_url: &url, image, registry };
            let authorization = auth::answer(&self.transport, challenge, &asking).await?;
            response = self.transport.get(get(Some(authorization.clone()))).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).insert(registry.to_owned(), authorization);
            }
        }
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(failure_of(&response, image, registry, what, credentials.is_none()))
        }
    }

    /// A document from the first server that has it, and that server's number.
    pub(crate) async fn document(&self, ask: Ask<'_>) -> Result<(Document, usize)> {
        let mut number = 0;
        let mut retry = Retry::default();
        loop {
            let endpoint = &self.endpoints[number];
            match self.document_once(endpoint, ask).await {
                Ok(document) => return Ok((document, number)),
                Err(failure) if endpoint.is_mirror => {
                    self.leave_mirror(endpoint, &failure);
                    number += 1;
                }
                Err(failure) => retry.pause(self, endpoint, failure).await?,
            }
        }
    }

    async fn document_once(&self, endpoint: &Endpoint, ask: Ask<'_>) -> Result<Document, Failure> {
        let response = self.ask(endpoint, ask).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let content = self.transport.body(response, Limits::DOCUMENT_BYTES_MAX).await?;
        let content = content.ok_or_else(|| Error::TooLarge {
            image: self.image.clone(),
            what: ask.what.to_owned(),
            limit_bytes: Limits::DOCUMENT_BYTES_MAX as u64,
        })?;
        Ok(Document { content, media_type })
    }

    pub(crate) fn leave_mirror(&self, endpoint: &Endpoint, failure: &Failure) {
        let reason = match failure {
            Failure::Again { reason, .. } => reason.clone(),
            Failure::Final(error) => error.to_string(),
        };
        tracing::warn!(mirror = %endpoint.authority, image = %self.image, %reason, "mirror does not serve the image; asking the next");
    }
}

/// Counts tries, and waits between them.
#[derive(Default)]
pub(crate) struct Retry {
    failed: u32,
}

impl Retry {
    /// There was progress: what failed before does not count any more.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, or says why there is none.
    pub(crate) async fn pause(&mut self, session: &Session, endpoint: &Endpoint, failure: Failure) -> Result<()> {
        let (reason, after, limited) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { reason, after, limited } => (reason, after, limited),
        };
        self.failed += 1;
        let settings = &session.transport.settings;
        let (image, registry, tries) = (session.image.clone(), endpoint.authority.clone(), self.failed);
        let too_long = after.is_some_and(|after| after > settings.retry_after_max);
        if self.failed >= settings.tries_max || too_long {
            return Err(match limited {
                true => Error::RateLimited { image, registry, retry_after: after },
                false => Error::Unavailable { image, registry, tries, reason },
            });
        }
        let grown = settings.backoff.saturating_mul(1 << (self.failed - 1).min(16)).min(BACKOFF_MAX);
        let pause = after.unwrap_or(grown);
        tracing::debug!(%registry, %image, tries, %reason, pause_ms = pause.as_millis(), "trying again");
        sleep(pause).await;
        Ok(())
    }
}
