//! Rules of builds and their cached steps.

use std::sync::Arc;

use sandbank_model::{
    Build, BuildId, BuildLevel, BuildLine, BuildLog, BuildPart, BuildState, BuildSteps, CachedStep, Layer, TenantId, Timestamp,
};

use super::fixture::tenant;
use crate::{PageRequest, Store};

fn build(tenant: TenantId, at: u64, state: BuildState) -> Build {
    let created_at = Timestamp::from_millis(at);
    Build {
        id: BuildId::new(created_at, [1; 10]),
        tenant,
        name: "made:1".parse().unwrap(),
        state,
        failure: None,
        steps: BuildSteps { total: 3, done: 1, cached: 1 },
        created_at,
        started_at: None,
        ended_at: None,
    }
}

/// `build_put`, `build_get`, `build_log`, `build_list`, `build_unfinished`, `build_remove`.
pub async fn a_build_is_replaced_by_id_and_keeps_its_log(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let line = BuildLine {
        at: Timestamp::from_millis(5),
        part: BuildPart::Step(1),
        level: BuildLevel::Warn,
        text: "it's \"odd\" \u{1f40b}".to_owned(),
    };
    let log = BuildLog { dropped: 7, lines: vec![line] };
    let (old, new) = (build(a.id, 1000, BuildState::Building), build(a.id, 2000, BuildState::Waiting));
    let other = build(b.id, 3000, BuildState::Building);
    for (one, log) in [(&old, Some(log.clone())), (&new, None), (&other, None)] {
        store.build_put(one.clone(), log).await.unwrap();
        assert_eq!(store.build_get(one.id).await.unwrap().as_ref(), Some(one));
    }
    assert_eq!(store.build_unfinished().await.unwrap(), [old.clone(), new.clone(), other.clone()]);
    let ended = Build { state: BuildState::Ready, ended_at: Some(Timestamp::from_millis(9)), ..old };
    store.build_put(ended.clone(), None).await.unwrap();
    assert_eq!(store.build_log(ended.id).await.unwrap(), Some(log));
    assert_eq!(store.build_log(new.id).await.unwrap(), None);
    assert_eq!(store.build_unfinished().await.unwrap(), [new.clone(), other]);
    let page = store.build_list(a.id, PageRequest { offset: 0, limit: 1 }).await.unwrap();
    assert_eq!((page.items, page.total), (vec![new.clone()], 2), "the newest first, of this tenant only");
    let page = store.build_list(a.id, PageRequest { offset: 1, limit: 9 }).await.unwrap();
    assert_eq!(page.items, vec![ended.clone()]);
    store.prune(Timestamp::from_millis(9), 100).await.unwrap();
    assert_eq!(store.build_get(ended.id).await.unwrap(), Some(ended.clone()));
    store.prune(Timestamp::from_millis(10), 100).await.unwrap();
    assert_eq!(store.build_get(ended.id).await.unwrap(), None, "it ended before that");
    store.build_put(ended.clone(), None).await.unwrap();
    store.build_remove(ended.id).await.unwrap();
    store.build_remove(ended.id).await.unwrap();
    assert_eq!(store.build_get(ended.id).await.unwrap(), None);
}

/// `cached_step_put`, `cached_step_get`, `cached_step_all`, `cached_step_remove`.
pub async fn cached_steps_are_found_by_tenant_and_key(store: Arc<dyn Store>) {
    let (a, b) = (store.tenant_ensure(tenant("a")).await.unwrap(), store.tenant_ensure(tenant("b")).await.unwrap());
    let step = |tenant, key: &str, used| CachedStep {
        tenant,
        key: key.to_owned(),
        layers: vec![Layer { id: format!("layer-{key}"), size_bytes: 5 }],
        on_host: true,
        used_at: Timestamp::from_millis(used),
    };
    let (first, second, other) = (step(a.id, "k1", 30), step(a.id, "k2", 20), step(b.id, "k1", 10));
    for one in [&first, &second, &other] {
        store.cached_step_put(one.clone()).await.unwrap();
    }
    assert_eq!(store.cached_step_get(a.id, "k1").await.unwrap(), Some(first.clone()));
    assert_eq!(store.cached_step_get(b.id, "k2").await.unwrap(), None, "another tenant's is not found");
    assert_eq!(store.cached_step_all().await.unwrap(), [other.clone(), second.clone(), first.clone()]);
    let used = CachedStep { used_at: Timestamp::from_millis(40), ..other };
    store.cached_step_put(used.clone()).await.unwrap();
    assert_eq!(store.cached_step_all().await.unwrap(), [second.clone(), first.clone(), used.clone()]);
    store.cached_step_remove(vec![(a.id, "k1".to_owned()), (a.id, "none".to_owned())]).await.unwrap();
    assert_eq!(store.cached_step_all().await.unwrap(), [second, used]);
}
