//! The Linux driver keeps the contract of the port.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;

use sandbank_driver::contract::Subject;
use support::{Fixture, can_run, fresh_id};

async fn make() -> Option<Subject> {
    if !can_run() {
        return None;
    }
    let mut fixture = Fixture::new().await;
    let image = fixture.request(fresh_id()).image;
    let driver = fixture.driver.take()?;
    Some(Subject { driver: Arc::new(driver), image, guard: Box::new(fixture) })
}

sandbank_driver::driver_contract!(make);
