//! A TPM in memory: swtpm, which real machines emulate theirs with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Reached, Tpm};

/// What it listens at, in its folder.
const SOCKET: &str = "server.sock";
/// Longest time that the emulator may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A TPM that ends when this is dropped, and all its keys with it unless its folder stays.
#[derive(Debug)]
pub struct Emulator {
    folder: PathBuf,
    swtpm: Child,
    _temporary: Option<TempDir>,
}

impl Emulator {
    /// Starts a new TPM.
    ///
    /// # Errors
    /// When swtpm is not installed, or does not start.
    pub fn start() -> io::Result<Self> {
        let temporary = TempDir::new()?;
        Self::launch(temporary.path().to_path_buf(), Some(temporary))
    }

    /// Starts the TPM whose state is in this folder, or a new one if there is none.
    ///
    /// # Errors
    /// Those of [`Emulator::start`].
    pub fn start_in(folder: &Path) -> io::Result<Self> {
        Self::launch(folder.to_path_buf(), None)
    }

    fn launch(folder: PathBuf, temporary: Option<TempDir>) -> io::Result<Self> {
        let (path, socket) = (folder.display(), folder.join(SOCKET));
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let swtpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={path}"), "--server", &format!("type=unixio,path={path}/{SOCKET}")])
            .stdin(Stdio::null())
            // It tells of every client that goes.
            .stderr(Stdio::null())
            .spawn()?;
        let mut emulator = Self { folder, swtpm, _temporary: temporary };
        let began = Instant::now();
        while !socket.exists() {
            if let Some(status) = emulator.swtpm.try_wait()? {
                return Err(io::Error::other(format!("swtpm has ended with {status}")));
            }
            if began.elapsed() > LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(emulator)
    }

    /// How to reach it.
    pub fn tpm(&self) -> Tpm {
        Tpm(Reached::Socket(self.folder.join(SOCKET)))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // One that has ended by itself is as good.
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
    }
}
