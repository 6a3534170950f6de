//! A client's key that is in the machine's TPM.

use std::sync::Arc;

use garboard_tpm::{SealedKey, SealedKeyError, Tpm, TpmKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, OtherError, SignatureAlgorithm, SignatureScheme};

/// What the TPM signs with.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// The key of a client, for TLS.
///
/// It waits for the TPM where a key in memory computes. Either is short, and connections are few: they are kept for as long as they serve.
#[derive(Clone, Debug)]
pub(crate) struct TpmSigner(SealedKey);

impl TpmSigner {
    /// The key in a PEM text, if it is a TPM's.
    pub(crate) fn read(pem: &[u8], tpm: Option<Tpm>) -> Result<Option<Self>, SealedKeyError> {
        match str::from_utf8(pem) {
            Ok(pem) if TpmKey::is_in(pem) => SealedKey::from_pem(pem, tpm).map(|key| Some(Self(key))),
            _ => Ok(None),
        }
    }
}

impl SigningKey for TpmSigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(self.clone()) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.key().public_key_info().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TpmSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(message).map_err(|error| OtherError(Arc::new(error)).into())
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
