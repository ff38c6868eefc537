//! Tenants' secrets at rest: sealed with ChaCha20-Poly1305 (RFC 8439) under the one key that the server was given.
//!
//! A sealed secret is `version (1 byte) | key id (8) | nonce (12) | ciphertext and tag`. Its header and its [`Purpose`] are
//! authenticated with it, so a record that is copied to another tenant or another name does not open there. The key id is a
//! piece of a hash of the key: it tells a wrong key from a damaged record, and nothing of the key.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use sandbank_model::{Sealed, TenantId};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::control::Inner;
use crate::{Error, Result};

const KEY_LEN: usize = 32;
const KEY_ID_LEN: usize = 8;
const NONCE_LEN: usize = 12;
const HEADER_LEN: usize = 1 + KEY_ID_LEN;
const VERSION: u8 = 1;

/// The key that seals secrets: 256 random bits. It shows in no log, and its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; KEY_LEN]>);

impl SecretKey {
    /// From bytes of a source that is fit for secrets.
    #[must_use]
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// From 64 hexadecimal digits of either case.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 2 * KEY_LEN {
            return None;
        }
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok())?;
                *byte = *byte << 4 | value;
            }
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What a secret is for. It opens for the same purpose only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purpose<'a> {
    /// The kind of secret, such as `registry`. Never changed once secrets of it are stored.
    pub(crate) kind: &'static str,
    /// Owner; `None`: the installation.
    pub(crate) tenant: Option<TenantId>,
    /// Which of the owner's secrets of this kind.
    pub(crate) name: &'a str,
}

impl Purpose<'_> {
    /// What is authenticated beside the secret. Two purposes, or headers, never yield the same bytes.
    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let mut data = header.to_vec();
        data.extend_from_slice(self.kind.as_bytes());
        data.push(0);
        match self.tenant {
            Some(tenant) => {
                data.push(1);
                data.extend_from_slice(tenant.uuid().as_bytes());
            }
            None => data.push(0),
        }
        data.extend_from_slice(self.name.as_bytes());
        data
    }
}

/// Why a secret does not open. Reads after "the secret ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotOpen {
    /// The server has another key now.
    #[error("was sealed with another key than the server has now")]
    OtherKey,
    /// Changed, cut, of a newer version, or copied from another record.
    #[error("is damaged, or was sealed for something else")]
    Damaged,
}

/// Seals and opens.
pub(crate) struct Sealer {
    cipher: ChaCha20Poly1305,
    key_id: [u8; KEY_ID_LEN],
}

impl Sealer {
    pub(crate) fn new(key: &SecretKey) -> Self {
        let hash = Sha256::new().chain_update(b"sandbank secret key id\0").chain_update(key.0.as_slice()).finalize();
        let mut key_id = [0; KEY_ID_LEN];
        key_id.copy_from_slice(&hash[..KEY_ID_LEN]);
        Self { cipher: ChaCha20Poly1305::new((&*key.0).into()), key_id }
    }

    /// Seals `secret`. `nonce` must be drawn at random for each call: one that repeats would give secrets away.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], purpose: &Purpose<'_>, secret: &[u8]) -> Result<Sealed> {
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&self.key_id);
        let aad = purpose.associated_data(&sealed);
        let closed = self
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: secret, aad: &aad })
            .map_err(|_| Error::invalid("the secret is too long to be sealed"))?;
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&closed);
        Ok(Sealed(sealed))
    }

    /// The secret that was sealed for `purpose`; wiped when it is dropped.
    pub(crate) fn open(&self, purpose: &Purpose<'_>, sealed: &Sealed) -> std::result::Result<Zeroizing<Vec<u8>>, CannotOpen> {
        let (header, rest) = sealed.0.split_at_checked(HEADER_LEN).ok_or(CannotOpen::Damaged)?;
        let (nonce, closed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(CannotOpen::Damaged)?;
        if header[0] != VERSION {
            return Err(CannotOpen::Damaged);
        }
        if header[1..] != self.key_id {
            return Err(CannotOpen::OtherKey);
        }
        let aad = purpose.associated_data(header);
        let opened = self.cipher.decrypt(&Nonce::from(*nonce), Payload { msg: closed, aad: &aad });
        opened.map(Zeroizing::new).map_err(|_| CannotOpen::Damaged)
    }
}

