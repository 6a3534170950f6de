//! Sets of capabilities (capabilities(7)).

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::IsolateError;

/// A name that is no capability's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a capability such as CAP_NET_ADMIN")]
pub struct UnknownCapability(String);

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(CapabilitySet);

impl Capabilities {
    /// The set without any.
    pub const NONE: Self = Self(CapabilitySet::empty());

    /// The set of the named ones, such as `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// [`UnknownCapability`] for the first name that is none.
    pub fn from_names<N: AsRef<str>>(names: &[N]) -> Result<Self, UnknownCapability> {
        names
            .iter()
            .map(AsRef::as_ref)
            .try_fold(CapabilitySet::empty(), |set, name| {
                let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
                known.map(|capability| set | capability).ok_or_else(|| UnknownCapability(name.to_owned()))
            })
            .map(Self)
    }

    /// Takes all others out of the bounding set: neither this process nor what it executes can ever have them again.
    pub(super) fn bound(self) -> Result<(), IsolateError> {
        let failed =
            |source: Errno| IsolateError::Capabilities { operation: "shrink the bounding set", source: source.into() };
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(one) {
                Ok(true) if !self.0.contains(one) => remove_capability_from_bounding_set(one).map_err(failed)?,
                Ok(_) => {}
                // Beyond the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    /// Makes this the permitted, effective and inheritable set; `ambient` keeps it across the execution of a program by another user than
    /// root.
    pub(super) fn take(self, ambient: bool) -> Result<(), IsolateError> {
        let failed = |operation| move |source: Errno| IsolateError::Capabilities { operation, source: source.into() };
        clear_ambient_capability_set().map_err(failed("clear the ambient set"))?;
        let sets = CapabilitySets { effective: self.0, permitted: self.0, inheritable: self.0 };
        set_capabilities(None, sets).map_err(failed("set the permitted set"))?;
        if ambient {
            for one in self.0.iter() {
                configure_capability_in_ambient_set(one, true).map_err(failed("raise the ambient set"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        let set = Capabilities::from_names(&["CAP_NET_ADMIN", "CAP_CHOWN"]).unwrap();
        assert_eq!(set.0, CapabilitySet::NET_ADMIN | CapabilitySet::CHOWN);
        assert_eq!(Capabilities::from_names::<&str>(&[]).unwrap(), Capabilities::NONE);
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["NET_ADMIN", "CAP_", "CAP_NET", "cap_net_admin", ""] {
            assert_eq!(Capabilities::from_names(&[name]), Err(UnknownCapability(name.to_owned())));
        }
    }
}
