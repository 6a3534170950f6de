//! Tells when a file changes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Tells when one of the files that matter changes: their directories are watched, because a file that is replaced is
/// another file.
#[derive(Debug)]
pub struct Files {
    inotify: AsyncFd<OwnedFd>,
    directories: BTreeSet<PathBuf>,
}

impl Files {
    /// Watches nothing yet. Must be used within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no descriptor for it.
    pub fn watch() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its unsafe successor asks for what an OwnedFd grants: the descriptor stays open"
        )]
        let inotify = AsyncFd::new(inotify)?;
        Ok(Self { inotify, directories: BTreeSet::new() })
    }

    /// Watches this too. What a path leads to by links is watched where it lies.
    ///
    /// # Errors
    /// When the directory is not there or may not be read; the others are watched still.
    pub fn follow(&mut self, path: &Path) -> io::Result<()> {
        let real = fs::canonicalize(path).or_else(|_| fs::read_link(path)).unwrap_or_else(|_| path.to_owned());
        for path in [path, real.as_path()] {
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            let events = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            if !self.directories.contains(&directory) {
                inotify::add_watch(self.inotify.get_ref(), &directory, events)?;
                self.directories.insert(directory);
            }
        }
        Ok(())
    }

    /// Waits for a change. Cancel-safe: it waits for readiness and takes events only when it returns.
    ///
    /// # Errors
    /// When the kernel's descriptor cannot be waited for.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.inotify.readable().await?;
        // Which file it was does not matter: they are all read again.
        let mut events = [0; 4096];
        while rustix::io::read(self.inotify.get_ref(), &mut events).is_ok() {}
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn a_file_that_is_replaced_is_a_change_also_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (near, far) = (folder.path().join("near"), folder.path().join("far"));
        fs::create_dir_all(&near).unwrap();
        fs::create_dir_all(&far).unwrap();
        fs::write(far.join("file"), "1").unwrap();
        std::os::unix::fs::symlink(far.join("file"), near.join("file")).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut files = Files::watch().unwrap();
            files.follow(&near.join("file")).unwrap();
            assert!(timeout(Duration::from_millis(50), files.changed()).await.is_err(), "nothing has changed");
            for (name, target) in [("behind the link", &far), ("the link", &near)] {
                fs::write(target.join("new"), "2").unwrap();
                fs::rename(target.join("new"), target.join("file")).unwrap();
                timeout(Duration::from_secs(5), files.changed()).await.expect(name).unwrap();
            }
        });
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let missing = runtime.block_on(async { Files::watch().unwrap().follow(&folder.path().join("no/file")) });
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
