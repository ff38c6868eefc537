//! The last bytes of an output stream, by absolute offset.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// A ring is never smaller, so that every stream keeps something however short memory is.
pub(crate) const RING_BYTES_MIN: usize = 4096;
/// A request may not ask for more.
pub(crate) const RING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that all rings together may still take. A ring that finds it empty does not grow.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Rc<Cell<isize>>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Rc::new(Cell::new(bytes.cast_signed())))
    }

    fn left(&self) -> usize {
        usize::try_from(self.0.get()).unwrap_or(0)
    }

    /// Goes below zero for the minimum that every ring may have.
    fn take(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_sub_unsigned(bytes));
    }

    fn give_back(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_add_unsigned(bytes));
    }
}

/// Keeps the newest bytes of a stream, up to a capacity, growing lazily.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    end: u64,
    capacity_max: usize,
    /// What was taken from the budget for `bytes`.
    charged: usize,
    budget: Budget,
}

impl Ring {
    /// Empty, of at most `capacity_max` bytes.
    pub(crate) fn new(capacity_max: usize, budget: Budget) -> Self {
        let capacity_max = capacity_max.clamp(RING_BYTES_MIN, RING_BYTES_MAX);
        Self { bytes: VecDeque::new(), end: 0, capacity_max, charged: 0, budget }
    }

    /// Offset of the oldest byte kept.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Bytes the stream has had so far.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Memory held.
    pub(crate) fn allocated(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes that can come before what begins at `unsent` would be overwritten.
    pub(crate) fn room(&self, unsent: u64) -> usize {
        let waiting = usize::try_from(self.end.saturating_sub(unsent)).unwrap_or(usize::MAX);
        self.reachable().saturating_sub(waiting)
    }

    /// Capacity that it has or could grow to now.
    fn reachable(&self) -> usize {
        let reachable = self.charged.saturating_add(self.budget.left()).max(RING_BYTES_MIN);
        reachable.min(self.capacity_max)
    }

    /// Adds bytes, dropping the oldest where there is no room.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let capacity = self.grow(self.bytes.len().saturating_add(data.len()));
        let kept = &data[data.len().saturating_sub(capacity)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// Makes room for `wanted` bytes as far as allowed, and says how many fit.
    fn grow(&mut self, wanted: usize) -> usize {
        let reachable = self.reachable();
        if wanted > self.charged && self.charged < reachable {
            let doubled = self.charged.saturating_mul(2).max(RING_BYTES_MIN);
            let target = wanted.max(doubled).min(reachable);
            self.bytes.reserve_exact(target.saturating_sub(self.bytes.len()));
            self.budget.take(target - self.charged);
            self.charged = target;
        }
        self.charged
    }

    /// Copies what is kept from `offset` on to `out`, up to `limit` bytes. Says where the copy really begins.
    pub(crate) fn copy(&self, offset: u64, limit: usize, out: &mut Vec<u8>) -> u64 {
        let from = offset.clamp(self.start(), self.end);
        // The difference is at most the ring's length.
        let skip = usize::try_from(from - self.start()).unwrap_or(usize::MAX).min(self.bytes.len());
        let (first, second) = self.bytes.as_slices();
        let (head, tail) = if skip < first.len() { (&first[skip..], second) } else { (&[][..], &second[skip - first.len()..]) };
        let head = &head[..head.len().min(limit)];
        out.extend_from_slice(head);
        out.extend_from_slice(&tail[..tail.len().min(limit - head.len())]);
        from
    }

    /// Gives memory back that is not in use.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        let kept = self.bytes.len();
        self.budget.give_back(self.charged.saturating_sub(kept));
        self.charged = self.charged.min(kept);
    }

    /// Drops all bytes and keeps only a minimum from now on.
    pub(crate) fn forget(&mut self) {
        self.bytes.clear();
        self.capacity_max = RING_BYTES_MIN;
        self.shrink();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.budget.give_back(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(capacity: usize) -> Ring {
        Ring::new(capacity, Budget::new(RING_BYTES_MAX))
    }

    fn copied(ring: &Ring, offset: u64, limit: usize) -> (u64, Vec<u8>) {
        let mut out = Vec::new();
        let from = ring.copy(offset, limit, &mut out);
        (from, out)
    }

    #[test]
    fn offsets_count_all_bytes_and_the_oldest_are_dropped() {
        let mut ring = ring(RING_BYTES_MIN);
        let all: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        for piece in all.chunks(700) {
            ring.push(piece);
        }
        assert_eq!((ring.start(), ring.end()), (10_000 - 4096, 10_000));
        assert_eq!(copied(&ring, 0, usize::MAX), (5904, all[5904..].to_vec()));
        assert_eq!(copied(&ring, 9_000, 10), (9_000, all[9_000..9_010].to_vec()));
        assert_eq!(copied(&ring, 20_000, 10), (10_000, Vec::new()));
    }

    #[test]
    fn one_push_larger_than_the_ring_keeps_its_end() {
        let mut ring = ring(RING_BYTES_MIN);
        ring.push(&[1; 9000]);
        ring.push(&[2; 5]);
        let (from, bytes) = copied(&ring, 0, usize::MAX);
        assert_eq!((from, bytes.len()), (9005 - 4096, 4096));
        assert_eq!(bytes[4091..], [2; 5]);
        assert!(ring.allocated() <= RING_BYTES_MIN);
    }

    #[test]
    fn room_is_what_the_slowest_reader_has_left() {
        let mut ring = ring(8192);
        assert_eq!(ring.room(0), 8192);
        ring.push(&[0; 5000]);
        assert_eq!(ring.room(0), 3192);
        assert_eq!(ring.room(5000), 8192);
        ring.push(&[0; 3192]);
        assert_eq!(ring.room(0), 0);
    }

    #[test]
    fn an_empty_budget_stops_growth_and_what_was_taken_is_given_back() {
        let budget = Budget::new(20_000);
        let mut greedy = Ring::new(RING_BYTES_MAX, budget.clone());
        greedy.push(&[0; 30_000]);
        assert_eq!((greedy.end() - greedy.start(), budget.left()), (20_000, 0));
        let mut modest = Ring::new(RING_BYTES_MAX, budget.clone());
        modest.push(&[0; 30_000]);
        assert_eq!(modest.end() - modest.start(), RING_BYTES_MIN as u64);
        drop((greedy, modest));
        assert_eq!(budget.left(), 20_000);
    }

    #[test]
    fn forgetting_frees_the_memory_but_not_the_count() {
        let mut ring = ring(RING_BYTES_MAX);
        ring.push(&[0; 100_000]);
        ring.forget();
        assert_eq!((ring.start(), ring.end(), ring.allocated()), (100_000, 100_000, 0));
    }
}
