//! A TPM in memory: swtpm, which real machines emulate theirs with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Reached, Tpm};

/// Longest time that the emulator may take to start.
const LIMIT: Duration = Duration::from_secs(20);
/// The flags of a socket that listens (`__SO_ACCEPTCON`, linux/net.h).
const LISTENING: &str = "00010000";

/// One that runs. Its state is in a folder, and outlives it as it outlives a chip without power.
#[derive(Debug)]
pub struct Swtpm {
    socket: PathBuf,
    process: Child,
}

impl Swtpm {
    /// Starts the TPM whose state is in this folder, or a new one if there is none. It listens at a socket there, on the channel of this
    /// name: `server` for commands, `ctrl` for who emulates a machine.
    ///
    /// # Errors
    /// When swtpm is not installed, or does not start.
    pub fn start(folder: &Path, channel: &str, options: &[&str]) -> io::Result<Self> {
        let socket = folder.join(format!("{channel}.sock"));
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2"])
            .args(options)
            .args(["--tpmstate", &format!("dir={}", folder.display())])
            .args([&format!("--{channel}"), &format!("type=unixio,path={}", socket.display())])
            .stdin(Stdio::null())
            // It tells of every client that goes.
            .stderr(fs::File::create(folder.join("swtpm.log"))?)
            .spawn()?;
        let mut swtpm = Self { socket, process };
        let began = Instant::now();
        while !listens(&swtpm.socket)? {
            if let Some(status) = swtpm.process.try_wait()? {
                return Err(io::Error::other(format!("swtpm has ended with {status}")));
            }
            if began.elapsed() > LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(swtpm)
    }

    /// What it listens at.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// Whether somebody listens at a socket (`/proc/net/unix`), without a connection: swtpm may end with the first.
fn listens(socket: &Path) -> io::Result<bool> {
    let sockets = fs::read_to_string("/proc/net/unix")?;
    // The flags are the fourth column, and the path the last.
    let at = |line: &&str| line.split_ascii_whitespace().last().map(Path::new) == Some(socket);
    Ok(sockets.lines().filter(at).any(|line| line.split_ascii_whitespace().nth(3) == Some(LISTENING)))
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // One that has ended by itself is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A TPM that ends when this is dropped, and all its keys with it unless its folder stays.
#[derive(Debug)]
pub struct Emulator {
    swtpm: Swtpm,
    _temporary: Option<TempDir>,
}

impl Emulator {
    /// Starts a new TPM.
    ///
    /// # Errors
    /// Those of [`Swtpm::start`].
    pub fn start() -> io::Result<Self> {
        let temporary = TempDir::new()?;
        let emulator = Self::start_in(temporary.path())?;
        Ok(Self { _temporary: Some(temporary), ..emulator })
    }

    /// Starts the TPM whose state is in this folder, or a new one if there is none.
    ///
    /// # Errors
    /// Those of [`Swtpm::start`].
    pub fn start_in(folder: &Path) -> io::Result<Self> {
        let swtpm = Swtpm::start(folder, "server", &["--flags", "not-need-init,startup-clear"])?;
        Ok(Self { swtpm, _temporary: None })
    }

    /// How to reach it.
    pub fn tpm(&self) -> Tpm {
        Tpm(Reached::Socket(self.swtpm.socket().to_path_buf()))
    }
}
