//! Registries' credentials: kept for a tenant or for the installation, and never shown again.

use sandbank_model::{CredentialKind, RegistryCredential, RegistryCredentialId, Role, TenantId};
use sandbank_oci::{Credentials, Reference};
use sandbank_store::Write;

use crate::control::{Control, Inner};
use crate::secrets::Purpose;
use crate::types::{Caller, RegistryView};
use crate::{Error, ErrorKind, Result};

/// Kind of these secrets; part of what is authenticated.
const KIND: &str = "registry";
/// Registries that one owner may keep credentials for.
const REGISTRIES_MAX: usize = 100;
/// Longest user name, bytes.
const USERNAME_LEN_MAX: usize = 255;
/// Longest password or token, bytes: cloud registries take whole key files as passwords.
const SECRET_LEN_MAX: usize = 16 * 1024;

impl Control {
    /// Keeps credentials for a registry, in place of those that the owner had. `global`: for the whole installation, which only
    /// admins may; they serve every tenant that has none of its own. Whether the registry accepts them shows at the next pull.
    pub async fn registry_login(
        &self,
        caller: &Caller,
        host: &str,
        credentials: Credentials,
        global: bool,
    ) -> Result<RegistryView> {
        let tenant = owner_for(caller, global, "keeping registry credentials")?;
        let host = registry_host(host)?;
        check_credentials(&credentials)?;
        let inner = &self.inner;
        let known = inner.store.registry_credential_list(&[tenant]).await?;
        if known.len() >= REGISTRIES_MAX && known.iter().all(|one| one.host != host) {
            let message = format!("there are credentials for {REGISTRIES_MAX} registries already: log out of one of them first");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let (username, kind, secret) = match credentials {
            Credentials::Password { username, password } => (Some(username), CredentialKind::Password, password),
            Credentials::Token(token) => (None, CredentialKind::Token, token),
        };
        let now = inner.now();
        let sealed = inner.seal(&Purpose { kind: KIND, tenant, name: &host }, secret.as_bytes())?;
        let id = RegistryCredentialId::new(now, inner.random());
        let record = RegistryCredential { id, tenant, host, username, kind, sealed, created_at: now };
        let view = RegistryView::from(&record);
        inner.store.registry_credential_put(record).await?;
        Ok(view)
    }

    /// The registries that there are credentials for, by host: the caller's own, and the installation's, whose user only admins
    /// see.
    pub async fn registry_list(&self, caller: &Caller) -> Result<Vec<RegistryView>> {
        caller.require(Role::Member, "listing registries")?;
        let kept = self.inner.store.registry_credential_list(&[Some(caller.principal.tenant), None]).await?;
        let view = |credential: &RegistryCredential| {
            let view = RegistryView::from(credential);
            if view.global && !caller.is_admin() { RegistryView { username: None, ..view } } else { view }
        };
        Ok(kept.iter().map(view).collect())
    }

    /// Forgets credentials; gives the host as it is spelled in lists. `global`: the installation's, which only admins may.
    pub async fn registry_logout(&self, caller: &Caller, host: &str, global: bool) -> Result<String> {
        let tenant = owner_for(caller, global, "forgetting registry credentials")?;
        let host = registry_host(host)?;
        match self.inner.store.registry_credential_delete(tenant, &host).await? {
            Write::Updated(()) | Write::Refused(()) => Ok(host),
            Write::Missing => Err(Error::not_found(format!("there are no credentials for registry {host}"))),
        }
    }
}

impl Inner {
    /// What `tenant` shows to the registry `host`, spelled as [`Reference::registry`] spells it: its own credentials, else the
    /// installation's. Own ones that do not open are an error: others would be shown in a name that the tenant did not choose.
    pub(crate) async fn credentials_for(&self, tenant: TenantId, host: &str) -> Result<Option<Credentials>> {
        let own = self.store.registry_credential_get(Some(tenant), host).await?;
        let found = match own {
            Some(own) => Some(own),
            None => self.store.registry_credential_get(None, host).await?,
        };
        found.map(|credential| self.open_credentials(credential)).transpose()
    }

    fn open_credentials(&self, credential: RegistryCredential) -> Result<Credentials> {
        let RegistryCredential { id: _, tenant, host, username, kind, sealed, created_at: _ } = credential;
        let unusable = |reason: &dyn std::fmt::Display| {
            let message = format!(
                "the credentials for registry {host} cannot be used: the secret {reason}; log in again (sandbank registry login \
                 {host}), or give the server the key back that it had"
            );
            Error::new(ErrorKind::Unavailable, message)
        };
        let opened =
            self.sealer.open(&Purpose { kind: KIND, tenant, name: &host }, &sealed).map_err(|reason| unusable(&reason))?;
        let secret = std::str::from_utf8(&opened).map_err(|_| unusable(&"is no text"))?.to_owned();
        match (kind, username) {
            (CredentialKind::Token, _) => Ok(Credentials::Token(secret)),
            (CredentialKind::Password, Some(username)) => Ok(Credentials::Password { username, password: secret }),
            (CredentialKind::Password, None) => Err(unusable(&"has no user")),
        }
    }
}

impl From<&RegistryCredential> for RegistryView {
    fn from(credential: &RegistryCredential) -> Self {
        let RegistryCredential { id: _, tenant, host, username, kind, sealed: _, created_at } = credential;
        Self { host: host.clone(), username: username.clone(), kind: *kind, global: tenant.is_none(), created_at: *created_at }
    }
}

/// Whose credentials the caller means, if it may change them.
fn owner_for(caller: &Caller, global: bool, what: &str) -> Result<Option<TenantId>> {
    caller.require(Role::Member, what)?;
    if global {
        caller.require_admin()?;
    }
    Ok((!global).then_some(caller.principal.tenant))
}

fn registry_host(host: &str) -> Result<String> {
    Reference::registry_of(host).ok_or_else(|| {
        let shown: String = host.chars().take(80).collect();
        Error::invalid(format!(
            "{shown:?} is no registry: write its host, with a port if it has one, such as ghcr.io or reg.example:5000"
        ))
    })
}

/// Refuses what no registry could be shown: Basic forbids a colon in the user (RFC 7617 §2), and a bearer token is one word of a
/// header (RFC 6750 §2.1).
fn check_credentials(credentials: &Credentials) -> Result<()> {
    let secret = match credentials {
        Credentials::Password { username, password } => {
            let plain = !username.contains(|c: char| c == ':' || c.is_control());
            if !(1..=USERNAME_LEN_MAX).contains(&username.len()) || !plain {
                return Err(Error::invalid(format!(
                    "username must have 1 to {USERNAME_LEN_MAX} bytes without ':' and control characters"
                )));
            }
            if password.contains('\0') {
                return Err(Error::invalid("password must not hold a NUL byte"));
            }
            password
        }
        Credentials::Token(token) => {
            if !token.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(Error::invalid("token must be one word of printable ASCII characters"));
            }
            token
        }
    };
    if !(1..=SECRET_LEN_MAX).contains(&secret.len()) {
        return Err(Error::invalid(format!(
            "the password or token has {} bytes: it must have 1 to {SECRET_LEN_MAX}",
            secret.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
