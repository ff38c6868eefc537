//! After the last step: start and ready commands, the image's record.

use std::time::Duration;

use sandbank_model::{BuildLevel, Image, ImageSource};

use super::run::{Job, Snapshot};
use crate::claim::Held;
use crate::types::Exec;
use crate::{Error, ErrorKind, Result};

/// How long a start command without a ready command is given (e2b.md §3.3).
const START_TIME: Duration = Duration::from_secs(20);
/// Longest wait for a ready command to succeed, within the build's own time.
const READY_TIME: Duration = Duration::from_secs(600);
const READY_PAUSE: Duration = Duration::from_millis(500);

impl Job {
    /// Starts what is to be started, waits until it is ready, and names the image.
    pub(super) async fn finish(&self, mut made: Snapshot) -> Result<()> {
        if self.request.start_command.is_some() || self.request.ready_command.is_some() {
            let held = self.sandbox(&made).await?;
            self.start_and_wait(&held, &made).await?;
            self.keep(&held, &mut made).await?;
        }
        if let Some(start) = &self.request.start_command {
            (made.config.entrypoint, made.config.command) = (Vec::new(), shell(start));
        }
        let inner = self.inner();
        let layers = inner.layers_in_use.read().await;
        let id = self.running.build.lock().id;
        let image = Image {
            name: self.request.name.clone(),
            tenant: Some(self.tenant()),
            layers: made.layers,
            on_host: made.on_host,
            config: made.config,
            source: ImageSource::Committed { sandbox: format!("build {id}") },
            created_at: inner.now(),
        };
        inner.record_image(image, layers).await?;
        self.tell(BuildLevel::Info, format!("{} is ready", self.request.name));
        Ok(())
    }

    fn exec(&self, made: &Snapshot, command: &str) -> Exec {
        let config = &made.config;
        Exec {
            argv: shell(command),
            env: config.env.clone(),
            cwd: config.workdir.clone(),
            user: config.user.clone(),
            kill_on_disconnect: true,
            ..Exec::default()
        }
    }

    async fn start_and_wait(&self, held: &Held, made: &Snapshot) -> Result<()> {
        let ready = self.wait_ready(held, made);
        let Some(command) = &self.request.start_command else { return ready.await };
        self.tell(BuildLevel::Info, format!("start: {command}"));
        let start = self.program(held, self.exec(made, command), true);
        tokio::pin!(start, ready);
        tokio::select! {
            biased;
            ready = &mut ready => ready,
            // One that ends well has done its work: readiness still decides.
            ended = &mut start => match ended? {
                0 => ready.await,
                code => Err(Error::invalid(format!("the start command ended with code {code} before it was ready"))),
            },
        }
    }

    async fn wait_ready(&self, held: &Held, made: &Snapshot) -> Result<()> {
        let Some(command) = &self.request.ready_command else {
            tokio::time::sleep(START_TIME).await;
            return Ok(());
        };
        self.tell(BuildLevel::Info, format!("ready: {command}"));
        let trying = async {
            while self.program(held, self.exec(made, command), false).await? != 0 {
                tokio::time::sleep(READY_PAUSE).await;
            }
            Ok(())
        };
        let late = |_| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the ready command did not succeed within {} seconds", READY_TIME.as_secs()),
            )
        };
        tokio::time::timeout(READY_TIME, trying).await.map_err(late)?
    }
}

fn shell(command: &str) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()]
}
