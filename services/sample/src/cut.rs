//! A power cut at a chosen step of what a machine writes.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::Outcome;

/// Restarts the machine at once when `b` is written to it: nothing is written to its disk first (kernel: admin-guide/sysrq.rst).
const TRIGGER: &str = "/proc/sysrq-trigger";

/// Lets so many files below a folder get their names, or be removed, and restarts the machine at the next.
pub fn cut(steps: usize, folder: &str) -> Outcome {
    // Opened before, so that nothing but one write is between the step and the end.
    let trigger = OpenOptions::new().write(true).open(TRIGGER);
    let mut trigger = trigger.map_err(|error| format!("opening {TRIGGER}: {error}"))?;
    let mut watcher = Watcher::new()?;
    watcher.follow(Path::new(folder))?;
    println!("watching");
    let mut seen = 0;
    while seen <= steps {
        seen += watcher.steps()?;
    }
    trigger.write_all(b"b").map_err(|error| format!("writing to {TRIGGER}: {error}"))
}

/// Watches folders for files that are whole: those that are renamed to their names.
struct Watcher {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
}

impl Watcher {
    fn new() -> Result<Self, String> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|error| format!("watching folders: {error}"))?;
        Ok(Self { inotify, folders: HashMap::new() })
    }

    /// Watches a folder and those below it.
    fn follow(&mut self, folder: &Path) -> Outcome {
        let failed = |error: &dyn std::fmt::Display| format!("watching {}: {error}", folder.display());
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        let descriptor = self.inotify.add_watch(folder, events).map_err(|error| failed(&error))?;
        self.folders.insert(descriptor, folder.to_owned());
        for entry in fs::read_dir(folder).map_err(|error| failed(&error))?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.follow(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits for events, and says how many of them are steps.
    fn steps(&mut self) -> Result<usize, String> {
        let events = self.inotify.read_events().map_err(|error| format!("watching folders: {error}"))?;
        let mut steps = 0;
        for event in events {
            match (event.mask.contains(AddWatchFlags::IN_ISDIR), self.path(&event)) {
                // It may be gone again.
                (true, Some(folder)) if folder.is_dir() => self.follow(&folder)?,
                (true, _) => {}
                (false, _) => steps += usize::from(!event.mask.contains(AddWatchFlags::IN_CREATE)),
            }
        }
        Ok(steps)
    }

    fn path(&self, event: &InotifyEvent) -> Option<PathBuf> {
        Some(self.folders.get(&event.wd)?.join(event.name.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_gets_its_name_is_a_step_and_so_is_its_end() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let below = folder.path().join("below");
        let mut watcher = Watcher::new()?;
        watcher.follow(folder.path())?;
        fs::create_dir(&below)?;
        assert_eq!(watcher.steps()?, 0, "a folder");
        fs::write(below.join("new"), "")?;
        assert_eq!(watcher.steps()?, 0, "a file that is not whole");
        fs::rename(below.join("new"), below.join("file"))?;
        assert_eq!(watcher.steps()?, 1);
        fs::remove_file(below.join("file"))?;
        assert_eq!(watcher.steps()?, 1);
        Ok(())
    }
}
