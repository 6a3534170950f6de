//! Globally unique identifiers as GPT stores and people write them.

use std::fmt;
use std::str::FromStr;

/// An identifier of 128 bits, kept in the order in which it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

/// A text that is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID")]
pub struct InvalidGuid(String);

impl Guid {
    /// The identifier whose written digits are these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A random one (RFC 9562, version 4) from 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The bytes in the order in which they are written.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether all bits are zero, which marks an unused entry.
    pub fn is_nil(self) -> bool {
        self.0 == [0; 16]
    }

    /// From the order on disk, where the first three groups are little-endian numbers (UEFI specification, appendix A).
    pub(super) fn from_disk(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        let [i, j, k, l, m, n, o, p] = rest;
        Self([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
    }

    /// To the order on disk.
    pub(super) fn to_disk(self) -> [u8; 16] {
        // Swapping twice is the same as not swapping.
        Self::from_disk(self.0).0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Guid {
    type Err = InvalidGuid;

    /// Accepts 32 hexadecimal digits, with the usual dashes or without any.
    fn from_str(text: &str) -> Result<Self, InvalidGuid> {
        let invalid = || InvalidGuid(text.to_owned());
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        if groups != [32] && groups != [8, 4, 4, 4, 12] {
            return Err(invalid());
        }
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let value = u128::from_str_radix(&digits, 16).map_err(|_| invalid())?;
        Ok(Self(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn disk_order_is_the_specifications() {
        // EFI system partition, as in the UEFI specification and as it lies on every disk.
        let esp: Guid = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".parse().unwrap();
        assert_eq!(esp.to_disk()[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "c12a",
            "c12a7328f81f-11d2-ba4b-00a0c93ec93b",
            "+12a7328-f81f-11d2-ba4b-00a0c93ec93b",
            "ä".repeat(16).as_str(),
        ] {
            assert!(text.parse::<Guid>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn forms_are_the_same_identifier(bytes: [u8; 16]) {
            let guid = Guid::from_bytes(bytes);
            prop_assert_eq!(guid.to_string().parse::<Guid>(), Ok(guid));
            prop_assert_eq!(guid.to_string().replace('-', "").to_uppercase().parse::<Guid>(), Ok(guid));
            prop_assert_eq!(Guid::from_disk(guid.to_disk()), guid);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<Guid>();
        }
    }
}
