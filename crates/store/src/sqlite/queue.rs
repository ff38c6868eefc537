//! Who writes next: a bounded queue of commands, and the turn, which one thread at a time has.
//!
//! A caller that comes while nobody has the turn takes it and executes its own command, so that a lone commit needs no other
//! thread. Everybody else waits in the queue. A caller gives the turn back after its own command; when something waits then,
//! it goes to the writer's thread, which takes all that waits together and keeps the turn until nothing does.
//!
//! No wake-up is lost because the queue and the turn are behind one lock. Under it this always holds: *when something waits,
//! somebody has the turn, or the thread is about to look*. Whoever adds something while nobody has the turn takes it or
//! gives it to the thread in the same critical section ([`Queue::enter`], [`Queue::copy_rest`], [`Queue::close`]), and whoever
//! gives it back looks in the same critical section whether something waits ([`Queue::leave`], [`Queue::next`]). The thread
//! sleeps only on the condition variable that giving it the turn notifies, and looks again before it sleeps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::job::{Durability, Job};
use crate::StoreError;

/// Commands that may wait. Callers beyond that wait to be let in.
const WAITING_MAX: usize = 1024;
/// Steps that nobody was promised that one transaction takes at most: a claim that comes meanwhile waits no longer than that.
const NOTES_AT_ONCE: usize = 8;
/// Transactions of promised commands after which waiting notes get their turn all the same.
const TURNS_BEFORE_NOTES: u32 = 4;
/// Transactions of a single promised command after a shared one, until callers take turns again. Among many callers the thread
/// commits more at once: while one of them committed its own command alone, the others would only wait.
const CROWD_REMEMBERED: u32 = 4;

/// Commands that share a transaction.
pub(super) type Batch = VecDeque<Box<dyn Job>>;

/// On which thread a command may be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On its caller's, when nobody else writes.
    Anywhere,
    /// On the writer's only: it takes longer than a caller's thread, which others wait for, should be kept.
    Thread,
}

/// Who has the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Holder {
    #[default]
    Nobody,
    Caller,
    /// The writer's thread, which is at work or has been woken for it.
    Thread,
}

#[derive(Default)]
struct Waiting {
    /// Commands that somebody was promised: claims first of all.
    promised: Batch,
    /// The others.
    notes: Batch,
    /// Transactions that notes have waited for.
    passed_over: u32,
    /// See [`CROWD_REMEMBERED`].
    crowd: u32,
    /// Whether the rest of the log is to be copied while nobody writes.
    copy_rest: bool,
    holder: Holder,
    closed: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.promised.is_empty() && self.notes.is_empty() && !self.copy_rest
    }

    fn push(&mut self, job: Box<dyn Job>) {
        match job.durability() {
            Durability::Synced => self.promised.push_back(job),
            Durability::Written => self.notes.push_back(job),
        }
    }

    /// The next transaction's commands; `None` when none waits.
    fn take(&mut self) -> Option<Batch> {
        if self.promised.is_empty() && self.notes.is_empty() {
            return None;
        }
        let notes_turn = self.promised.is_empty() || self.passed_over >= TURNS_BEFORE_NOTES;
        let mut jobs = std::mem::take(&mut self.promised);
        self.crowd = if jobs.len() > 1 { CROWD_REMEMBERED } else { self.crowd.saturating_sub(u32::from(!jobs.is_empty())) };
        if notes_turn {
            let many = self.notes.len().min(NOTES_AT_ONCE);
            jobs.extend(self.notes.drain(..many));
            self.passed_over = 0;
        } else if !self.notes.is_empty() {
            self.passed_over += 1;
        }
        Some(jobs)
    }
}

/// A caller's turn, given back when this is dropped.
pub(super) struct Turn<'a> {
    queue: &'a Queue,
    /// What to execute in it.
    pub(super) jobs: Batch,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.leave();
    }
}

