//! Registries' credentials. They are read when an image is pulled, which takes longer than any read: none is kept in memory.

use rusqlite::{Connection, OptionalExtension, params};
use sandbank_model::{RegistryCredential, TenantId};

use super::error::{Doing, decode, encode};
use super::objects::owner;
use super::unit::Unit;
use crate::{StoreError, Write};

const READING: &str = "reading a registry's credentials";

impl Unit<'_> {
    pub(super) fn registry_credential_put(
        &mut self,
        credential: &RegistryCredential,
    ) -> Result<Option<RegistryCredential>, StoreError> {
        const DOING: &str = "keeping a registry's credentials";
        let before = get(self.conn, credential.tenant, &credential.host)?;
        let record = encode(credential, DOING)?;
        self.conn
            .execute(
                "INSERT INTO registry_credential (owner, host, record) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (owner, host) DO UPDATE SET record = excluded.record",
                params![owner(credential.tenant), credential.host, record],
            )
            .doing(DOING)?;
        Ok(before)
    }

    pub(super) fn registry_credential_delete(&mut self, tenant: Option<TenantId>, host: &str) -> Result<Write<()>, StoreError> {
        let gone = self
            .conn
            .execute("DELETE FROM registry_credential WHERE owner = ?1 AND host = ?2", params![owner(tenant), host])
            .doing("forgetting a registry's credentials")?;
        Ok(if gone == 0 { Write::Missing } else { Write::Updated(()) })
    }
}

pub(super) fn get(conn: &Connection, tenant: Option<TenantId>, host: &str) -> Result<Option<RegistryCredential>, StoreError> {
    let found: Option<String> = conn
        .prepare_cached("SELECT record FROM registry_credential WHERE owner = ?1 AND host = ?2")
        .and_then(|mut select| select.query_row(params![owner(tenant), host], |row| row.get(0)).optional())
        .doing(READING)?;
    found.map(|text| decode("registry credential", || host.to_owned(), &text)).transpose()
}

/// By host, then the installation's before a tenant's.
pub(super) fn list(conn: &Connection, owners: &[Option<TenantId>]) -> Result<Vec<RegistryCredential>, StoreError> {
    let mut found = Vec::new();
    let mut select =
        conn.prepare_cached("SELECT host, record FROM registry_credential WHERE owner = ?1 ORDER BY host").doing(READING)?;
    let mut owners = owners.to_vec();
    owners.sort_unstable();
    owners.dedup();
    for tenant in owners {
        let rows: Vec<(String, String)> =
            select.query_map([owner(tenant)], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect).doing(READING)?;
        for (host, text) in rows {
            found.push(decode::<RegistryCredential>("registry credential", || host, &text)?);
        }
    }
    found.sort_by(|a, b| (&a.host, a.tenant).cmp(&(&b.host, b.tenant)));
    Ok(found)
}
