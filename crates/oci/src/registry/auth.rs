//! Proving who asks: Basic (RFC 7617) and the token flow of registries (distribution's `spec/auth/token.md`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::settings::{Credentials, RegistrySettings, authority_of};
use super::transport::{Failure, Get, Transport, failure_of};
use crate::Error;

/// Bytes of a token server's answer.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a challenge that is looked at.
const CHALLENGE_LEN_MAX: usize = 4096;

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first that we can answer; a token before a password.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut basic = None;
        for value in values.filter(|value| value.len() <= CHALLENGE_LEN_MAX) {
            for challenge in ChallengeParser::new(value).map_while(|challenge| challenge.ok()) {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = parameter("realm")?;
                    return Some(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

/// Who asks for what.
pub(crate) struct Asking<'a> {
    pub(crate) credentials: Option<&'a Credentials>,
    /// With a mirror's prefix, if it has one.
    pub(crate) repository: &'a str,
    /// The registry's own URL, which the challenge came from.
    pub(crate) registry_url: &'a Url,
    pub(crate) image: &'a str,
    pub(crate) registry: &'a str,
}

/// The `Authorization` that answers `challenge`.
pub(crate) async fn answer(transport: &Transport, challenge: Challenge, asking: &Asking<'_>) -> Result<HeaderValue, Failure> {
    let unauthorized = || Error::Unauthorized {
        image: asking.image.to_owned(),
        registry: asking.registry.to_owned(),
        anonymous: asking.credentials.is_none(),
    };
    match (challenge, asking.credentials) {
        (_, Some(Credentials::Token(token))) => Ok(bearer(token).ok_or_else(unauthorized)?),
        (Challenge::Basic, Some(Credentials::Password { username, password })) => {
            Ok(basic(username, password).ok_or_else(unauthorized)?)
        }
        (Challenge::Basic, None) => Err(unauthorized().into()),
        (Challenge::Bearer { realm, service, scope }, credentials) => {
            let url = token_url(&realm, service, scope, asking, &transport.settings)?;
            let authorization = match credentials {
                Some(Credentials::Password { username, password }) => Some(basic(username, password).ok_or_else(unauthorized)?),
                _ => None,
            };
            let token = fetch_token(transport, url, authorization, asking).await?;
            Ok(bearer(&token).ok_or_else(unauthorized)?)
        }
    }
}

/// Where to get a token. A registry on HTTPS must not name a token server on plain HTTP, which would show the password.
fn token_url(
    realm: &str,
    service: Option<String>,
    scope: Option<String>,
    asking: &Asking<'_>,
    settings: &RegistrySettings,
) -> Result<Url, Failure> {
    let refuse =
        |reason: String| Error::Redirect { image: asking.image.to_owned(), registry: asking.registry.to_owned(), reason };
    let url = Url::parse(realm).ok().filter(|url| url.has_host() && ["http", "https"].contains(&url.scheme()));
    let mut url = url.ok_or_else(|| refuse("for a token to nowhere".to_owned()))?;
    let plain_ok = asking.registry_url.scheme() == "http" && settings.may_be_plain(&authority_of(&url));
    if url.scheme() == "http" && !plain_ok {
        return Err(refuse(format!("for a token to {} in plain HTTP", authority_of(&url))).into());
    }
    let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", asking.repository));
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &scope);
    }
    Ok(url)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

async fn fetch_token(
    transport: &Transport,
    url: Url,
    authorization: Option<HeaderValue>,
    asking: &Asking<'_>,
) -> Result<String, Failure> {
    let anonymous = authorization.is_none();
    let host = authority_of(&url);
    let get = Get { url, authorization, accept: None, from: 0, image: asking.image, registry: &host };
    let response = transport.get(get).await?;
    let malformed = || Error::Malformed {
        image: asking.image.to_owned(),
        what: format!("the token of {host}"),
        reason: "it is not the JSON of a token".to_owned(),
    };
    match response.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            let (image, registry) = (asking.image.to_owned(), asking.registry.to_owned());
            return Err(Error::Unauthorized { image, registry, anonymous }.into());
        }
        _ => return Err(failure_of(&response, asking.image, &host, "token", anonymous)),
    }
    let body = transport.body(response, TOKEN_BYTES_MAX).await?.ok_or_else(malformed)?;
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| malformed())?;
    Ok(answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(malformed)?)
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

/// A header that no log and no `Debug` shows; `None` for text that cannot be in one.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let wanted = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        let bearer = r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull""#;
        assert_eq!(challenge(&["Basic realm=\"x\"", bearer]).as_ref(), Some(&wanted));
        assert_eq!(challenge(&["basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate x"]), None);
        assert_eq!(challenge(&["Bearer service=x"]), None);
        assert_eq!(challenge(&[]), None);
    }
}
