//! The key of a certificate: in a file, or in the machine's TPM.

use std::sync::{Mutex, PoisonError};

use garboard_tpm::{SealedKey, SealedKeyError, Tpm, TpmError, TpmKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::issue::IssueError;

/// A key that signs.
pub(super) enum LeafKey {
    /// The key itself.
    File(Box<KeyPair>),
    /// A key in the TPM.
    Sealed {
        /// What the TPM needs to use it.
        key: SealedKey,
        /// Why the last signature was not made: `rcgen` has no room for it.
        failure: Mutex<Option<TpmError>>,
    },
}

impl LeafKey {
    /// A new key, in the TPM if one is given.
    pub(super) fn generate(tpm: Option<&Tpm>) -> Result<Self, IssueError> {
        match tpm {
            Some(tpm) => Ok(SealedKey::create(tpm.clone())?.into()),
            None => Ok(Self::File(Box::new(KeyPair::generate()?))),
        }
    }

    /// A key that is there, PEM.
    pub(super) fn from_pem(pem: &str, tpm: Option<&Tpm>) -> Result<Self, IssueError> {
        if TpmKey::is_in(pem) {
            return Ok(SealedKey::from_pem(pem, tpm.cloned())?.into());
        }
        Ok(Self::File(Box::new(KeyPair::from_pem(pem)?)))
    }

    /// The key as it is kept, PEM.
    pub(super) fn to_pem(&self) -> Result<String, IssueError> {
        match self {
            Self::File(key) => Ok(key.serialize_pem()),
            Self::Sealed { key, .. } => Ok(key.key().to_pem().map_err(SealedKeyError::from)?),
        }
    }

    /// Why nothing was signed, from what `rcgen` says of it.
    pub(super) fn failure(&self, said: rcgen::Error) -> IssueError {
        let failure = match self {
            Self::Sealed { failure, .. } => failure.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Self::File(_) => None,
        };
        failure.map_or(IssueError::Certificate(said), IssueError::Tpm)
    }
}

impl From<SealedKey> for LeafKey {
    fn from(key: SealedKey) -> Self {
        Self::Sealed { key, failure: Mutex::default() }
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::File(key) => key.der_bytes(),
            Self::Sealed { key, .. } => key.key().point(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::File(key) => key.algorithm(),
            Self::Sealed { .. } => &PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl SigningKey for LeafKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::File(key) => key.sign(message),
            Self::Sealed { key, failure } => key.sign(message).map_err(|error| {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                rcgen::Error::RemoteKeyError
            }),
        }
    }
}
