//! Rules of tenants, keys, templates, pools and images.

use std::sync::Arc;

use sandbank_model::{ApiKeyId, NetworkPolicy, Pool, PoolName, QuotaLimits, SemVer, Template, TemplateId, TenantId, Timestamp};

use super::fixture::{image, key, pool, pool_event, template, tenant};
use crate::{Insert, PageRequest, Store, Write};

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

/// Two `tenant_ensure` of one name, also at once, yield one tenant.
pub async fn a_tenant_is_made_once_under_its_name(store: Arc<dyn Store>) {
    let first = tenant("t-a-b");
    assert_eq!(store.tenant_ensure(first.clone()).await.unwrap(), first);
    let again = store.tenant_ensure(tenant("t-a-b")).await.unwrap();
    assert_eq!(again, first, "the known tenant comes back, not the proposed one");
    let racing: Vec<_> = (0..16)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.tenant_ensure(tenant("t-racing")).await.unwrap().id })
        })
        .collect();
    let mut ids = Vec::new();
    for task in racing {
        ids.push(task.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "all see the same tenant");
}

/// By id, by name, and in order.
pub async fn tenants_are_found_by_id_and_name_and_listed_by_name(store: Arc<dyn Store>) {
    let (b, a) = (tenant("b"), tenant("a"));
    store.tenant_ensure(b.clone()).await.unwrap();
    store.tenant_ensure(a.clone()).await.unwrap();
    assert_eq!(store.tenant_get(a.id).await.unwrap(), Some(a.clone()));
    assert_eq!(store.tenant_by_name("b").await.unwrap(), Some(b.clone()));
    assert_eq!(store.tenant_by_name("B").await.unwrap(), None);
    assert_eq!(store.tenant_get(tenant("c").id).await.unwrap(), None);
    assert_eq!(store.tenant_list().await.unwrap(), [a, b]);
}

/// `tenant_set_quota` on one that is there and one that is not.
pub async fn a_quota_is_replaced_or_its_tenant_is_missing(store: Arc<dyn Store>) {
    let known = store.tenant_ensure(tenant("a")).await.unwrap();
    let quota = QuotaLimits { sandboxes: Some(3), ..QuotaLimits::default() };
    let Write::Updated(changed) = store.tenant_set_quota(known.id, quota).await.unwrap() else { panic!("the tenant exists") };
    assert_eq!(changed.quota, quota);
    assert_eq!(store.tenant_get(known.id).await.unwrap(), Some(changed));
    assert_eq!(store.tenant_set_quota(tenant("b").id, quota).await.unwrap(), Write::Missing);
}

/// `tenant_set_network` on one that is there and one that is not; the quota stays.
pub async fn a_network_policy_is_replaced_or_its_tenant_is_missing(store: Arc<dyn Store>) {
    let known = store.tenant_ensure(tenant("a")).await.unwrap();
    let policy = NetworkPolicy { allow: vec!["*.example.com:443".parse().unwrap()], ..NetworkPolicy::closed() };
    for network in [Some(Arc::new(policy)), None] {
        let changed = store.tenant_set_network(known.id, network.clone()).await.unwrap();
        let Write::Updated(changed) = changed else { panic!("the tenant exists") };
        assert_eq!((&changed.network, changed.quota), (&network, known.quota));
        assert_eq!(store.tenant_get(known.id).await.unwrap(), Some(changed));
    }
    assert_eq!(store.tenant_set_network(tenant("b").id, None).await.unwrap(), Write::Missing);
}

/// The hash is the key's name.
pub async fn a_key_is_found_by_its_hash_and_its_hash_is_unique(store: Arc<dyn Store>) {
    let owner = store.tenant_ensure(tenant("a")).await.unwrap();
    let first = key(owner.id, 1);
    assert_eq!(store.key_by_hash(first.hash).await.unwrap(), None);
    assert_eq!(store.key_insert(first.clone()).await.unwrap(), Insert::Inserted(first.clone()));
    assert_eq!(store.key_by_hash(first.hash).await.unwrap(), Some(first.clone()));
    let mut same_hash = key(owner.id, 2);
    same_hash.hash = first.hash;
    assert_eq!(store.key_insert(same_hash).await.unwrap(), Insert::Taken(first));
    assert_eq!(store.key_list(None).await.unwrap().len(), 1);
}

/// The first revocation counts.
pub async fn a_revoked_key_stays_as_it_was_revoked(store: Arc<dyn Store>) {
    let owner = store.tenant_ensure(tenant("a")).await.unwrap();
    let one = key(owner.id, 1);
    store.key_insert(one.clone()).await.unwrap();
    let at = Timestamp::from_millis(500);
    let Write::Updated(revoked) = store.key_revoke(one.id, at).await.unwrap() else { panic!("the key exists") };
    assert_eq!(revoked.revoked_at, Some(at));
    assert!(!revoked.is_valid(at));
    let again = store.key_revoke(one.id, Timestamp::from_millis(900)).await.unwrap();
    assert_eq!(again, Write::Updated(revoked.clone()), "the time of the first revocation stays");
    assert_eq!(store.key_by_hash(one.hash).await.unwrap(), Some(revoked), "revoked keys are still found");
    let unknown = ApiKeyId::new(at, [9; 10]);
    assert_eq!(store.key_revoke(unknown, at).await.unwrap(), Write::Missing);
}

