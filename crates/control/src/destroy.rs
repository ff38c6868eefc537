//! Destroying what exists of a sandbox. It is tried until it succeeds: a failing destroy is never forgotten, and after a
//! restart it is begun again from the record (`Stopping`) or by the driver itself (what no live record names).

use std::sync::Arc;
use std::time::Duration;

use sandbank_driver::{Driver, DriverError};
use sandbank_model::{Actor, Command, Sandbox, SandboxId, State};

use crate::control::Inner;
use crate::{Error, Result};

const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Inner {
    /// Destroys a `Stopping` sandbox and records that it is gone.
    pub(crate) fn destroy_stopping(self: &Arc<Self>, sandbox: &Sandbox) {
        self.destroy_later(sandbox, true);
    }

    /// Destroys what is left of a sandbox whose record has ended already.
    pub(crate) fn destroy_remains(self: &Arc<Self>, sandbox: &Sandbox) {
        self.destroy_later(sandbox, false);
    }

    fn destroy_later(self: &Arc<Self>, sandbox: &Sandbox, finish: bool) {
        let (inner, sandbox) = (Arc::clone(self), sandbox.clone());
        self.tasks.spawn(async move {
            let mut wait = RETRY_FIRST;
            while let Err(error) = inner.destroy_once(&sandbox, finish).await {
                tracing::warn!(sandbox = %sandbox.id, retry_ms = wait.as_millis(), error = %error, "destroying a sandbox failed");
                if !inner.tasks.sleep(wait).await {
                    return;
                }
                wait = (wait * 2).min(RETRY_MAX);
            }
        });
    }

    async fn destroy_once(self: &Arc<Self>, sandbox: &Sandbox, finish: bool) -> Result<()> {
        let driver = Arc::clone(self.driver(&sandbox.driver)?);
        // In this order: a place is not held while somebody else is still making the sandbox.
        let _exclusive = self.sandbox_locks.lock(sandbox.id).await;
        let _place = self.destroy_places.acquire().await;
        if finish {
            self.keep_log(sandbox).await;
        }
        let destroyed = destroy_in_time(driver.as_ref(), sandbox.id).await;
        // Whoever still reads from it is told, even if destroying fails for a long time.
        self.streams.end(sandbox.id);
        destroyed?;
        if finish {
            self.advance(sandbox.id, &Actor::system(), |sandbox, _| {
                Ok((sandbox.state == State::Stopping).then_some(Command::FinishStop))
            })
            .await?;
        }
        Ok(())
    }
}

/// Destroys, but does not wait for a driver that hangs.
pub(crate) async fn destroy_in_time(driver: &dyn Driver, id: SandboxId) -> Result<()> {
    let waited_ms = u64::try_from(DESTROY_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let timed_out = DriverError::TimedOut { what: "the driver", waited_ms };
    let destroyed = tokio::time::timeout(DESTROY_TIMEOUT, driver.destroy(id)).await;
    destroyed.unwrap_or(Err(timed_out)).map_err(Error::from)
}
