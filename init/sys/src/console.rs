//! The consoles that a person may look at: every active one, serial or screen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A console could not be opened or found.
#[derive(Debug, thiserror::Error)]
#[error("cannot use console {path}")]
pub struct ConsoleError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// All active consoles.
#[derive(Debug, Default)]
pub struct Consoles(Vec<(PathBuf, File)>);

impl Consoles {
    /// Opens every console that the kernel writes to (`/sys/class/tty/console/active`), or `/dev/console` when that cannot be told.
    ///
    /// # Errors
    /// When none can be opened.
    pub fn open() -> Result<Self, ConsoleError> {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut paths: Vec<PathBuf> = active.split_whitespace().map(device_of).collect();
        if paths.is_empty() {
            paths.push("/dev/console".into());
        }
        let mut first_error = None;
        let mut opened = Vec::with_capacity(paths.len());
        for path in paths {
            match open(&path) {
                Ok(file) => opened.push((path, file)),
                Err(source) => {
                    first_error.get_or_insert(ConsoleError { path, source });
                }
            }
        }
        match first_error {
            Some(error) if opened.is_empty() => Err(error),
            _ => Ok(Self(opened)),
        }
    }

    /// Devices of the consoles.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// Writes text to all of them. Never waits: what a stopped or slow line does not take is dropped, for nobody reads there.
    pub fn write(&mut self, text: &str) {
        for (_, file) in &mut self.0 {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                match file.write(rest) {
                    Ok(0) => break,
                    Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// The kernel's name for the console on the screen is tty0, the terminal now in front; ours stays on the first.
fn device_of(name: &str) -> PathBuf {
    Path::new("/dev").join(if name == "tty0" { "tty1" } else { name })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn screen_console_is_the_first_terminal() {
        for (name, path) in [("tty0", "/dev/tty1"), ("ttyS0", "/dev/ttyS0"), ("hvc0", "/dev/hvc0")] {
            assert_eq!(device_of(name), Path::new(path));
        }
    }
}
