//! The proxy's own certificate authority, and the certificates that it shows where it ends TLS.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hashlink::LruCache;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

/// A sandbox's clock may be this far from ours.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// The authority is made once and outlives what is built with it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What a certificate for one name says of itself; some clients refuse long ones.
const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long one is shown before a new one is made.
const LEAF_REUSE: Duration = Duration::from_secs(24 * 3600);
/// Certificates that are remembered.
const LEAVES_MAX: usize = 256;

/// Signs certificates for the hosts whose TLS the proxy ends. What it signs is good only for those who trust it: the sandboxes.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_pem: String,
    /// All leaves share one key that lives as long as the process.
    leaf_key: KeyPair,
    leaves: Mutex<LruCache<String, Leaf>>,
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: Instant,
}

/// An authority or a certificate of it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The PEM texts do not hold a certificate and its private key.
    #[error("the egress authority cannot be read: {0}; give the certificate and the key that it was made with, both as PEM")]
    Unreadable(String),
    /// Making or signing failed.
    #[error("a certificate could not be made: {0}")]
    Failed(String),
}

impl fmt::Debug for CertificateAuthority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("leaves", &self.leaves.lock().len()).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new authority: ECDSA P-256, good for ten years. Keep [`key_pem`](Self::key_pem) as the secret that it is, and put
    /// [`certificate_pem`](Self::certificate_pem) among the roots that sandboxes trust.
    ///
    /// # Errors
    /// [`AuthorityError::Failed`] if no key could be made.
    pub fn generate(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Sandbank egress authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        live(&mut params, now, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    /// Takes an authority up again.
    ///
    /// # Errors
    /// [`AuthorityError::Unreadable`] if the texts are not a certificate and the key that belongs to it.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let unreadable = |error: rcgen::Error| AuthorityError::Unreadable(error.to_string());
        let key = KeyPair::from_pem(key_pem).map_err(unreadable)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(unreadable)?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            leaf_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?,
            leaves: Mutex::new(LruCache::new(LEAVES_MAX)),
        })
    }

    /// The certificate, in PEM: not a secret.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, in PEM: a secret.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// How to be `name` in front of a sandbox: a certificate for exactly this name, HTTP/2 and HTTP/1.1.
    pub(crate) fn server_config(&self, name: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        if let Some(leaf) = self.leaves.lock().get(name)
            && leaf.made.elapsed() < LEAF_REUSE
        {
            return Ok(Arc::clone(&leaf.config));
        }
        let config = Arc::new(self.make(name, SystemTime::now())?);
        self.leaves.lock().insert(name.to_owned(), Leaf { config: Arc::clone(&config), made: Instant::now() });
        Ok(config)
    }

    fn make(&self, name: &str, now: SystemTime) -> Result<ServerConfig, AuthorityError> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        // A common name has at most 64 characters (RFC 5280); nobody reads it where there is an alternative name.
        params.distinguished_name = named("Sandbank egress");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        live(&mut params, now, LEAF_LIFE);
        let certificate = params.signed_by(&self.leaf_key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| AuthorityError::Failed(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Failed(error.to_string())
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished.push(DnType::OrganizationName, "Sandbank");
    distinguished
}

fn live(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let now = OffsetDateTime::from(now);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn an_authority_is_taken_up_again_from_its_texts() {
        let made = CertificateAuthority::generate(SystemTime::now()).unwrap();
        let again = CertificateAuthority::from_pem(made.certificate_pem(), made.key_pem()).unwrap();
        assert_eq!(again.certificate_pem(), made.certificate_pem());
        again.server_config("api.example").unwrap();
    }

    #[test]
    fn what_is_not_an_authority_is_refused() {
        let error = CertificateAuthority::from_pem("nothing", "nothing").unwrap_err();
        assert!(error.to_string().contains("as PEM"), "{error}");
    }

    #[test]
    fn a_name_keeps_its_certificate_and_the_memory_for_them_is_bounded() {
        let authority = CertificateAuthority::generate(SystemTime::now()).unwrap();
        let first = authority.server_config("a.example").unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server_config("a.example").unwrap()));
        for number in 0..LEAVES_MAX {
            authority.server_config(&format!("{number}.example")).unwrap();
        }
        assert_eq!(authority.leaves.lock().len(), LEAVES_MAX);
        assert!(!Arc::ptr_eq(&first, &authority.server_config("a.example").unwrap()), "it was forgotten");
    }

    #[test]
    fn the_key_is_not_shown() {
        let authority = CertificateAuthority::generate(SystemTime::now()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
