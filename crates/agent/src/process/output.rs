//! One output stream of a process: pumped from its pipe or terminal into a ring, followed by any number of readers.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use sandbank_agent_protocol::Stream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::ring::{Budget, Ring};
use crate::ready::register;

/// Read at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// A stream that is read to its end when its process ends is not read for longer than this in one go.
const FINAL_READS_MAX: usize = 64;

/// One output stream.
#[derive(Debug)]
pub(crate) struct Output {
    /// Which of the process's streams.
    pub(crate) stream: Stream,
    ring: RefCell<Ring>,
    /// `None` when the stream has ended.
    source: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    /// What each follower has not yet sent begins at its mark.
    marks: RefCell<Vec<Rc<Cell<u64>>>>,
    /// All that the process itself wrote lies before this offset; known when it has ended.
    written_by_process: Cell<Option<u64>>,
    grace_over: Cell<bool>,
    forgotten: Cell<bool>,
    /// Followers wait for no byte beyond this one.
    last: Cell<Option<u64>>,
    /// Told when a follower has made room.
    room: Notify,
    /// Told of every byte and of the end; shared by a process's streams.
    changed: Rc<Notify>,
}

impl Output {
    /// Takes over a non-blocking descriptor. Nothing is read before [`pump`] runs.
    pub(crate) fn new(
        stream: Stream,
        source: OwnedFd,
        ring_bytes: usize,
        budget: Budget,
        changed: Rc<Notify>,
    ) -> io::Result<Rc<Self>> {
        let source = register(source, Interest::READABLE)?;
        Ok(Rc::new(Self {
            stream,
            ring: RefCell::new(Ring::new(ring_bytes, budget)),
            source: RefCell::new(Some(Rc::new(source))),
            marks: RefCell::new(Vec::new()),
            written_by_process: Cell::new(None),
            grace_over: Cell::new(false),
            forgotten: Cell::new(false),
            last: Cell::new(None),
            room: Notify::new(),
            changed,
        }))
    }

    /// Offset of the oldest byte kept.
    pub(crate) fn start(&self) -> u64 {
        self.ring.borrow().start()
    }

    /// Bytes so far.
    pub(crate) fn end(&self) -> u64 {
        self.ring.borrow().end()
    }

    /// Memory held by the ring.
    pub(crate) fn allocated(&self) -> usize {
        self.ring.borrow().allocated()
    }

    /// Gives back what the ring holds too much of.
    pub(crate) fn shrink(&self) {
        self.ring.borrow_mut().shrink();
    }

    /// Nobody can ask for it any more: once the last follower is gone, what comes is read and dropped.
    pub(crate) fn forget(&self) {
        self.forgotten.set(true);
        if self.marks.borrow().is_empty() {
            self.ring.borrow_mut().forget();
        }
    }

    /// Whether all has been read that a follower waits for.
    pub(crate) fn last(&self) -> Option<u64> {
        self.last.get()
    }

    /// Bytes that may be read now. With no follower the ring overwrites; else the slowest one sets the pace.
    fn readable_now(&self) -> usize {
        let marks = self.marks.borrow();
        let Some(slowest) = marks.iter().map(|mark| mark.get()).min() else { return CHUNK };
        self.ring.borrow().room(slowest).min(CHUNK)
    }

    /// Reads once. `Ok(false)` at the end of the stream.
    fn fill(&self, fd: &OwnedFd, limit: usize) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); CHUNK];
        let read = match rustix::io::read(fd, &mut buffer[..limit.min(CHUNK)]) {
            Ok((read, _)) => read,
            // A terminal whose last holder is gone says EIO.
            Err(Errno::IO) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        if read.is_empty() {
            return Ok(false);
        }
        self.ring.borrow_mut().push(read);
        self.settle();
        self.changed.notify_waiters();
        Ok(true)
    }

    fn finish(&self) {
        self.source.borrow_mut().take();
        if self.last.get().is_none() {
            self.last.set(Some(self.end()));
        }
        self.changed.notify_waiters();
    }

    /// The process has ended: reads what its pipe still holds, and notes where its own output ends. Others may hold the pipe
    /// open and go on writing; they get until [`Output::end_grace`].
    pub(crate) fn process_ended(&self) {
        let Some(source) = self.source.borrow().clone() else { return };
        for _ in 0..FINAL_READS_MAX {
            let limit = self.readable_now();
            if limit == 0 {
                break;
            }
            match self.fill(source.get_ref(), limit) {
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(false) | Err(_) => return self.finish(),
            }
        }
        let waiting = rustix::io::ioctl_fionread(source.get_ref()).unwrap_or(0);
        self.written_by_process.set(Some(self.end().saturating_add(waiting)));
    }

    /// The grace after the process's end is over: its own output is all that followers wait for.
    pub(crate) fn end_grace(&self) {
        self.grace_over.set(true);
        self.settle();
        self.changed.notify_waiters();
    }

    fn settle(&self) {
        if self.grace_over.get()
            && self.last.get().is_none()
            && self.written_by_process.get().is_some_and(|own| self.end() >= own)
        {
            self.last.set(Some(self.end()));
        }
    }

    /// Follows from `offset`, or from the oldest byte kept after it.
    pub(crate) fn follow(self: &Rc<Self>, offset: u64) -> Follower {
        let from = offset.clamp(self.start(), self.end());
        let mark = Rc::new(Cell::new(from));
        self.marks.borrow_mut().push(Rc::clone(&mark));
        Follower { output: Rc::clone(self), mark, until: u64::MAX }
    }
}

