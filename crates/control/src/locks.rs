//! Locks by key. An entry exists only while somebody holds or waits for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Entries<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// One fair async lock for each key.
#[derive(Debug)]
pub(crate) struct KeyedLocks<K: Eq + Hash + Clone> {
    entries: Entries<K>,
}

impl<K: Eq + Hash + Clone> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self { entries: Arc::default() }
    }
}

/// Counts as a user of the entry from before the wait until after the release, so that a cancelled wait cleans up too.
struct Interest<K: Eq + Hash + Clone> {
    entries: Entries<K>,
    key: K,
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<K: Eq + Hash + Clone> Drop for Interest<K> {
    fn drop(&mut self) {
        let mut entries = self.entries.lock();
        self.lock = None;
        if entries.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            entries.remove(&self.key);
        }
    }
}

/// The lock is held until this is dropped.
pub(crate) struct KeyGuard<K: Eq + Hash + Clone> {
    // Declared, hence dropped, before the interest: the guard holds a reference to the lock that is counted.
    _guard: OwnedMutexGuard<()>,
    _interest: Interest<K>,
}

impl<K: Eq + Hash + Clone> KeyedLocks<K> {
    /// Waits for the lock of `key`.
    pub(crate) async fn lock(&self, key: K) -> KeyGuard<K> {
        let lock = Arc::clone(self.entries.lock().entry(key.clone()).or_default());
        let interest = Interest { entries: Arc::clone(&self.entries), key, lock: Some(Arc::clone(&lock)) };
        KeyGuard { _guard: lock.lock_owned().await, _interest: interest }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::KeyedLocks;

    #[tokio::test]
    async fn entries_go_with_their_last_user_also_when_a_wait_is_cancelled() {
        let locks = KeyedLocks::<u8>::default();
        let held = locks.lock(1).await;
        {
            let waiting = locks.lock(1);
            tokio::pin!(waiting);
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        }
        let other = locks.lock(2).await;
        assert_eq!(locks.len(), 2);
        drop(held);
        drop(other);
        assert_eq!(locks.len(), 0);
    }
}
