//! A client's key that is in the machine's TPM.

use std::sync::Arc;

use garboard_tpm::{KeyError, Tpm, TpmKey};
use rustls::pki_types::{SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error, OtherError, SignatureAlgorithm, SignatureScheme};

/// What the TPM signs with.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// Why a key of a TPM is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SealedKeyError {
    /// It is none.
    #[error("not a key of a TPM")]
    Key(#[from] KeyError),
    /// The machine has no TPM.
    #[error("the key is in a TPM, and this machine has none")]
    NoTpm,
}

/// A key, and the TPM that can use it.
///
/// It waits for the TPM where a key in memory computes. Either is short, and connections are few: they are kept for as long as they serve.
#[derive(Clone, Debug)]
pub(crate) struct SealedKey {
    tpm: Tpm,
    key: Arc<TpmKey>,
}

impl SealedKey {
    /// The key in a PEM text, if it is a TPM's.
    pub(crate) fn read(pem: &[u8], tpm: Option<Tpm>) -> Result<Option<Self>, SealedKeyError> {
        match str::from_utf8(pem) {
            Ok(pem) if TpmKey::is_in(pem) => {
                let key = Arc::new(TpmKey::from_pem(pem)?);
                Ok(Some(Self { tpm: tpm.ok_or(SealedKeyError::NoTpm)?, key }))
            }
            _ => Ok(None),
        }
    }
}

impl SigningKey for SealedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(self.clone()) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(public_key_to_spki(&alg_id::ECDSA_P256, self.key.point()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for SealedKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.tpm.sign(&self.key, message).map_err(|error| OtherError(Arc::new(error)).into())
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
