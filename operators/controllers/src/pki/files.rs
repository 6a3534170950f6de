//! Files that are whole or not there, with their owner and mode from the first byte on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use garboard_catalog::users::User;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + use<'a> {
    move |source| FileError { operation, path: path.to_owned(), source }
}

/// The text of a file; none when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Makes a folder, or gives an existing one its owner and mode.
pub(crate) fn make_folder(path: &Path, owner: User, mode: u32) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("make", path))?;
    let folder = File::open(path).map_err(failed("open", path))?;
    let found = folder.metadata().map_err(failed("stat", path))?;
    if (found.uid(), found.gid()) != (owner.id, owner.id) {
        fchown(&folder, Some(owner.id), Some(owner.id)).map_err(failed("chown", path))?;
    }
    if found.permissions().mode() & 0o7777 != mode {
        folder.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("chmod", path))?;
    }
    Ok(())
}

/// Puts `content` in place of whatever `path` holds, atomically; [`sync_folder`] makes it durable.
pub(crate) fn replace(path: &Path, content: &str, owner: User, mode: u32) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A leftover of an interrupted call may have another owner or mode.
    remove(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    if owner.id != 0 {
        fchown(&file, Some(owner.id), Some(owner.id)).map_err(failed("chown", &temporary))?;
    }
    file.write_all(content.as_bytes()).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("replace", path))
}

/// Has a file be there no more.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes durable which files a folder holds.
pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

/// A folder of files that one user reads.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) owner: User,
    pub(super) files: Vec<(&'static str, String)>,
}

impl Folder {
    const MODE: u32 = 0o500;
    const FILE_MODE: u32 = 0o400;

    /// Whether every file is there with its content, owner and mode.
    pub(super) fn is_deployed(&self) -> Result<bool, FileError> {
        for (name, content) in &self.files {
            let path = self.path.join(name);
            if read(&path)?.as_ref() != Some(content) {
                return Ok(false);
            }
            let found = fs::metadata(&path).map_err(failed("stat", &path))?;
            if found.uid() != self.owner.id || found.permissions().mode() & 0o7777 != Self::FILE_MODE {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes every file that differs. A reader that meets a new certificate with an old key, or the reverse, finds that they
    /// do not belong together and reads again.
    pub(super) fn deploy(&self) -> Result<(), FileError> {
        if let Some(parent) = self.path.parent() {
            make_folder(parent, garboard_catalog::users::ROOT, 0o755)?;
        }
        make_folder(&self.path, self.owner, Self::MODE)?;
        for (name, content) in &self.files {
            replace(&self.path.join(name), content, self.owner, Self::FILE_MODE)?;
        }
        Ok(())
    }
}
