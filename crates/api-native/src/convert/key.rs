//! API keys.

use sandbank_control::{AdminKeyRequest, ImportedKey, KeyRequest, NewKey, OwnerView};
use sandbank_http::{format_time, parse_time};
use sandbank_model::{ApiKey, ApiKeyId, KeyHash, Principal, Role, StringMap};

use super::optional_text;
use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// Annotation of a key with its quota address.
const QUOTA_URL: &str = "quotaURL";

/// The contract's word for a role.
pub(crate) const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Owner | Role::Member | Role::Application => "tenant",
    }
}

/// What the caller is.
pub(crate) fn whoami(principal: &Principal) -> wire::WhoAmI {
    let Principal { role, tenant: _, tenant_name, team, user, key: _, impersonated_by: _ } = principal;
    wire::WhoAmI { role: role_word(*role).to_owned(), user: user.clone(), team: team.clone(), namespace: tenant_name.clone() }
}

/// A key to make.
pub(crate) fn key_request(request: wire::CreateKeyRequest) -> ApiResult<KeyRequest> {
    let wire::CreateKeyRequest { description, expires_at } = request;
    Ok(KeyRequest {
        description: optional_text("description", description.filter(|text| !text.is_empty()), 1000)?,
        expires_at: time("expiresAt", expires_at)?,
        annotations: StringMap::new(),
    })
}

fn time(field: &str, text: Option<String>) -> ApiResult<Option<sandbank_model::Timestamp>> {
    let parse = |text: String| parse_time(&text).map_err(|error| ApiError::bad_request(format!("{field}: {error}")));
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// A key to make or import by an admin.
pub(crate) fn admin_key_request(request: wire::AdminCreateKeyRequest) -> ApiResult<AdminKeyRequest> {
    let wire::AdminCreateKeyRequest {
        namespace,
        user,
        team,
        role,
        description,
        expires_at,
        token_hash,
        hash_prefix,
        issued_at,
        quota_url,
    } = request;
    let required = |field: &str, value: Option<String>| {
        optional_text(field, value, 63)?.ok_or_else(|| ApiError::bad_request(format!("{field} is required")))
    };
    let mut key = key_request(wire::CreateKeyRequest { description, expires_at })?;
    if let Some(url) = optional_text(QUOTA_URL, quota_url.filter(|url| !url.is_empty()), 1000)? {
        key.annotations.insert(QUOTA_URL.to_owned(), url);
    }
    let import = token_hash.map(|hash| imported(&hash, hash_prefix.as_deref(), issued_at)).transpose()?;
    Ok(AdminKeyRequest {
        namespace: optional_text("namespace", namespace.filter(|name| !name.is_empty()), 200)?,
        team: required("team", team)?,
        user: required("user", user)?,
        role: match role {
            Some(wire::KeyRole::Admin) => Role::Admin,
            None | Some(wire::KeyRole::Tenant | wire::KeyRole::Owner) => Role::Owner,
            Some(wire::KeyRole::Member) => Role::Member,
            Some(wire::KeyRole::Application) => Role::Application,
        },
        key,
        import,
    })
}

fn imported(hash: &str, prefix: Option<&str>, issued_at: Option<String>) -> ApiResult<ImportedKey> {
    let parsed = KeyHash::from_hex(hash).ok_or_else(|| ApiError::bad_request("tokenHash: give 64 hexadecimal characters"))?;
    if let Some(prefix) = prefix
        && !(prefix.len() == 16 && parsed.to_hex().starts_with(&prefix.to_ascii_lowercase()))
    {
        return Err(ApiError::bad_request("hashPrefix is not the first 16 characters of tokenHash"));
    }
    Ok(ImportedKey { hash: parsed, issued_at: time("issuedAt", issued_at)? })
}

/// A new key with its secret.
pub(crate) fn new_key_wire(new: NewKey, owner: &OwnerView) -> wire::CreateKeyResult {
    let NewKey { secret, key } = new;
    created(secret, &key, owner)
}

/// An imported key: nobody here knows its secret.
pub(crate) fn imported_key_wire(key: &ApiKey, owner: &OwnerView) -> wire::CreateKeyResult {
    created(String::new(), key, owner)
}

fn created(api_key: String, key: &ApiKey, owner: &OwnerView) -> wire::CreateKeyResult {
    let OwnerView { name: _, team, user } = owner;
    wire::CreateKeyResult {
        api_key,
        key_id: key.id.to_string(),
        role: role_word(key.role).to_owned(),
        issued_at: format_time(key.issued_at),
        user: user.clone(),
        team: team.clone(),
        description: key.description.clone(),
        expires_at: key.expires_at.map(format_time),
    }
}

/// A key in a list.
pub(crate) fn key_wire(key: &ApiKey, owner: &OwnerView) -> wire::KeyItem {
    let ApiKey { id, hash, tenant: _, role, description, annotations, issued_at, expires_at, revoked_at } = key;
    let OwnerView { name, team, user } = owner;
    wire::KeyItem {
        key_id: id.to_string(),
        namespace: name.clone(),
        hash_prefix: hash.to_hex()[..16].to_owned(),
        role: role_word(*role).to_owned(),
        issued_at: format_time(*issued_at),
        user: user.clone(),
        team: team.clone(),
        quota_url: annotations.get(QUOTA_URL).cloned(),
        description: description.clone(),
        expires_at: expires_at.map(format_time),
        revoked_at: revoked_at.map(format_time),
    }
}

/// A key as a path names it: our id, AgentBox's `agentbox-apikey-{16 hex}`, or the 16 characters; perhaps after `{namespace}/`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyReference<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) short: &'a str,
}

impl<'a> KeyReference<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let (namespace, short) = match text.rsplit_once('/') {
            Some((namespace, short)) => (Some(namespace), short),
            None => (None, text),
        };
        Self { namespace, short: short.strip_prefix("agentbox-apikey-").unwrap_or(short) }
    }

    /// The id, when the reference is one.
    pub(crate) fn id(&self) -> Option<ApiKeyId> {
        self.short.parse().ok()
    }

    /// Whether the first 16 characters of the key's hash are meant.
    pub(crate) fn names(&self, key: &ApiKey) -> bool {
        self.short.len() == 16 && key.hash.to_hex().starts_with(&self.short.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn key_references_take_every_spelling() {
        let id = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";
        for text in [id.to_owned(), format!("t-team-user/{id}")] {
            assert_eq!(KeyReference::parse(&text).id().unwrap().to_string(), id);
        }
        assert_eq!(KeyReference::parse("ns/agentbox-apikey-0123456789abcdef").short, "0123456789abcdef");
        assert_eq!(KeyReference::parse("nothing").id(), None);
    }

    #[test]
    fn an_import_checks_its_hash() {
        let request = |hash: &str, prefix: &str| {
            admin_key_request(wire::AdminCreateKeyRequest {
                team: Some("t".to_owned()),
                user: Some("u".to_owned()),
                token_hash: Some(hash.to_owned()),
                hash_prefix: Some(prefix.to_owned()),
                ..Default::default()
            })
        };
        let hash = "0123456789abcdef".repeat(4);
        assert!(request(&hash, "0123456789ABCDEF").unwrap().import.is_some());
        assert!(request(&hash, "1123456789abcdef").is_err());
        assert!(request("abc", "0123456789abcdef").is_err());
    }
}