/// `key_list`.
pub async fn keys_are_listed_oldest_first_and_by_tenant(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let (late, early, other) = (key(a.id, 20), key(a.id, 10), key(b.id, 15));
    for one in [&late, &early, &other] {
        store.key_insert(one.clone()).await.unwrap();
    }
    assert_eq!(store.key_list(Some(a.id)).await.unwrap(), [early.clone(), late.clone()]);
    assert_eq!(store.key_list(None).await.unwrap(), [early, other, late]);
}

/// The installation and each tenant are different owners.
pub async fn a_template_name_is_unique_beside_its_owner(store: Arc<dyn Store>) {
    let owner = store.tenant_ensure(tenant("a")).await.unwrap();
    let (global, own) = (template(None, "base"), template(Some(owner.id), "base"));
    assert_eq!(store.template_insert(global.clone()).await.unwrap(), Insert::Inserted(global.clone()));
    assert_eq!(store.template_insert(own.clone()).await.unwrap(), Insert::Inserted(own.clone()));
    assert_eq!(store.template_insert(template(None, "base")).await.unwrap(), Insert::Taken(global.clone()));
    assert_eq!(store.template_get(None, &name("base")).await.unwrap(), Some(global));
    assert_eq!(store.template_get(Some(owner.id), &name("base")).await.unwrap(), Some(own));
    assert_eq!(store.template_get(None, &name("other")).await.unwrap(), None);
}

/// `template_update`: refused, missing, updated; old versions stay readable.
pub async fn a_template_version_follows_the_generation_it_read(store: Arc<dyn Store>) {
    let first = template(None, "base");
    store.template_insert(first.clone()).await.unwrap();
    let second = next_version(&first);
    let Write::Updated(second) = store.template_update(second, 1).await.unwrap() else { panic!("the generation was right") };
    assert_eq!(second.generation, 2);
    let late = store.template_update(next_version(&first), 1).await.unwrap();
    assert_eq!(late, Write::Refused(second.clone()), "the loser sees the winner's record");
    assert_eq!(store.template_update(template(None, "missing"), 1).await.unwrap(), Write::Missing);
    assert_eq!(store.template_get(None, &name("base")).await.unwrap(), Some(second.clone()));
    assert_eq!(store.template_by_id(first.id).await.unwrap(), Some(first), "older versions stay");
    assert_eq!(store.template_by_id(second.id).await.unwrap(), Some(second));
}

fn next_version(of: &Template) -> Template {
    let id: TemplateId = template(None, "x").id;
    Template { id, version: SemVer { minor: of.version.minor + 1, ..of.version }, ..of.clone() }
}

/// `template_list`.
pub async fn templates_are_listed_by_owner_and_name_with_their_newest_version(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    for one in [template(None, "zeta"), template(Some(a.id), "alpha"), template(Some(b.id), "beta")] {
        store.template_insert(one).await.unwrap();
    }
    let zeta = store.template_get(None, &name("zeta")).await.unwrap().unwrap();
    store.template_update(next_version(&zeta), 1).await.unwrap();
    let listed = store.template_list(&[None, Some(a.id), None]).await.unwrap();
    let names: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.generation)).collect();
    assert_eq!(names, [("alpha", 1), ("zeta", 2)], "each once, by name, the newest version, no other owner's");
    assert_eq!(store.template_list(&[]).await.unwrap(), []);
}

/// `template_delete`.
pub async fn a_deleted_template_is_gone_with_all_versions(store: Arc<dyn Store>) {
    let first = template(None, "base");
    store.template_insert(first.clone()).await.unwrap();
    store.template_update(next_version(&first), 1).await.unwrap();
    assert_eq!(store.template_delete(None, &name("base")).await.unwrap(), Write::Updated(()));
    assert_eq!(store.template_delete(None, &name("base")).await.unwrap(), Write::Missing);
    assert_eq!(store.template_by_id(first.id).await.unwrap(), None);
    let again = template(None, "base");
    assert_eq!(store.template_insert(again.clone()).await.unwrap(), Insert::Inserted(again), "the name is free again");
}

