//! Files that outlast a power cut: after it each is the old one or the new one, and whole.
//!
//! A file is written beside its place, as `NAME.new`, and is on the disk before it gets its name; when a call returns, so is the name.
//! Several files of one filesystem take as many flushes of the disk as one, which are two: one for all contents, one for the names of a
//! folder. They get their names one after the other in their order, so a power cut may leave the first of them new and the rest old.

#[cfg(any(test, feature = "testing"))]
pub mod power;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::syncfs;

/// Without a test around it the power does not go.
#[cfg(not(any(test, feature = "testing")))]
mod power {
    use std::io;
    use std::path::Path;

    pub(super) fn step(_: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn written<'a>(_: &Path, content: &'a [u8]) -> (&'a [u8], io::Result<()>) {
        (content, Ok(()))
    }
}

/// A file could not be written, named, removed or made to last.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct DurableError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl DurableError {
    /// What the kernel says.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl From<DurableError> for io::Error {
    fn from(error: DurableError) -> Self {
        Self::new(error.kind(), error)
    }
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> DurableError {
    move |source| DurableError { operation, path: path.to_owned(), source: source.into() }
}

/// A file as it is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Where; the folder is there already.
    pub path: &'a Path,
    /// All of it.
    pub content: &'a [u8],
    /// Who may do what with it, from the first byte on; the process's umask is taken away from it.
    pub mode: u32,
    /// The user and group that it belongs to, by their one number; none: those of the process.
    pub owner: Option<u32>,
}

impl<'a> NewFile<'a> {
    /// A file of the process's own.
    pub fn new(path: &'a Path, content: &'a [u8], mode: u32) -> Self {
        Self { path, content, mode, owner: None }
    }

    /// Where it lies before it has its name.
    fn beside(&self) -> PathBuf {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        beside.into()
    }

    fn write(&self, beside: &Path) -> Result<File, DurableError> {
        // A leftover of an interrupted call may have another owner or mode.
        absent(fs::remove_file(beside)).map_err(failed("remove", beside))?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(self.mode);
        let mut file = options.open(beside).map_err(failed("create", beside))?;
        if let Some(owner) = self.owner {
            fchown(&file, Some(owner), Some(owner)).map_err(failed("give away", beside))?;
        }
        let (content, power) = power::written(self.path, self.content);
        file.write_all(content).and(power).map_err(failed("write", beside))?;
        Ok(file)
    }
}

/// Files that are on the disk and have yet to get their names. Those that never get them are in nobody's way.
#[derive(Debug)]
#[must_use]
pub struct Nameless(Vec<(PathBuf, PathBuf)>);

