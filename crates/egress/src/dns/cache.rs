//! Answers that are remembered, and questions that are being asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{BoxFuture, Shared};
use hashlink::LruCache;
use hickory_proto::rr::RecordType;

use super::resolver::{Answer, Failure};

/// A name in its one spelling, and what is asked about it.
pub(crate) type Key = (String, RecordType);
/// An answer on its way, for everyone who waits for it.
pub(crate) type Pending = Shared<BoxFuture<'static, Result<Arc<Answer>, Failure>>>;

/// An answer with more records than this is not remembered, so that the memory for all of them is bounded.
const RECORDS_REMEMBERED_MAX: usize = 64;
/// The same for its size on the wire.
const BYTES_REMEMBERED_MAX: usize = 4096;

/// Both.
pub(crate) struct Cache {
    answers: LruCache<Key, Arc<Answer>>,
    pending: HashMap<Key, Pending>,
}

/// What is known about a question.
pub(crate) enum Known {
    /// The answer.
    Answer(Arc<Answer>),
    /// Someone asks already.
    Pending(Pending),
    /// Nothing.
    Nothing,
}

impl Cache {
    pub(crate) fn new(answers: usize) -> Self {
        Self { answers: LruCache::new(answers), pending: HashMap::new() }
    }

    pub(crate) fn look_up(&mut self, key: &Key, now: Instant) -> Known {
        if let Some(answer) = self.answers.get(key) {
            if answer.good_until > now {
                return Known::Answer(Arc::clone(answer));
            }
            self.answers.remove(key);
        }
        self.pending.get(key).map_or(Known::Nothing, |pending| Known::Pending(pending.clone()))
    }

    /// The question is being asked.
    pub(crate) fn asked(&mut self, key: Key, pending: Pending) {
        self.pending.insert(key, pending);
    }

    /// It was answered, or could not be: failures are not remembered.
    pub(crate) fn settled(&mut self, key: Key, answer: Option<&Arc<Answer>>) {
        self.pending.remove(&key);
        if let Some(answer) = answer
            && answer.records.len() <= RECORDS_REMEMBERED_MAX
            && answer.wire_bytes <= BYTES_REMEMBERED_MAX
        {
            self.answers.insert(key, Arc::clone(answer));
        }
    }

    /// Questions that are being asked.
    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }
}
