//! What is asked of a TPM.

use tpm2_protocol::TpmResult;
use tpm2_protocol::basic::{TpmHandle, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bData, Tpm2bDigest, Tpm2bEccParameter, Tpm2bEncryptedSecret, Tpm2bIdObject, Tpm2bNonce, Tpm2bPublic,
    Tpm2bSensitiveCreate, TpmAlgId, TpmEccCurve, TpmRcBase, TpmRh, TpmSe, TpmSt, TpmaObject, TpmlPcrSelection,
    TpmsEccParms, TpmsEccPoint, TpmsSchemeHash, TpmtEccScheme, TpmtKdfScheme, TpmtPublic, TpmtSigScheme, TpmtSymDef,
    TpmtTkHashcheck, TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSignature, TpmuSymKeyBits, TpmuSymMode,
};
use tpm2_protocol::frame::{
    TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmCreateCommand, TpmCreatePrimaryCommand,
    TpmCreatePrimaryResponse, TpmCreateResponse, TpmFlushContextCommand, TpmFlushContextResponse, TpmLoadCommand,
    TpmLoadResponse, TpmPolicySecretCommand, TpmPolicySecretResponse, TpmSignCommand, TpmSignResponse,
    TpmStartAuthSessionCommand, TpmStartAuthSessionResponse,
};

use crate::exchange::{Authorization, Connection, exchange};
use crate::point::{COORDINATE, Point};
use crate::{Endorsement, EndorsementKey, Question, TpmError, TpmKey};

const CREATE: &str = "make a key";
const SIGN: &str = "sign";
const ENDORSE: &str = "make its endorsement key";
const STORE: &str = "make its storage key";
const ANSWER: &str = "open what was sealed to it";

