//! Who a proven key is.

use std::collections::BTreeMap;

use crate::{Pin, Role};

/// A person or program with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The name under which its calls are logged.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Access {
    /// Somebody who may tell a machine what it should be that nobody has told yet.
    pub fn claimant() -> Self {
        Self { name: Role::Claimant.to_string(), role: Role::Claimant }
    }
}

/// The keys that may connect. An empty list lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList {
    known: BTreeMap<Pin, Access>,
    /// Who all others are, when they are let in.
    others: Option<Access>,
}

impl AccessList {
    /// Lets every key in as a claimant.
    pub fn of_claimants() -> Self {
        Self { known: BTreeMap::new(), others: Some(Access::claimant()) }
    }

    /// Who has the key with this pin.
    pub fn get(&self, pin: &Pin) -> Option<&Access> {
        self.known.get(pin).or(self.others.as_ref())
    }
}

impl FromIterator<(Pin, Access)> for AccessList {
    /// Of two entries for one key the one with the lesser role counts, so that a slip never gives more.
    fn from_iter<I: IntoIterator<Item = (Pin, Access)>>(entries: I) -> Self {
        let mut known = BTreeMap::<Pin, Access>::new();
        for (pin, access) in entries {
            if known.get(&pin).is_none_or(|known| access.role < known.role) {
                known.insert(pin, access);
            }
        }
        Self { known, others: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesser_of_two_roles_for_one_key_counts_in_either_order() {
        let pin = Pin::of_public_key(b"key");
        let mut entries = [Role::Admin, Role::Reader].map(|role| (pin, Access { name: role.to_string(), role }));
        for _ in 0..2 {
            entries.reverse();
            let list: AccessList = entries.iter().cloned().collect();
            assert_eq!(list.get(&pin).map(|access| access.role), Some(Role::Reader));
        }
    }
}