/// Reads a stream into its ring until its end.
pub(crate) async fn pump(output: Rc<Output>) {
    let Some(source) = output.source.borrow().clone() else { return };
    while output.source.borrow().is_some() {
        if output.readable_now() == 0 {
            output.room.notified().await;
            continue;
        }
        let Ok(mut guard) = source.readable().await else { return output.finish() };
        // A follower may have come while this waited, and set a limit.
        let limit = output.readable_now();
        if limit == 0 {
            continue;
        }
        match guard.try_io(|fd| output.fill(fd.get_ref(), limit)) {
            Ok(Ok(true)) | Err(_) => {}
            Ok(Ok(false) | Err(_)) => return output.finish(),
        }
    }
}

/// One reader of a stream. While it lives, nothing that it has not taken is overwritten.
#[derive(Debug)]
pub(crate) struct Follower {
    output: Rc<Output>,
    mark: Rc<Cell<u64>>,
    until: u64,
}

impl Follower {
    /// The stream.
    pub(crate) fn stream(&self) -> Stream {
        self.output.stream
    }

    /// Offset of the next byte.
    pub(crate) fn position(&self) -> u64 {
        self.mark.get()
    }

    /// Takes no byte after what is there now.
    pub(crate) fn stop_at_present(&mut self) {
        self.until = self.output.end();
    }

    /// Moves up to `limit` bytes to `out`; `false` when there are none.
    pub(crate) fn take(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        let position = self.mark.get();
        let allowed = usize::try_from(self.bound().saturating_sub(position)).unwrap_or(usize::MAX).min(limit);
        if allowed == 0 || self.output.end() <= position {
            return false;
        }
        let before = out.len();
        let from = self.output.ring.borrow().copy(position, allowed, out);
        self.mark.set(from + (out.len() - before) as u64);
        self.output.room.notify_one();
        true
    }

    /// Whether it has taken all that it waits for.
    pub(crate) fn is_done(&self) -> bool {
        let position = self.mark.get();
        position >= self.until || self.output.last().is_some_and(|last| position >= last)
    }

    fn bound(&self) -> u64 {
        self.output.last().unwrap_or(u64::MAX).min(self.until)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.output.marks.borrow_mut().retain(|mark| !Rc::ptr_eq(mark, &self.mark));
        if self.output.forgotten.get() {
            self.output.forget();
        }
        self.output.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::task::{LocalSet, spawn_local};

    use super::super::ring::RING_BYTES_MIN;
    use super::*;

    async fn eventually(holds: impl Fn() -> bool) {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never");
    }

    #[test]
    fn a_follower_that_comes_while_the_pump_waits_loses_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(async {
            let (reading, writing) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
            let output =
                Output::new(Stream::Stdout, reading, RING_BYTES_MIN, Budget::new(RING_BYTES_MIN), Rc::new(Notify::new()))
                    .unwrap();
            spawn_local(pump(Rc::clone(&output)));
            rustix::io::write(&writing, &[1; RING_BYTES_MIN]).unwrap();
            eventually(|| output.end() == RING_BYTES_MIN as u64).await;
            let follower = output.follow(0);
            rustix::io::write(&writing, b"more").unwrap();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!((output.start(), output.end()), (0, RING_BYTES_MIN as u64), "unsent bytes were overwritten");
            let mut taken = Vec::new();
            assert!(follower.take(usize::MAX, &mut taken));
            assert_eq!(taken, [1; RING_BYTES_MIN]);
            drop(writing);
            eventually(|| output.last() == Some(RING_BYTES_MIN as u64 + 4)).await;
            assert!(!follower.is_done());
            assert!(follower.take(usize::MAX, &mut taken) && follower.is_done());
            assert_eq!(taken[RING_BYTES_MIN..], *b"more");
        }));
    }
}
