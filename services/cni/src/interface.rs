//! Names of network interfaces.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name of an interface (`IFNAMSIZ` without its NUL), bytes.
const NAME_MAX: usize = 15;

/// The name of a network interface: 1 to 15 bytes that the kernel accepts in a device name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// A name that no interface can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interface name: 1 to 15 letters, digits, '-', '_' or '.', and not \".\" or \"..\"")]
pub struct InvalidInterfaceName(pub String);

impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let fits = (1..=NAME_MAX).contains(&name.len()) && name != "." && name != "..";
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            Ok(Self(name))
        } else {
            Err(InvalidInterfaceName(name))
        }
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_refused_here() {
        for name in ["", ".", "..", "a/b", "with space", "sixteen-letters-", "é"] {
            assert!(InterfaceName::try_from(name.to_owned()).is_err(), "{name:?}");
        }
        assert!(InterfaceName::try_from("eth0".to_owned()).is_ok());
        assert!(InterfaceName::try_from("fifteen-letters".to_owned()).is_ok());
    }
}