/// What the writer's thread has its turn for.
pub(super) enum Next {
    /// These commands.
    Jobs(Batch),
    /// Copying the rest of the log.
    CopyRest,
    /// Nothing is left, and nothing will come.
    Closed,
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// The thread has been given the turn, or the queue was closed.
    given: Condvar,
    room: Arc<Semaphore>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), given: Condvar::new(), room: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the queue, as soon as there is one.
    pub(super) async fn room(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)
    }

    /// Adds a command. When the answer is a turn, the caller has to execute what is in it: its own command, for nothing waits
    /// while nobody has the turn. Else somebody else does.
    pub(super) fn enter(&self, job: Box<dyn Job>, place: Place) -> Result<Option<Turn<'_>>, StoreError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        waiting.push(job);
        if waiting.holder != Holder::Nobody {
            return Ok(None);
        }
        if place == Place::Thread || waiting.crowd > 0 {
            self.give_to_thread(waiting);
            return Ok(None);
        }
        waiting.holder = Holder::Caller;
        let jobs = waiting.take().unwrap_or_default();
        Ok(Some(Turn { queue: self, jobs }))
    }

    /// Has the thread copy the rest of the log before it executes anything more.
    pub(super) fn copy_rest(&self) {
        let mut waiting = self.lock();
        waiting.copy_rest = true;
        if waiting.holder == Holder::Nobody {
            self.give_to_thread(waiting);
        }
    }

    fn give_to_thread(&self, mut waiting: MutexGuard<'_, Waiting>) {
        waiting.holder = Holder::Thread;
        drop(waiting);
        self.given.notify_one();
    }

    /// A caller has executed its command. It works for nobody else: its own answer is ready.
    fn leave(&self) {
        if std::thread::panicking() {
            return self.fail();
        }
        let mut waiting = self.lock();
        if waiting.is_empty() && !waiting.closed {
            waiting.holder = Holder::Nobody;
        } else {
            self.give_to_thread(waiting);
        }
    }

    /// For the writer's thread: what to do now. Sleeps until there is something.
    pub(super) fn next(&self) -> Next {
        let mut waiting = self.lock();
        loop {
            if waiting.holder != Holder::Caller {
                waiting.holder = Holder::Thread;
                if std::mem::take(&mut waiting.copy_rest) {
                    return Next::CopyRest;
                }
                if let Some(jobs) = waiting.take() {
                    return Next::Jobs(jobs);
                }
                if waiting.closed {
                    return Next::Closed;
                }
                waiting.holder = Holder::Nobody;
            }
            waiting = self.given.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more commands; those that wait are still executed.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.given.notify_one();
    }

    /// Whoever had the turn panicked: what the writer has in memory is no longer what is in the database. Nothing is executed
    /// any more, and everybody who waits hears that the store is closed.
    pub(super) fn fail(&self) {
        let mut waiting = self.lock();
        let unanswered = (std::mem::take(&mut waiting.promised), std::mem::take(&mut waiting.notes));
        (waiting.closed, waiting.copy_rest) = (true, false);
        self.room.close();
        self.give_to_thread(waiting);
        // Not under the lock: it wakes their callers.
        drop(unanswered);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::sqlite::unit::Unit;

    /// A command that only counts that it was answered.
    struct Counted {
        durability: Durability,
        answered: Arc<AtomicUsize>,
    }

    impl Job for Counted {
        fn durability(&self) -> Durability {
            self.durability
        }

        fn abandoned(&self) -> bool {
            false
        }

        fn run(&mut self, _: &mut Unit<'_>) -> bool {
            true
        }

        fn answer(self: Box<Self>, _: Result<(), StoreError>) {
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The writer of these tests: fails when two have the turn at once.
    #[derive(Default)]
    struct Exclusive(AtomicBool);

    impl Exclusive {
        fn execute(&self, jobs: Batch) {
            assert!(!self.0.swap(true, Ordering::SeqCst), "two have the turn");
            std::thread::yield_now();
            jobs.into_iter().for_each(|job| job.answer(Ok(())));
            self.0.store(false, Ordering::SeqCst);
        }
    }

    /// What the writer's thread does until the queue is closed; how often it copied the log.
    fn serve(queue: &Queue, writer: &Exclusive) -> usize {
        let mut copies = 0;
        loop {
            match queue.next() {
                Next::Jobs(jobs) => writer.execute(jobs),
                Next::CopyRest => {
                    writer.execute(Batch::new());
                    copies += 1;
                }
                Next::Closed => return copies,
            }
        }
    }

    #[test]
    fn every_command_is_executed_by_one_at_a_time_and_none_is_left() {
        const CALLERS: usize = 8;
        const COMMANDS: usize = 5000;
        let (queue, writer, answered) = (Queue::new(), Exclusive::default(), Arc::new(AtomicUsize::new(0)));
        let copies = std::thread::scope(|scope| {
            let thread = scope.spawn(|| serve(&queue, &writer));
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    let (queue, writer, answered) = (&queue, &writer, &answered);
                    scope.spawn(move || {
                        for n in 0..COMMANDS {
                            let durability = if (n + caller) % 3 == 0 { Durability::Written } else { Durability::Synced };
                            let place = if n % 17 == 0 { Place::Thread } else { Place::Anywhere };
                            let job = Counted { durability, answered: Arc::clone(answered) };
                            if let Some(mut turn) = queue.enter(Box::new(job), place).ok().flatten() {
                                writer.execute(std::mem::take(&mut turn.jobs));
                            }
                            if n % 100 == 0 {
                                queue.copy_rest();
                            }
                        }
                    })
                })
                .collect();
            for caller in callers {
                assert!(caller.join().is_ok());
            }
            // What waits now is taken without anything more happening: the thread was given the turn for it.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while answered.load(Ordering::SeqCst) < CALLERS * COMMANDS {
                assert!(std::time::Instant::now() < until, "{answered:?} were answered");
                std::thread::yield_now();
            }
            queue.close();
            thread.join().unwrap_or_default()
        });
        assert_eq!(answered.load(Ordering::SeqCst), CALLERS * COMMANDS);
        assert!(copies > 0);
        let waiting = queue.lock();
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_panic_in_a_turn_closes_the_queue_and_answers_who_waits() {
        let (queue, answered) = (Queue::new(), Arc::new(AtomicUsize::new(0)));
        let job = || Box::new(Counted { durability: Durability::Synced, answered: Arc::clone(&answered) });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = queue.enter(job(), Place::Anywhere);
            assert!(matches!(queue.enter(job(), Place::Anywhere), Ok(None)), "it waits for the one who has the turn");
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert!(matches!(queue.next(), Next::Closed));
        assert!(matches!(queue.enter(job(), Place::Anywhere), Err(StoreError::Closed)));
        assert_eq!(Arc::strong_count(&answered), 1, "nothing is kept of what waited");
    }
}
