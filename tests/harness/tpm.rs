//! A machine's TPM, emulated by swtpm.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use garboard_tpm::testing::{Emulator, Swtpm};

/// The SHA-256 of the endorsement key of the TPM of this folder, which is off, as a Machine names it.
pub(crate) fn endorsement_key(folder: &Path) -> Result<String> {
    make(folder)?;
    let emulator = Emulator::start_in(folder).context("start swtpm")?;
    let key = emulator.tpm().endorsement_key().context("ask for the endorsement key")?;
    let digits: String = key.digest().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{digits}"))
}

/// Powers on the TPM of this folder, a new one if the folder is. It ends with the QEMU that is connected to it.
pub(crate) fn start(folder: &Path) -> Result<Swtpm> {
    make(folder)?;
    Swtpm::start(folder, "ctrl", &["--terminate"]).context("start swtpm: is it installed? tests/run installs it")
}

/// What connects QEMU to it.
pub(crate) fn arguments(swtpm: &Swtpm) -> [String; 6] {
    let socket = format!("socket,id=tpm,path={}", swtpm.socket().display());
    ["-chardev", &socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
        .map(str::to_owned)
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}
