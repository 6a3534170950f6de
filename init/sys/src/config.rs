//! The configuration file of a daemon: a JSON document that is only ever replaced as a whole.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A configuration file is usually not longer, bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not the JSON that it should be.
    #[error("not a configuration")]
    Syntax(#[from] serde_json::Error),
    /// A field has a value that cannot be used.
    #[error("{field}: {reason}")]
    Field {
        /// The field, as `listen[0]`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// The error of a field.
    pub fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}

/// Reads a file and has it checked by `parse`; `None` when there is none yet.
///
/// # Errors
/// When it cannot be read or used.
pub fn load<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, ConfigError>) -> Result<Option<T>, ConfigError> {
    load_within(MAX_BYTES, path, parse)
}

/// The same of a file that has at most so many bytes.
///
/// # Errors
/// When it is longer, or cannot be read or used.
pub fn load_within<T>(
    max_bytes: u64,
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, ConfigError>,
) -> Result<Option<T>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let length = file.take(max_bytes + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > max_bytes {
        return Err(failed(io::Error::other(format!("it is longer than {max_bytes} bytes"))));
    }
    parse(&text).map(Some)
}

/// Reads each text of the list that is the value of `field`; `wanted` says what they should be.
///
/// # Errors
/// [`ConfigError::Field`] of the first that is something else.
pub fn each<T: FromStr>(field: &str, texts: &[String], wanted: &str) -> Result<Vec<T>, ConfigError> {
    let read = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| ConfigError::field(format!("{field}[{index}]"), format!("{text:?} is not {wanted}")))
    };
    texts.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_absent_checked_or_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let parse = |text: &str| Ok(serde_json::from_str::<u8>(text)?);
        assert!(matches!(load(&path, parse), Ok(None)));
        std::fs::write(&path, "7").unwrap();
        assert!(matches!(load(&path, parse), Ok(Some(7))));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(load(&path, parse), Err(ConfigError::Syntax(_))));
        let unreadable = load(directory.path(), parse).unwrap_err();
        assert!(unreadable.to_string().contains(directory.path().to_str().unwrap()), "{unreadable}");
    }

    #[test]
    fn the_error_of_a_list_names_the_item() {
        let texts = ["1", "2", "x"].map(str::to_owned);
        assert_eq!(each::<u8>("ports", &texts[..2], "a port").unwrap(), [1, 2]);
        assert_eq!(each::<u8>("ports", &texts, "a port").unwrap_err().to_string(), "ports[2]: \"x\" is not a port");
    }
}
