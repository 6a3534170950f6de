//! What is asked of a TPM.

use tpm2_protocol::basic::{TpmHandle, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bData, Tpm2bDigest, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmEccCurve, TpmRcBase, TpmRh, TpmSt,
    TpmaObject, TpmlPcrSelection, TpmsEccParms, TpmsEccPoint, TpmsSchemeHash, TpmtEccScheme, TpmtKdfScheme, TpmtPublic,
    TpmtSigScheme, TpmtSymDef, TpmtTkHashcheck, TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSignature,
    TpmuSymKeyBits, TpmuSymMode,
};
use tpm2_protocol::frame::{
    TpmCreateCommand, TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmCreateResponse, TpmFlushContextCommand,
    TpmFlushContextResponse, TpmLoadCommand, TpmLoadResponse, TpmSignCommand, TpmSignResponse,
};

use crate::exchange::{Authorization, Connection, exchange};
use crate::{TpmError, TpmKey};

const CREATE: &str = "make a key";
const SIGN: &str = "sign";

/// An open TPM.
pub(crate) struct Session<C>(C);

impl<C: Connection> Session<C> {
    pub(crate) fn new(connection: C) -> Self {
        Self(connection)
    }

    /// Makes a key.
    pub(crate) fn create(&mut self) -> Result<TpmKey, TpmError> {
        let made = self.with_storage_key(|session, parent| {
            let command = TpmCreateCommand {
                handles: [parent],
                in_sensitive: Tpm2bSensitiveCreate::default(),
                in_public: Tpm2bPublic { inner: signing_key() },
                outside_info: Tpm2bData::default(),
                creation_pcr: TpmlPcrSelection::default(),
            };
            exchange::<TpmCreateResponse>(&mut session.0, CREATE, &command, Authorization::EmptyPassword)
        })?;
        TpmKey::new(made.out_public, made.out_private).map_err(|_| TpmError::Answer { operation: CREATE })
    }

    /// Loads a key, and lets go of it.
    pub(crate) fn check(&mut self, key: &TpmKey) -> Result<(), TpmError> {
        self.with_key(key, |_, _| Ok(()))
    }

    /// Signs a SHA-256 digest.
    pub(crate) fn sign(&mut self, key: &TpmKey, digest: &[u8]) -> Result<Vec<u8>, TpmError> {
        let digest = Tpm2bDigest::try_from(digest).map_err(|source| TpmError::Protocol { operation: SIGN, source })?;
        let signed = self.with_key(key, |session, handle| {
            let command = TpmSignCommand {
                handles: [handle],
                digest,
                in_scheme: TpmtSigScheme::default(),
                // The key is not restricted to what the TPM itself has digested.
                validation: TpmtTkHashcheck {
                    tag: TpmSt::HashCheck,
                    hierarchy: TpmRh::Null,
                    digest: Tpm2bDigest::default(),
                },
            };
            exchange::<TpmSignResponse>(&mut session.0, SIGN, &command, Authorization::EmptyPassword)
        })?;
        let TpmuSignature::Ecdsa(signature) = signed.signature.signature else {
            return Err(TpmError::Answer { operation: SIGN });
        };
        Ok(yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_bigint_bytes(signature.signature_r.as_ref(), true);
                writer.next().write_bigint_bytes(signature.signature_s.as_ref(), true);
            });
        }))
    }

    fn with_key<T>(
        &mut self,
        key: &TpmKey,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.with_storage_key(|session, parent| {
            let command = TpmLoadCommand { handles: [parent], in_private: key.private, in_public: key.public.clone() };
            let loaded =
                exchange::<TpmLoadResponse>(&mut session.0, "load a key", &command, Authorization::EmptyPassword)
                    .map_err(foreign)?;
            session.with(loaded.handles[0], work)
        })
    }

    fn with_storage_key<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = TpmCreatePrimaryCommand {
            handles: [(TpmRh::Owner as u32).into()],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: storage_key() },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let made = exchange::<TpmCreatePrimaryResponse>(
            &mut self.0,
            "make its storage key",
            &command,
            Authorization::EmptyPassword,
        )?;
        self.with(made.handles[0], work)
    }

    /// Works with something that is loaded, and lets go of it, whatever comes of it: a TPM has room for three such things.
    fn with<T>(
        &mut self,
        handle: TpmHandle,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let outcome = work(self, handle);
        let command = TpmFlushContextCommand { handles: [], flush_handle: handle };
        let flushed =
            exchange::<TpmFlushContextResponse>(&mut self.0, "let go of a key", &command, Authorization::None);
        let value = outcome?;
        flushed.map(|_| value)
    }
}

/// What a TPM says of a key that another has sealed: it is not whole.
fn foreign(error: TpmError) -> TpmError {
    match error {
        TpmError::Refused { code, .. } if code.known().is_some_and(|known| known.base() == TpmRcBase::Integrity) => {
            TpmError::ForeignKey
        }
        other => other,
    }
}

/// The storage key for which everybody uses the same template (TCG TPM v2.0 Provisioning Guidance, section 7.5.1, with ECC on P-256).
fn storage_key() -> TpmtPublic {
    TpmtPublic {
        object_attributes: common() | TpmaObject::RESTRICTED | TpmaObject::DECRYPT,
        ..on_p256(
            TpmtSymDef {
                algorithm: TpmAlgId::Aes,
                key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)),
                mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
            },
            TpmtEccScheme::default(),
        )
    }
}

/// A key that signs, and never leaves its TPM.
fn signing_key() -> TpmtPublic {
    let scheme = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
    TpmtPublic {
        object_attributes: common() | TpmaObject::SIGN_ENCRYPT,
        ..on_p256(TpmtSymDef::default(), TpmtEccScheme { scheme: TpmAlgId::Ecdsa, details: scheme })
    }
}

fn common() -> TpmaObject {
    TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
}

fn on_p256(symmetric: TpmtSymDef, scheme: TpmtEccScheme) -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::empty(),
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric,
            scheme,
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint::default()),
    }
}
