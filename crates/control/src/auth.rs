//! Who is asking, and what they may do.

use sandbank_model::{KeyHash, Principal, QuotaLimits, Role, Tenant, TenantId};
use sha2::{Digest, Sha256};

use crate::control::{Control, Inner};
use crate::types::Caller;
use crate::{Error, ErrorKind, Result};

/// Characters of a key's secret.
const SECRET_LEN: usize = 64;
/// The installation's own tenant: where admins act unless they impersonate somebody.
pub(crate) const ADMIN_TENANT: &str = "default";
/// Team and user of the static admin key (native.md §3).
const ADMIN_NAME: &str = "admin";

/// SHA-256 of the secret part of `<prefix>_<64 hex>` or of bare 64 hex; `None` when it has not that shape.
pub(crate) fn key_hash(key: &str) -> Option<KeyHash> {
    let (prefix, secret) = match key.rsplit_once('_') {
        Some((prefix, secret)) => (Some(prefix), secret),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|prefix| {
        !prefix.is_empty() && prefix.len() <= 64 && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    });
    let secret_ok = secret.len() == SECRET_LEN && secret.bytes().all(|b| b.is_ascii_hexdigit());
    (prefix_ok && secret_ok).then(|| KeyHash(Sha256::digest(secret.as_bytes()).into()))
}

/// Refuses a team or user name that is not 1 to 63 of `A-Z a-z 0-9 . _ @ -`.
pub(crate) fn check_member_name(what: &str, name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::invalid(format!("{shown:?} is not a {what} name: use 1 to 63 letters, digits and . _ @ -")))
}

fn invalid_key() -> Error {
    Error::new(ErrorKind::Unauthenticated, "invalid API key")
}

impl Control {
    /// Any `<prefix>_<64 hex>` or bare 64 hex: an API key, or the static admin key.
    pub async fn authenticate(&self, secret: &str) -> Result<Principal> {
        let inner = &self.inner;
        let hash = key_hash(secret).ok_or_else(invalid_key)?;
        let admin = inner.admin_key.read().filter(|(known, _)| *known == hash).map(|(_, tenant)| tenant);
        let (tenant, role, key) = match admin {
            Some(tenant) => (tenant, Role::Admin, None),
            None => {
                let key = inner.store.key_by_hash(hash).await?.filter(|key| key.is_valid(inner.now())).ok_or_else(invalid_key)?;
                (key.tenant, key.role, Some(key.id))
            }
        };
        let owner = inner.owner(tenant).await?;
        Ok(Principal { role, tenant, tenant_name: owner.name, team: owner.team, user: owner.user, key, impersonated_by: None })
    }

    /// `principal` acting for another team and user; admins only, others get themselves (native.md §3).
    ///
    /// The result has the role of an owner of that tenant: an admin who impersonates sees what the other would see.
    pub async fn impersonate(&self, principal: Principal, team: &str, user: &str) -> Result<Principal> {
        if principal.role != Role::Admin {
            return Ok(principal);
        }
        let tenant = self.inner.ensure_tenant(None, team, user).await?;
        Ok(Principal {
            role: Role::Owner,
            tenant: tenant.id,
            tenant_name: tenant.name,
            team: tenant.team,
            user: tenant.user,
            key: principal.key,
            impersonated_by: Some(principal.tenant_name),
        })
    }

    /// Makes the installation's admin key known (tenant `default`, team and user `admin`). It is kept in memory only, so an
    /// older one stops working with the server that knew it.
    pub async fn ensure_admin_key(&self, secret: &str) -> Result<()> {
        let hash = key_hash(secret).ok_or_else(|| {
            Error::invalid("the admin key must be 64 hexadecimal characters, with or without a prefix such as agbx_ in front")
        })?;
        let tenant = self.inner.ensure_tenant(Some(ADMIN_TENANT), ADMIN_NAME, ADMIN_NAME).await?;
        *self.inner.admin_key.write() = Some((hash, tenant.id));
        Ok(())
    }
}

impl Inner {
    /// The tenant of this team and user, made if there is none. `namespace`: its name; `None`: `t-{team}-{user}`.
    pub(crate) async fn ensure_tenant(&self, namespace: Option<&str>, team: &str, user: &str) -> Result<Tenant> {
        check_member_name("team", team)?;
        check_member_name("user", user)?;
        if let Some(namespace) = namespace {
            check_member_name("namespace", namespace)?;
        }
        let now = self.now();
        let wanted = Tenant {
            id: TenantId::new(now, self.random()),
            name: namespace.map_or_else(|| format!("t-{team}-{user}"), str::to_owned),
            team: team.to_owned(),
            user: user.to_owned(),
            network: None,
            quota: QuotaLimits::default(),
            created_at: now,
        };
        let found = match self.store.tenant_by_name(&wanted.name).await? {
            Some(found) => found,
            None => self.store.tenant_ensure(wanted).await?,
        };
        // `t-a-b-c` is the name of (a, b-c) and of (a-b, c): without this check the second would own the first's sandboxes.
        if found.team != team || found.user != user {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("namespace {} belongs to team {} and user {}: choose other names", found.name, found.team, found.user),
            ));
        }
        Ok(found)
    }
}

impl Caller {
    /// Refuses callers whose role may not do `what`.
    pub(crate) fn require(&self, least: Role, what: &str) -> Result<()> {
        // Roles are ordered from the most to the least powerful.
        if self.principal.role <= least {
            return Ok(());
        }
        let (needed, has) = (role_word(least), role_word(self.principal.role));
        Err(Error::new(ErrorKind::Forbidden, format!("{what} needs the role {needed}; this key has the role {has}")))
    }

    /// Refuses everybody but admins (native.md §3).
    pub(crate) fn require_admin(&self) -> Result<()> {
        if self.is_admin() { Ok(()) } else { Err(Error::new(ErrorKind::Forbidden, "admin access required")) }
    }

    /// Whether an object of `tenant` may be addressed: one's own, or any by an admin who acts as such.
    pub(crate) fn sees(&self, tenant: TenantId) -> bool {
        self.principal.tenant == tenant || self.is_admin()
    }
}

const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Owner => "owner",
        Role::Member => "member",
        Role::Application => "application",
    }
}

#[cfg(test)]
mod tests {
    use super::key_hash;

    #[test]
    fn a_key_is_64_hex_with_or_without_one_plain_prefix() {
        let hex = "0123456789abcdef".repeat(4);
        let bare = key_hash(&hex);
        assert!(bare.is_some());
        assert_eq!(key_hash(&format!("agbx_{hex}")), bare);
        assert_eq!(key_hash(&format!("e2b_{hex}")), bare);
        for wrong in
            ["", "agbx_", "x", &hex[1..], &format!("{hex}0"), &format!("_{hex}"), &format!("A_{hex}"), &format!("a_b_{hex}")]
        {
            assert_eq!(key_hash(wrong), None, "{wrong}");
        }
        assert_eq!(key_hash(&"g".repeat(64)), None);
    }
}
