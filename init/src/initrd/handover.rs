//! From the initrd's root to the verified one.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use garboard_sys::mount;

use super::FirstStageError;
use crate::boot::{self, BootFacts};

const INIT: &str = "/sbin/init";

/// Mounts that PID 1 goes on with.
const MOVED: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

/// Leaves the facts for PID 1, makes the mounted root the root of everything, frees the initrd's memory and becomes PID 1.
///
/// # Errors
/// [`FirstStageError::HandOver`] and [`FirstStageError::Mount`], by step.
pub fn run(sysroot: &str, facts: &BootFacts) -> Result<Infallible, FirstStageError> {
    let failed = |step| move |source| FirstStageError::HandOver { step, source };
    let json = serde_json::to_vec(facts).map_err(io::Error::other).map_err(failed("write what was found"))?;
    let path = Path::new(boot::PATH);
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory).and_then(|()| fs::write(path, json)).map_err(failed("write what was found"))?;

    for directory in MOVED {
        mount::move_to(Path::new(directory), Path::new(&format!("{sysroot}{directory}")))?;
    }
    let device = fs::symlink_metadata("/").map_err(failed("look at the initrd"))?.dev();
    std::env::set_current_dir(sysroot).map_err(failed("enter the root"))?;
    erase(Path::new("/"), device);
    // The initrd's root cannot be pivoted away or unmounted; the new one is moved over it.
    mount::move_to(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").map_err(io::Error::from).map_err(failed("change to the root"))?;
    std::env::set_current_dir("/").map_err(failed("enter the root"))?;
    Err(FirstStageError::HandOver { step: "start /sbin/init", source: Command::new(INIT).exec() })
}

/// Deletes what lies in the initrd's own file system, to free its memory; what cannot be deleted stays.
fn erase(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.dev() != device => {}
            Ok(found) if found.is_dir() => {
                erase(&path, device);
                let _ = fs::remove_dir(&path);
            }
            Ok(_) => {
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
}
