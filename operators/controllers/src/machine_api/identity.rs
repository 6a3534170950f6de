//! The key by which the machine is known, on its disk.

use std::io;
use std::path::Path;

use garboard_api::manifest;
use garboard_machine_api::Identity;
use garboard_machine_api::identity::IdentityError;
use garboard_sys::durable::{self, DurableError, NewFile};
use tracing::{error, info};

/// Only root reads the key.
const MODE: u32 = 0o600;

/// The machine has no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read or made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot be kept.
    #[error(transparent)]
    Keep(#[from] DurableError),
}

/// The machine's identity: the key on its disk, or else that of the manifests, which is then kept, or else a new one.
///
/// While nothing is `declared`, nobody relies on the key that the machine has made for itself, and that of the manifests
/// takes its place: manifests that come to a machine at its second boot count like those at its first.
///
/// When the manifests' key is unusable, a new one serves for this run only and is not kept, so that the machine can be
/// reached and a mended manifest counts at the next one.
///
/// # Errors
/// When the file is there and unusable, or cannot be written.
pub fn identity(file: &Path, manifests: Option<&manifest::Identity>, declared: bool) -> Result<Identity, KeyError> {
    let Some(manifests) = manifests.filter(|_| !(declared && file.exists())) else {
        return load_or_create(file);
    };
    match Identity::from_pem(&manifests.key) {
        Ok(identity) => {
            durable::replace(&NewFile::new(file, identity.pem().as_bytes(), MODE))?;
            info!(fingerprint = %identity.pin(), "took over the machine's key from the manifests");
            Ok(identity)
        }
        Err(refused) => {
            let identity = Identity::generate()?;
            error!(error = %refused, fingerprint = %identity.pin(), "the machine's key in the manifests is unusable; another serves for now");
            Ok(identity)
        }
    }
}

/// The key in a file, which is made when there is none. A file that holds something else is left as it is.
fn load_or_create(file: &Path) -> Result<Identity, KeyError> {
    match Identity::load(file) {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let identity = Identity::generate()?;
            durable::create(&NewFile::new(file, identity.pem().as_bytes(), MODE))?;
            Ok(identity)
        }
        found => Ok(found?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_created_key_is_private_and_the_same_when_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("identity.key");
        let created = identity(&file, None, false).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(identity(&file, None, false).unwrap().pin(), created.pin());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_key_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("identity.key");
        fs::write(&file, "something else").unwrap();
        let refused = identity(&file, None, false);
        assert!(matches!(refused, Err(KeyError::Identity(IdentityError::Parse(_)))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "something else");
    }

    #[test]
    fn the_manifests_key_is_taken_over_until_something_is_declared() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("identity.key");
        let of = |key: &Identity| manifest::Identity { machine: "node-1".into(), key: key.pem() };
        let [first, second] = [Identity::generate().unwrap(), Identity::generate().unwrap()];
        let own = identity(&file, None, false).unwrap();
        assert_eq!(identity(&file, None, false).unwrap().pin(), own.pin());
        assert_eq!(identity(&file, Some(&of(&first)), false).unwrap().pin(), first.pin());
        assert_eq!(identity(&file, Some(&of(&second)), true).unwrap().pin(), first.pin());
        assert_eq!(identity(&file, None, true).unwrap().pin(), first.pin());
        let lost = directory.path().join("lost.key");
        assert_eq!(identity(&lost, Some(&of(&second)), true).unwrap().pin(), second.pin());
    }

    #[test]
    fn an_unusable_key_in_the_manifests_leaves_room_for_a_mended_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("identity.key");
        let broken = manifest::Identity { machine: "node-1".into(), key: "no key".into() };
        identity(&file, Some(&broken), false).unwrap();
        assert!(!file.exists());
        let mended = Identity::generate().unwrap();
        let declared = manifest::Identity { machine: "node-1".into(), key: mended.pem() };
        assert_eq!(identity(&file, Some(&declared), false).unwrap().pin(), mended.pin());
    }
}