/// Writes files beside their places.
///
/// # Errors
/// [`DurableError`]; nothing has changed but what lies beside.
pub fn write(files: &[NewFile<'_>]) -> Result<Nameless, DurableError> {
    let Some(first) = files.first() else { return Ok(Nameless(Vec::new())) };
    power::step(first.path).map_err(failed("write", first.path))?;
    // Opened before anything is written: what the disk has refused since then is told to whoever flushes by it (syncfs(2)).
    let folder = open(folder(first.path))?;
    let (mut nameless, mut last) = (Vec::new(), None);
    for file in files {
        let beside = file.beside();
        last = Some(file.write(&beside)?);
        nameless.push((beside, file.path.to_owned()));
    }
    match last {
        Some(only) if files.len() == 1 => only.sync_all().map_err(failed("flush", first.path))?,
        _ => syncfs(folder).map_err(failed("flush the filesystem of", first.path))?,
    }
    Ok(Nameless(nameless))
}

impl Nameless {
    /// Gives them their names, in the places of what has them.
    ///
    /// # Errors
    /// [`DurableError`] of the first that failed; those before it have their names.
    pub fn replace(self) -> Result<(), DurableError> {
        self.name(|beside, path| fs::rename(beside, path))
    }

    /// Gives them their names, which nothing may have yet.
    ///
    /// # Errors
    /// [`DurableError`], of kind `AlreadyExists` when something has the name; it stays as it is.
    pub fn create(self) -> Result<(), DurableError> {
        self.name(|beside, path| {
            // A link, unlike a rename, replaces nothing.
            let linked = fs::hard_link(beside, path);
            fs::remove_file(beside)?;
            linked
        })
    }

    fn name(self, name: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<(), DurableError> {
        for (beside, path) in &self.0 {
            power::step(path).and_then(|()| name(beside, path)).map_err(failed("put in place", path))?;
        }
        let folders: BTreeSet<_> = self.0.iter().map(|(_, path)| folder(path)).collect();
        folders.into_iter().try_for_each(sync_folder)
    }
}

/// Puts a file in the place of what is there, or is not.
///
/// # Errors
/// [`DurableError`]; there is the old or the new one.
pub fn replace(file: &NewFile<'_>) -> Result<(), DurableError> {
    write(std::slice::from_ref(file))?.replace()
}

/// Puts files of one filesystem in the places of what is there, or is not, in this order.
///
/// # Errors
/// [`DurableError`]; each file is the old or the new one.
pub fn replace_all(files: &[NewFile<'_>]) -> Result<(), DurableError> {
    write(files)?.replace()
}

/// Makes a file that is not there yet.
///
/// # Errors
/// [`DurableError`], of kind `AlreadyExists` when there is one, which stays as it is.
pub fn create(file: &NewFile<'_>) -> Result<(), DurableError> {
    write(std::slice::from_ref(file))?.create()
}

/// Has `other` be another name of the file `path`, and of nothing else. It lasts from when the next file of the folder is put in place.
///
/// # Errors
/// [`DurableError`]; `other` may be nothing's name then.
pub fn link(path: &Path, other: &Path) -> Result<(), DurableError> {
    let linked = power::step(other)
        .and_then(|()| absent(fs::remove_file(other)))
        .and_then(|()| power::step(other))
        .and_then(|()| fs::hard_link(path, other));
    linked.map_err(failed("link", other))
}

/// Has a file be there no more.
///
/// # Errors
/// [`DurableError`]; it is no error that there is none.
pub fn remove(path: &Path) -> Result<(), DurableError> {
    match power::step(path).and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("remove", path)).and_then(|()| sync_folder(folder(path))),
    }
}

/// Makes it last which names a folder has.
///
/// # Errors
/// [`DurableError`].
pub fn sync_folder(path: &Path) -> Result<(), DurableError> {
    power::step(path).map_err(failed("flush", path))?;
    open(path)?.sync_all().map_err(failed("flush", path))
}

fn open(folder: &Path) -> Result<File, DurableError> {
    File::open(folder).map_err(failed("open", folder))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::power::Supply;
    use super::*;

    /// In memory: what is flushed again and again need not wait for a disk.
    fn disk() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn a_file_is_whole_and_private_and_alone() {
        let disk = disk();
        let path = disk.path().join("file");
        fs::write(disk.path().join("file.new"), "a leftover").unwrap();
        for content in ["first", "second"] {
            replace(&NewFile::new(&path, content.as_bytes(), 0o600)).unwrap();
            assert_eq!(read(&path), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1);
        let own = fs::metadata(&path).unwrap().uid();
        replace(&NewFile { owner: Some(own), ..NewFile::new(&path, b"", 0o400) }).unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        replace_all(&[]).unwrap();
    }

    #[test]
    fn what_is_made_new_replaces_nothing() {
        let disk = disk();
        let path = disk.path().join("file");
        create(&NewFile::new(&path, b"first", 0o600)).unwrap();
        let refused = create(&NewFile::new(&path, b"second", 0o600)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((read(&path).as_str(), fs::read_dir(disk.path()).unwrap().count()), ("first", 1));
    }

    #[test]
    fn an_error_names_the_file_and_what_was_tried() {
        let path = Path::new("/proc/none/file");
        let error = replace(&NewFile::new(path, b"", 0o600)).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), ("cannot open /proc/none", io::ErrorKind::NotFound));
    }

    #[test]
    fn a_power_cut_at_any_step_leaves_each_file_old_or_new_and_the_first_ones_new() {
        let mut cuts = 0;
        loop {
            let disk = disk();
            let paths = ["a", "b", "c"].map(|name| disk.path().join(name));
            let files = |content: &'static [u8]| paths.each_ref().map(|path| NewFile::new(path, content, 0o600));
            replace_all(&files(b"the old one")).unwrap();
            let supply = Supply::cut(disk.path(), cuts);
            let outcome = replace_all(&files(b"the new one"));
            let gone = supply.has_gone();
            assert_eq!(outcome.is_err(), gone, "cut {cuts}");
            assert!(!gone || replace_all(&files(b"after its end")).is_err(), "a machine without power wrote");
            drop(supply);
            let found = paths.each_ref().map(|path| read(path));
            let new = found.iter().take_while(|content| *content == "the new one").count();
            assert!(found[new..].iter().all(|content| content == "the old one"), "cut {cuts}: {found:?}");
            // And what it has left beside is in nobody's way.
            replace_all(&files(b"the next one")).unwrap();
            assert!(paths.iter().all(|path| read(path) == "the next one"));
            if !gone {
                break;
            }
            cuts += 1;
        }
        // Before the first, in the middle of each, before each gets its name, and before the names are on the disk.
        assert_eq!(cuts, 8);
    }

    #[test]
    fn a_link_is_gone_or_right_after_a_power_cut() {
        for cut in 0..2 {
            let disk = disk();
            let (path, other) = (disk.path().join("file"), disk.path().join("other"));
            fs::write(&path, "new").unwrap();
            fs::write(&other, "old").unwrap();
            let supply = Supply::cut(disk.path(), cut);
            link(&path, &other).unwrap_err();
            drop(supply);
            assert_eq!(read(&other), ["old", ""][cut]);
            link(&path, &other).unwrap();
            assert_eq!(read(&other), "new");
        }
    }
}
