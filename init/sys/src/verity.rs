//! dm-verity: what lies in front of a hash tree (superblock version 1 of veritysetup), and the mapping made from it (kernel:
//! Documentation/admin-guide/device-mapper/verity.rst).

use std::fmt::Write as _;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 512;

const SIGNATURE: &[u8; 8] = b"verity\0\0";

/// The 256-bit digest that a whole tree of hashes comes down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootHash([u8; 32]);

/// Why a root cannot be verified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerityError {
    /// The text is no digest.
    #[error("{0:?} is not a root hash of 64 hexadecimal digits")]
    RootHash(String),
    /// There is no superblock.
    #[error("there is no verity superblock where the hash tree should be")]
    NoSuperblock,
    /// The superblock is of a kind that Garboard does not make.
    #[error("the verity superblock has an unknown {0}")]
    Unsupported(&'static str),
    /// The top of the tree does not have the root hash.
    #[error("the hash tree on the disk does not belong to root hash {expected}: it has {found}")]
    OtherTree {
        /// What was booted.
        expected: RootHash,
        /// What lies on the disk.
        found: RootHash,
    },
}

impl RootHash {
    /// The first 128 bits: the UUID of the partition with the data (Discoverable Partitions Specification).
    pub fn data_uuid(&self) -> [u8; 16] {
        let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = self.0;
        first
    }

    /// The last 128 bits: the UUID of the partition with the hash tree.
    pub fn hash_uuid(&self) -> [u8; 16] {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, last @ ..] = self.0;
        last
    }
}

impl std::str::FromStr for RootHash {
    type Err = VerityError;

    fn from_str(text: &str) -> Result<Self, VerityError> {
        let invalid = || VerityError::RootHash(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl std::fmt::Display for RootHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    data_block_bytes: u32,
    hash_block_bytes: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    /// Understands the first [`SUPERBLOCK_BYTES`] of a hash partition.
    ///
    /// # Errors
    /// [`VerityError::NoSuperblock`], and [`VerityError::Unsupported`] for anything but SHA-256, hash type 1 and plausible sizes.
    pub fn parse(bytes: &[u8]) -> Result<Self, VerityError> {
        let field = |at: usize, len: usize| bytes.get(at..at + len).ok_or(VerityError::NoSuperblock);
        let number = |at: usize, len: usize| {
            field(at, len).map(|bytes| bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte)))
        };
        if field(0, 8)? != SIGNATURE {
            return Err(VerityError::NoSuperblock);
        }
        field(0, SUPERBLOCK_BYTES)?;
        let expect = |ok: bool, what| if ok { Ok(()) } else { Err(VerityError::Unsupported(what)) };
        expect(number(8, 4)? == 1, "version")?;
        expect(number(12, 4)? == 1, "hash type")?;
        expect(field(32, 32)?.split(|&b| b == 0).next() == Some(b"sha256"), "hash algorithm")?;
        let block = |at: usize| {
            let bytes = u32::try_from(number(at, 4)?).unwrap_or(0);
            expect(bytes.is_power_of_two() && (512..=65_536).contains(&bytes), "block size")?;
            Ok(bytes)
        };
        let (data_block_bytes, hash_block_bytes) = (block(64)?, block(68)?);
        let data_blocks = number(72, 8)?;
        expect(data_blocks > 1 && data_blocks.checked_mul(u64::from(data_block_bytes)).is_some(), "number of blocks")?;
        let salt_len = number(80, 2)?;
        expect(salt_len <= 256, "salt size")?;
        let salt = field(88, usize::try_from(salt_len).unwrap_or(0))?.to_vec();
        Ok(Self { data_block_bytes, hash_block_bytes, data_blocks, salt })
    }

