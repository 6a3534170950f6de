//! The folders of a restore, on the one filesystem that the store lies on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use garboard_catalog::{EtcdSource, etcd, etcd_restore, users};
use garboard_sys::durable;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

/// Something could not be done with a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct FolderError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> FolderError {
    move |source| FolderError { what, path: path.to_owned(), source: source.into() }
}

/// Where everything lies; each the machine's own unless a test has them elsewhere.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The member's data.
    pub data: PathBuf,
    /// Everything about restores.
    pub restore: PathBuf,
}

impl Default for Folders {
    fn default() -> Self {
        Self { data: etcd::DATA_DIR.into(), restore: etcd_restore::DIR.into() }
    }
}

impl Folders {
    fn snapshot(&self) -> PathBuf {
        self.restore.join(name(etcd_restore::SNAPSHOT))
    }

    fn new_data(&self) -> PathBuf {
        self.restore.join(name(etcd_restore::NEW_DIR))
    }

    fn set_aside(&self) -> PathBuf {
        self.restore.join(name(etcd_restore::SET_ASIDE_DIR))
    }

    /// A new file for a snapshot, which etcd's user may read once [`Self::keep_snapshot`] is called.
    pub(crate) fn receive(&self) -> Result<File, FolderError> {
        let path = self.snapshot();
        self.make_folder()?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&path).map_err(failed("write", &path))
    }

    /// Makes the snapshot that was received outlast a power cut.
    pub(crate) fn keep_snapshot(&self, file: &File) -> Result<(), FolderError> {
        let path = self.snapshot();
        file.sync_all().map_err(failed("write", &path))?;
        own(&path)?;
        sync(&self.restore)
    }

    /// Removes what was received.
    pub(crate) fn drop_snapshot(&self) -> Result<(), FolderError> {
        remove_file(&self.snapshot())
    }

    /// The file of which a new store would be made, if it is there.
    pub(crate) fn has(&self, source: EtcdSource) -> bool {
        let database = |folder: &Path| folder.join("member/snap/db").is_file();
        match source {
            EtcdSource::Snapshot => self.snapshot().is_file(),
            EtcdSource::OwnData => database(&self.data),
            EtcdSource::SetAside => database(&self.set_aside()),
        }
    }

    fn make_folder(&self) -> Result<(), FolderError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.restore);
        made.map_err(failed("make", &self.restore))?;
        own(&self.restore)
    }

    /// Removes what a try before has left.
    pub(super) fn prepare(&self) -> Result<(), FolderError> {
        self.make_folder()?;
        remove_folder(&self.new_data())
    }

    /// Removes what a restore that failed has left.
    pub(super) fn clear(&self) -> Result<(), FolderError> {
        remove_folder(&self.new_data())?;
        self.drop_snapshot()
    }

    /// Makes the new data outlast a power cut, and returns the number of their folder.
    pub(super) fn keep_new(&self) -> Result<u64, FolderError> {
        let path = self.new_data();
        let folder = File::open(&path).map_err(failed("open", &path))?;
        syncfs(&folder).map_err(failed("write", &path))?;
        Ok(folder.metadata().map_err(failed("look at", &path))?.ino())
    }

    /// Puts the new data, in the folder with this number, in the place of the old, and those aside. What is done already is not done
    /// again.
    pub(super) fn exchange(&self, inode: u64) -> Result<(), FolderError> {
        let (new, aside) = (self.new_data(), self.set_aside());
        let found = fs::metadata(&self.data).map(|data| data.ino());
        if found.ok() != Some(inode) {
            match self.data.try_exists() {
                Ok(true) => renameat_with(CWD, &new, CWD, &self.data, RenameFlags::EXCHANGE),
                _ => renameat_with(CWD, &new, CWD, &self.data, RenameFlags::NOREPLACE),
            }
            .map_err(failed("put new data in", &self.data))?;
            self.data.parent().map_or(Ok(()), sync)?;
            sync(&self.restore)?;
        }
        // From here on the folder of the new data has the old ones.
        if new.exists() {
            remove_folder(&aside)?;
            fs::rename(&new, &aside).map_err(failed("set aside the data in", &new))?;
            sync(&self.restore)?;
        }
        self.drop_snapshot()
    }
}

fn name(path: &'static str) -> &'static str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Gives a file or folder to etcd's user. A test without the right to do so keeps it.
fn own(path: &Path) -> Result<(), FolderError> {
    match chown(path, Some(users::ETCD.id), Some(users::ETCD.id)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given.map_err(failed("give to etcd", path)),
    }
}

fn sync(folder: &Path) -> Result<(), FolderError> {
    durable::sync_folder(folder).map_err(failed("write", folder))
}

fn remove_folder(path: &Path) -> Result<(), FolderError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), FolderError> {
    durable::remove(path).map_err(failed("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(base: &Path) -> Folders {
        let folders = Folders { data: base.join("etcd"), restore: base.join("etcd-restore") };
        fs::create_dir_all(folders.new_data()).unwrap();
        fs::create_dir_all(&folders.data).unwrap();
        fs::write(folders.data.join("which"), "old").unwrap();
        fs::write(folders.new_data().join("which"), "new").unwrap();
        folders
    }

    fn which(folder: &Path) -> String {
        fs::read_to_string(folder.join("which")).unwrap_or_default()
    }

    #[test]
    fn the_new_data_come_in_the_place_of_the_old_and_those_are_kept() {
        let base = tempfile::tempdir().unwrap();
        let folders = folders(base.path());
        let inode = folders.keep_new().unwrap();
        folders.exchange(inode).unwrap();
        assert_eq!((which(&folders.data), which(&folders.set_aside())), ("new".into(), "old".into()));
        // After a power cut at the end it is done once more.
        folders.exchange(inode).unwrap();
        assert_eq!((which(&folders.data), which(&folders.set_aside())), ("new".into(), "old".into()));
    }

    #[test]
    fn a_power_cut_between_two_steps_loses_nothing() {
        let base = tempfile::tempdir().unwrap();
        let folders = folders(base.path());
        fs::create_dir(folders.set_aside()).unwrap();
        fs::write(folders.set_aside().join("which"), "oldest").unwrap();
        let inode = folders.keep_new().unwrap();
        // The folders have changed places, and no more has been done.
        renameat_with(CWD, folders.new_data(), CWD, &folders.data, RenameFlags::EXCHANGE).unwrap();
        assert_eq!((which(&folders.data), which(&folders.set_aside())), ("new".into(), "oldest".into()));
        folders.exchange(inode).unwrap();
        assert_eq!((which(&folders.data), which(&folders.set_aside())), ("new".into(), "old".into()));
    }

    #[test]
    fn a_machine_that_has_lost_its_data_gets_new_ones() {
        let base = tempfile::tempdir().unwrap();
        let folders = folders(base.path());
        fs::remove_dir_all(&folders.data).unwrap();
        folders.exchange(folders.keep_new().unwrap()).unwrap();
        assert_eq!(which(&folders.data), "new");
        assert!(!folders.set_aside().exists());
    }
}
