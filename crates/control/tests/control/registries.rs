//! Registries' credentials: who may keep them, what is shown of them, which are refused.

use sandbank_control::{ErrorKind, RegistryCredentials};
use sandbank_model::{CredentialKind, Role};

use crate::support::World;

fn password(username: &str, password: &str) -> RegistryCredentials {
    RegistryCredentials::Password { username: username.to_owned(), password: password.to_owned() }
}

fn token(text: &str) -> RegistryCredentials {
    RegistryCredentials::Token(text.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_listed_without_their_secret_and_forgotten() {
    let world = World::new().await;
    let ann = world.user("ann", Role::Member).await;
    let made = world.control.registry_login(&ann, "GHCR.io", password("ann", "hunter2"), false).await.unwrap();
    assert_eq!((made.host.as_str(), made.username.as_deref(), made.global), ("ghcr.io", Some("ann"), false));
    world.control.registry_login(&ann, "index.docker.io", token("dckr_pat_x"), false).await.unwrap();
    let listed = world.control.registry_list(&ann).await.unwrap();
    assert!(!format!("{listed:?}").contains("hunter2"));
    let shown: Vec<_> = listed.iter().map(|one| (one.host.as_str(), one.kind)).collect();
    assert_eq!(shown, [("docker.io", CredentialKind::Token), ("ghcr.io", CredentialKind::Password)]);
    assert_eq!(listed[1], made);
    world.control.registry_login(&ann, "ghcr.io", password("other", "hunter3"), false).await.unwrap();
    assert_eq!(world.control.registry_list(&ann).await.unwrap()[1].username.as_deref(), Some("other"), "replaced");
    assert_eq!(world.control.registry_logout(&ann, "Ghcr.io", false).await.unwrap(), "ghcr.io");
    let missing = world.control.registry_logout(&ann, "ghcr.io", false).await.unwrap_err();
    assert_eq!((missing.kind, missing.message.contains("ghcr.io")), (ErrorKind::NotFound, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_see_their_own_and_that_the_installation_has_some() {
    let world = World::new().await;
    let (admin, ann, bob) = (world.admin().await, world.owner("ann").await, world.owner("bob").await);
    world.control.registry_login(&admin, "quay.io", password("robot", "x"), true).await.unwrap();
    world.control.registry_login(&ann, "ghcr.io", password("ann", "x"), false).await.unwrap();
    let seen = world.control.registry_list(&bob).await.unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].host.as_str(), seen[0].global, seen[0].username.as_deref()), ("quay.io", true, None));
    let seen = world.control.registry_list(&admin).await.unwrap();
    assert_eq!(seen[0].username.as_deref(), Some("robot"), "admins see whose they are");
    let missing = world.control.registry_logout(&bob, "ghcr.io", false).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound, "another tenant's look missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_installations_are_the_admins_and_applications_keep_none() {
    let world = World::new().await;
    let (owner, application) = (world.owner("ann").await, world.user("app", Role::Application).await);
    for refused in [
        world.control.registry_login(&owner, "ghcr.io", token("x"), true).await.unwrap_err(),
        world.control.registry_logout(&owner, "ghcr.io", true).await.unwrap_err(),
        world.control.registry_login(&application, "ghcr.io", token("x"), false).await.unwrap_err(),
        world.control.registry_logout(&application, "ghcr.io", false).await.unwrap_err(),
        world.control.registry_list(&application).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Forbidden, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_registry_could_be_shown_is_refused_and_not_repeated() {
    let world = World::new().await;
    let ann = world.owner("ann").await;
    let rows = [
        ("https://ghcr.io", token("hunter2"), "ghcr.io or"),
        ("ghcr.io/me", token("hunter2"), "no registry"),
        ("", token("hunter2"), "no registry"),
        ("ghcr.io", password("", "hunter2"), "username"),
        ("ghcr.io", password("a:b", "hunter2"), "username"),
        ("ghcr.io", password("a\n", "hunter2"), "username"),
        ("ghcr.io", password("me", ""), "1 to 16384"),
        ("ghcr.io", password("me", "hunter2\0"), "NUL"),
        ("ghcr.io", password("me", &"hunter2".repeat(3000)), "16384"),
        ("ghcr.io", token("hunter2 hunter2"), "one word"),
        ("ghcr.io", token(""), "1 to 16384"),
    ];
    for (host, credentials, says) in rows {
        let refused = world.control.registry_login(&ann, host, credentials, false).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
        assert!(refused.message.contains(says) && !refused.message.contains("hunter2"), "{host}: {refused}");
    }
    let missing = world.control.registry_logout(&ann, "nowhere", false).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::Invalid);
    assert_eq!(world.control.registry_list(&ann).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_keeps_a_bounded_number_and_may_still_replace_one() {
    let world = World::new().await;
    let ann = world.owner("ann").await;
    for number in 0..100 {
        world.control.registry_login(&ann, &format!("r{number}.example"), token("x"), false).await.unwrap();
    }
    let refused = world.control.registry_login(&ann, "one.more", token("x"), false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    world.control.registry_login(&ann, "r7.example", token("y"), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_nothing_and_says_so() {
    let world = World::new().await;
    let ann = world.owner("ann").await;
    world.disk_full.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = world.control.registry_login(&ann, "ghcr.io", token("hunter2"), false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    world.disk_full.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.control.registry_list(&ann).await.unwrap(), []);
}
