//! Keys, roles, tenants and impersonation.

use std::time::Duration;

use sandbank_control::{AdminKeyRequest, ErrorKind, ImportedKey, KeyRequest};
use sandbank_model::{KeyHash, Role};

use crate::support::{ADMIN_KEY, World, caller};

fn for_user(team: &str, user: &str) -> AdminKeyRequest {
    let key = KeyRequest::default();
    AdminKeyRequest { namespace: None, team: team.into(), user: user.into(), role: Role::Owner, key, import: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_works_under_any_prefix_until_it_is_revoked_or_expires() {
    let world = World::new().await;
    let user = world.owner("ann").await;
    let expires_at = Some(world.control.now().plus(Duration::from_secs(60)));
    let key = world.control.key_create(&user, KeyRequest { expires_at, ..KeyRequest::default() }).await.unwrap();
    let secret = key.secret.strip_prefix("agbx_").unwrap();
    for spelling in [secret.to_owned(), format!("e2b_{secret}"), key.secret.clone()] {
        assert_eq!(world.control.authenticate(&spelling).await.unwrap().tenant_name, "t-t-ann");
    }
    assert!(!format!("{key:?}").contains(secret), "a secret must not be shown");
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.control.authenticate(secret).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    let second = world.control.key_create(&user, KeyRequest::default()).await.unwrap();
    world.control.key_revoke(&user, second.key.id).await.unwrap();
    let refused = world.control.authenticate(&second.secret).await.unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::Unauthenticated, "invalid API key"));
    assert_eq!(world.control.key_revoke(&user, second.key.id).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_and_wrong_shapes_are_unauthenticated() {
    let world = World::new().await;
    for wrong in ["", "agbx_", "hello", &"0".repeat(64), &format!("agbx_{}", "0".repeat(63)), &"é".repeat(64)] {
        assert_eq!(world.control.authenticate(wrong).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_key_is_forbidden_to_revoke_and_an_admin_may() {
    let world = World::new().await;
    let (ann, bob, admin) = (world.owner("ann").await, world.owner("bob").await, world.admin().await);
    let key = world.control.key_create(&ann, KeyRequest::default()).await.unwrap();
    assert_eq!(world.control.key_revoke(&bob, key.key.id).await.unwrap_err().kind, ErrorKind::Forbidden);
    assert_eq!(world.control.admin_key_list(&bob).await.unwrap_err().kind, ErrorKind::Forbidden);
    world.control.key_revoke(&admin, key.key.id).await.unwrap();
    assert_eq!(world.control.authenticate(&key.secret).await.unwrap_err().kind, ErrorKind::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_admin_key_replaces_the_old_one() {
    let world = World::new().await;
    world.control.ensure_admin_key(&"a".repeat(64)).await.unwrap();
    assert_eq!(world.control.authenticate(ADMIN_KEY).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    let admin = world.control.authenticate(&"a".repeat(64)).await.unwrap();
    assert_eq!((admin.role, admin.tenant_name.as_str(), admin.team.as_str()), (Role::Admin, "default", "admin"));
    assert_eq!(world.control.ensure_admin_key("short").await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_team_and_user_pairs_never_share_a_namespace() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.control.admin_key_create(&admin, for_user("a", "b-c")).await.unwrap();
    let clash = world.control.admin_key_create(&admin, for_user("a-b", "c")).await.unwrap_err();
    assert_eq!(clash.kind, ErrorKind::Conflict);
    for (team, user) in [("", "x"), ("x", ""), ("a/b", "x"), ("x", "a b"), (&*"x".repeat(64), "x")] {
        assert_eq!(world.control.admin_key_create(&admin, for_user(team, user)).await.unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_who_impersonates_sees_what_the_other_sees() {
    let world = World::new().await;
    let (ann, admin) = (world.owner("ann").await, world.admin().await);
    let id = world.created(&ann).await;
    let other = caller(world.control.impersonate(admin.principal.clone(), "t", "bob").await.unwrap());
    assert_eq!(other.principal.impersonated_by.as_deref(), Some("default"));
    assert_eq!(world.control.get(&other, id).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.control.admin_tenant_list(&other).await.unwrap_err().kind, ErrorKind::Forbidden);
    let same = caller(world.control.impersonate(admin.principal, "t", "ann").await.unwrap());
    assert!(world.control.get(&same, id).await.is_ok());
    let ignored = world.control.impersonate(ann.principal.clone(), "t", "bob").await.unwrap();
    assert_eq!(ignored, ann.principal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn importing_a_key_twice_changes_nothing() {
    let world = World::new().await;
    let admin = world.admin().await;
    let import = Some(ImportedKey { hash: KeyHash([9; 32]), issued_at: None });
    let request = AdminKeyRequest { import, ..for_user("t", "ann") };
    let (key, created) = world.control.admin_key_import(&admin, request.clone()).await.unwrap();
    assert!(created);
    let (again, created) = world.control.admin_key_import(&admin, request.clone()).await.unwrap();
    assert!(!created);
    assert_eq!(again.id, key.id);
    let elsewhere = AdminKeyRequest { user: "bob".into(), ..request };
    assert_eq!(world.control.admin_key_import(&admin, elsewhere).await.unwrap_err().kind, ErrorKind::Conflict);
}
