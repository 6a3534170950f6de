//! Power cuts, for tests: the power of a machine goes at a step of its writing, and from then on nothing of it reaches its disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static MACHINES: Mutex<Vec<Machine>> = Mutex::new(Vec::new());

struct Machine {
    disk: PathBuf,
    /// Steps until the power goes; none when it has gone.
    left: Option<usize>,
}

/// The power of one machine, which is back when this is dropped.
#[derive(Debug)]
pub struct Supply {
    disk: PathBuf,
}

impl Supply {
    /// Has the power of the machine go whose disk is this folder, after so many steps of its writing. Everything below the folder that is
    /// written by this module, by whatever thread, is of that machine.
    ///
    /// A step is what a power cut can come before: the writing of files, the whole content of each, each name, each flush of a folder, each
    /// removal. A content that is cut is half of it.
    pub fn cut(disk: &Path, steps: usize) -> Self {
        machines().push(Machine { disk: disk.to_owned(), left: Some(steps) });
        Self { disk: disk.to_owned() }
    }

    /// Whether the power has gone.
    pub fn has_gone(&self) -> bool {
        machines().iter().any(|machine| machine.disk == self.disk && machine.left.is_none())
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        machines().retain(|machine| machine.disk != self.disk);
    }
}

fn machines() -> MutexGuard<'static, Vec<Machine>> {
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What can be cut off here.
enum Step {
    Next,
    /// The power goes now.
    Cut,
    Gone,
}

fn next(path: &Path) -> Step {
    let mut machines = machines();
    let Some(machine) = machines.iter_mut().find(|machine| path.starts_with(&machine.disk)) else { return Step::Next };
    let step = match machine.left {
        Some(0) => Step::Cut,
        Some(_) => Step::Next,
        None => Step::Gone,
    };
    machine.left = machine.left.and_then(|left| left.checked_sub(1));
    step
}

fn gone() -> io::Error {
    io::Error::other("the power has gone")
}

/// Something is about to be changed on the disk.
pub(super) fn step(path: &Path) -> io::Result<()> {
    match next(path) {
        Step::Next => Ok(()),
        Step::Cut | Step::Gone => Err(gone()),
    }
}

/// What of a content is written, and whether there is power then.
pub(super) fn written<'a>(path: &Path, content: &'a [u8]) -> (&'a [u8], io::Result<()>) {
    match next(path) {
        Step::Next => (content, Ok(())),
        Step::Cut => (&content[..content.len() / 2], Err(gone())),
        Step::Gone => (&[], Err(gone())),
    }
}
