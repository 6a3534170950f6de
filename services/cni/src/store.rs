//! Reservations on disk: one file for each attachment in a directory that is empty after a reboot.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::attachment::{Attachment, AttachmentId};

/// A file that is being written begins with this; it is never a reservation (identifiers begin with a letter or digit).
const TEMPORARY: &str = ".new-";

/// The directory of reservations.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

/// A reservation that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", .path.display())]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Store {
    /// Uses a directory, and makes it (0700) when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| StoreError { operation: "create", path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// All reservations, and the files that are none.
    ///
    /// # Errors
    /// When the directory cannot be read. A file that cannot be understood is in the second list: its attachment is
    /// unknown, so what it reserved is found by its link.
    pub fn load(&self) -> Result<(Vec<Attachment>, Vec<PathBuf>), StoreError> {
        let failed = |source| StoreError { operation: "list", path: self.directory.clone(), source };
        let (mut attachments, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let attachment = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Attachment>(&bytes).ok());
            match attachment.filter(|attachment| self.path(&attachment.id) == path) {
                Some(attachment) => attachments.push(attachment),
                None => damaged.push(path),
            }
        }
        attachments.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((attachments, damaged))
    }

    /// Writes a reservation: whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, attachment: &Attachment) -> Result<(), StoreError> {
        let path = self.path(&attachment.id);
        let temporary = self.directory.join(format!("{TEMPORARY}{}", attachment.id));
        let write = || {
            let bytes = serde_json::to_vec(attachment)?;
            // The directory is in memory: nothing to flush to a disk.
            fs::File::create(&temporary)?.write_all(&bytes)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| StoreError { operation: "write", path: path.clone(), source })
    }

    /// Removes a reservation; nothing happens when there is none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: &AttachmentId) -> Result<(), StoreError> {
        let path = self.path(id);
        match nix::unistd::unlink(&path) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(StoreError { operation: "remove", path, source: errno.into() }),
        }
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use crate::attachment::{ContainerId, mac_of};
    use crate::interface::InterfaceName;

    use super::*;

    fn attachment(container: &str) -> Attachment {
        let id = AttachmentId {
            container: ContainerId::try_from(container.to_owned()).unwrap(),
            interface: InterfaceName::try_from("eth0".to_owned()).unwrap(),
        };
        Attachment {
            network: "garboard".to_owned(),
            pod: Some("default/web".to_owned()),
            host_link: InterfaceName::try_from(id.host_link()).unwrap(),
            id,
            mac: mac_of("10.244.0.2".parse().unwrap()),
            addresses: vec!["10.244.0.2".parse().unwrap()],
            ports: Vec::new(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state")).unwrap();
        store.save(&attachment("b")).unwrap();
        store.save(&attachment("a")).unwrap();
        fs::write(directory.path().join("state/.new-c@eth0"), "{").unwrap();
        let (attachments, damaged) = store.load().unwrap();
        assert_eq!(attachments, [attachment("a"), attachment("b")]);
        assert_eq!(damaged.len(), 1);
    }

    #[test]
    fn removing_twice_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&attachment("a")).unwrap();
        store.remove(&attachment("a").id).unwrap();
        store.remove(&attachment("a").id).unwrap();
        assert!(store.load().unwrap().0.is_empty());
    }
}