/// What the endorsement key is used with: a session in which the password of the endorsement hierarchy was given (`PolicyA` with SHA-256,
/// TCG EK Credential Profile, annex B).
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

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

    /// The public half of the endorsement key.
    pub(crate) fn endorsement_key(&mut self) -> Result<EndorsementKey, TpmError> {
        self.with_endorsement_key(|_, made| {
            let point = Point::of(&made.out_public.inner).ok_or(TpmError::Answer { operation: ENDORSE })?;
            Ok(EndorsementKey(point))
        })
    }

    /// The public half of the endorsement key, and the name of the storage key.
    pub(crate) fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        let key = self.endorsement_key()?;
        self.with_primary(STORE, TpmRh::Owner, storage_key(), |_, made| {
            Endorsement::new(key, &made.name).map_err(|_| TpmError::Answer { operation: STORE })
        })
    }

    /// The secret of a question.
    pub(crate) fn open(&mut self, question: &Question) -> Result<Tpm2bDigest, TpmError> {
        let protocol = |source| TpmError::Protocol { operation: ANSWER, source };
        let credential_blob = Tpm2bIdObject::try_from(&question.credential()[..]).map_err(protocol)?;
        let secret = Tpm2bEncryptedSecret::try_from(&question.encrypted_seed()[..]).map_err(protocol)?;
        let opened = self.with_storage_key(|session, named| {
            session.with_endorsement_key(|session, made| {
                session.with_endorsement_policy(|session, policy| {
                    let command =
                        TpmActivateCredentialCommand { handles: [named, made.handles[0]], credential_blob, secret };
                    let authorization = Authorization::EmptyPasswordAndPolicy(policy);
                    exchange::<TpmActivateCredentialResponse>(&mut session.0, ANSWER, &command, authorization)
                        .map_err(|error| unless_whole(error, TpmError::ForeignQuestion))
                })
            })
        })?;
        Ok(opened.cert_info)
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
                    .map_err(|error| unless_whole(error, TpmError::ForeignKey))?;
            session.with(loaded.handles[0], work)
        })
    }

    fn with_storage_key<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.with_primary(STORE, TpmRh::Owner, storage_key(), |session, made| work(session, made.handles[0]))
    }

    fn with_endorsement_key<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmCreatePrimaryResponse) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let template = endorsement_key().map_err(|source| TpmError::Protocol { operation: ENDORSE, source })?;
        self.with_primary(ENDORSE, TpmRh::Endorsement, template, work)
    }

    /// Works with a key that the TPM makes again whenever it is asked.
    fn with_primary<T>(
        &mut self,
        operation: &'static str,
        hierarchy: TpmRh,
        template: TpmtPublic,
        work: impl FnOnce(&mut Self, TpmCreatePrimaryResponse) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = TpmCreatePrimaryCommand {
            handles: [(hierarchy as u32).into()],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: template },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let made =
            exchange::<TpmCreatePrimaryResponse>(&mut self.0, operation, &command, Authorization::EmptyPassword)?;
        self.with(made.handles[0], |session, _| work(session, made))
    }

    /// Works with a session that satisfies the policy of the endorsement key.
    fn with_endorsement_policy<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "let its endorsement key be used";
        let nothing = (TpmRh::Null as u32).into();
        // Nothing is authenticated with what the session begins with, so that it need not be new; 16 bytes are the least.
        let nonce_caller =
            Tpm2bNonce::try_from(&[0; 16][..]).map_err(|source| TpmError::Protocol { operation: OPERATION, source })?;
        let command = TpmStartAuthSessionCommand {
            handles: [nothing, nothing],
            nonce_caller,
            encrypted_salt: Tpm2bEncryptedSecret::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDef::default(),
            auth_hash: TpmAlgId::Sha256,
        };
        let started = exchange::<TpmStartAuthSessionResponse>(&mut self.0, OPERATION, &command, Authorization::None)?;
        self.with(started.handles[0], |session, policy| {
            let command = TpmPolicySecretCommand {
                handles: [(TpmRh::Endorsement as u32).into(), policy],
                ..TpmPolicySecretCommand::default()
            };
            exchange::<TpmPolicySecretResponse>(&mut session.0, OPERATION, &command, Authorization::EmptyPassword)?;
            work(session, policy)
        })
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
            exchange::<TpmFlushContextResponse>(&mut self.0, "let go of what it held", &command, Authorization::None);
        let value = outcome?;
        flushed.map(|_| value)
    }
}

/// What it means that a TPM finds something not whole: another has sealed it, or it was sealed to another.
fn unless_whole(error: TpmError, foreign: TpmError) -> TpmError {
    match error {
        TpmError::Refused { code, .. } if code.known().is_some_and(|known| known.base() == TpmRcBase::Integrity) => {
            foreign
        }
        other => other,
    }
}

/// The storage key for which everybody uses the same template (TCG TPM v2.0 Provisioning Guidance, section 7.5.1, with ECC on P-256).
fn storage_key() -> TpmtPublic {
    TpmtPublic {
        object_attributes: common() | TpmaObject::RESTRICTED | TpmaObject::DECRYPT,
        ..on_p256(aes_128_cfb(), TpmtEccScheme::default())
    }
}

/// The key that the vendor has certified, if it is on P-256 (TCG EK Credential Profile, annex B, template L-2).
fn endorsement_key() -> TpmResult<TpmtPublic> {
    // Another template is another key, and zeros are not the same as nothing.
    let zero = Tpm2bEccParameter::try_from(&[0; COORDINATE][..])?;
    Ok(TpmtPublic {
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::ADMIN_WITH_POLICY
            | TpmaObject::RESTRICTED
            | TpmaObject::DECRYPT,
        auth_policy: Tpm2bDigest::try_from(&POLICY_A[..])?,
        unique: TpmuPublicId::Ecc(TpmsEccPoint { x: zero, y: zero }),
        ..on_p256(aes_128_cfb(), TpmtEccScheme::default())
    })
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

fn aes_128_cfb() -> TpmtSymDef {
    TpmtSymDef {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    }
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
