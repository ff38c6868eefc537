//! A build's log: a bounded ring that followers wait on.

use std::collections::VecDeque;

use parking_lot::Mutex;
use sandbank_model::{BuildLevel, BuildLine, BuildLog, BuildPart, Timestamp};
use tokio::sync::watch;

use crate::types::BuildLogPiece;

/// Bytes that a line counts beside its text.
const LINE_COST: usize = 64;
/// Most lines of one piece.
const PIECE_MAX: usize = 1000;
/// Longest line; what is longer is broken.
const LINE_MAX: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<BuildLine>,
    bytes: usize,
    dropped: u64,
}

/// The log of a build that runs.
#[derive(Debug)]
pub(crate) struct LogRing {
    ring: Mutex<Ring>,
    bytes_max: usize,
    /// Told of every line and of the end; the value says whether it is the end.
    changed: watch::Sender<bool>,
}

impl LogRing {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { ring: Mutex::default(), bytes_max, changed: watch::Sender::new(false) }
    }

    pub(super) fn push(&self, at: Timestamp, part: BuildPart, level: BuildLevel, text: String) {
        let mut ring = self.ring.lock();
        ring.bytes += text.len() + LINE_COST;
        ring.lines.push_back(BuildLine { at, part, level, text });
        while ring.bytes > self.bytes_max {
            let Some(line) = ring.lines.pop_front() else { break };
            ring.bytes -= line.text.len() + LINE_COST;
            ring.dropped += 1;
        }
        drop(ring);
        self.changed.send_modify(|_| {});
    }

    /// Nothing follows any more.
    pub(super) fn end(&self) {
        self.changed.send_replace(true);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.changed.subscribe()
    }

    /// The lines from this number on, as many as fit.
    pub(super) fn from(&self, offset: u64) -> BuildLogPiece {
        let ring = self.ring.lock();
        piece(ring.dropped, ring.lines.iter(), offset)
    }

    /// What is kept, for the store.
    pub(super) fn snapshot(&self) -> BuildLog {
        let ring = self.ring.lock();
        BuildLog { dropped: ring.dropped, lines: ring.lines.iter().cloned().collect() }
    }

    /// The last lines of a part, for an error.
    pub(super) fn last(&self, part: BuildPart, count: usize) -> Vec<String> {
        let ring = self.ring.lock();
        let of_part = ring.lines.iter().rev().take_while(|line| line.part == part);
        let mut lines: Vec<String> = of_part.take(count).map(|line| line.text.chars().take(200).collect()).collect();
        lines.reverse();
        lines
    }
}

/// The lines from this number on, of a log whose first `dropped` lines are gone.
pub(super) fn piece<'a>(dropped: u64, lines: impl Iterator<Item = &'a BuildLine>, offset: u64) -> BuildLogPiece {
    let skip = usize::try_from(offset.saturating_sub(dropped)).unwrap_or(usize::MAX);
    let lines: Vec<BuildLine> = lines.skip(skip).take(PIECE_MAX).cloned().collect();
    BuildLogPiece { offset: offset.max(dropped), lines }
}

/// Breaks a stream of bytes into lines.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are whole now.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in data {
            if *byte == b'\n' || self.0.len() >= LINE_MAX {
                lines.extend(self.rest(true));
            }
            if *byte != b'\n' {
                self.0.push(*byte);
            }
        }
        lines
    }

    /// What stands after the last end of a line.
    pub(super) fn rest(&mut self, even_empty: bool) -> Option<String> {
        if self.0.is_empty() && !even_empty {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        Some(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(log: &LogRing, text: &str) {
        log.push(Timestamp::from_millis(1), BuildPart::Step(1), BuildLevel::Info, text.to_owned());
    }

    #[test]
    fn the_oldest_lines_go_first_and_their_numbers_stay() {
        let log = LogRing::new(3 * (LINE_COST + 1));
        ["a", "b", "c", "d"].into_iter().for_each(|text| push(&log, text));
        let all = log.from(0);
        assert_eq!((all.offset, all.lines.len()), (1, 3));
        let last = log.from(3);
        assert_eq!((last.offset, last.lines[0].text.as_str()), (3, "d"));
        assert!(log.from(9).lines.is_empty());
        assert_eq!(log.last(BuildPart::Step(1), 2), ["c", "d"]);
        assert!(log.last(BuildPart::Base, 2).is_empty());
        assert_eq!(log.snapshot().dropped, 1);
    }

    #[test]
    fn lines_are_broken_where_they_end_or_grow_too_long() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n\nend"), ["two", ""]);
        assert_eq!(lines.rest(false).as_deref(), Some("end"));
        assert_eq!(lines.rest(false), None);
        let long = lines.push(&vec![b'x'; LINE_MAX + 1]);
        assert_eq!(long.len(), 1);
    }
}
