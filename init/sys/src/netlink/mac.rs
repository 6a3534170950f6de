use std::fmt;

use serde::{Deserialize, Serialize};

/// The hardware address of an Ethernet link, written `0a:58:0a:f4:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Text that is not a hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address")]
pub struct InvalidMacAddress(String);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMacAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(InvalidMacAddress(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_survives_text() {
        let mac = MacAddress([0x0a, 0x58, 10, 244, 0, 2]);
        assert_eq!(mac.to_string(), "0a:58:0a:f4:00:02");
        assert_eq!(MacAddress::try_from(mac.to_string()), Ok(mac));
        for wrong in ["", "0a:58", "0a:58:0a:f4:00:zz", "0a:58:0a:f4:00:02:03", "a:58:0a:f4:00:02"] {
            assert!(MacAddress::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
