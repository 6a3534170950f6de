//! A machine's TPM, emulated by swtpm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use garboard_tpm::testing::Emulator;

use crate::wait;

/// Longest time that it may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// The SHA-256 of the endorsement key of the TPM of this folder, which is off, as a Machine names it.
pub(crate) fn endorsement_key(folder: &Path) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let emulator = Emulator::start_in(folder).context("start swtpm")?;
    let key = emulator.tpm().endorsement_key().context("ask for the endorsement key")?;
    let digits: String = key.digest().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{digits}"))
}

/// One that is on. What it keeps is in a folder, and outlives it as it outlives a chip without power.
pub(crate) struct Tpm {
    swtpm: Child,
    socket: PathBuf,
}

impl Tpm {
    /// Powers on the TPM of this folder, a new one if the folder is.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let socket = folder.join("control.sock");
        if socket.exists() {
            fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
        }
        let swtpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate", &format!("dir={}", folder.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.join("swtpm.log")).context("make swtpm.log")?)
            .spawn()
            .context("start swtpm: is it installed? tests/run installs it")?;
        let tpm = Self { swtpm, socket };
        wait::until("swtpm to listen", LIMIT, || {
            if tpm.socket.exists() { Ok(()) } else { Err("it does not".to_owned()) }
        })?;
        Ok(tpm)
    }

    /// What connects QEMU to it.
    pub(crate) fn arguments(&self) -> [String; 6] {
        let socket = format!("socket,id=tpm,path={}", self.socket.display());
        ["-chardev", &socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
            .map(str::to_owned)
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // It ends by itself when QEMU does.
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
    }
}
