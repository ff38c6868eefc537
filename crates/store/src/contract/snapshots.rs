//! Rules of snapshots.

use std::sync::Arc;

use sandbank_model::{SandboxId, SandboxSpec, Snapshot, SnapshotId, SnapshotName, TenantId};

use super::fixture::{Clock, image, snapshot_id, tenant};
use crate::{PageRequest, Store, Write};

fn snapshot(clock: &Clock, tenant: TenantId, name: Option<&str>) -> Snapshot {
    let now = clock.tick();
    let id = snapshot_id(now);
    let name: Option<SnapshotName> = name.map(|name| name.parse().unwrap());
    let image = image(Some(tenant), &id.to_string(), now.as_millis());
    let (sandbox, spec) = (SandboxId::from_uuid(snapshot_id(now).uuid()), SandboxSpec::of_image(image.name.clone()));
    Snapshot { id, tenant, name, sandbox, spec, image, created_at: now }
}

/// `snapshot_put`, `snapshot_get`, `snapshot_list`, `snapshot_all`, `snapshot_delete`.
pub async fn a_snapshot_is_its_tenants_until_it_is_deleted(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let clock = Clock::default();
    let (old, new) = (snapshot(&clock, a.id, None), snapshot(&clock, a.id, Some("named")));
    let other = snapshot(&clock, b.id, Some("named"));
    for one in [&old, &new, &other] {
        store.snapshot_put(one.clone()).await.unwrap();
        assert_eq!(store.snapshot_get(one.tenant, one.id).await.unwrap().as_ref(), Some(one));
    }
    assert_eq!(store.snapshot_get(b.id, old.id).await.unwrap(), None, "another tenant's is not found");
    let all = PageRequest { offset: 0, limit: 10 };
    let page = store.snapshot_list(a.id, None, PageRequest { offset: 0, limit: 1 }).await.unwrap();
    assert_eq!((page.items, page.total), (vec![new.clone()], 2), "the newest first, of this tenant only");
    let page = store.snapshot_list(a.id, Some(old.sandbox), all).await.unwrap();
    assert_eq!((page.items, page.total), (vec![old.clone()], 1));
    assert_eq!(store.snapshot_list(b.id, Some(old.sandbox), all).await.unwrap().total, 0);
    let mut ids: Vec<SnapshotId> = store.snapshot_all().await.unwrap().into_iter().map(|one| one.id).collect();
    ids.sort();
    assert_eq!(ids, [old.id, new.id, other.id]);
    assert_eq!(store.snapshot_delete(b.id, old.id).await.unwrap(), Write::Missing);
    assert_eq!(store.snapshot_delete(a.id, old.id).await.unwrap(), Write::Updated(()));
    assert_eq!(store.snapshot_delete(a.id, old.id).await.unwrap(), Write::Missing);
    assert_eq!(store.snapshot_get(a.id, old.id).await.unwrap(), None);
}

/// `snapshot_put`, `snapshot_named`.
pub async fn a_snapshots_name_goes_to_the_newest_that_is_given_it(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let clock = Clock::default();
    let (first, second) = (snapshot(&clock, a.id, Some("web:1")), snapshot(&clock, a.id, Some("web:1")));
    let (tagged, other) = (snapshot(&clock, a.id, Some("web:2")), snapshot(&clock, b.id, Some("web:1")));
    for one in [&first, &tagged, &other, &second] {
        store.snapshot_put(one.clone()).await.unwrap();
    }
    let name = second.name.clone().unwrap();
    assert_eq!(store.snapshot_named(a.id, &name).await.unwrap(), Some(second.clone()));
    assert_eq!(store.snapshot_named(b.id, &name).await.unwrap(), Some(other));
    assert_eq!(store.snapshot_named(a.id, &"web:2".parse().unwrap()).await.unwrap(), Some(tagged));
    assert_eq!(store.snapshot_named(a.id, &"web".parse().unwrap()).await.unwrap(), None);
    let nameless = Snapshot { name: None, ..first };
    assert_eq!(store.snapshot_get(a.id, nameless.id).await.unwrap(), Some(nameless), "it stays, without its name");
    store.snapshot_delete(a.id, second.id).await.unwrap();
    assert_eq!(store.snapshot_named(a.id, &name).await.unwrap(), None, "the name does not fall back to the older one");
}
