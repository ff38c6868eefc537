//! Progress for people: shown on a terminal only, and only when something takes long.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::exec::person_watches;

/// What takes less is not worth a line on the screen.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the picture changes.
const TICK: Duration = Duration::from_millis(100);

/// A bar or a spinner that appears after half a second.
pub(crate) struct Progress {
    bar: ProgressBar,
    appear: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// For work whose end is not known.
    pub(crate) fn spinner(message: &str) -> Self {
        Self::delayed(ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}", message)
    }

    /// For `total` bytes; `None` when nobody knows how many.
    pub(crate) fn bytes(total: Option<u64>, message: &str) -> Self {
        match total {
            Some(total) => {
                Self::delayed(ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}", message)
            }
            None => Self::delayed(ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {bytes_per_sec}", message),
        }
    }

    fn delayed(bar: ProgressBar, template: &str, message: &str) -> Self {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(crate::output::harmless(message));
        let appear = person_watches().then(|| {
            let bar = bar.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
            })
        });
        Self { bar, appear }
    }

    /// So many more bytes are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Takes it off the screen.
    pub(crate) fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(appear) = self.appear.take() {
            appear.abort();
        }
        self.bar.finish_and_clear();
    }
}
