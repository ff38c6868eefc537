//! What is shown to a registry: nothing outside the crate can ask for it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use sandbank_driver::FakeDriver;
use sandbank_model::{QuotaLimits, Timestamp};
use sandbank_store::SqliteStore;

use super::*;
use crate::types::{Clock, Entropy, Settings};
use crate::{SecretKey, auth::ADMIN_TENANT};

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000)
    }
}

#[derive(Default)]
struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::SeqCst));
    }
}

fn control(dir: &Path, key: u8) -> Control {
    let settings = Settings {
        image_aliases: BTreeMap::new(),
        default_driver: "fake".to_owned(),
        startup_timeout: Duration::from_secs(1),
        create_concurrency: 1,
        waiting_claims_max: 1,
        retention: Duration::from_secs(1),
        exec_output_max: 1,
        default_quota: QuotaLimits::default(),
        default_image: "host".parse().unwrap(),
        pulls: crate::PullSettings::default(),
        scratch_dir: std::env::temp_dir(),
        builds: crate::BuildSettings::default(),
        network: crate::types::NetworkSettings::default(),
    };
    let store = Arc::new(SqliteStore::open(dir.join("sandbank.db")).unwrap());
    let drivers: Vec<Arc<dyn sandbank_driver::Driver>> = vec![Arc::new(FakeDriver::new())];
    Control::new(store, drivers, Arc::new(Still), Arc::new(Counting::default()), settings, &SecretKey::new([key; 32]))
}

async fn admin(control: &Control) -> Caller {
    let secret = "a".repeat(64);
    control.ensure_admin_key(&secret).await.unwrap();
    let principal = control.authenticate(&secret).await.unwrap();
    assert_eq!(principal.tenant_name, ADMIN_TENANT);
    Caller { principal, request_id: "test".to_owned() }
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password { username: username.to_owned(), password: password.to_owned() }
}

#[tokio::test]
async fn a_tenants_own_credentials_come_before_the_installations() {
    let dir = tempfile::tempdir().unwrap();
    let control = control(dir.path(), 1);
    let admin = admin(&control).await;
    let (own, other) = (admin.principal.tenant, control.inner.ensure_tenant(None, "t", "u").await.unwrap().id);
    let shown = async |tenant| control.inner.credentials_for(tenant, "docker.io").await.unwrap();
    assert_eq!(shown(own).await, None);
    control.registry_login(&admin, "docker.io", Credentials::Token("everybodys".to_owned()), true).await.unwrap();
    control.registry_login(&admin, "index.docker.io", password("me", "pässword\n"), false).await.unwrap();
    assert_eq!(shown(own).await, Some(password("me", "pässword\n")), "byte for byte, under each of Docker's names");
    assert_eq!(shown(other).await, Some(Credentials::Token("everybodys".to_owned())));
    assert_eq!(control.inner.credentials_for(own, "ghcr.io").await.unwrap(), None);
    control.registry_logout(&admin, "registry-1.docker.io", false).await.unwrap();
    assert_eq!(shown(own).await, Some(Credentials::Token("everybodys".to_owned())));
}

#[tokio::test]
async fn another_key_is_an_error_at_use_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let before = control(dir.path(), 1);
    let caller = admin(&before).await;
    before.registry_login(&caller, "ghcr.io", Credentials::Token("everybodys".to_owned()), true).await.unwrap();
    before.registry_login(&caller, "ghcr.io", password("me", "hunter2"), false).await.unwrap();
    before.inner.store.close().await.unwrap();
    drop(before);
    let after = control(dir.path(), 2);
    let caller = admin(&after).await;
    let tenant = caller.principal.tenant;
    let error = after.inner.credentials_for(tenant, "ghcr.io").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    for said in ["ghcr.io", "was sealed with another key", "sandbank registry login"] {
        assert!(error.message.contains(said), "{said}: {error}");
    }
    assert!(!error.message.contains("hunter2"), "{error}");
    after.registry_login(&caller, "ghcr.io", password("me", "hunter3"), false).await.unwrap();
    assert_eq!(after.inner.credentials_for(tenant, "ghcr.io").await.unwrap(), Some(password("me", "hunter3")));
}

#[tokio::test]
async fn a_record_that_was_moved_to_another_owner_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let control = control(dir.path(), 1);
    let admin = admin(&control).await;
    let (own, other) = (admin.principal.tenant, control.inner.ensure_tenant(None, "t", "u").await.unwrap().id);
    control.registry_login(&admin, "ghcr.io", password("me", "hunter2"), false).await.unwrap();
    let record = control.inner.store.registry_credential_get(Some(own), "ghcr.io").await.unwrap().unwrap();
    let stolen = RegistryCredential { tenant: Some(other), ..record };
    control.inner.store.registry_credential_put(stolen).await.unwrap();
    let error = control.inner.credentials_for(other, "ghcr.io").await.unwrap_err();
    assert!(error.message.contains("sealed for something else"), "{error}");
}
