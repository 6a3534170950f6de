//! A key with the TPM that can use it.

use std::sync::Arc;

use crate::{KeyError, Tpm, TpmError, TpmKey};

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
#[derive(Clone, Debug)]
pub struct SealedKey {
    tpm: Tpm,
    key: Arc<TpmKey>,
}

impl SealedKey {
    /// Makes a key.
    ///
    /// # Errors
    /// Those of [`Tpm::create_key`].
    pub fn create(tpm: Tpm) -> Result<Self, TpmError> {
        let key = Arc::new(tpm.create_key()?);
        Ok(Self { tpm, key })
    }

    /// The key in a PEM text, of this TPM if there is one.
    ///
    /// # Errors
    /// [`SealedKeyError`].
    pub fn from_pem(text: &str, tpm: Option<Tpm>) -> Result<Self, SealedKeyError> {
        let key = Arc::new(TpmKey::from_pem(text)?);
        Ok(Self { tpm: tpm.ok_or(SealedKeyError::NoTpm)?, key })
    }

    /// The key.
    pub fn key(&self) -> &TpmKey {
        &self.key
    }

    /// Signs a message.
    ///
    /// # Errors
    /// Those of [`Tpm::sign`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.tpm.sign(&self.key, message)
    }
}
