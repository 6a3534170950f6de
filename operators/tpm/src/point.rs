//! A point on P-256, as it is written.

use tpm2_protocol::data::{TpmEccCurve, TpmtPublic, TpmuPublicId, TpmuPublicParms};
use yasna::models::ObjectIdentifier;

/// Size of a coordinate.
pub(crate) const COORDINATE: usize = 32;
/// Size of a point.
pub(crate) const SIZE: usize = 1 + 2 * COORDINATE;
/// A key on an elliptic curve (`id-ecPublicKey`, RFC 5480, section 2.1.1).
const EC_PUBLIC_KEY: &[u64] = &[1, 2, 840, 10045, 2, 1];
/// P-256 (`secp256r1`, RFC 5480, section 2.1.1.1).
const P256: &[u64] = &[1, 2, 840, 10045, 3, 1, 7];
/// What it begins with.
const UNCOMPRESSED: u8 = 4;

/// An uncompressed point (SEC 1, section 2.3.3). Whether it is on the curve is seen by whoever computes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point([u8; SIZE]);

impl Point {
    /// The point that these bytes are.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().filter(|bytes: &[u8; SIZE]| bytes[0] == UNCOMPRESSED).map(Self)
    }

    /// The public half of a TPM's key, if it is on P-256.
    pub(crate) fn of(key: &TpmtPublic) -> Option<Self> {
        let (TpmuPublicParms::Ecc(parameters), TpmuPublicId::Ecc(unique)) = (&key.parameters, &key.unique) else {
            return None;
        };
        if parameters.curve_id != TpmEccCurve::NistP256 {
            return None;
        }
        let mut point = [0; SIZE];
        point[0] = UNCOMPRESSED;
        for (index, coordinate) in [&unique.x, &unique.y].into_iter().enumerate() {
            let end = 1 + (index + 1) * COORDINATE;
            // Leading zeros may be left out.
            let start = end - Some(coordinate.as_ref().len()).filter(|length| *length <= COORDINATE)?;
            point[start..end].copy_from_slice(coordinate.as_ref());
        }
        Some(Self(point))
    }

    pub(crate) fn bytes(&self) -> &[u8; SIZE] {
        &self.0
    }

    /// The public key that it is, as `SubjectPublicKeyInfo` (RFC 5480, section 2), DER.
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(EC_PUBLIC_KEY));
                    writer.next().write_oid(&ObjectIdentifier::from_slice(P256));
                });
                writer.next().write_bitvec_bytes(&self.0, SIZE * 8);
            });
        })
    }

    /// Its x and its y.
    pub(crate) fn coordinates(&self) -> [&[u8; COORDINATE]; 2] {
        let (coordinates, _) = self.0[1..].as_chunks();
        [&coordinates[0], &coordinates[1]]
    }
}
