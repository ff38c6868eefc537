//! From a command to its answer: executed by its caller when nobody else writes, else by the writer's thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::{Durability, Task};
use super::queue::{Batch, Next, Place, Queue};
use super::unit::Unit;
use super::writer::Writer;
use crate::StoreError;

/// Average of a commit from which on callers leave it to the thread: theirs belong to the runtime, and a slow disk must not
/// keep other requests from being served. Below that, waking another thread and being woken by it costs more than waiting.
const COMMIT_SLOW: Duration = Duration::from_millis(2);
/// What one commit counts for at most, so that a single hiccup does not make a disk slow.
const COMMIT_COUNTED_MAX: Duration = Duration::from_millis(4);

/// How long the last commits that waited for the disk took, those of the thread too: a disk that is fast again is noticed.
#[derive(Debug, Default)]
struct Pace {
    /// A moving average in microseconds. Only who has the turn changes it.
    average_us: AtomicU64,
}

impl Pace {
    fn note(&self, took: Duration) {
        let took = u64::try_from(took.min(COMMIT_COUNTED_MAX).as_micros()).unwrap_or(u64::MAX);
        let average = self.average_us.load(Ordering::Relaxed);
        // A fast commit tells more of the disk than a slow one, which may have waited for a processor.
        let next = if took < average { average - (average - took) / 2 } else { average + (took - average) / 8 };
        self.average_us.store(next, Ordering::Relaxed);
    }

    fn is_slow(&self) -> bool {
        Duration::from_micros(self.average_us.load(Ordering::Relaxed)) > COMMIT_SLOW
    }
}

pub(super) struct Commits {
    queue: Arc<Queue>,
    /// Only who has the turn locks it, so nobody ever waits here. Empty once the thread has ended.
    writer: Mutex<Option<Writer>>,
    pace: Pace,
}

impl Commits {
    pub(super) fn new(queue: Arc<Queue>, writer: Writer) -> Self {
        Self { queue, writer: Mutex::new(Some(writer)), pace: Pace::default() }
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a command executed and committed. Dropping the future leaves a command that nobody has begun undone.
    pub(super) async fn submit<T, F>(&self, durability: Durability, place: Place, command: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let permit = self.queue.room().await?;
        let (task, answer) = Task::new(durability, command, permit);
        let place = if self.pace.is_slow() { Place::Thread } else { place };
        // Between here and the end of the turn nothing is awaited: a future that is dropped cannot take a turn along.
        if let Some(mut turn) = self.queue.enter(Box::new(task), place)? {
            self.commit(std::mem::take(&mut turn.jobs));
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Executes commands in one transaction and answers them. Only in one's turn.
    fn commit(&self, jobs: Batch) {
        if let Some(writer) = self.writer().as_mut() {
            let begun = Instant::now();
            if writer.batch(jobs) == Durability::Synced {
                self.pace.note(begun.elapsed());
            }
        }
    }

    /// What the writer's thread does: executes what callers do not, until the queue is closed and empty. Then it leaves a
    /// database without a log.
    pub(super) fn run(&self) {
        let guard = FailOnPanic(&self.queue);
        loop {
            match self.queue.next() {
                Next::Jobs(jobs) => self.commit(jobs),
                Next::CopyRest => {
                    if let Some(writer) = self.writer().as_ref() {
                        writer.copy_rest();
                    }
                }
                Next::Closed => break,
            }
        }
        let writer = self.writer().take();
        if let Some(writer) = writer {
            writer.end();
        }
        drop(guard);
    }

    /// Takes no more commands; the thread ends after those that wait.
    pub(super) fn close(&self) {
        self.queue.close();
    }
}

/// Callers must not wait for a thread that is gone.
struct FailOnPanic<'a>(&'a Queue);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_told_from_a_hiccup_and_becomes_fast_again() {
        let pace = Pace::default();
        pace.note(Duration::from_secs(60));
        assert!(!pace.is_slow(), "one commit says nothing");
        (0..20).for_each(|_| pace.note(Duration::from_micros(300)));
        pace.note(Duration::from_secs(60));
        assert!(!pace.is_slow());
        (0..8).for_each(|_| pace.note(Duration::from_millis(10)));
        assert!(pace.is_slow());
        (0..20).for_each(|_| pace.note(Duration::from_micros(300)));
        assert!(!pace.is_slow());
    }
}
