//! Files that are whole or not there, with their owner and mode from the first byte on.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use garboard_catalog::users::{self, User};
use garboard_sys::durable::{self, DurableError, NewFile};

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error("cannot {operation} {}", path.display())]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It cannot be kept or removed.
    #[error(transparent)]
    Keep(#[from] DurableError),
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + use<'a> {
    move |source| FileError::Refused { operation, path: path.to_owned(), source }
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

/// Puts `content` in place of whatever `path` holds, durably where it is not in memory.
pub(crate) fn replace(path: &Path, content: &str, owner: User, mode: u32) -> Result<(), FileError> {
    replace_all(&[(path.to_owned(), content)], owner, mode)
}

/// Puts contents in place of whatever is there, one after the other, durably where that is not in memory.
pub(crate) fn replace_all(files: &[(PathBuf, &str)], owner: User, mode: u32) -> Result<(), FileError> {
    // Root's files are the process's own: where a test is not root, nothing is to be given away.
    let owner = Some(owner.id).filter(|id| *id != users::ROOT.id);
    let files: Vec<_> =
        files.iter().map(|(path, content)| NewFile { path, content: content.as_bytes(), mode, owner }).collect();
    Ok(durable::replace_all(&files)?)
}

/// Has a file be there no more.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    Ok(durable::remove(path)?)
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
            make_folder(parent, users::ROOT, 0o755)?;
        }
        make_folder(&self.path, self.owner, Self::MODE)?;
        let files: Vec<_> = self.files.iter().map(|(name, content)| (self.path.join(name), content.as_str())).collect();
        replace_all(&files, self.owner, Self::FILE_MODE)
    }
}
