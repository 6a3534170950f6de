//! The key of a certificate: in a file, or in the machine's TPM.

use std::sync::{Mutex, PoisonError};

use garboard_tpm::{Tpm, TpmError, TpmKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::issue::IssueError;

/// A key that signs.
pub(super) enum LeafKey {
    /// The key itself.
    File(Box<KeyPair>),
    /// What the TPM needs to use it.
    Sealed(Box<SealedKey>),
}

/// A key in the TPM.
pub(super) struct SealedKey {
    tpm: Tpm,
    key: TpmKey,
    /// Why the last signature was not made: `rcgen` has no room for it.
    failure: Mutex<Option<TpmError>>,
}

/// The public half of a key in a TPM.
pub(super) struct PublicHalf<'a>(pub(super) &'a TpmKey);

impl LeafKey {
    /// A new key, in the TPM if one is given.
    pub(super) fn generate(tpm: Option<&Tpm>) -> Result<Self, IssueError> {
        match tpm {
            Some(tpm) => Ok(Self::sealed(tpm, tpm.create_key()?)),
            None => Ok(Self::File(Box::new(KeyPair::generate()?))),
        }
    }

    /// A key that is there, PEM.
    pub(super) fn from_pem(pem: &str, tpm: Option<&Tpm>) -> Result<Self, IssueError> {
        if TpmKey::is_in(pem) {
            let key = TpmKey::from_pem(pem)?;
            return Ok(Self::sealed(tpm.ok_or(IssueError::NoTpm)?, key));
        }
        Ok(Self::File(Box::new(KeyPair::from_pem(pem)?)))
    }

    fn sealed(tpm: &Tpm, key: TpmKey) -> Self {
        Self::Sealed(Box::new(SealedKey { tpm: tpm.clone(), key, failure: Mutex::default() }))
    }

    /// The key as it is kept, PEM.
    pub(super) fn to_pem(&self) -> Result<String, IssueError> {
        match self {
            Self::File(key) => Ok(key.serialize_pem()),
            Self::Sealed(sealed) => Ok(sealed.key.to_pem()?),
        }
    }

    /// Why nothing was signed, from what `rcgen` says of it.
    pub(super) fn failure(&self, said: rcgen::Error) -> IssueError {
        let failure = match self {
            Self::Sealed(sealed) => sealed.failure.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Self::File(_) => None,
        };
        failure.map_or(IssueError::Certificate(said), IssueError::Tpm)
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::File(key) => key.der_bytes(),
            Self::Sealed(sealed) => sealed.key.point(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::File(key) => key.algorithm(),
            Self::Sealed(_) => &PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl SigningKey for LeafKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::File(key) => key.sign(message),
            Self::Sealed(sealed) => sealed.tpm.sign(&sealed.key, message).map_err(|error| {
                *sealed.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                rcgen::Error::RemoteKeyError
            }),
        }
    }
}

impl PublicKeyData for PublicHalf<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
