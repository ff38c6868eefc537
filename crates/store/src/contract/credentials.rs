//! Rules of registries' credentials.

use std::sync::Arc;

use super::fixture::{credential, tenant};
use crate::{Store, Write};

/// `registry_credential_get`: the owner decides, and nobody sees another's.
pub async fn credentials_belong_to_an_owner_and_a_host(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let (own, global) = (credential(Some(a.id), "ghcr.io", 1), credential(None, "ghcr.io", 2));
    for one in [&own, &global] {
        assert_eq!(store.registry_credential_put(one.clone()).await.unwrap(), None);
    }
    assert_eq!(store.registry_credential_get(Some(a.id), "ghcr.io").await.unwrap(), Some(own));
    assert_eq!(store.registry_credential_get(None, "ghcr.io").await.unwrap(), Some(global));
    assert_eq!(store.registry_credential_get(Some(b.id), "ghcr.io").await.unwrap(), None, "no fallback: that is a use case's");
    assert_eq!(store.registry_credential_get(Some(a.id), "ghcr.io:443").await.unwrap(), None);
}

/// `registry_credential_put` over existing ones.
pub async fn credentials_replace_those_of_their_host_and_owner(store: Arc<dyn Store>) {
    let (first, second, other) = (credential(None, "ghcr.io", 1), credential(None, "ghcr.io", 2), credential(None, "quay.io", 3));
    assert_eq!(store.registry_credential_put(first.clone()).await.unwrap(), None);
    assert_eq!(store.registry_credential_put(other.clone()).await.unwrap(), None);
    assert_eq!(store.registry_credential_put(second.clone()).await.unwrap(), Some(first));
    assert_eq!(store.registry_credential_list(&[None]).await.unwrap(), [second, other]);
}

/// `registry_credential_list`.
pub async fn credentials_are_listed_by_host_for_these_owners(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let (quay, ghcr) = (credential(Some(a.id), "quay.io", 1), credential(Some(a.id), "ghcr.io", 2));
    let (global, foreign) = (credential(None, "ghcr.io", 3), credential(Some(b.id), "docker.io", 4));
    for one in [&quay, &ghcr, &global, &foreign] {
        store.registry_credential_put(one.clone()).await.unwrap();
    }
    let listed = store.registry_credential_list(&[Some(a.id), None, Some(a.id)]).await.unwrap();
    assert_eq!(listed, [global, ghcr, quay], "each once, the installation's first, no other owner's");
    assert_eq!(store.registry_credential_list(&[]).await.unwrap(), []);
}

/// `registry_credential_delete`.
pub async fn deleted_credentials_are_gone_for_their_owner_only(store: Arc<dyn Store>) {
    let a = store.tenant_ensure(tenant("a")).await.unwrap();
    let (own, global) = (credential(Some(a.id), "ghcr.io", 1), credential(None, "ghcr.io", 2));
    for one in [&own, &global] {
        store.registry_credential_put(one.clone()).await.unwrap();
    }
    assert_eq!(store.registry_credential_delete(Some(a.id), "ghcr.io").await.unwrap(), Write::Updated(()));
    assert_eq!(store.registry_credential_delete(Some(a.id), "ghcr.io").await.unwrap(), Write::Missing);
    assert_eq!(store.registry_credential_get(Some(a.id), "ghcr.io").await.unwrap(), None);
    assert_eq!(store.registry_credential_get(None, "ghcr.io").await.unwrap(), Some(global));
}
