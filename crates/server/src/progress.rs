//! Progress for people: shown on a terminal only, and only when something takes long.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::exec::person_watches;

/// What takes less is not worth a line on the screen.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the picture changes.
const TICK: Duration = Duration::from_millis(100);

// What changes comes first and the name last, cut where the line ends: names are as long as paths are, and a picture of several
// lines is torn when the window changes.
const SPINNER: &str = "{spinner} {elapsed} {wide_msg}";
const BAR: &str = "[{bar:20}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}";
const BYTES: &str = "{spinner} {bytes} {bytes_per_sec} {wide_msg}";

/// A bar or a spinner that appears after half a second.
pub(crate) struct Progress {
    bar: ProgressBar,
    appear: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// For work whose end is not known.
    pub(crate) fn spinner(message: &str) -> Self {
        Self::delayed(ProgressBar::new_spinner(), SPINNER, message)
    }

    /// For `total` bytes; `None` when nobody knows how many.
    pub(crate) fn bytes(total: Option<u64>, message: &str) -> Self {
        match total {
            Some(total) => Self::delayed(ProgressBar::new(total), BAR, message),
            None => Self::delayed(ProgressBar::new_spinner(), BYTES, message),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Result;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal of 80 columns that keeps the lines it was told to show.
    #[derive(Debug, Default, Clone)]
    struct Narrow(Arc<Mutex<Vec<String>>>);

    impl TermLike for Narrow {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_long_name_leaves_the_picture_on_one_line() {
        let name = format!("/srv/{}/archive.bin", "a-long-name/".repeat(20));
        for (bar, template) in
            [(ProgressBar::new(900 << 20), BAR), (ProgressBar::new_spinner(), BYTES), (ProgressBar::new_spinner(), SPINNER)]
        {
            let terminal = Narrow::default();
            bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
            bar.set_style(ProgressStyle::with_template(template).unwrap());
            bar.set_message(name.clone());
            bar.inc(155 << 20);
            bar.tick();
            let lines = terminal.0.lock().unwrap().clone();
            let last = lines.iter().rfind(|line| line.contains("/srv/")).unwrap_or_else(|| panic!("{template}: {lines:?}"));
            assert!(last.chars().count() <= 80, "{template}: {last:?}");
            assert_eq!(template != SPINNER, last.contains("155.00 MiB"), "{template}: {last:?}");
        }
    }
}
