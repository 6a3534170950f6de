//! The proof that a TPM is there: it alone opens what was sealed to its endorsement key (TPM 2.0 Library, part 1, chapter 24).

use std::fmt;

use aes::Aes128;
use cfb_mode::Encryptor;
use cfb_mode::cipher::KeyIvInit as _;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::digest::{self, SHA256};
use ring::error::Unspecified;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SystemRandom, generate};

use crate::endorsement::{Endorsement, EndorsementError, point};
use crate::point::{COORDINATE, Point, SIZE};

/// Size of a secret, of its proof, and of everything else by SHA-256.
const DIGEST: usize = 32;
/// Size of a secret with its own size before it.
const SIZED: usize = 2 + DIGEST;
/// What the message of a proof begins with, so that it is of no use in another protocol.
const DOMAIN: &[u8] = b"garboard endorsement\0";

/// What a verifier keeps until it is answered: good for one proof, or for none.
pub struct Challenge {
    secret: hmac::Key,
    message: Vec<u8>,
}

impl Challenge {
    /// Makes a new secret, and the question that it is the answer to.
    ///
    /// `context`: what the proof is to be for, such as the fingerprint of the key at the other end of a connection. Who answers names its
    /// own, so that an answer that somebody passes on is of no use to him.
    ///
    /// # Errors
    /// [`EndorsementError::Curve`] when no TPM can have this key, [`EndorsementError::Random`] when the system is out of order.
    pub fn new(endorsement: &Endorsement, context: &[u8]) -> Result<(Self, Question), EndorsementError> {
        let random = SystemRandom::new();
        let no_random = |Unspecified| EndorsementError::Random;
        let secret: [u8; DIGEST] = generate(&random).map_err(no_random)?.expose();
        let private = EphemeralPrivateKey::generate(&ECDH_P256, &random).map_err(no_random)?;
        let public = private.compute_public_key().map_err(no_random)?;
        let question = seal(private, point("ephemeral key", public.as_ref())?, endorsement, &secret)?;
        Ok((Self { secret: hmac::Key::new(HMAC_SHA256, &secret), message: message(context) }, question))
    }

    /// Whether the answer is from the TPM with the endorsement's key, and for the challenge's context. It takes as long for any answer.
    pub fn accepts(&self, answer: &Answer) -> bool {
        hmac::verify(&self.secret, &self.message, &answer.0).is_ok()
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenge")
    }
}

/// A secret, sealed to one TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    ephemeral: Point,
    integrity: [u8; DIGEST],
    identity: [u8; SIZED],
}

impl Question {
    /// As a verifier sends it: 131 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.ephemeral.bytes(), &self.integrity[..], &self.identity].concat()
    }

    /// The sealed secret as a TPM reads it (`TPMS_ID_OBJECT`).
    pub(crate) fn credential(&self) -> Vec<u8> {
        [sized(&self.integrity), self.identity].concat()
    }

    /// What the TPM finds the key of the seal by, as it reads it (`TPMS_ECC_POINT`).
    pub(crate) fn encrypted_seed(&self) -> Vec<u8> {
        self.ephemeral.coordinates().map(sized).concat()
    }
}

impl TryFrom<&[u8]> for Question {
    type Error = EndorsementError;

    fn try_from(bytes: &[u8]) -> Result<Self, EndorsementError> {
        let size = || EndorsementError::Size { what: "question", found: bytes.len() };
        let (ephemeral, rest) = bytes.split_at_checked(SIZE).ok_or_else(size)?;
        let (integrity, identity) = rest.split_first_chunk().ok_or_else(size)?;
        let identity = identity.try_into().map_err(|_| size())?;
        Ok(Self { ephemeral: point("ephemeral key", ephemeral)?, integrity: *integrity, identity })
    }
}

/// The proof that the secret of a question is known, and for what. The secret itself does not leave the machine: it may have been
/// somebody else's, who asks another thing by the same means.
#[derive(Clone)]
pub struct Answer([u8; DIGEST]);

impl Answer {
    pub(crate) fn new(secret: &[u8], context: &[u8]) -> Self {
        let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, secret), &message(context));
        Self(array(tag.as_ref()))
    }

    /// As a machine sends it: 32 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl TryFrom<&[u8]> for Answer {
    type Error = EndorsementError;

    fn try_from(bytes: &[u8]) -> Result<Self, EndorsementError> {
        let size = EndorsementError::Size { what: "answer", found: bytes.len() };
        bytes.try_into().map(Self).map_err(|_| size)
    }
}

/// What a proof signs.
fn message(context: &[u8]) -> Vec<u8> {
    [DOMAIN, context].concat()
}

/// Seals a secret to the TPM that holds the endorsement's key and, under its name, the storage key: what TPM2_MakeCredential does.
fn seal(
    private: EphemeralPrivateKey,
    ephemeral: Point,
    endorsement: &Endorsement,
    secret: &[u8; DIGEST],
) -> Result<Question, EndorsementError> {
    let Endorsement { key, name } = endorsement;
    let parties = [ephemeral, key.0].map(|point| *point.coordinates()[0]);
    let seed =
        agree_ephemeral(private, &UnparsedPublicKey::new(&ECDH_P256, key.point()), |shared| seed_of(shared, &parties))
            .map_err(|Unspecified| EndorsementError::Curve)?;
    let mut identity = sized(secret);
    Encryptor::<Aes128>::new(&derive::<16>(&seed, b"STORAGE\0", name).into(), &[0; 16].into()).encrypt(&mut identity);
    let key = hmac::Key::new(HMAC_SHA256, &derive::<DIGEST>(&seed, b"INTEGRITY\0", &[]));
    let integrity = array(hmac::sign(&key, &[&identity[..], name].concat()).as_ref());
    Ok(Question { ephemeral, integrity, identity })
}

/// The seed from which the keys of a seal are derived (`KDFe` with one round, TPM 2.0 Library, part 1, section 11.4.10.3 and annex C.6).
fn seed_of(shared: &[u8], parties: &[[u8; COORDINATE]; 2]) -> [u8; DIGEST] {
    let [ephemeral, key] = parties;
    let input = [&1_u32.to_be_bytes(), shared, b"IDENTITY\0", ephemeral, key].concat();
    array(digest::digest(&SHA256, &input).as_ref())
}

/// A key of at most 32 bytes (`KDFa` with one round, TPM 2.0 Library, part 1, section 11.4.10.2).
fn derive<const LENGTH: usize>(seed: &[u8; DIGEST], label: &[u8], context: &[u8]) -> [u8; LENGTH] {
    let bits = (LENGTH as u32 * 8).to_be_bytes();
    let input = [&1_u32.to_be_bytes(), label, context, &bits].concat();
    array(hmac::sign(&hmac::Key::new(HMAC_SHA256, seed), &input).as_ref())
}

/// Bytes with their number before them, as a TPM has them (`TPM2B`).
fn sized(bytes: &[u8; DIGEST]) -> [u8; SIZED] {
    let mut sized = [0; SIZED];
    sized[1] = DIGEST as u8;
    sized[2..].copy_from_slice(bytes);
    sized
}

/// The first bytes of a digest.
fn array<const LENGTH: usize>(digest: &[u8]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes.copy_from_slice(&digest[..LENGTH]);
    bytes
}