impl Inner {
    /// Seals a secret under a fresh nonce.
    pub(crate) fn seal(&self, purpose: &Purpose<'_>, secret: &[u8]) -> Result<Sealed> {
        self.sealer.seal(self.random(), purpose, secret)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NONCE: [u8; NONCE_LEN] = [3; NONCE_LEN];

    fn tenant(byte: u8) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_bytes([byte; 16]))
    }

    fn purpose(tenant: Option<TenantId>, name: &str) -> Purpose<'_> {
        Purpose { kind: "registry", tenant, name }
    }

    #[test]
    fn what_was_sealed_opens_for_its_purpose_only() {
        let sealer = Sealer::new(&SecretKey::new([1; 32]));
        let mine = purpose(Some(tenant(1)), "ghcr.io");
        let sealed = sealer.seal(NONCE, &mine, b"hunter2").unwrap();
        assert_eq!(sealer.open(&mine, &sealed).unwrap().as_slice(), b"hunter2");
        assert!(!sealed.0.windows(7).any(|window| window == b"hunter2"));
        for other in [
            purpose(Some(tenant(2)), "ghcr.io"),
            purpose(Some(tenant(1)), "quay.io"),
            purpose(None, "ghcr.io"),
            Purpose { kind: "proxy", ..mine },
        ] {
            assert_eq!(sealer.open(&other, &sealed).unwrap_err(), CannotOpen::Damaged, "{other:?}");
        }
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let sealer = Sealer::new(&SecretKey::new([1; 32]));
        let mine = purpose(None, "ghcr.io");
        let sealed = sealer.seal(NONCE, &mine, b"").unwrap();
        let other = Sealer::new(&SecretKey::new([2; 32]));
        assert_eq!(other.open(&mine, &sealed).unwrap_err(), CannotOpen::OtherKey);
        for len in 0..sealed.0.len() {
            assert_eq!(sealer.open(&mine, &Sealed(sealed.0[..len].to_vec())).unwrap_err(), CannotOpen::Damaged, "{len}");
        }
        for at in (0..sealed.0.len()).filter(|at| !(1..HEADER_LEN).contains(at)) {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert_eq!(sealer.open(&mine, &changed).unwrap_err(), CannotOpen::Damaged, "{at}");
        }
    }

    #[test]
    fn a_nonce_makes_equal_secrets_differ() {
        let sealer = Sealer::new(&SecretKey::new([1; 32]));
        let mine = purpose(None, "ghcr.io");
        assert_ne!(sealer.seal([1; 12], &mine, b"same").unwrap(), sealer.seal([2; 12], &mine, b"same").unwrap());
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits_and_never_shown() {
        let key = SecretKey::from_hex(&"0aF1".repeat(16)).unwrap();
        assert_eq!(key.0[..2], [0x0a, 0xf1]);
        assert!(!format!("{key:?}").contains("0a"));
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(SecretKey::from_hex(wrong).is_none(), "{wrong}");
        }
    }

    /// What is on disk today must open tomorrow. The bytes come from another implementation of RFC 8439.
    #[test]
    fn the_format_is_the_one_that_was_written_before() {
        let sealer = Sealer::new(&SecretKey::new([7; 32]));
        let sealed = sealer.seal(NONCE, &purpose(Some(tenant(9)), "ghcr.io"), b"secret").unwrap();
        assert_eq!(
            String::from(sealed),
            "01f6cffe673b5de94003030303030303030303030398c32e15f3e0101521001679f2704607f36649a31893"
        );
    }
}
