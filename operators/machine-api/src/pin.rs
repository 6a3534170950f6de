//! The fingerprint of a public key.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "sha256:";

/// The SHA-256 of a DER-encoded `SubjectPublicKeyInfo`, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin([u8; 32]);

/// A text that is no [`Pin`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is \"sha256:\" and 64 hexadecimal digits")]
pub struct InvalidPin;

impl Pin {
    /// The pin with this digest.
    pub const fn of_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// The pin of a DER-encoded `SubjectPublicKeyInfo`.
    pub fn of_public_key(spki: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, spki).as_ref());
        Self(bytes)
    }
}

/// The `SubjectPublicKeyInfo` of a certificate.
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, rustls::Error> {
    Ok(ParsedCertificate::try_from(certificate)?.subject_public_key_info().to_vec())
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix(PREFIX).filter(|hex| hex.len() == 64).ok_or(InvalidPin)?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            match pair {
                [high, low] => *byte = digit(*high).ok_or(InvalidPin)? << 4 | digit(*low).ok_or(InvalidPin)?,
                _ => return Err(InvalidPin),
            }
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Pin {
    type Error = InvalidPin;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_pin_of_nothing_is_the_known_digest_of_nothing() {
        let pin = Pin::of_public_key(b"").to_string();
        assert_eq!(pin, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn other_texts_are_no_pins() {
        let digits = "0".repeat(64);
        for text in ["", "sha256:", &digits, &format!("sha1:{digits}"), &format!("sha256:{digits}0")] {
            assert_eq!(text.parse::<Pin>(), Err(InvalidPin), "{text:?}");
        }
        assert_eq!(format!("sha256:{}", "é".repeat(32)).parse::<Pin>(), Err(InvalidPin));
        assert_eq!(format!("sha256:{}+1", "0".repeat(62)).parse::<Pin>(), Err(InvalidPin));
    }

    proptest! {
        #[test]
        fn every_pin_reads_back_in_either_case(bytes: [u8; 32]) {
            let text = Pin(bytes).to_string();
            prop_assert_eq!(text.parse(), Ok(Pin(bytes)));
            prop_assert_eq!(text.to_uppercase().replace("SHA256", "sha256").parse(), Ok(Pin(bytes)));
        }

        #[test]
        fn no_text_makes_the_parser_fail_otherwise(text in ".{0,100}") {
            if let Ok(pin) = text.parse::<Pin>() {
                prop_assert_eq!(pin.to_string(), text.to_lowercase());
            }
        }
    }
}
