//! A key as it lies in a file: `TSS2 PRIVATE KEY`, as OpenSSL's providers for TPMs write and read it (draft-bottomley-tpm2-keys).

use std::fmt;

use pem::{EncodeConfig, LineEnding, Pem};
use tpm2_protocol::data::{Tpm2bPrivate, Tpm2bPublic, TpmRh};
use tpm2_protocol::{TpmMarshal, TpmResult, TpmSized, TpmUnmarshal, TpmWriter};
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Error, ASN1ErrorKind, BERReader, Tag};

use crate::point::Point;

/// What the file's first and last line name.
const LABEL: &str = "TSS2 PRIVATE KEY";
/// A key that its TPM loads (`id-loadablekey`).
const LOADABLE: &[u64] = &[2, 23, 133, 10, 1, 3];
/// Most text that can be a key: one has some 500 bytes.
const LIMIT: usize = 8192;

/// Why a text is no key of a TPM.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is too long.
    #[error("longer than a key can be")]
    Long,
    /// It is no PEM.
    #[error("not PEM")]
    Pem(#[from] pem::PemError),
    /// It is PEM of something else.
    #[error("a {0} and no TSS2 PRIVATE KEY")]
    Label(String),
    /// What is in it is not what the format says, or makes use of what Garboard's keys do not have.
    #[error("not a key without password below the owner's storage key")]
    Form,
    /// A part of it is not what TPMs write.
    #[error("not what a TPM writes")]
    Part(#[from] tpm2_protocol::TpmError),
    /// It is of another kind.
    #[error("not a key on P-256")]
    Kind,
}

/// A key that one TPM can use. It is no secret: to all others it is a sealed box.
#[derive(Clone, PartialEq, Eq)]
pub struct TpmKey {
    pub(crate) public: Tpm2bPublic,
    pub(crate) private: Tpm2bPrivate,
    point: Point,
}

impl TpmKey {
    /// Whether a text says that it is a key of a TPM.
    pub fn is_in(text: &str) -> bool {
        text.contains(LABEL)
    }

    /// A key from what a TPM gave, or a file has.
    pub(crate) fn new(public: Tpm2bPublic, private: Tpm2bPrivate) -> Result<Self, KeyError> {
        let point = Point::of(&public.inner).ok_or(KeyError::Kind)?;
        Ok(Self { public, private, point })
    }

    /// Reads a key, PEM.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.len() > LIMIT {
            return Err(KeyError::Long);
        }
        let block = pem::parse(text)?;
        if block.tag() != LABEL {
            return Err(KeyError::Label(block.tag().to_owned()));
        }
        let (public, private) = yasna::parse_der(block.contents(), parts).map_err(|_| KeyError::Form)?;
        Self::new(whole(&public)?, whole(&private)?)
    }

    /// The key as PEM.
    ///
    /// # Errors
    /// When a part is larger than a TPM can make it.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let (public, private) = (bytes(&self.public)?, bytes(&self.private)?);
        let der = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_oid(&ObjectIdentifier::from_slice(LOADABLE));
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_bool(true));
                writer.next().write_u32(TpmRh::Owner as u32);
                writer.next().write_bytes(&public);
                writer.next().write_bytes(&private);
            });
        });
        Ok(pem::encode_config(&Pem::new(LABEL, der), EncodeConfig::new().set_line_ending(LineEnding::LF)))
    }

    /// Its public half: an uncompressed point (SEC 1, section 2.3.3).
    pub fn point(&self) -> &[u8] {
        self.point.bytes()
    }

    /// The same as `SubjectPublicKeyInfo` (RFC 5480, section 2), DER.
    pub fn public_key_info(&self) -> Vec<u8> {
        self.point.public_key_info()
    }
}

impl fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TpmKey")
    }
}

/// The public and the private part in a key's DER.
fn parts(reader: BERReader<'_, '_>) -> Result<(Vec<u8>, Vec<u8>), ASN1Error> {
    reader.read_sequence(|reader| {
        let kind = reader.next().read_oid()?;
        let empty_password = reader.next().read_tagged(Tag::context(0), |reader| reader.read_bool())?;
        let parent = reader.next().read_u32()?;
        let (public, private) = (reader.next().read_bytes()?, reader.next().read_bytes()?);
        let is_ours = kind.components().as_slice() == LOADABLE && empty_password && parent == TpmRh::Owner as u32;
        if is_ours { Ok((public, private)) } else { Err(ASN1Error::new(ASN1ErrorKind::Invalid)) }
    })
}

/// The value that these bytes are, without a rest.
fn whole<T: TpmUnmarshal>(bytes: &[u8]) -> Result<T, KeyError> {
    let (value, rest) = T::unmarshal(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(KeyError::Kind) }
}

fn bytes<T: TpmMarshal + TpmSized>(value: &T) -> TpmResult<Vec<u8>> {
    let mut bytes = vec![0; value.len()];
    value.marshal(&mut TpmWriter::new(&mut bytes))?;
    Ok(bytes)
}
