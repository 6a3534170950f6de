//! Snapshots of etcd, as they are taken and given: the check that one is whole.
//!
//! A snapshot is the database, a multiple of 512 bytes, and after it the SHA-256 of that.

use ring::digest::{Context, SHA256};

/// Largest piece that is sent at once, bytes: far below the limit of a message.
pub const PIECE: usize = 256 * 1024;
/// What the database's size is a multiple of (etcd: `snapshot.hasChecksum`).
const SECTOR: u64 = 512;
/// Length of the hash at the end.
const HASH: usize = 32;

/// A file is no whole snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It has another length than any snapshot.
    #[error("{0} bytes are no whole snapshot of etcd: it is cut off, or something else")]
    Length(u64),
    /// Its content is not what its hash says.
    #[error("its content does not fit the SHA-256 at its end: it is damaged")]
    Hash,
}

/// Checks a snapshot while it comes, piece by piece.
#[derive(Clone)]
pub struct Check {
    hash: Context,
    /// The last bytes so far: they may be the hash.
    tail: Vec<u8>,
    bytes: u64,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Default for Check {
    fn default() -> Self {
        Self { hash: Context::new(&SHA256), tail: Vec::new(), bytes: 0 }
    }
}

impl Check {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.tail.extend_from_slice(piece);
        let content = self.tail.len().saturating_sub(HASH);
        self.hash.update(&self.tail[..content]);
        self.tail.drain(..content);
    }

    /// How much has come, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether that was all of it.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn finish(self) -> Result<(), Damage> {
        if self.bytes <= SECTOR || self.bytes % SECTOR != HASH as u64 {
            return Err(Damage::Length(self.bytes));
        }
        if self.hash.finish().as_ref() == self.tail { Ok(()) } else { Err(Damage::Hash) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::digest::digest;

    use super::*;

    fn whole(content: &[u8]) -> Vec<u8> {
        [content, digest(&SHA256, content).as_ref()].concat()
    }

    fn check<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Damage> {
        let mut check = Check::default();
        pieces.into_iter().for_each(|piece| check.update(piece));
        check.finish()
    }

    proptest! {
        #[test]
        fn a_whole_snapshot_is_whole_in_any_pieces(sectors in 1usize..8, seed: u8, piece in 1usize..700) {
            let content: Vec<u8> = (0..sectors * 512).map(|n| (n as u8).wrapping_mul(seed)).collect();
            prop_assert_eq!(check(whole(&content).chunks(piece)), Ok(()));
        }

        #[test]
        fn what_is_cut_off_or_changed_is_not(sectors in 1usize..8, at: prop::sample::Index, flip in 1u8..) {
            let snapshot = whole(&vec![7; sectors * 512]);
            let at = at.index(snapshot.len());
            prop_assert_eq!(check([&snapshot[..at]]).is_ok(), false);
            let mut changed = snapshot.clone();
            changed[at] ^= flip;
            prop_assert_eq!(check([changed.as_slice()]), Err(Damage::Hash));
        }
    }
}
