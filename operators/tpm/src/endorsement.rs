//! Which TPM it is: the endorsement key, which its vendor has certified.

use ring::digest::{SHA256, digest};

use crate::point::{Point, SIZE};

/// What a name by SHA-256 begins with (TPM 2.0 Library, part 1, chapter 16).
const SHA256_NAME: &[u8] = &[0x00, 0x0b];
/// Size of such a name.
const NAME: usize = 2 + 32;

/// Why there is no proof to be had.
#[derive(Debug, thiserror::Error)]
pub enum EndorsementError {
    /// Bytes are more or less than what they are taken for.
    #[error("{found} bytes are no {what}")]
    Size {
        /// What they are taken for.
        what: &'static str,
        /// How many they are.
        found: usize,
    },
    /// A point is in another form, or compressed.
    #[error("not an uncompressed point")]
    Form,
    /// A name is by another algorithm than the one that all names here are by.
    #[error("not a name by SHA-256")]
    Name,
    /// No TPM can have this key.
    #[error("not a point on P-256")]
    Curve,
    /// The system gives no random numbers.
    #[error("no random numbers")]
    Random,
}

/// The public half of a TPM's endorsement key: on P-256, by the template L-2 (TCG EK Credential Profile, annex B).
///
/// The TPM makes it again from a seed that it was built with, and no owner can change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey(pub(crate) Point);

impl EndorsementKey {
    /// An uncompressed point (SEC 1, section 2.3.3).
    pub fn point(&self) -> &[u8] {
        self.0.bytes()
    }

    /// SHA-256 of its `SubjectPublicKeyInfo` (RFC 5480, section 2), DER: what the key is told by.
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, &self.0.public_key_info()).as_ref());
        bytes
    }
}

impl TryFrom<&[u8]> for EndorsementKey {
    type Error = EndorsementError;

    /// The key that this uncompressed point is. Whether it is on the curve is seen when a challenge is made for it.
    fn try_from(bytes: &[u8]) -> Result<Self, EndorsementError> {
        point("endorsement key", bytes).map(Self)
    }
}

/// What a machine tells of its TPM. It is no secret, and no proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endorsement {
    pub(crate) key: EndorsementKey,
    /// Of the storage key: a credential is for one named thing, and for the TPM that holds it.
    pub(crate) name: [u8; NAME],
}

impl Endorsement {
    pub(crate) fn new(key: EndorsementKey, name: &[u8]) -> Result<Self, EndorsementError> {
        let size = EndorsementError::Size { what: "name", found: name.len() };
        let name: [u8; NAME] = name.try_into().map_err(|_| size)?;
        if name.starts_with(SHA256_NAME) { Ok(Self { key, name }) } else { Err(EndorsementError::Name) }
    }

    /// The key whose TPM a challenge made from this is for.
    pub fn key(&self) -> &EndorsementKey {
        &self.key
    }

    /// As a machine sends it: 99 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.key.point(), &self.name].concat()
    }
}

impl TryFrom<&[u8]> for Endorsement {
    type Error = EndorsementError;

    fn try_from(bytes: &[u8]) -> Result<Self, EndorsementError> {
        let size = EndorsementError::Size { what: "endorsement", found: bytes.len() };
        if bytes.len() != SIZE + NAME {
            return Err(size);
        }
        let (key, name) = bytes.split_at(SIZE);
        Self::new(key.try_into()?, name)
    }
}

/// The point that these bytes are, which stand for this.
pub(crate) fn point(what: &'static str, bytes: &[u8]) -> Result<Point, EndorsementError> {
    if bytes.len() != SIZE {
        return Err(EndorsementError::Size { what, found: bytes.len() });
    }
    Point::new(bytes).ok_or(EndorsementError::Form)
}
