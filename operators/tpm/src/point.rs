//! A point on P-256, as it is written.

use tpm2_protocol::data::{TpmEccCurve, TpmtPublic, TpmuPublicId, TpmuPublicParms};

/// Size of a coordinate.
pub(crate) const COORDINATE: usize = 32;
/// Size of a point.
pub(crate) const SIZE: usize = 1 + 2 * COORDINATE;
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

    /// Its x and its y.
    pub(crate) fn coordinates(&self) -> [&[u8; COORDINATE]; 2] {
        let (coordinates, _) = self.0[1..].as_chunks();
        [&coordinates[0], &coordinates[1]]
    }
}
