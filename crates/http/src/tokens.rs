//! Single-use, short-lived tokens, such as those that open a terminal from a browser.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandbank_model::Timestamp;

/// Tokens and what each stands for. Lives in memory only: a token is worth nothing after a restart.
#[derive(Debug)]
pub struct TokenStore<T> {
    life: Duration,
    count_max: usize,
    tokens: Mutex<HashMap<String, (Timestamp, T)>>,
}

impl<T> TokenStore<T> {
    /// Tokens live for `life`, at most `count_max` at a time.
    #[must_use]
    pub fn new(life: Duration, count_max: usize) -> Self {
        Self { life, count_max, tokens: Mutex::new(HashMap::new()) }
    }

    /// Remembers `token`. False when `count_max` tokens are alive already.
    #[must_use]
    pub fn issue(&self, token: String, value: T, now: Timestamp) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= self.count_max {
            tokens.retain(|_, (expires_at, _)| *expires_at > now);
            if tokens.len() >= self.count_max {
                return false;
            }
        }
        tokens.insert(token, (now.plus(self.life), value));
        true
    }

    /// Takes what `token` stands for; the token is used up, even when it had expired. The lookup is by hash of the whole token,
    /// so its timing tells nothing about how much of a guess was right.
    pub fn redeem(&self, token: &str, now: Timestamp) -> Option<T> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (expires_at, value) = tokens.remove(token)?;
        (now < expires_at).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_token_works_once_and_not_after_its_life() {
        let store = TokenStore::new(Duration::from_secs(30), 10);
        assert!(store.issue("a".to_owned(), 1, at(0)));
        assert!(store.issue("b".to_owned(), 2, at(0)));
        assert_eq!(store.redeem("a", at(29)), Some(1));
        assert_eq!(store.redeem("a", at(29)), None);
        assert_eq!(store.redeem("b", at(30)), None);
        assert_eq!(store.redeem("c", at(0)), None);
    }

    #[test]
    fn tokens_are_bounded_and_expired_ones_make_room() {
        let store = TokenStore::new(Duration::from_secs(30), 2);
        assert!(store.issue("a".to_owned(), 1, at(0)));
        assert!(store.issue("b".to_owned(), 2, at(0)));
        assert!(!store.issue("c".to_owned(), 3, at(1)));
        assert!(store.issue("c".to_owned(), 3, at(31)));
    }
}