    /// Bytes of the verified data.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks * u64::from(self.data_block_bytes)
    }

    /// Where the tree's topmost block lies in the hash partition: offset and length in bytes.
    pub fn top_block(&self) -> (u64, usize) {
        let block = u64::from(self.hash_block_bytes);
        (self.hash_start() * block, usize::try_from(block).unwrap_or(usize::MAX))
    }

    /// The block, counted in hash blocks, behind the superblock.
    fn hash_start(&self) -> u64 {
        (SUPERBLOCK_BYTES as u64).div_ceil(u64::from(self.hash_block_bytes))
    }

    /// Checks that the tree's topmost block has the root hash, so that a wrong tree is refused in words before anything is mounted.
    ///
    /// # Errors
    /// [`VerityError::OtherTree`].
    pub fn check_top_block(&self, block: &[u8], expected: RootHash) -> Result<(), VerityError> {
        let found = RootHash(Sha256::new().chain_update(&self.salt).chain_update(block).finalize().into());
        if found == expected { Ok(()) } else { Err(VerityError::OtherTree { expected, found }) }
    }

    /// The parameters of the device-mapper target. A block that does not have its hash panics the kernel: nothing of a changed root is ever
    /// seen by a program.
    pub fn target_parameters(&self, data: &Path, hash: &Path, root: RootHash) -> String {
        let mut salt = self.salt.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if salt.is_empty() {
            salt.push('-');
        }
        format!(
            "1 {} {} {} {} {} {} sha256 {root} {salt} 1 panic_on_corruption",
            data.display(),
            hash.display(),
            self.data_block_bytes,
            self.hash_block_bytes,
            self.data_blocks,
            self.hash_start(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock() -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&1000_u64.to_le_bytes());
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xab, 0x01]);
        bytes
    }

    #[test]
    fn table_has_the_kernels_form() {
        let root: RootHash = "0123456789abcdef".repeat(4).parse().unwrap();
        let parsed = Superblock::parse(&superblock()).unwrap();
        assert_eq!(parsed.data_bytes(), 4_096_000);
        assert_eq!(parsed.top_block(), (4096, 4096));
        assert_eq!(
            parsed.target_parameters(Path::new("/dev/vda2"), Path::new("/dev/vda3"), root),
            format!("1 /dev/vda2 /dev/vda3 4096 4096 1000 1 sha256 {root} ab01 1 panic_on_corruption")
        );
        assert_eq!(root.data_uuid(), root.hash_uuid());
    }

    #[test]
    fn other_superblocks_are_refused() {
        let cases: [(&str, usize, u8, VerityError); 7] = [
            ("signature", 0, b'x', VerityError::NoSuperblock),
            ("version", 8, 2, VerityError::Unsupported("version")),
            ("type", 12, 0, VerityError::Unsupported("hash type")),
            ("algorithm", 33, b'i', VerityError::Unsupported("hash algorithm")),
            ("data block size", 64, 1, VerityError::Unsupported("block size")),
            ("data blocks", 79, 0xff, VerityError::Unsupported("number of blocks")),
            ("salt", 81, 2, VerityError::Unsupported("salt size")),
        ];
        for (name, at, value, error) in cases {
            let mut bytes = superblock();
            bytes[at] = value;
            assert_eq!(Superblock::parse(&bytes), Err(error), "{name}");
        }
        assert_eq!(Superblock::parse(&superblock()[..500]), Err(VerityError::NoSuperblock));
    }

    #[test]
    fn other_trees_are_refused() {
        let parsed = Superblock::parse(&superblock()).unwrap();
        let block = [7; 4096];
        let root = RootHash(Sha256::new().chain_update([0xab, 0x01]).chain_update(block).finalize().into());
        assert_eq!(parsed.check_top_block(&block, root), Ok(()));
        assert!(matches!(parsed.check_top_block(&[8; 4096], root), Err(VerityError::OtherTree { .. })));
    }

    #[test]
    fn root_hashes_are_64_digits() {
        for text in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert!(text.parse::<RootHash>().is_err(), "{text:?}");
        }
        let text = format!("{}{}", "01".repeat(16), "fe".repeat(16));
        let root: RootHash = text.parse().unwrap();
        assert_eq!((root.to_string(), root.data_uuid(), root.hash_uuid()), (text, [1; 16], [0xfe; 16]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(at in 0_usize..90, noise in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = superblock();
            bytes.splice(at..(at + noise.len()), noise.iter().copied());
            if let Ok(parsed) = Superblock::parse(&bytes) {
                prop_assert!(parsed.top_block().1 <= 65_536 && parsed.data_bytes() > 0);
            }
            let _ = Superblock::parse(&noise);
        }
    }
}