/// Names of pools.
pub async fn a_pool_name_is_unique_within_its_tenant_and_free_after_removal(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let first = pool(a.id, "base");
    assert_eq!(store.pool_insert(first.clone(), pool_event(&first)).await.unwrap(), Insert::Inserted(first.clone()));
    let (same, other) = (pool(a.id, "base"), pool(b.id, "base"));
    assert_eq!(store.pool_insert(same.clone(), pool_event(&same)).await.unwrap(), Insert::Taken(first.clone()));
    assert_eq!(store.pool_insert(other.clone(), pool_event(&other)).await.unwrap(), Insert::Inserted(other.clone()));
    assert_eq!(store.pool_get(a.id, &first.name).await.unwrap(), Some(first.clone()));
    assert_eq!(store.pool_by_id(other.id).await.unwrap(), Some(other));
    store.pool_remove(first.id).await.unwrap();
    store.pool_remove(first.id).await.unwrap();
    assert_eq!(store.pool_get(a.id, &first.name).await.unwrap(), None);
    assert_eq!(store.pool_insert(same.clone(), pool_event(&same)).await.unwrap(), Insert::Inserted(same.clone()));
    assert_eq!(store.pool_get(a.id, &same.name).await.unwrap(), Some(same));
    assert_eq!(store.pool_by_id(first.id).await.unwrap(), None, "a new pool of an old name is another pool");
}

/// `pool_update`.
pub async fn a_pool_update_is_conditional_on_the_generation(store: Arc<dyn Store>) {
    let owner = store.tenant_ensure(tenant("a")).await.unwrap();
    let mut first = pool(owner.id, "base");
    store.pool_insert(first.clone(), pool_event(&first)).await.unwrap();
    first.sizing.replicas = 9;
    let Write::Updated(second) = store.pool_update(first.clone(), 1, None).await.unwrap() else { panic!("right generation") };
    assert_eq!((second.generation, second.sizing.replicas), (2, 9));
    assert_eq!(store.pool_update(first.clone(), 1, None).await.unwrap(), Write::Refused(second.clone()));
    let missing = pool(owner.id, "missing");
    assert_eq!(store.pool_update(missing, 1, None).await.unwrap(), Write::Missing);
    assert_eq!(store.pool_get(owner.id, &second.name).await.unwrap(), Some(second));
}

/// `pool_list`.
pub async fn pools_are_paged_by_name(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    for (owner, pool_name) in [(a.id, "c"), (a.id, "a"), (a.id, "b"), (b.id, "a")] {
        let one = pool(owner, pool_name);
        store.pool_insert(one.clone(), pool_event(&one)).await.unwrap();
    }
    let listed = async |tenant: Option<TenantId>, offset, limit| {
        let page = store.pool_list(tenant, PageRequest { offset, limit }).await.unwrap();
        (page.items.iter().map(|one: &Pool| one.name.to_string()).collect::<Vec<_>>(), page.total)
    };
    assert_eq!(listed(Some(a.id), 0, 2).await, (vec!["a".to_owned(), "b".to_owned()], 3));
    assert_eq!(listed(Some(a.id), 2, 2).await, (vec!["c".to_owned()], 3));
    assert_eq!(listed(Some(a.id), 9, 2).await, (vec![], 3), "past the end the total is still told");
    assert_eq!(listed(None, 0, 10).await.1, 4);
    assert_eq!(listed(Some(a.id), 0, 0).await, (vec![], 3));
}

/// `image_get`, `image_list`, `image_all`.
pub async fn an_own_image_hides_the_installations(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let (global, own, only) = (image(None, "base:1", 1), image(Some(a.id), "base:1", 2), image(Some(b.id), "only", 3));
    for one in [&global, &own, &only] {
        assert_eq!(store.image_put(one.clone()).await.unwrap(), None);
    }
    assert_eq!(store.image_get(a.id, &own.name).await.unwrap(), Some(own.clone()), "its own comes first");
    assert_eq!(store.image_get(b.id, &own.name).await.unwrap(), Some(global.clone()), "others see the installation's");
    assert_eq!(store.image_get(a.id, &only.name).await.unwrap(), None, "another tenant's looks missing");
    assert_eq!(store.image_list(&[Some(b.id), None]).await.unwrap(), [global.clone(), only.clone()]);
    assert_eq!(store.image_all().await.unwrap().len(), 3);
    assert_eq!(store.image_delete(Some(a.id), &own.name).await.unwrap(), Write::Updated(()));
    assert_eq!(store.image_delete(Some(a.id), &own.name).await.unwrap(), Write::Missing);
    assert_eq!(store.image_get(a.id, &own.name).await.unwrap(), Some(global));
}

/// `image_put` over an existing one.
pub async fn an_image_replaces_the_one_of_its_name_and_owner(store: Arc<dyn Store>) {
    let (first, second) = (image(None, "base", 1), image(None, "base", 2));
    assert_eq!(store.image_put(first.clone()).await.unwrap(), None);
    assert_eq!(store.image_put(second.clone()).await.unwrap(), Some(first));
    assert_eq!(store.image_all().await.unwrap(), [second]);
}
