//! Files below `/run`: they outlast the agent and pass with the machine's run, so they are replaced and not synced.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// What an earlier run of the agent left. What cannot be read is as good as nothing.
pub fn load<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(file = %file.display(), %error, "what was stored before cannot be read");
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(|error| warn!(file = %file.display(), %error, "what was stored before is not understood"))
        .ok()
}

/// Leaves something for a later run of the agent.
///
/// # Errors
/// Those of [`replace`].
pub fn store<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    replace(file, &serde_json::to_vec(value)?)
}

/// Puts a file in place at once: a reader sees the old or the new content. It lives in memory, so it is not synced.
///
/// # Errors
/// When the directory is missing or full.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::File::create(&temporary)?.write_all(content)?;
    fs::rename(&temporary, path)
}
