//! A TPM in memory: swtpm, which real machines emulate theirs with.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Reached, Tpm};

/// Longest time that the emulator may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A TPM that ends when this is dropped, and all its keys with it.
#[derive(Debug)]
pub struct Emulator {
    folder: TempDir,
    swtpm: Child,
}

impl Emulator {
    /// Starts a new TPM.
    ///
    /// # Errors
    /// When swtpm is not installed, or does not start.
    pub fn start() -> io::Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().display();
        let swtpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={path}"), "--server", &format!("type=unixio,path={path}/socket")])
            .stdin(Stdio::null())
            // It tells of every client that goes.
            .stderr(Stdio::null())
            .spawn()?;
        let mut emulator = Self { folder, swtpm };
        let socket = emulator.folder.path().join("socket");
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
        Tpm(Reached::Socket(self.folder.path().join("socket")))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // One that has ended by itself is as good.
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
    }
}
