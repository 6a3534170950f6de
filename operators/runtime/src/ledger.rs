//! What was accepted last, kept on the state partition.
//!
//! One file per kind, `machine.json` and `cluster.json`, and for each the one before, `machine.previous.json`. The first
//! line holds the SHA-256 of the rest. After a power cut there is the old or the new content. A file that is damaged anyway is
//! told apart by its digest; then the one before counts.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use garboard_sys::durable::{self, NewFile};
use serde::{Deserialize, Serialize};

use crate::kind::Kind;
use crate::precedence::Recorded;

/// The ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An object cannot be written as JSON.
    #[error("cannot write {} as JSON", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The machine has left its cluster.
    #[error("{} is no longer recorded: the machine leaves its cluster", .0.display())]
    Closed(PathBuf),
    /// A file is there but holds nothing that can be used, nor does the one before.
    #[error("{} is damaged, and so is the one before it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// An accepted object and how it came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry<K> {
    /// The object without its status.
    pub object: K,
    /// Digest of the local manifest that was seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_digest: Option<String>,
    /// Whether the API server has yet to be told.
    #[serde(default)]
    pub pending: bool,
}

impl<K: Kind> Entry<K> {
    /// What decisions need to know of it.
    pub fn recorded(&self) -> Recorded {
        let ends = self.object.ends_with_its_object();
        Recorded { local_digest: self.local_digest.clone(), pending: self.pending, ends }
    }
}

/// The folder of accepted objects.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
    /// Nothing is recorded any more: shared by all clones.
    closed: Arc<AtomicBool>,
}

impl Ledger {
    /// The ledger in a folder, which is made when something is written.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), closed: Arc::default() }
    }

    /// The entry of a kind; none when nothing was ever accepted.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`].
    pub fn load<K: Kind>(&self) -> Result<Option<Entry<K>>, LedgerError> {
        self.read(K::FILE)
    }

    /// Whether an object of a kind was ever accepted, be its file damaged or not.
    pub fn holds<K: Kind>(&self) -> bool {
        [self.path(K::FILE), self.previous(K::FILE)].iter().any(|path| path.exists())
    }

    /// Records what is accepted now.
    ///
    /// # Errors
    /// [`LedgerError`]; what was recorded before is still there.
    pub fn store<K: Kind>(&self, entry: &Entry<K>) -> Result<(), LedgerError> {
        self.write(K::FILE, entry)
    }

    /// Something else that must outlast a power cut, by name.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`].
    pub fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, LedgerError> {
        let path = self.path(name);
        let mut exists = false;
        for path in [&path, &self.previous(name)] {
            if let Ok(bytes) = fs::read(path) {
                exists = true;
                if let Some(entry) = decode(&bytes) {
                    return Ok(Some(entry));
                }
                tracing::warn!(path = %path.display(), "damaged file of the ledger");
            }
        }
        if exists { Err(LedgerError::Damaged { path }) } else { Ok(None) }
    }

    /// Records something by name.
    ///
    /// # Errors
    /// [`LedgerError`]; what was recorded before is still there.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), LedgerError> {
        let path = self.path(name);
        if self.closed.load(Ordering::Acquire) {
            return Err(LedgerError::Closed(path));
        }
        let bytes = encode(value).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
        self.replace(&path, &self.previous(name), &bytes).map_err(|source| LedgerError::Write { path, source })
    }

    /// Forgets everything, and records nothing from now on.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(&self) -> io::Result<()> {
        self.closed.store(true, Ordering::Release);
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn previous(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.previous.json"))
    }

    fn replace(&self, path: &Path, previous: &Path, bytes: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let new = durable::write(&[NewFile::new(path, bytes, 0o600)])?;
        // Only what is whole becomes the one before; a link keeps `path` in place at every moment.
        if fs::read(path).is_ok_and(|bytes| is_whole(&bytes)) {
            durable::link(path, previous)?;
        }
        Ok(new.replace()?)
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = serde_json::to_vec_pretty(value)?;
    body.push(b'\n');
    let mut bytes = digest(&body).into_bytes();
    bytes.push(b'\n');
    bytes.append(&mut body);
    Ok(bytes)
}

fn body(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, rest) = bytes.split_at(end);
    let body = rest.get(1..)?;
    (head == digest(body).as_bytes()).then_some(body)
}

fn is_whole(bytes: &[u8]) -> bool {
    body(bytes).is_some()
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(body(bytes)?).ok()?).ok()
}

/// The SHA-256 of bytes, as `sha256:` and hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or_default());
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or_default());
        text
    })
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
