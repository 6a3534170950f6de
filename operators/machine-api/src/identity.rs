//! The key by which a machine or a person is known.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Pin;

/// Largest key file that is read, bytes.
const MAX_KEY_FILE: u64 = 16 * 1024;

/// A P-256 key and the self-signed certificate that carries its public half.
///
/// The certificate says nothing: its name and dates are never checked, only the key in it is.
pub struct Identity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("read the key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text is no PKCS #8 P-256 key in PEM.
    #[error("not a P-256 private key in PKCS #8 PEM")]
    Parse(#[source] rcgen::Error),
    /// No key could be made.
    #[error("make a P-256 key")]
    Generate(#[source] rcgen::Error),
    /// The key signs no certificate.
    #[error("sign a certificate with the key")]
    Sign(#[source] rcgen::Error),
}

impl Identity {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::of(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Generate)?)
    }

    /// Reads a key from PEM (`PRIVATE KEY`, PKCS #8).
    ///
    /// # Errors
    /// When the text is no such key, or one of another kind.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256);
        Self::of(key.map_err(IdentityError::Parse)?)
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// When the file cannot be read or holds no P-256 key.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let read = || -> io::Result<String> {
            if fs::metadata(path)?.len() > MAX_KEY_FILE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too large for a key"));
            }
            fs::read_to_string(path)
        };
        Self::from_pem(&read().map_err(|source| IdentityError::Read { path: path.to_owned(), source })?)
    }

    /// The key in PEM: a secret.
    pub fn pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The DER-encoded `SubjectPublicKeyInfo`.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// The fingerprint of the public key.
    pub fn pin(&self) -> Pin {
        Pin::of_public_key(&self.public_key())
    }

    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn of(key: KeyPair) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "garboard");
        let certificate = params.self_signed(&key).map_err(IdentityError::Sign)?.der().clone();
        Ok(Self { key, certificate })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_p256_keys_are_accepted() {
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(Identity::from_pem(&ed25519.serialize_pem()), Err(IdentityError::Parse(_))));
    }

    #[test]
    fn the_debug_form_has_no_secret() {
        let identity = Identity::generate().unwrap();
        let secret = identity.pem();
        let debug = format!("{identity:?}");
        assert!(secret.lines().filter(|line| !line.starts_with('-')).all(|line| !debug.contains(line)), "{debug}");
    }
}
